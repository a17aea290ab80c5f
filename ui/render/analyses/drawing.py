"""What drawings of analyses are made of: sections, cards, ranked lists and maps.

Enters: a result's numbers and words. Leaves: HTML (words escaped here), and a `Drawing`, which says how a method's
result becomes a section, maps and records for the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ui.render import html
from ui.render.figures import short
from ui.render.heatmap import Heatmap, heatmap_svg
from ui.render.html import escape

LISTED = 20
"""Records of a ranking on the page."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a method's result is shown. Give `body`, or `maps`, or both."""

    heading: str
    what: str
    """What is seen, and when it misleads, in two sentences for people."""
    body: Callable[[Any], str] | None = None
    """HTML of the section; by default its maps, then its ranked records."""
    maps: Callable[[Any], list[Heatmap]] = lambda _found: []
    """For the page, plotly and picture files."""
    rows: Callable[[Any], list[dict[str, Any]]] = lambda found: found.rows()
    """Records for the terminal, most telling first."""
    columns: Sequence[str] = ()
    """Columns of `rows` that the page lists below the maps; none: no list."""

    def html(self, found: Any) -> str:
        """Returns what stands below the heading."""
        if self.body is not None:
            return self.body(found)
        listed = ranking(self.rows(found), self.columns) if self.columns else ""
        return map_cards(self.maps(found)) + listed


def section(heading: str, what: str, body: str) -> str:
    """Returns a section; `body` is HTML."""
    return f'<section><h2>{escape(heading)}</h2><p class="muted">{escape(what)}</p>{body}</section>'


def map_card(chart: Heatmap) -> str:
    """Returns a map in a card of its own."""
    return f'<div class="card scrolls stack"><p class="small muted">{escape(chart.title)}</p>{heatmap_svg(chart)}</div>'


def map_cards(charts: Sequence[Heatmap]) -> str:
    """Returns maps below each other."""
    return "".join(map(map_card, charts))


def ranking(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Returns the first records as a table."""
    shown = [{column: _cell(column, row.get(column)) for column in columns} for row in rows[:LISTED]]
    numbers = [column for column in columns if isinstance(rows[0].get(column), float)] if rows else []
    names = {column: column.replace("_", " ") for column in columns}
    return f'<div class="card scrolls">{html.table(names, shown, "tight", numbers)}</div>'


def matrix(array: Any) -> list[list[float | None]]:
    """Returns numbers of a map; what does not exist (NaN) is None."""
    return [[float(value) if value == value else None for value in row] for row in array]


def component_map(title: str, heads: Any, mlp: Any, unit: str, attention: Any = None) -> Heatmap:
    """Returns a map of layers by heads, perhaps all heads together, and MLP."""
    count = len(heads[0])
    columns = [*(f"head {head}" for head in range(count)), *(["all heads"] if attention is not None else []), "MLP"]
    values = [
        [*heads[layer], *([attention[layer]] if attention is not None else []), mlp[layer]]
        for layer in range(len(heads))
    ]
    return Heatmap(
        title=title,
        x_label="component",
        y_label="layer",
        unit=unit,
        columns=columns,
        rows=[f"layer {layer}" for layer in range(len(heads))],
        values=matrix(values),
        is_token_axis=False,
    )


def head_map(title: str, values: Any, layers: Sequence[int], unit: str) -> Heatmap:
    """Returns a map of layers by heads."""
    return Heatmap(
        title=title,
        x_label="head",
        y_label="layer",
        unit=unit,
        columns=[f"head {head}" for head in range(len(values[0]))],
        rows=[f"layer {layer}" for layer in layers],
        values=matrix(values),
        is_token_axis=False,
    )


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return escape(short(value))
    if column in {"token", "most_read"}:
        return html.chip(str(value))
    if column == "explanation":
        return html.explained(str(value))
    return escape(value)
