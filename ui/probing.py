"""`glassbox probe`: what can be read from a model's activations, and whether the model uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ui.arguments import JsonOption

app = typer.Typer(
    name="probe",
    help="Train probes for labels of texts, check them by intervention, test concepts, read neurons.",
    no_args_is_help=True,
)
Model = Annotated[str, typer.Option("--model", metavar="M", help="Local folder or hub name of the model.")]
Target = Annotated[
    str | None,
    typer.Option("--target", metavar="TOKEN", help="Token that is watched (default: the model's own choice)."),
]
Contrast = Annotated[str | None, typer.Option("--contrast", metavar="TOKEN", help="Token whose logit is subtracted.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write a page (.html, JSON beside it), .json, or a .png, .svg, .pdf."),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of what is drawn.")]
Pooling = Annotated[str, typer.Option("--pooling", help="A text is its mean token, its last, or its max.")]
Texts = Annotated[
    int, typer.Option("--texts-per-class", metavar="N", min=5, help="Texts of each label that are read at most.")
]


def words(given: str | None) -> list[str] | None:
    """Returns the parts of a list between commas; None for none."""
    return None if given is None else [part.strip() for part in given.split(",") if part.strip()]


def told(view: Any, found: Any, out: Path | None, as_json: bool) -> None:
    """Prints a result as tables or JSON, and writes its page where one was asked for."""
    from ui.render import results, tables

    written = None if out is None else results.write_view(view, found, out)
    if as_json:
        typer.echo(found.to_json())
    else:
        tables.show(*results.view_tables(view, found))
    if written is not None:
        typer.echo(f"Written: {written}", err=as_json)


@app.command()
def fit(
    labelled: Annotated[str, typer.Argument(metavar="SET", help="A shipped set, or a file of labelled texts.")],
    model: Model,
    sites: Annotated[
        str | None, typer.Option("--sites", metavar="A,B,…", help="Sites (default: the stream behind each layer).")
    ] = None,
    kinds: Annotated[
        str, typer.Option("--kinds", help="logistic, k_sparse, mean_difference, pca, nonlinear: one or more.")
    ] = "logistic,k_sparse,mean_difference",
    pooling: Pooling = "mean",
    k: Annotated[int | None, typer.Option("--k", metavar="K", help="Columns of k_sparse (default: chosen).")] = None,
    texts_per_class: Texts = 500,
    seed: Seed = 0,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Keep the best probe (by AUC) in this folder.")
    ] = None,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Train probes for the labels of texts at several sites, and score them on texts of their own beside controls.

    Shipped sets: topics, forms, sentiment, subjects; or a .jsonl or .csv file (.gz too) with a text and a label.

    [dim]glassbox probe fit sentiment --model embedded --out probes.html --save runs/probe[/dim]
    """
    from activations import LanguageModel
    from activations.probes import train_probes
    from sae.labelled_text import labelled_text
    from ui.render import probes

    chosen = labelled_text(labelled).sample(texts_per_class, seed)
    found = train_probes(
        LanguageModel.load(model),
        chosen.texts,
        chosen.labels,
        sites=words(sites),
        kinds=words(kinds) or (),
        name=chosen.name,
        pooling=pooling,
        k=k,
        seed=seed,
    )
    if save is not None:
        found.best().save(save)
    told(probes.PROBES, found, out, as_json)


@app.command()
def score(
    probe: Annotated[Path, typer.Argument(metavar="PROBE", help="Folder of a probe.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to score.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="Use this copy of the probe's model.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score texts by a saved probe: above 0 it reads its label.

    [dim]glassbox probe score runs/probe "what a lovely film" "two hours of my life"[/dim]
    """
    import json

    from activations import LanguageModel
    from activations.probes import load_probe
    from ui.render import tables

    opened = load_probe(probe)
    scores = opened.score_texts(LanguageModel.load(model or opened.model), texts).tolist()
    rows = [
        {"score": score, "reads": opened.label if score > 0 else opened.against, "text": text}
        for score, text in zip(scores, texts, strict=True)
    ]
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        tables.show(tables.records_table(f"{opened.label!r}, {opened.kind} at {opened.site} of {opened.model}", rows))


@app.command()
def check(
    probe: Annotated[Path, typer.Argument(metavar="PROBE", help="Folder of a probe.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts whose next token is watched.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="Use this copy of the probe's model.")
    ] = None,
    target: Target = None,
    contrast: Contrast = None,
    strengths: Annotated[
        str, typer.Option("--strengths", metavar="A,B,…", help="Standard deviations to add along the direction.")
    ] = "-4,-2,2,4",
    seed: Seed = 0,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Ask whether the model uses what a saved probe reads: add and erase its direction, beside random ones.

    [dim]glassbox probe check runs/probe "The film was" "I thought it was" --target " good" --contrast " bad"[/dim]
    """
    from activations import LanguageModel
    from activations.probes import check_probe, load_probe
    from ui.render import probes

    try:
        numbers = [float(part) for part in words(strengths) or []]
    except ValueError:
        raise ValueError(f"--strengths {strengths!r} is no list of numbers, expected one as in -2,2: mend it") from None
    opened = load_probe(probe)
    found = check_probe(
        LanguageModel.load(model or opened.model),
        opened,
        texts,
        target,
        contrast=contrast,
        strengths=numbers,
        seed=seed,
    )
    told(probes.CHECK, found, out, as_json)


@app.command()
def concept(
    labelled: Annotated[str, typer.Argument(metavar="SET", help="A shipped set, or a file of labelled texts.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts whose next token is watched.")],
    model: Model,
    label: Annotated[str, typer.Option("--label", help="The label that is the concept; all others are not.")],
    site: Annotated[str, typer.Option("--site", help="Where the concept is looked for.")],
    target: Target = None,
    contrast: Contrast = None,
    pooling: Pooling = "mean",
    texts_per_class: Texts = 100,
    seed: Seed = 0,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Test whether the model's output rises along a concept's direction (TCAV), beside vectors that mean nothing.

    [dim]glassbox probe concept forms "import os" "def f(" --model embedded --label code --site resid_post.2[/dim]
    """
    from activations import LanguageModel
    from activations.probes import concept_test
    from sae.labelled_text import labelled_text
    from ui.render import probes

    chosen = labelled_text(labelled).sample(texts_per_class, seed)
    if label not in chosen.classes:
        raise ValueError(
            f"set `{chosen.name}` has no label {label!r}, expected one of {', '.join(chosen.classes)}: choose one"
        )
    held = [text for text, each in zip(chosen.texts, chosen.labels, strict=True) if each == label]
    others = [text for text, each in zip(chosen.texts, chosen.labels, strict=True) if each != label]
    lm = LanguageModel.load(model)
    found = concept_test(lm, site, held, others, texts, target, contrast=contrast, pooling=pooling, seed=seed)
    told(probes.CONCEPT, found, out, as_json)


@app.command()
def neurons(
    model: Model,
    layer: Annotated[int, typer.Option("--layer", min=0, help="The MLP's layer.")],
    neuron: Annotated[
        list[int] | None, typer.Option("--neuron", help="One neuron; may be repeated (default: all).")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Tokens on either side.")] = 8,
    out: Out = None,
    as_json: JsonOption = False,
) -> None:
    """Read what neurons write as tokens. Their contexts: `glassbox index … --neurons`; their effect on a text:
    `glassbox analyze --methods neurons`.

    [dim]glassbox probe neurons --model embedded --layer 3 --neuron 17[/dim]
    """
    from activations import LanguageModel
    from activations.analyses import neuron_logits
    from ui.render import probes

    told(probes.NEURON_LOGITS, neuron_logits(LanguageModel.load(model), layer, neuron, top=top), out, as_json)
