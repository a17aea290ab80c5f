"""`glassbox compare`: two dictionaries beside each other. `glassbox runs`: what was trained, beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ui.arguments import JsonOption


def compare(
    first: Annotated[Path, typer.Argument(metavar="DICT_A", help="Folder of a dictionary.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="[DICT_B]", help="Another one; none for a crosscoder over two models.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as cosine_min=0.8.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write an HTML report there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two dictionaries: matched, unique, split and absorbed features, by directions and by events.

    Of one model, or of two with one tokenizer: then also what changed between them, on the text that both have indexed.

    One SAE indexed over both ([bold]glassbox index SAE --model M --other-model[/bold]) is compared by feature.

    [dim]glassbox compare runs/a/dictionary/narrow runs/a/dictionary/wide --out compared.html[/dim]

    The dictionary of a crosscoder over two models is compared alone: what vanished, appeared, turned.

    [dim]glassbox compare DICT_A DICT_B cosine_min=0.8 sample_tokens=200000 --json[/dim]
    """
    from features import folder_runs
    from ui.render import comparison, models, tables

    if second is None:
        of_models = folder_runs.run_compare_models(first)
        answer, shown = of_models.to_json(), models.models_tables(of_models)
        written = None if out is None else models.write_models_report(of_models, out)
    else:
        result = folder_runs.run_compare(first, second, overrides or [])
        answer, shown = result.to_json(), comparison.comparison_tables(result)
        written = None if out is None else comparison.write_comparison_report(result, out)
    if as_json:
        typer.echo(answer)
    else:
        tables.show(*shown)
    if written is not None:
        typer.echo(f"Report: {written}", err=as_json)


def runs(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders, or folders that hold some.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write an HTML page there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List every SAE of run folders: settings, measures, curves; finished or not.

    [dim]glassbox runs runs --out experiments.html[/dim]
    """
    from sae.experiments import read_experiments, to_json
    from ui.render import tables
    from ui.render.experiments import COLUMNS, write_experiments_page

    found = read_experiments(folders)
    if as_json:
        typer.echo(to_json(found))
    else:
        rows = [{COLUMNS[name]: value for name, value in each.row().items() if name in COLUMNS} for each in found]
        tables.show(tables.records_table("Experiments", rows))
    if out is not None:
        typer.echo(f"Page: {write_experiments_page(found, out)}", err=as_json)
