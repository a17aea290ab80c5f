"""A circuit as people look at it: terminal tables, an interactive page, plotly, and picture files.

Enters: an `activations.circuits.Circuit`. Leaves: one self-contained HTML page (layers from the bottom up; a slider
hides the weaker edges, pointing at a component shows what it hears and tells), the same drawing as SVG, as a plotly
figure, or as a PNG, SVG or PDF file, and the folder of a circuit with all of its forms.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ui.render import figures, html
from ui.render.figures import STATIC_FORMATS, Chart, short
from ui.render.html import LIGHT, asset, escape, figure_text
from ui.render.report import write_page
from ui.render.tables import records_table

if TYPE_CHECKING:
    import plotly.graph_objects

    from activations.circuits import Circuit

SHOWN = 15
"""Edges in the terminal."""
FIRST = 40
"""Edges that the page shows before the slider is moved."""
BOX, TALL, GAP, STEP, LEFT = 78, 26, 18, 86, 92
SLOTS = {"q": -24, "k": 0, "v": 24}
WHAT = (
    "Each box is a component, the model's layers from the bottom up. An edge is what one component reads of another; "
    "orange helps the task, blue hinders it, and width is the score. Into a head edges run to its queries (left), keys "
    "(middle) or values (right). Point at a box to see its edges, click to keep them."
)
MEANING = {
    "faithfulness": "of the task is done by the circuit alone",
    "completeness": "of the task is lost without the circuit",
}


def circuit_facts(circuit: Circuit) -> dict[str, str]:
    """Returns the figures that every form of a circuit begins with."""
    low, high = circuit.interval
    interval = f" ({low:.0%} to {high:.0%})" if low == low else ""
    facts = {
        "task": circuit.task,
        "model": circuit.model,
        "pairs": f"{circuit.pairs}",
        "edges": f"{len(circuit.edges):,} of {circuit.all_edges:,}",
        "faithfulness": f"{circuit.faithfulness:.0%}{interval}",
        "completeness": f"{circuit.completeness:.0%}",
    }
    if circuit.minimality is not None:
        facts["least loss of an edge"] = short(circuit.minimality)
    return facts


def circuit_tables(circuit: Circuit) -> list[Table | Text]:
    """Returns the terminal's view: figures, strongest edges, faithfulness by size."""
    lines = [{"measured": name, "value": value} for name, value in circuit_facts(circuit).items()]
    unit = circuit.measure.replace("_", " ")
    lines.append({"measured": f"{unit}, clean texts", "value": short(circuit.clean_value)})
    lines.append({"measured": f"{unit}, corrupt texts", "value": short(circuit.corrupt_value)})
    lines += [{"measured": f"left out: {why}", "value": str(count)} for why, count in circuit.dropped.items()]
    rows = circuit.rows()
    more = f" (first {SHOWN} of {len(rows)}; all with --json or --out)" if len(rows) > SHOWN else ""
    return [
        records_table(f"Circuit by {circuit.method}", lines),
        records_table(f"Edges{more}", rows[:SHOWN]) if rows else Text("No edge is needed.", style="bold"),
    ]


def layout(circuit: Circuit) -> tuple[dict[str, tuple[float, float]], list[tuple[float, str]], float, float]:
    """Returns the centre of each node, the rows' heights and names, and the drawing's width and height."""
    rows: dict[tuple[int, bool], list[Any]] = {}
    for node in circuit.nodes:
        rows.setdefault((node.layer, node.kind == "mlp"), []).append(node)
    keys = sorted(rows)
    wide = max((len(nodes) for nodes in rows.values()), default=1)
    # MLPs stand aside, so that what goes straight up past them is seen
    aside = BOX + 2 * GAP if any(is_mlp for _, is_mlp in rows) else 0
    width = LEFT + max(wide * (BOX + GAP), 260) + aside + GAP
    height = STEP * max(len(keys), 1) + GAP
    places, names = {}, []
    for index, key in enumerate(keys):
        y = height - STEP * index - STEP / 2 - GAP / 2
        layer = key[0]
        # layers are named at their first row
        is_first = 0 <= layer < circuit.layers and (index == 0 or keys[index - 1][0] != layer)
        names.append((y, f"layer {layer}" if is_first else ""))
        middle = width - GAP - BOX / 2 if key[1] else LEFT + (width - LEFT - aside) / 2
        for place, node in enumerate(rows[key]):
            places[node.name] = (middle + (place - (len(rows[key]) - 1) / 2) * (BOX + GAP), y)
    return places, names, width, height


def circuit_svg(circuit: Circuit) -> str:
    """Returns the drawing as inline SVG; every edge and box says its numbers as a tooltip."""
    places, names, width, height = layout(circuit)
    largest = max((abs(edge.score) for edge in circuit.edges), default=0.0) or 1.0
    parts = [f'<text class="row" x="{LEFT - 12}" y="{y + 4:.0f}">{escape(name)}</text>' for y, name in names if name]
    for rank, edge in enumerate(circuit.edges):
        (x0, y0), (x1, y1) = places[edge.sender], places[edge.receiver]
        x1 += SLOTS.get(edge.slot or "", 0)
        y0, y1 = y0 - TALL / 2, y1 + TALL / 2
        bend = max(24.0, (y0 - y1) / 2)
        tip = f"{edge.sender} → {edge.receiver}{f' {edge.slot}' if edge.slot else ''}: {short(edge.score)}"
        if edge.loss is not None:
            tip += f"; without it faithfulness loses {short(edge.loss)}"
        thick = 0.8 + 5.2 * (abs(edge.score) / largest) ** 0.7
        sign = ' class="cold"' if edge.score < 0 else ""
        parts.append(
            f'<path{sign} data-rank="{rank}" data-s="{escape(edge.sender)}" data-r="{escape(edge.receiver)}" '
            f'stroke-width="{thick:.2f}" d="M{x0:.1f},{y0:.1f} C{x0:.1f},{y0 - bend:.1f} {x1:.1f},{y1 + bend:.1f} '
            f'{x1:.1f},{y1:.1f}"><title>{escape(tip)}</title></path>'
        )
    for node in circuit.nodes:
        x, y = places[node.name]
        parts.append(
            f'<g class="node" tabindex="0" role="button" data-name="{escape(node.name)}">'
            f"<title>{escape(f'{node.name}: {short(node.score)}')}</title>"
            f'<rect x="{x - BOX / 2:.1f}" y="{y - TALL / 2:.1f}" width="{BOX}" height="{TALL}" rx="6"/>'
            f'<text x="{x:.1f}" y="{y + 4:.1f}">{escape(node.name)}</text></g>'
        )
    # wide circuits shrink to the page; small ones are not blown up
    return (
        f'<svg class="circuit" style="max-width:{max(width, 420):.0f}px" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="group" aria-label="{escape(f"Circuit of {circuit.task}: {len(circuit.edges)} edges")}">'
        f"{''.join(parts)}</svg>"
    )


def circuit_page(circuit: Circuit) -> str:
    """Returns the interactive page: nothing outside of it is needed, and no other script can run."""
    count = len(circuit.edges)
    rows = [
        {
            "sender": f'<span data-edge="{rank}">{escape(edge.sender)}</span>',
            "receiver": escape(f"{edge.receiver} {edge.slot or ''}"),
            "score": escape(short(edge.score)),
            "loss": "" if edge.loss is None else escape(short(edge.loss)),
        }
        for rank, edge in enumerate(circuit.edges)
    ]
    columns = {"sender": "From", "receiver": "To", "score": "Score", "loss": "Loss without it"}
    listed = html.table(columns, rows, "tight", numbers=("score", "loss"))
    examples = "".join(
        f'<div class="card stack"><p class="small muted">clean, then {html.chip(row["target"])}'
        f"{' rather than ' + html.chip(row['contrast']) if row['contrast'] else ''}</p>"
        f'<div class="text">{html.visible(row["clean"])}</div><p class="small muted">corrupt</p>'
        f'<div class="text">{html.visible(row["corrupt"])}</div></div>'
        for row in circuit.examples
    )
    left_out = "".join(
        f'<p class="notice">{number:,} pairs were left out: {escape(why)}</p>'
        for why, number in circuit.dropped.items()
    )
    unit = circuit.measure.replace("_", " ")
    said = (
        f"{unit}: {short(circuit.clean_value)} on clean texts, {short(circuit.corrupt_value)} on corrupt ones, "
        f"{short(circuit.value)} on clean texts with everything outside of the circuit taken from the corrupt ones."
    )
    controls = (
        '<div class="controls"><label>Edges shown <input id="edges-shown" type="range" min="1" '
        f'max="{max(count, 1)}" value="{min(count, FIRST) or 1}"></label><span id="edges-count" class="muted"></span>'
        '<span>Showing <b id="chosen">every component</b></span>'
        '<button id="show-all" type="button" hidden>Show every component</button></div>'
    )
    drawing = f'<div class="card scrolls">{circuit_svg(circuit)}</div>' if count else "<p>No edge is needed.</p>"
    body = (
        f"<style>{asset('circuit.css')}</style>"
        f'<header class="stack"><h3>Glassbox</h3><h1>Which parts do this</h1>{html.facts(circuit_facts(circuit))}'
        f'<p class="muted">{escape(said)}</p>{left_out}</header>'
        f'<section><h2>Circuit</h2><p class="muted">{escape(WHAT)}</p>{controls if count else ""}{drawing}</section>'
        f'<section><h2>Edges</h2><div class="card scrolls">{listed}</div></section>'
        f"{_curve(circuit)}<section><h2>The task</h2>{examples}</section>"
    )
    return html.page(f"Glassbox: circuit of {circuit.task}", body, asset("circuit.js") if count else "")


def faithfulness_chart(circuit: Circuit) -> Chart | None:
    """Returns faithfulness by number of edges, of the sizes that were tried; None where there was one."""
    points = sorted(dict(circuit.curve).items())
    if len(points) < 2:
        return None
    return Chart(
        title="Faithfulness by size",
        x_label="edges",
        y_label="faithfulness",
        kind="line",
        x=[size for size, _ in points],
        y=[share for _, share in points],
    )


def _curve(circuit: Circuit) -> str:
    chart = faithfulness_chart(circuit)
    if chart is None:
        return ""
    return f'<section><h2>Faithfulness by size</h2><div class="card">{figures.svg(chart)}</div></section>'


def circuit_figure(circuit: Circuit) -> plotly.graph_objects.Figure:
    """Returns the circuit as an interactive plotly figure."""
    import plotly.graph_objects as go

    places, _, _, _ = layout(circuit)
    largest = max((abs(edge.score) for edge in circuit.edges), default=0.0) or 1.0
    figure = go.Figure()
    for edge in circuit.edges:
        (x0, y0), (x1, y1) = places[edge.sender], places[edge.receiver]
        tip = figure_text(f"{edge.sender} → {edge.receiver} {edge.slot or ''}: {short(edge.score)}")
        figure.add_trace(
            go.Scatter(
                x=[x0, (x0 + x1) / 2, x1 + SLOTS.get(edge.slot or "", 0)],
                y=[-y0, -(y0 + y1) / 2, -y1],
                mode="lines",
                line={
                    "width": 0.8 + 5 * abs(edge.score) / largest,
                    "color": LIGHT["peak"] if edge.score >= 0 else LIGHT["cold"],
                    "shape": "spline",
                },
                text=[tip] * 3,
                hoverinfo="text",
                showlegend=False,
            )
        )
    names = [node.name for node in circuit.nodes]
    figure.add_trace(
        go.Scatter(
            x=[places[name][0] for name in names],
            y=[-places[name][1] for name in names],
            mode="markers+text",
            marker={
                "size": 34,
                "symbol": "square",
                "color": LIGHT["card"],
                "line": {"color": LIGHT["bar"], "width": 2},
            },
            text=[figure_text(name) for name in names],
            hovertext=[figure_text(f"{node.name}: {short(node.score)}") for node in circuit.nodes],
            hoverinfo="text",
            showlegend=False,
        )
    )
    title = f"{circuit.task} in {circuit.model}: faithfulness {circuit.faithfulness:.0%}"
    figure.update_layout(title=figure_text(title), template="plotly_white", margin={"t": 48, "r": 16})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def save_circuit_picture(circuit: Circuit, path: str | os.PathLike[str]) -> Path:
    """Writes the drawing as a PNG, SVG or PDF file, by the ending of `path`, and returns the path."""
    target = Path(path)
    if target.suffix not in STATIC_FORMATS:
        raise ValueError(f"{target} ends in `{target.suffix}`, expected one of {', '.join(STATIC_FORMATS)}: rename it")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    places, names, width, height = layout(circuit)
    figure = Figure(figsize=(max(width / 90, 4), max(height / 90, 3)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    largest = max((abs(edge.score) for edge in circuit.edges), default=0.0) or 1.0
    for edge in circuit.edges:
        (x0, y0), (x1, y1) = places[edge.sender], places[edge.receiver]
        axes.add_patch(
            FancyArrowPatch(
                (x0, y0 - TALL / 2),
                (x1 + SLOTS.get(edge.slot or "", 0), y1 + TALL / 2),
                arrowstyle="-",
                connectionstyle="arc3,rad=0.08",
                linewidth=0.6 + 4 * abs(edge.score) / largest,
                color=LIGHT["peak"] if edge.score >= 0 else LIGHT["cold"],
                alpha=0.75,
            )
        )
    box = {"boxstyle": "round", "facecolor": LIGHT["card"], "edgecolor": LIGHT["bar"]}
    for name, (x, y) in places.items():
        axes.text(x, y, name, ha="center", va="center", fontsize=9, bbox=box, zorder=3)
    for y, name in names:
        axes.text(LEFT - 12, y, name, ha="right", va="center", fontsize=8, color=LIGHT["muted"])
    axes.set(xlim=(0, width), ylim=(height, 0))
    # matplotlib reads text between dollar signs as formulas
    axes.set_title(f"{circuit.task} in {circuit.model}".replace("$", r"\$"), fontsize=10)
    axes.set_axis_off()
    partial = target.with_name(f"{target.name}.partial")
    figure.savefig(partial, format=target.suffix[1:], dpi=160)
    os.replace(partial, target)
    return target


def write_circuit(circuit: Circuit, path: Path) -> list[Path]:
    """Writes the page at `path`, and JSON, GraphML, DOT and SVG beside it; returns all paths, the page first."""
    from activations.circuits import dot, graphml

    path.parent.mkdir(parents=True, exist_ok=True)
    page = path if path.suffix == ".html" else path.with_suffix(".html")
    return [
        write_page(page, circuit_page(circuit)),
        write_page(page.with_suffix(".json"), circuit.to_json() + "\n"),
        write_page(page.with_suffix(".graphml"), graphml(circuit)),
        write_page(page.with_suffix(".dot"), dot(circuit)),
        save_circuit_picture(circuit, page.with_suffix(".svg")),
    ]
