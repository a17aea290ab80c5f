"""Arguments and options that several verbs of the `glassbox` command share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Replace values of the config, as in saes.0.k=64.", show_default=False
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", metavar="M", help="Local folder or hub name of the model.")]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="D", help="Local file or folder, hub data set, or 'embedded'.")
]
DictArgument = Annotated[Path, typer.Argument(metavar="DICT", help="Folder of a dictionary.")]
ModelCopyOption = Annotated[str | None, typer.Option("--model", metavar="M", help="Use this copy of the model.")]
LimitOption = Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Rows to show.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
