"""`glassbox circuit`: which parts of a model do a task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ui.arguments import JsonOption

if TYPE_CHECKING:
    from activations import LanguageModel
    from activations.circuits import PairSet


def circuit(
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="Local folder or hub name of the model.")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="NAME", help="A built-in task; see below, and --tasks.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option("--pairs", metavar="FILE", help="Pairs of your own, a JSON object a line.")
    ] = None,
    clean: Annotated[str | None, typer.Option("--clean", metavar="T", help="One text of your own, and")] = None,
    corrupt: Annotated[str | None, typer.Option("--corrupt", metavar="T", help="one like it, with")] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="T", help="what follows the clean text, and")
    ] = None,
    contrast: Annotated[str | None, typer.Option("--contrast", metavar="T", help="what follows the other.")] = None,
    method: Annotated[str, typer.Option("--method", help="eap_ig, eap or acdc.")] = "eap_ig",
    examples: Annotated[int, typer.Option("--examples", metavar="N", help="Pairs to use, at most.")] = 16,
    edges: Annotated[
        int | None, typer.Option("--edges", metavar="N", help="Take so many edges (default: as many as it needs).")
    ] = None,
    faithfulness: Annotated[
        float, typer.Option("--faithfulness", help="Share of the task that the circuit is to do.")
    ] = 0.85,
    threshold: Annotated[float, typer.Option("--threshold", help="ACDC: nats that cutting an edge may cost.")] = 0.01,
    within: Annotated[
        int | None, typer.Option("--within", metavar="N", help="ACDC: test only so many edges, the best by eap_ig.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which pairs of a built-in task are drawn.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write an HTML page there; JSON, GraphML, DOT and SVG beside it."),
    ] = None,
    list_tasks: Annotated[bool, typer.Option("--tasks", help="List the built-in tasks and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find the components, and the edges between them, that do a task.

    Tasks: ioi, greater_than, agreement, induction, capitals, facts, pronouns, toxicity, truth, docstring.

    [dim]glassbox circuit --model embedded --task docstring --out circuit.html[/dim]

    [dim]glassbox circuit --model embedded --clean "for x in" --corrupt "if x in" --target " range"[/dim]
    """
    from activations.circuits import builtin_tasks, find_circuit
    from ui.render import circuit as drawing
    from ui.render import tables

    if list_tasks:
        tables.show(
            tables.records_table("Tasks", [{"task": t.name, "about": t.about} for t in builtin_tasks().values()])
        )
        return
    ways = {"--task": task, "--pairs": pairs, "--clean, --corrupt and --target": clean or corrupt or target}
    given = [name for name, value in ways.items() if value]
    if model is None or len(given) != 1:
        got = "no --model" if model is None else f"{' and '.join(given) or 'nothing'} to ask about"
        raise ValueError(f"got {got}, expected --model and one of {'; '.join(ways)}: give these")
    from activations import LanguageModel

    lm = LanguageModel.load(model)
    asked = _pairs(lm, task, pairs, (clean, corrupt, target, contrast), examples, seed)
    found = find_circuit(
        lm, asked, method=method, edges=edges, faithfulness=faithfulness, threshold=threshold, within=within
    )
    if as_json:
        typer.echo(found.to_json())
    else:
        tables.show(*drawing.circuit_tables(found))
    if out is not None:
        written = drawing.write_circuit(found, out)
        typer.echo(f"Page: {written[0]} (with {', '.join(path.suffix[1:] for path in written[1:])})", err=as_json)


def _pairs(
    lm: LanguageModel,
    task: str | None,
    file: Path | None,
    texts: tuple[str | None, str | None, str | None, str | None],
    count: int,
    seed: int,
) -> PairSet:
    from activations.circuits import Pair, prepare_pairs, read_pairs, task_pairs

    if task is not None:
        return task_pairs(lm, task, count=count, seed=seed)
    if file is not None:
        return prepare_pairs(lm, read_pairs(file), name=file.stem, count=count)
    clean, corrupt, target, contrast = texts
    if not clean or not corrupt or not target:
        raise ValueError("got a part of a pair, expected --clean, --corrupt and --target: give all three")
    pair = Pair(clean, corrupt, (target,), (contrast,) if contrast else ())
    return prepare_pairs(lm, [pair], name="one pair")
