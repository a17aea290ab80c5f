"""Heat maps: described once, drawn as inline SVG for pages, as a plotly figure, or as a PNG, SVG or PDF file.

Enters: a `Heatmap` (numbers and names; names are text of the corpus and are escaped here). Leaves: a picture whose
colours follow the page's: one hue for values of one sign, two around zero."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ui.render.figures import STATIC_FORMATS, short
from ui.render.html import LIGHT, UNSEEN, escape, figure_text

if TYPE_CHECKING:
    import plotly.graph_objects

_SHOWN = UNSEEN | {9: "⇥", 10: "⏎", 13: "␍", 32: "·"}
LABEL_CHARACTERS = 12
CELL, ROW = 34, 22
WIDE_CELL, NUMBERED = 46, 8
"""Maps of at most so many columns have wider cells, with the number in each."""


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """All that is needed to draw numbers in rows and columns."""

    title: str
    x_label: str
    y_label: str
    unit: str
    """What a number is; stands in tooltips and beside the colour bar."""
    columns: Sequence[str]
    rows: Sequence[str]
    """From the top."""
    values: Sequence[Sequence[float | None]]
    """By row; None where there is nothing."""
    is_token_axis: bool = True
    """Columns are tokens: their spaces and line ends are shown."""

    def __post_init__(self) -> None:
        shape = (len(self.values), len(self.values[0]) if self.values else 0)
        if shape != (len(self.rows), len(self.columns)):
            raise ValueError(
                f"heat map `{self.title}` has {shape[0]} × {shape[1]} values for {len(self.rows)} rows and "
                f"{len(self.columns)} columns, expected one each: mend the values"
            )

    @property
    def largest(self) -> float:
        """The largest absolute value, at least a tiny one."""
        return max((abs(value) for row in self.values for value in row if value is not None), default=0.0) or 1e-30

    @property
    def is_signed(self) -> bool:
        return any(value < 0 for row in self.values for value in row if value is not None)

    def column_names(self) -> list[str]:
        """Returns what stands under the columns."""
        return [token_label(name) if self.is_token_axis else str(name) for name in self.columns]


def token_label(token: str) -> str:
    """Returns a token as a short plain-text label: controls, spaces and line ends visible."""
    shown = token.translate(_SHOWN)
    return shown if len(shown) <= LABEL_CHARACTERS else f"{shown[: LABEL_CHARACTERS - 1]}…"


def heatmap_svg(chart: Heatmap) -> str:
    """Returns the map as inline SVG; a cell's tooltip says where it is and its number."""
    names = chart.column_names()
    is_numbered = len(names) <= NUMBERED
    step = WIDE_CELL if is_numbered else CELL
    # names are drawn at an angle below: as deep as the longest, which may also reach out to the left
    longest = max(map(len, names), default=0)
    left_margin = max(16 + 7 * max(map(len, chart.rows), default=0), 5 * longest)
    wide, tall = left_margin + step * len(names) + 8, 8 + ROW * len(chart.rows) + 20 + 6 * longest
    cells = []
    for y, row in enumerate(chart.values):
        for x, value in enumerate(row):
            if value is None:
                continue
            share = min(abs(value) / chart.largest, 1.0)
            tip = f"{chart.rows[y]} · {names[x]}: {short(value)} {chart.unit}"
            sign = ' class="cold"' if value < 0 else ""
            across = left_margin + step * x
            cells.append(
                f'<rect{sign} x="{across}" y="{8 + ROW * y}" width="{step - 1}" height="{ROW - 1}" rx="2" '
                f'fill-opacity="{share:.3f}"><title>{escape(tip)}</title></rect>'
            )
            if is_numbered:
                cells.append(
                    f'<text class="in" x="{across + step / 2:.0f}" y="{8 + ROW * y + 15}" text-anchor="middle">'
                    f"{escape(short(value))}</text>"
                )
    left = "".join(
        f'<text x="{left_margin - 6}" y="{8 + ROW * y + 15}" text-anchor="end">{escape(name)}</text>'
        for y, name in enumerate(chart.rows)
    )
    bottom = 8 + ROW * len(chart.rows) + 8
    below = "".join(
        f'<text class="tick" transform="translate({left_margin + step * x + step / 2 + 4:.0f},{bottom}) rotate(-50)" '
        f'text-anchor="end" dy="6">{escape(name)}</text>'
        for x, name in enumerate(names)
    )
    return (
        f'<svg class="heat" style="width:{wide}px" viewBox="0 0 {wide} {tall}" role="img" '
        f'aria-label="{escape(f"{chart.title}: {chart.y_label} by {chart.x_label}, {chart.unit}")}">'
        f"{''.join(cells)}{left}{below}</svg>"
    )


def plotly_heatmap(chart: Heatmap) -> plotly.graph_objects.Figure:
    """Returns the map as an interactive plotly figure."""
    import plotly.graph_objects as go

    # plotly joins columns of one name: positions keep repeated tokens apart
    names = [figure_text(name) for name in chart.column_names()]
    scale = [[0, LIGHT["cold"]], [0.5, LIGHT["card"]], [1, LIGHT["peak"]]]
    if not chart.is_signed:
        scale = [[0, LIGHT["card"]], [1, LIGHT["peak"]]]
    trace = go.Heatmap(
        z=[list(row) for row in chart.values],
        x=list(range(len(names))),
        y=[figure_text(name) for name in chart.rows],
        text=[names] * len(chart.rows),
        hovertemplate="%{y} · %{text}: %{z:.4g}<extra></extra>",
        colorscale=scale,
        zmin=-chart.largest if chart.is_signed else 0,
        zmax=chart.largest,
        colorbar={"title": figure_text(chart.unit)},
    )
    figure = go.Figure(trace)
    figure.update_layout(title=figure_text(chart.title), template="plotly_white", margin={"t": 48, "r": 16})
    figure.update_xaxes(title=figure_text(chart.x_label), tickvals=list(range(len(names))), ticktext=names)
    figure.update_yaxes(title=figure_text(chart.y_label), autorange="reversed", type="category")
    return figure


def save_heatmap(chart: Heatmap, path: str | os.PathLike[str]) -> Path:
    """Writes the map as a PNG, SVG or PDF file, by the ending of `path`, and returns the path."""
    target = Path(path)
    if target.suffix not in STATIC_FORMATS:
        raise ValueError(f"{target} ends in `{target.suffix}`, expected one of {', '.join(STATIC_FORMATS)}: rename it")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    ends = [LIGHT["card"], LIGHT["peak"]] if not chart.is_signed else [LIGHT["cold"], LIGHT["card"], LIGHT["peak"]]
    width, height = 2.2 + 0.38 * len(chart.columns), 1.8 + 0.28 * len(chart.rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    values: Any = [[float("nan") if value is None else value for value in row] for row in chart.values]
    drawn = axes.imshow(
        values,
        cmap=LinearSegmentedColormap.from_list("glassbox", ends),
        vmin=-chart.largest if chart.is_signed else 0,
        vmax=chart.largest,
        aspect="auto",
    )
    # matplotlib reads text between dollar signs as formulas
    axes.set_xticks(range(len(chart.columns)), [_unformatted(name) for name in chart.column_names()], rotation=60)
    axes.set_yticks(range(len(chart.rows)), [_unformatted(name) for name in chart.rows])
    axes.set(title=_unformatted(chart.title), xlabel=chart.x_label, ylabel=chart.y_label)
    figure.colorbar(drawn, ax=axes, label=chart.unit)
    partial = target.with_name(f"{target.name}.partial")
    figure.savefig(partial, format=target.suffix[1:], dpi=160)
    os.replace(partial, target)
    return target


def _unformatted(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def pixels(values: Sequence[Sequence[float]], largest: float, colour: str = LIGHT["accent"]) -> str:
    """Returns an `<img>` of one pixel a number, its opacity value / largest: for many small maps on one page."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    lines = []
    for row in values:
        shares = (round(255 * min(max(value / largest, 0.0), 1.0)) for value in row)
        lines.append(b"\0" + b"".join(bytes((red, green, blue, share)) for share in shares))
    width = len(values[0]) if values else 0
    header = struct.pack(">IIBBBBB", width, len(values), 8, 6, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        _piece(kind, content)
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines), 9)), (b"IEND", b""))
    )
    return f'<img class="pixels" alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _piece(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
