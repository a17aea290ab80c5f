"""`glassbox dict`: looking after the folders of dictionaries, and sharing them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ui import sharing
from ui.arguments import DictArgument, JsonOption

app = typer.Typer(
    name="dict",
    help="Look after dictionaries and share them.\n\n[dim]glassbox dict verify runs/demo/dictionary/matryoshka[/dim]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

LISTED_CLUSTERS = 20

app.command("label")(sharing.label)
app.add_typer(sharing.lists)
app.command("export")(sharing.export)
app.command("import")(sharing.import_)
app.command("merge")(sharing.merge)


@app.command("map")
def draw_map(
    dictionary: DictArgument,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The picture.", show_default="DICT/map.html")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of a new map.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Make the map anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and draw nothing.")] = False,
) -> None:
    """Draw all features on a plane, similar ones close, with clusters (needs the extra glassbox-sae[map]).

    [dim]glassbox dict map runs/demo/dictionary/matryoshka[/dim]
    """
    from features import Dictionary
    from ui.render import feature_map, tables

    opened = Dictionary.open(dictionary)
    try:
        found = opened.map(seed, again)
    finally:
        opened.close()
    if as_json:
        typer.echo(found.to_json())
        return
    rows = [row | {"tokens": " ".join(map(repr, row["tokens"]))} for row in found.rows()[:LISTED_CLUSTERS]]
    tables.show(
        tables.records_table(f"Largest of {len(found.clusters)} clusters of {len(found.features)} features", rows)
    )
    written = feature_map.write_map(found, opened.name, out or dictionary / "map.html")
    typer.echo(f"drawn in {written}")


@app.command()
def verify(dictionary: DictArgument, as_json: JsonOption = False) -> None:
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
