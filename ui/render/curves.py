"""Points on two axes, in series: described once, drawn as inline SVG that follows the page's colours and needs no
script, as a plotly figure, or as a PNG, SVG or PDF file.

Enters: `Scatter` (numbers and names). Leaves: ticks, error bars, a line through each series, and tooltips.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ui.render.figures import STATIC_FORMATS, short
from ui.render.html import LIGHT, escape, figure_text

if TYPE_CHECKING:
    import plotly.graph_objects

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 42
COLOURS = ("accent", "peak", "cold", "bad", "good", "muted")


@dataclass(frozen=True)
class Point:
    """One point: what it is called, where it is, and the standard error of its height."""

    name: str
    x: float
    y: float
    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """All that is needed to draw points in series."""

    title: str
    """What is shown; the text alternative of the picture."""
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    """Points by series; those of one series are joined from left to right."""
    log_x: bool = False


def scatter_svg(chart: Scatter) -> str:
    """Returns the picture as inline SVG; a point's tooltip says its name and numbers."""
    points = [point for series in chart.series.values() for point in series]
    if not points:
        return ""
    across = _Axis([point.x for point in points], LEFT, WIDTH - RIGHT, chart.log_x)
    spans = [(point.error or 0.0) for point in points]
    heights = [point.y + sign * span for point, span in zip(points, spans, strict=True) for sign in (-1, 1)]
    up = _Axis(heights, HEIGHT - BOTTOM, TOP)
    parts = [*_grid(across, up), *_labels(chart)]
    for number, (name, series) in enumerate(chart.series.items()):
        parts.append(_series(name, sorted(series, key=lambda point: point.x), number, across, up))
    return (
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f"{''.join(parts)}</svg>"
    )


def plotly_scatter(chart: Scatter) -> plotly.graph_objects.Figure:
    """Returns the picture as an interactive plotly figure."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, (name, series) in enumerate(chart.series.items()):
        points = sorted(series, key=lambda point: point.x)
        errors = [point.error or 0.0 for point in points]
        figure.add_trace(
            go.Scatter(
                x=[point.x for point in points],
                y=[point.y for point in points],
                error_y={"type": "data", "array": errors, "visible": any(errors)},
                mode="lines+markers",
                name=figure_text(name),
                text=[figure_text(point.name) for point in points],
                hovertemplate="%{text}: %{y:.4g}<extra></extra>",
                line_color=LIGHT[COLOURS[number % len(COLOURS)]],
            )
        )
    figure.update_layout(title=figure_text(chart.title), template="plotly_white", margin={"t": 48, "r": 16})
    figure.update_xaxes(title=figure_text(chart.x_label), type="log" if chart.log_x else "linear")
    figure.update_yaxes(title=figure_text(chart.y_label))
    return figure


def save_scatter(chart: Scatter, path: str | os.PathLike[str]) -> Path:
    """Writes the picture as a PNG, SVG or PDF file, by the ending of `path`, and returns the path."""
    target = Path(path)
    if target.suffix not in STATIC_FORMATS:
        raise ValueError(f"{target} ends in `{target.suffix}`, expected one of {', '.join(STATIC_FORMATS)}: rename it")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, series) in enumerate(chart.series.items()):
        points = sorted(series, key=lambda point: point.x)
        axes.errorbar(
            [point.x for point in points],
            [point.y for point in points],
            yerr=[point.error or 0.0 for point in points],
            marker="o",
            label=_unformatted(name) if name else "_",
            color=LIGHT[COLOURS[number % len(COLOURS)]],
        )
    if chart.log_x:
        axes.set_xscale("log")
    axes.set(title=_unformatted(chart.title), xlabel=_unformatted(chart.x_label), ylabel=_unformatted(chart.y_label))
    axes.grid(alpha=0.3)
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize="small")
    partial = target.with_name(f"{target.name}.partial")
    figure.savefig(partial, format=target.suffix[1:], dpi=160)
    os.replace(partial, target)
    return target


def _unformatted(name: str) -> str:
    """Matplotlib reads text between dollar signs as formulas, and cannot draw half of a surrogate pair."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")


def legend(names: Sequence[str]) -> str:
    """Returns the key to the series' colours and shapes, in the order in which `scatter_svg` draws them."""
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">'
        f"{_mark(number, 7, 7)}</svg>{escape(name)}</span>"
        for number, name in enumerate(names)
    )
    return f'<p class="legend small">{keys}</p>'


class _Axis:
    """Maps values to pixels, with a margin, and knows its ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool = False) -> None:
        self.log = log and min(values) > 0
        low, high = (self._bent(extreme(values)) for extreme in (min, max))
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end

    def _bent(self, value: float) -> float:
        return math.log2(value) if self.log else value

    def at(self, value: float) -> float:
        share = (self._bent(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log:
            exponents = range(math.ceil(self.low), math.floor(self.high) + 1)
            if len(exponents) >= 2:
                step = -(-len(exponents) // 7)
                return [2.0**exponent for exponent in exponents[::step]]
            return [2**self.low * 1.02, 2**self.high / 1.02]
        rough = (self.high - self.low) / 5
        scale = 10 ** math.floor(math.log10(rough))
        step = next(scale * size for size in (1, 2, 2.5, 5, 10) if scale * size >= rough)
        first = math.ceil(self.low / step)
        return [round(number * step, 10) for number in range(first, math.floor(self.high / step) + 1)]


def _grid(across: _Axis, up: _Axis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(short(value))}</text>')
    for value in across.ticks():
        x = across.at(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(short(value))}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def _labels(chart: Scatter) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    high = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.x_label)}</text>',
        f'<text text-anchor="middle" transform="translate(12 {high}) rotate(-90)">{escape(chart.y_label)}</text>',
    ]


def _series(name: str, points: Sequence[Point], number: int, across: _Axis, up: _Axis) -> str:
    colour = f"var(--gb-{COLOURS[number % len(COLOURS)]})"
    joined = " ".join(f"{across.at(point.x):.1f},{up.at(point.y):.1f}" for point in points)
    line = f'<polyline class="join" style="stroke:{colour}" points="{joined}"/>' if len(points) > 1 else ""
    drawn = []
    for point in points:
        x, y = across.at(point.x), up.at(point.y)
        spread = f" ± {short(point.error)}" if point.error else ""
        tip = escape(f"{point.name}: {short(point.x)}, {point.y:.4f}{spread}")
        bar = ""
        if point.error:
            low, high = up.at(point.y - point.error), up.at(point.y + point.error)
            bar = f'<line style="stroke:{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
        drawn.append(f"<g>{bar}{_mark(number, x, y)}<title>{tip}</title></g>")
    return f"<g>{line}{''.join(drawn)}</g>"


def _mark(number: int, x: float, y: float) -> str:
    """Draws a series' mark: colours repeat after six series, shapes then change."""
    style = f'style="fill:var(--gb-{COLOURS[number % len(COLOURS)]})"'
    shape = number // len(COLOURS) % 3
    if shape == 0:
        return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if shape == 1:
        return f'<rect {style} x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
    corners = f"{x:.1f},{y - 4.8:.1f} {x + 4.6:.1f},{y + 3.6:.1f} {x - 4.6:.1f},{y + 3.6:.1f}"
    return f'<polygon {style} points="{corners}"/>'
