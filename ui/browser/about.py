"""What the browser can and cannot say."""

from __future__ import annotations

from ui.browser.workspace import Page, Words, Workspace, html
from ui.views import about as view

NAME, TITLE = "about", "About"


def build(_work: Workspace) -> Page:
    """Builds the page."""
    shown = html("", elem_id="about")

    def restore(_name: str, _words: Words) -> list[str]:
        return [view.about()]

    return Page([shown], restore)
