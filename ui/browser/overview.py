"""The page that says what a dictionary is."""

from __future__ import annotations

from typing import Any

from ui.browser.workspace import Page, Words, Workspace, html
from ui.views import overview as view

NAME, TITLE = "overview", "Overview"
DRAW = """
const draw = () => window.glassbox.drawMap(element, server);
draw();
watch('value', draw);
"""


def build(work: Workspace) -> Page:
    """Builds the page."""

    def points(name: str) -> dict[str, Any]:
        return view.map_points(work.shelf.get(name))

    def told(asked: list[Any]) -> str:
        name, feature = asked
        return view.told(work.shelf.get(name), int(feature))

    shown = html("", elem_id="overview", js_on_load=DRAW, server_functions=[points, told])

    def restore(dictionary: str, _words: Words) -> list[str]:
        return [view.overview(work.shelf.get(dictionary), dictionary, work.shelf.by_name)]

    return Page([shown], restore)
