"""Results of probes and of behaviour, each drawn by one `View`: table, page, figures, files.

Enters: a frozen result with `.rows()` and `.to_json()`. Leaves: terminal tables, a self-contained HTML page with the
JSON beside it, plotly figures, or PNG, SVG and PDF files. A view says which numbers stand on top, which columns are
listed and which pictures are drawn; everything that stands in a result is text of people or of models, and is escaped
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ui.render import html
from ui.render.analyses.drawing import map_cards
from ui.render.curves import Scatter, legend, plotly_scatter, save_scatter, scatter_svg
from ui.render.figures import STATIC_FORMATS, short
from ui.render.heatmap import Heatmap, plotly_heatmap, save_heatmap
from ui.render.html import chip, escape, visible
from ui.render.report import write_page
from ui.render.tables import records_table

if TYPE_CHECKING:
    import plotly.graph_objects

SHOWN = 20
"""Records in the terminal."""
LISTED = 200
"""Records on the page; the JSON beside it holds all."""
NAME_CHARACTERS = 24
"""Shorter texts are not broken in a cell."""
TEXT_CHARACTERS = 300
"""Characters of a text in a cell."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How one kind of result is shown."""

    heading: str
    what: str
    """What is seen, and when it misleads, in a few sentences for people."""
    facts: Callable[[Any], Mapping[str, str]]
    """The numbers on top."""
    columns: Sequence[str] = ()
    """Columns of `rows` that are listed; none: all."""
    brief: Sequence[str] = ()
    """Of these, the ones that the terminal shows; none: all."""
    rows: Callable[[Any], list[dict[str, Any]]] = lambda found: found.rows()
    curves: Callable[[Any], list[Scatter]] = lambda _found: []
    maps: Callable[[Any], list[Heatmap]] = lambda _found: []
    extra: Callable[[Any], str] = lambda _found: ""
    """HTML behind the facts: coloured text."""
    overlay: Callable[[Any], list[Text]] = lambda _found: []
    """The same for the terminal."""
    tokens: Sequence[str] = ()
    """Columns that hold tokens."""


def view_tables(view: View, found: Any) -> list[Table | Text]:
    """Returns the numbers and the first records, for the terminal."""
    rows = _rows(view, found)
    more = f" (first {SHOWN} of {len(rows):,}; all with --json or --out)" if len(rows) > SHOWN else ""
    facts = [{"": name, " ": value} for name, value in view.facts(found).items()]
    listed = [{key: _brief(row[key]) for key in view.brief or row} for row in rows[:SHOWN]]
    return [records_table(view.heading, facts), *view.overlay(found), records_table(f"Records{more}", listed)]


def view_page(view: View, found: Any) -> str:
    """Returns the page of one result."""
    body = (
        f'<header class="stack"><h3>Glassbox</h3><h1>{escape(view.heading)}</h1><p class="lead">{escape(view.what)}</p>'
        f"{html.facts(view.facts(found))}</header>{view_section(view, found)}"
    )
    return html.page(f"Glassbox: {view.heading}", body)


def view_section(view: View, found: Any) -> str:
    """Returns the pictures and the records of one result."""
    pictures = "".join(
        f'<div class="card stack"><p class="small muted">{escape(chart.title)}</p>{scatter_svg(chart)}'
        f"{legend(list(chart.series)) if len(chart.series) > 1 else ''}</div>"
        for chart in view.curves(found)
    )
    pair = f'<div class="pair">{pictures}</div>' if pictures else ""
    return f"<section>{view.extra(found)}{pair}{map_cards(view.maps(found))}{_listed(view, found)}</section>"


def write_view(view: View, found: Any, path: Path) -> Path:
    """Writes a page with the JSON beside it, or by another ending the first picture (.png, .svg, .pdf) or JSON.

    Raises:
        ValueError: another ending, or a picture of a result that has none.
    """
    endings = (".html", ".json", *STATIC_FORMATS)
    if path.suffix not in endings:
        raise ValueError(f"{path} ends in `{path.suffix}`, expected one of {', '.join(endings)}: rename it")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in STATIC_FORMATS:
        charts = [*view.curves(found), *view.maps(found)]
        if not charts:
            raise ValueError(f"{path} is a picture, and this result has none, expected .html or .json: rename it")
        first = charts[0]
        return save_scatter(first, path) if isinstance(first, Scatter) else save_heatmap(first, path)
    write_page(path.with_suffix(".json"), found.to_json() + "\n")
    return path if path.suffix == ".json" else write_page(path, view_page(view, found))


def view_figures(view: View, found: Any) -> list[plotly.graph_objects.Figure]:
    """Returns every picture of a result as a plotly figure."""
    return [
        *(plotly_scatter(chart) for chart in view.curves(found)),
        *(plotly_heatmap(chart) for chart in view.maps(found)),
    ]


def _rows(view: View, found: Any) -> list[dict[str, Any]]:
    rows = view.rows(found)
    return [{key: row.get(key) for key in view.columns} for row in rows] if view.columns else rows


def _listed(view: View, found: Any) -> str:
    rows = _rows(view, found)
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numbers = [key for key in columns if any(isinstance(row.get(key), int | float) for row in rows)]
    shown = [{key: _cell(view, key, row.get(key)) for key in columns} for row in rows[:LISTED]]
    more = f'<p class="muted small">First {LISTED} of {len(rows):,}; the JSON beside this page holds all.</p>'
    table = html.table({key: key.replace("_", " ") for key in columns}, shown, "tight", numbers)
    return f'<div class="card scrolls">{table}</div>{more if len(rows) > LISTED else ""}'


def _cell(view: View, key: str, value: Any) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return escape(short(value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " ".join(chip(str(each)) if isinstance(each, str) else escape(short(each)) for each in value)
    text = _brief(value)
    if key in view.tokens:
        return chip(text)
    # names stay whole, sentences break
    style = ' style="white-space:nowrap"' if len(text) <= NAME_CHARACTERS and "\n" not in text else ' class="text"'
    return f"<span{style}>{visible(text)}</span>"


def _brief(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return " ".join(repr(each) if isinstance(each, str) else str(each) for each in value)
    if isinstance(value, str) and len(value) > TEXT_CHARACTERS:
        return f"{value[:TEXT_CHARACTERS]}…"
    return value


def interval_text(value: float, low: float, high: float) -> str:
    """Returns a figure with its interval, as in `0.91 (0.83 to 0.96)`."""
    return f"{value:.3f}" if low != low or high != high else f"{value:.3f} ({low:.3f} to {high:.3f})"
