"""`glassbox dict`: looking after the folders of dictionaries, and sharing them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ui import sharing

app = typer.Typer(
    name="dict",
    help="Look after dictionaries and share them.\n\n[dim]glassbox dict verify runs/demo/dictionary/matryoshka[/dim]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DictArgument = Annotated[Path, typer.Argument(metavar="DICT", help="Folder of a dictionary.")]


app.command("label")(sharing.label)
app.add_typer(sharing.lists)
app.command("export")(sharing.export)
app.command("import")(sharing.import_)
app.command("merge")(sharing.merge)


@app.command()
def verify(
    dictionary: DictArgument, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Check every file and everything that the tables promise each other; fails where something is broken.

    [dim]glassbox dict verify runs/demo/dictionary/matryoshka[/dim]
    """
    from features import verification
    from ui.render import tables

    result = verification.verify(dictionary)
    if as_json:
        typer.echo(result.to_json())
    else:
        tables.show(tables.records_table(f"Checks of {dictionary}", result.rows()))
    if not result.ok:
        failed = sum(not check.ok for check in result.checks)
        raise ValueError(
            f"{dictionary} fails {failed} of {len(result.checks)} checks, expected none: restore the files that are "
            "named, or build the dictionary again"
        )
