"""The page that says what a dictionary is."""

from __future__ import annotations

from ui.browser.workspace import Page, Words, Workspace, html
from ui.views import overview as view

NAME, TITLE = "overview", "Overview"


def build(work: Workspace) -> Page:
    """Builds the page."""
    shown = html("", elem_id="overview")

    def restore(dictionary: str, _words: Words) -> list[str]:
        return [view.overview(work.shelf.get(dictionary))]

    return Page([shown], restore)
