"""The application from a notebook: a model alone, or with its dictionaries, in a frame below the cell.

    from ui.dashboard import create_unified_dashboard
    create_unified_dashboard("gpt2")

Enters: a model, by name or as it is, and perhaps dictionaries of it. Leaves: a server on this machine and an address.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ui.render.html import escape
from ui.serving import LOOPBACK, claim_port

if TYPE_CHECKING:
    from activations import LanguageModel
    from features import Dictionary

NOTEBOOKS = ("http://localhost:*", "http://127.0.0.1:*", "https://localhost:*", "vscode-webview:")
"""Whose pages may frame the application: notebooks of this machine."""


@dataclass(frozen=True)
class Dashboard:
    """A running application. In a notebook it shows itself; elsewhere open `url`."""

    url: str
    height: int
    """Of the frame, in pixels."""
    app: Any

    def close(self) -> None:
        """Ends the server."""
        self.app.close(verbose=False)

    def _repr_html_(self) -> str:
        address = escape(self.url)
        return (
            f'<iframe src="{address}" title="Glassbox" width="100%" height="{self.height}" style="border:0" '
            f'allow="clipboard-write"></iframe><p><a href="{address}" target="_blank">open in a tab</a></p>'
        )


def create_unified_dashboard(
    model: LanguageModel | str,
    dictionaries: Sequence[Dictionary | str | Path] = (),
    *,
    port: int | None = None,
    height: int = 900,
    frames: Sequence[str] = NOTEBOOKS,
) -> Dashboard:
    """Serves the application over `model` on this machine, and returns at once.

    Without dictionaries it has the analyses of a model; with them every page. `frames` are the origins of the pages
    that may show it in a frame, as a content policy names them.

    Raises:
        FileNotFoundError: no model, or no dictionary, of that name.
        ValueError: a dictionary of another model, or a height that is none.
        OSError: the port is occupied.
    """
    if height < 1:
        raise ValueError(f"height={height}, expected at least 1 pixel: raise it")
    free = claim_port(port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    from activations import LanguageModel
    from features import Dictionary
    from ui import browser
    from ui.views.shelf import ModelAlone

    lm = LanguageModel.load(model) if isinstance(model, str) else model
    opened = [each if isinstance(each, Dictionary) else Dictionary.open(each, model=lm) for each in dictionaries]
    for dictionary in opened:
        dictionary.lm  # noqa: B018  now, not at a page's first question: it may be another model's
    app = browser.serve(opened or [ModelAlone(lm.name, lm)], host=LOOPBACK, port=free, frames=frames, block=False)
    return Dashboard(f"http://{LOOPBACK}:{free}/", height, app)
