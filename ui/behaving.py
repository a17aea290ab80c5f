"""`glassbox behave`: what a model's answers say of it, and what several models do on the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ui.arguments import JsonOption
from ui.probing import Model, Out, Seed, told

if TYPE_CHECKING:
    from activations.behaviour import Answering

app = typer.Typer(
    name="behave",
    help="What a model's answers say of it: what they hang on, how sure and right they are, where they fail, cost.",
    no_args_is_help=True,
)
NewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most.")]
Stop = Annotated[str, typer.Option("--stop", help="Text that ends an answer; \\n is a line end, empty for none.")]
Samples = Annotated[int, typer.Option("--samples", min=2, help="Answers that are drawn.")]
Temperature = Annotated[float, typer.Option("--temperature", help="Of sampled answers.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="One text a line, or .jsonl records; see below.")]


def _answering(model: str, max_new_tokens: int, stop: str) -> Answering:
    from activations import LanguageModel
    from activations.behaviour import Answering

    ends = stop.replace("\\n", "\n") or None
    return Answering(LanguageModel.load(model), max_new_tokens=max_new_tokens, stop=ends)


def _lines(path: Path) -> list[str]:
    """The texts of a file: lines, or the `text` of JSON records."""
    if path.suffix == ".jsonl":
        return [str(record["text"]) for record in _records(path, "text")]
    found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path} holds no texts, expected one a line: check the file")
    return found


def _records(path: Path, *needed: str) -> list[dict[str, Any]]:
    """JSON records that have what is needed."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is no JSON ({error.msg}), expected a record: mend it") from None
        lacking = [key for key in needed if not isinstance(record, dict) or key not in record]
        if lacking:
            raise ValueError(f"line {number} of {path} has no {lacking[0]!r}, expected {', '.join(needed)}: add it")
        found.append(record)
    if not found:
        raise ValueError(f"{path} holds no records, expected JSON lines with {', '.join(needed)}: check the file")
    return found


@app.command()
def importance(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model answers.")],
    model: Model,
    by: Annotated[str, typer.Option("--by", help="word, sentence or line.")] = "word",
    substitute: Annotated[
        list[str] | None, typer.Option("--substitute", help="Put this in a part's place; may be repeated.")
    ] = None,
    max_new_tokens: NewTokens = 20,
    stop: Stop = "\\n",
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Score the parts of a text by what the answer loses without them.

    [dim]glassbox behave importance "import os\\nimport" --model embedded[/dim]
    """
    from activations.behaviour import part_importance
    from ui.render import behaviour

    asked = _answering(model, max_new_tokens, stop)
    told(behaviour.IMPORTANCE, part_importance(asked, text, by=by, substitute=substitute), out, as_json)


@app.command()
def consistency(
    file: File,
    template: Annotated[list[str], typer.Option("--template", help="A question with {} for the subject; repeat.")],
    model: Model,
    max_new_tokens: NewTokens = 8,
    stop: Stop = "\\n",
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the same of many subjects in several ways, and count how often the answers agree.

    FILE holds a subject a line, or .jsonl records with `subject` and perhaps `expected`.

    [dim]glassbox behave consistency subjects.jsonl --template "The capital of {} is" --template "{}, whose capital is"
    --model M[/dim]
    """
    from activations.behaviour import check_consistency
    from ui.render import behaviour

    records = _records(file, "subject") if file.suffix == ".jsonl" else [{"subject": line} for line in _lines(file)]
    known = [record.get("expected") for record in records]
    expected = [str(each) for each in known] if all(each is not None for each in known) else None
    asked = _answering(model, max_new_tokens, stop)
    subjects = [str(record["subject"]) for record in records]
    told(behaviour.CONSISTENCY, check_consistency(asked, template, subjects, expected=expected), out, as_json)


@app.command()
def knowledge(
    file: File,
    template: Annotated[list[str], typer.Option("--template", help="A question with {} for the subject; repeat.")],
    model: Model,
    samples: Samples = 4,
    temperature: Temperature = 0.5,
    max_new_tokens: NewTokens = 8,
    stop: Stop = "\\n",
    seed: Seed = 0,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Sort facts into known, maybe known, weakly known and unknown.

    FILE holds .jsonl records with `subject` and `expected`.

    [dim]glassbox behave knowledge facts.jsonl --template "The capital of {} is" --model M[/dim]
    """
    from activations.behaviour import knowledge_boundaries
    from ui.render import behaviour

    facts = {str(record["subject"]): str(record["expected"]) for record in _records(file, "subject", "expected")}
    asked = _answering(model, max_new_tokens, stop)
    found = knowledge_boundaries(asked, template, facts, samples=samples, temperature=temperature, seed=seed)
    told(behaviour.KNOWLEDGE, found, out, as_json)


@app.command()
def confidence(file: File, model: Model, out: Out = None, as_json: JsonOption = False) -> None:
    """Tell how sure a model is of what follows each text of a file.

    [dim]glassbox behave confidence texts.txt --model embedded --out confidence.html[/dim]
    """
    from activations.behaviour import measure_confidence
    from ui.render import behaviour

    told(behaviour.CONFIDENCE, measure_confidence(_answering(model, 1, ""), _lines(file)), out, as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="TEXT_A")],
    second: Annotated[str, typer.Argument(metavar="TEXT_B")],
    model: Model,
    max_new_tokens: NewTokens = 20,
    stop: Stop = "\\n",
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a model's outputs on two texts against each other.

    [dim]glassbox behave compare "for x in range(" "for x in sorted(" --model embedded[/dim]
    """
    from activations.behaviour import compare_outputs
    from ui.render import behaviour

    asked = _answering(model, max_new_tokens, stop)
    told(behaviour.OUTPUTS, compare_outputs(asked, [first], [second]), out, as_json)


@app.command()
def calibration(
    file: File,
    model: Model,
    bins: Annotated[int, typer.Option("--bins", min=1, help="Bins of the reliability diagram.")] = 10,
    by: Annotated[str, typer.Option("--by", help="Bins of equal width, or count (as many answers in each).")] = "width",
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Ask whether the probabilities of a model's first choices are true, over every token of the texts of a file.

    [dim]glassbox behave calibration texts.txt --model embedded --out calibration.html[/dim]
    """
    from activations import LanguageModel
    from activations.behaviour import next_token_calibration
    from ui.render import behaviour

    found = next_token_calibration(LanguageModel.load(model), _lines(file), bins=bins, by=by)
    told(behaviour.CALIBRATION, found, out, as_json)


@app.command()
def entropy(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model answers.")],
    model: Model,
    samples: Samples = 10,
    temperature: Temperature = 1.0,
    max_new_tokens: NewTokens = 20,
    stop: Stop = "\\n",
    seed: Seed = 0,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Draw answers and measure how many different things the model would say (semantic entropy, by words).

    [dim]glassbox behave entropy "import" --model embedded --samples 20[/dim]
    """
    from activations.behaviour import semantic_entropy
    from ui.render import behaviour

    asked = _answering(model, max_new_tokens, stop)
    found = semantic_entropy(asked, text, samples=samples, temperature=temperature, seed=seed)
    told(behaviour.ENTROPY, found, out, as_json)


@app.command()
def selfcheck(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model answers.")],
    model: Model,
    samples: Samples = 5,
    n: Annotated[int, typer.Option("--n", min=1, help="Words of an n-gram.")] = 1,
    temperature: Temperature = 1.0,
    max_new_tokens: NewTokens = 40,
    stop: Stop = "",
    seed: Seed = 0,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Hold an answer against other samples of the same model: what they do not support may be made up.

    [dim]glassbox behave selfcheck "This module" --model embedded[/dim]
    """
    from activations.behaviour import selfcheck as held_against_samples
    from ui.render import behaviour

    asked = _answering(model, max_new_tokens, stop)
    found = held_against_samples(asked, text, samples=samples, n=n, temperature=temperature, seed=seed)
    told(behaviour.SELFCHECK, found, out, as_json)


@app.command()
def reasoning(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What the model is to think about.")],
    model: Model,
    given: Annotated[
        str | None, typer.Option("--reasoning", metavar="TEXT", help="Reasoning (default: what the model writes).")
    ] = None,
    ask_for: Annotated[
        str, typer.Option("--ask-for", metavar="TEXT", help="What asks for the answer behind the reasoning.")
    ] = "\\nSo the answer is",
    max_new_tokens: NewTokens = 40,
    stop: Stop = "\\n",
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Cut and spoil the reasoning before an answer: does the answer hang on it?

    [dim]glassbox behave reasoning "Tom has 3 apples and buys 4. " --reasoning "He had 3. Now there are 3 + 4 = 7."
    --model M[/dim]
    """
    from activations.behaviour import reasoning_faithfulness
    from ui.render import behaviour

    asked = _answering(model, max_new_tokens, stop)
    found = reasoning_faithfulness(asked, question, reasoning=given, ask_for=ask_for.replace("\\n", "\n"))
    told(behaviour.REASONING, found, out, as_json)


@app.command()
def failures(
    file: File,
    model: Model,
    max_new_tokens: NewTokens = 20,
    stop: Stop = "\\n",
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Find the texts that a model answers wrongly, and the kinds of text on which it does so more often.

    FILE holds .jsonl records with `text`, `expected` (what a right answer begins with) and perhaps `tags`.

    [dim]glassbox behave failures questions.jsonl --model M --out failures.html[/dim]
    """
    from activations.behaviour import failure_report
    from ui.render import behaviour

    records = _records(file, "text", "expected")
    tags = [[str(tag) for tag in record.get("tags") or []] for record in records]
    found = failure_report(
        _answering(model, max_new_tokens, stop),
        [str(record["text"]) for record in records],
        [str(record["expected"]) for record in records],
        tags=tags if any(tags) else None,
    )
    told(behaviour.FAILURES, found, out, as_json)


@app.command()
def models(
    file: File,
    model: Annotated[list[str], typer.Option("--model", metavar="M", help="Local folder or hub name; two or more.")],
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Hold several models against each other on the same texts: predictions, and how alike their layers are (CKA).

    [dim]glassbox behave models texts.txt --model A --model B --out models.html[/dim]
    """
    from activations import LanguageModel
    from activations.behaviour import compare_models
    from ui.render import behaviour

    texts = _lines(file)
    names = [name if model.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(model)]
    opened = {name: LanguageModel.load(given) for name, given in zip(names, model, strict=True)}
    told(behaviour.MODELS, compare_models(opened, texts), out, as_json)


@app.command()
def profile(
    model: Model,
    text: Annotated[
        str | None, typer.Option("--text", metavar="T", help="Text that is read (default: --seq tokens).")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Texts side by side.")] = 1,
    seq: Annotated[int, typer.Option("--seq", min=1, help="Tokens of a text, where none is given.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Passes that are timed.")] = 5,
    detail: Annotated[str, typer.Option("--detail", help="layers, parts or modules.")] = "parts",
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Measure where a forward pass spends its time, and what its modules weigh.

    [dim]glassbox behave profile --model embedded --seq 256 --out profile.html[/dim]
    """
    from activations import LanguageModel
    from activations.behaviour import profile_model
    from ui.render import behaviour

    lm = LanguageModel.load(model)
    found = profile_model(lm, text, batch=batch, seq=seq, repeats=repeats, detail=detail)
    told(behaviour.PROFILE, found, out, as_json)
