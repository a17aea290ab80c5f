"""Charts: described once, drawn three ways.

Enters: a `Chart` (a few numbers and names). Leaves: inline SVG for pages (small, follows the page's colours, needs no
script), a plotly figure for notebooks, or a PNG, SVG or PDF file through matplotlib.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ui.render.html import LIGHT, escape

if TYPE_CHECKING:
    import plotly.graph_objects

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 420, 8, 8, 8, 30
STATIC_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A histogram or a line: all that is needed to draw it anywhere."""

    title: str
    """What is shown; the text alternative of the picture."""
    x_label: str
    """Name and unit of the horizontal axis."""
    y_label: str
    """Name and unit of the vertical axis."""
    kind: Literal["bars", "line"]
    """`bars`: `x` holds the edges of `y`'s bins, one more than `y`. `line`: as many `x` as `y`."""
    x: Sequence[float]
    """Edges of bins, or places of points, rising."""
    y: Sequence[float]
    """Heights."""
    log_x: bool = False
    """Show the horizontal axis on a logarithmic scale."""

    def __post_init__(self) -> None:
        wanted = len(self.y) + (self.kind == "bars")
        if len(self.x) != wanted:
            raise ValueError(f"chart `{self.title}` has {len(self.x)} x for {len(self.y)} y, expected {wanted}: mend x")


def density_chart(densities: Sequence[float], bins: int = 36) -> Chart:
    """Counts the live features by density, on a logarithmic axis."""
    logs = [math.log10(density) for density in densities if density > 0]
    low = math.floor(min(logs, default=-6.0))
    counts = [0] * bins
    for value in logs:
        counts[min(int((value - low) / -low * bins), bins - 1) if low else 0] += 1
    edges = [10 ** (low - low * index / bins) for index in range(bins + 1)]
    return Chart(
        title="Features by density",
        x_label="share of tokens on which a feature fires",
        y_label="features",
        kind="bars",
        x=edges,
        y=counts,
        log_x=True,
    )


def histogram_chart(edges: Sequence[float], counts: Sequence[float]) -> Chart:
    """Describes the histogram of one feature's activations; empty bins at both ends are left out."""
    used = [index for index, count in enumerate(counts) if count]
    first, last = (used[0], used[-1]) if used else (0, len(counts) - 1)
    return Chart(
        title="Activations",
        x_label="activation",
        y_label="tokens",
        kind="bars",
        x=list(edges[first : last + 2]),
        y=list(counts[first : last + 1]),
        log_x=edges[first] > 0,
    )


def svg(chart: Chart, height: int = 150) -> str:
    """Returns the chart as inline SVG; each bar's tooltip says its range and height."""
    bottom = height - BOTTOM
    top = max(chart.y, default=0) or 1
    at = _scale(chart, LEFT, WIDTH - RIGHT)
    parts = []
    if chart.kind == "bars":
        for left, right, value in zip(chart.x[:-1], chart.x[1:], chart.y, strict=True):
            if not value:
                continue
            tall = max((bottom - TOP) * value / top, 1.0)
            tip = escape(f"{short(left)} to {short(right)}: {short(value)} {chart.y_label}")
            start, end = at(left), at(right)
            parts.append(
                f'<rect x="{start:.1f}" y="{bottom - tall:.1f}" width="{max(end - start - 0.8, 0.8):.1f}" '
                f'height="{tall:.1f}" rx="1"><title>{tip}</title></rect>'
            )
        drawn = f'<g class="bars">{"".join(parts)}</g>'
    else:
        low = min(0.0, min(chart.y, default=0.0))
        points = " ".join(
            f"{at(x):.1f},{bottom - (bottom - TOP) * (y - low) / ((top - low) or 1):.1f}"
            for x, y in zip(chart.x, chart.y, strict=True)
        )
        drawn = f'<polyline class="line" points="{points}"/>'
    ends = [chart.x[0], _middle(chart), chart.x[-1]] if len(chart.x) else []
    anchors = ("start", "middle", "end")
    ticks = "".join(
        f'<text x="{at(value):.1f}" y="{bottom + 13}" text-anchor="{anchor}">{escape(short(value))}</text>'
        for value, anchor in zip(ends, anchors, strict=False)
    )
    label = f'<text x="{WIDTH / 2}" y="{bottom + 27}" text-anchor="middle">{escape(chart.x_label)}</text>'
    axis = f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    tallest = escape(f"{short(top)} {chart.y_label}")
    peak = f'<text x="{WIDTH - RIGHT}" y="{TOP + 4}" text-anchor="end">{tallest}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(chart.title)}">'
        f"{drawn}{axis}{ticks}{label}{peak if chart.kind == 'line' else ''}</svg>"
    )


def plotly_figure(chart: Chart) -> plotly.graph_objects.Figure:
    """Returns the chart as an interactive plotly figure."""
    import plotly.graph_objects as go

    if chart.kind == "bars":
        centres = [_between(left, right, chart.log_x) for left, right in zip(chart.x[:-1], chart.x[1:], strict=True)]
        widths = [right - left for left, right in zip(chart.x[:-1], chart.x[1:], strict=True)]
        trace = go.Bar(x=centres, y=list(chart.y), width=widths, marker_color=LIGHT["bar"])
    else:
        trace = go.Scatter(x=list(chart.x), y=list(chart.y), mode="lines", line_color=LIGHT["bar"])
    figure = go.Figure(trace)
    figure.update_layout(title=chart.title, template="plotly_white", bargap=0, margin={"t": 48, "r": 16})
    figure.update_xaxes(title=chart.x_label, type="log" if chart.log_x else "linear")
    figure.update_yaxes(title=chart.y_label)
    return figure


def save_static(chart: Chart, path: str | os.PathLike[str]) -> Path:
    """Writes the chart as a PNG, SVG or PDF file, by the ending of `path`, and returns the path."""
    target = Path(path)
    if target.suffix not in STATIC_FORMATS:
        raise ValueError(f"{target} ends in `{target.suffix}`, expected one of {', '.join(STATIC_FORMATS)}: rename it")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if chart.kind == "bars":
        axes.stairs(list(chart.y), list(chart.x), fill=True, color=LIGHT["bar"])
    else:
        axes.plot(list(chart.x), list(chart.y), color=LIGHT["bar"])
    if chart.log_x:
        axes.set_xscale("log")
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    partial = target.with_name(f"{target.name}.partial")
    figure.savefig(partial, format=target.suffix[1:], dpi=160)
    os.replace(partial, target)
    return target


def _scale(chart: Chart, start: float, end: float):
    """Returns the function from values on the horizontal axis to pixels."""
    if not len(chart.x):
        return lambda value: start
    low, high = chart.x[0], chart.x[-1]
    if chart.log_x:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * ((math.log(value) if chart.log_x else value) - low) / span


def _middle(chart: Chart) -> float:
    return _between(chart.x[0], chart.x[-1], chart.log_x)


def _between(low: float, high: float, log: bool) -> float:
    return math.sqrt(low * high) if log else (low + high) / 2


def short(value: float) -> str:
    """Returns a number in about three digits."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= limit:
                return f"{value / limit:.3g}{suffix}"
    if abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"
