"""`glassbox compare`: two dictionaries beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    first: Annotated[Path, typer.Argument(metavar="DICT_A", help="Folder of a dictionary.")],
    second: Annotated[Path, typer.Argument(metavar="DICT_B", help="Folder of another one.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as cosine_min=0.8.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write an HTML report there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two dictionaries: matched, unique, split and absorbed features, by directions and by events.

    Of one model, or of two with one tokenizer: then also what changed between them, on the text that both have indexed.
    One SAE indexed over two models ([bold]glassbox index SAE --model M[/bold]) is compared feature by feature.

    [dim]glassbox compare runs/a/dictionary/narrow runs/a/dictionary/wide --out compared.html[/dim]

    [dim]glassbox compare DICT_A DICT_B cosine_min=0.8 sample_tokens=200000 --json[/dim]
    """
    from features import run
    from ui.render import comparison, tables

    result = run.run_compare(first, second, overrides or [])
    if as_json:
        typer.echo(result.to_json())
    else:
        tables.show(*comparison.comparison_tables(result))
    if out is not None:
        written = comparison.write_comparison_report(result, out)
        typer.echo(f"Report: {written}", err=as_json)
