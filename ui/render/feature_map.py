"""The map of a dictionary as a page of its own: points to zoom into, coloured by cluster, told on hover.

Enters: a `FeatureMap`. Leaves: one HTML file that opens anywhere and fetches nothing. It is the one page with a script:
plotly's, and the figure's; its policy names both by their hashes, so that nothing else can run. Explanations stand in
the figure as escaped text.
"""

from __future__ import annotations

import base64
import hashlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ui.render.html import DARK, LIGHT, escape, figure_text, stylesheet
from ui.render.report import write_page

if TYPE_CHECKING:
    import plotly.graph_objects

    from features.feature_map import FeatureMap

SVG_POINTS = 20_000
"""Points above which a picture is drawn by the graphics card, which compiles its programs: that needs `eval`."""
NAMED_CLUSTERS = 40
"""Largest clusters that the legend names; the others are named on hover."""
NOISE = LIGHT["faint"]
HOVER_CHARACTERS, HOVER_WIDTH = 280, 56
LEAD = (
    "Each point is a feature. Features whose decoder directions are similar stand close; dense places are clusters, "
    "named by the tokens that tell them apart. Drag to zoom, double-click to see all again, click a name to hide it."
)
# the figure stands beside the page's own styles, which would reach into its SVG
STYLE = f"""
body {{ margin: 0; background: {LIGHT["paper"]}; }}
.gb .map-head {{ display: grid; gap: 8px; padding: 24px 24px 8px; }}
#map {{ height: calc(100vh - 120px); min-height: 420px; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: {DARK["paper"]}; }}
  #map .legendtext {{ fill: {DARK["ink"]} !important; }}
}}
"""


def map_figure(found: FeatureMap) -> plotly.graph_objects.Figure:
    """Returns the map as an interactive plotly figure, one trace for each cluster."""
    import plotly.graph_objects as go
    from plotly.colors import qualitative

    members: dict[int, list[int]] = {-1: []}
    for place, cluster in enumerate(found.cluster):
        members.setdefault(cluster, []).append(place)
    names = {-1: "in no cluster"} | {
        c.cluster: " ".join(_name(token) for token in c.tokens) or f"cluster {c.cluster}" for c in found.clusters
    }
    colours = (*qualitative.Dark24, *qualitative.Light24)
    scatter = go.Scattergl if len(found.features) > SVG_POINTS else go.Scatter
    size = 4 if len(found.features) > 4000 else 6
    traces = []
    for cluster in sorted(members):
        places = members[cluster]
        if not places:
            continue
        told = [_hover(found.features[place], found.explanations[place], names[cluster]) for place in places]
        traces.append(
            scatter(
                x=[found.x[place] for place in places],
                y=[found.y[place] for place in places],
                mode="markers",
                name=f"{names[cluster]} · {len(places):,}",
                text=told,
                hoverinfo="text",
                showlegend=cluster < NAMED_CLUSTERS,
                marker={
                    "size": size,
                    "opacity": 0.45 if cluster < 0 else 0.85,
                    "color": NOISE if cluster < 0 else colours[cluster % len(colours)],
                },
            )
        )
    figure = go.Figure(traces)
    hidden = {"visible": False}
    figure.update_layout(
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"t": 36, "r": 0, "b": 0, "l": 0},
        xaxis=hidden,
        yaxis=hidden | {"scaleanchor": "x"},
        dragmode="zoom",
        legend={"itemsizing": "constant", "font": {"size": 12, "color": LIGHT["ink"]}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": NOISE, "activecolor": LIGHT["accent"]},
        hoverlabel={"align": "left", "bgcolor": LIGHT["card"], "font": {"color": LIGHT["ink"], "size": 13}},
    )
    return figure


def map_page(found: FeatureMap, title: str) -> str:
    """Returns the whole page."""
    import plotly.io
    from plotly.offline import get_plotlyjs

    figure: dict[str, Any] = map_figure(found).to_plotly_json()
    options = {"responsive": True, "displaylogo": False, "scrollZoom": True}
    # in a script `<` could end it
    data, layout, how = (
        str(plotly.io.json.to_json_plotly(part)).replace("<", "\\u003c")
        for part in (figure["data"], figure["layout"], options)
    )
    scripts = [get_plotlyjs(), f"Plotly.newPlot('map', {data}, {layout}, {how});"]
    allowed = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    if len(found.features) > SVG_POINTS:
        allowed += " 'unsafe-eval'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    heading = f"{escape(title)}: {len(found.features):,} features, {len(found.clusters):,} clusters"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{heading}</title><style>{stylesheet()}{STYLE}</style></head>"
        f'<body><header class="gb"><div class="map-head"><h2>{heading}</h2><p class="muted small">{LEAD}</p></div>'
        f'</header><main id="map"></main><script>{scripts[0]}</script><script>{scripts[1]}</script></body></html>\n'
    )


def write_map(found: FeatureMap, title: str, path: Path) -> Path:
    """Writes the page, whole or not at all, and returns its path."""
    return write_page(path, map_page(found, title))


def _name(token: str) -> str:
    """A token as plotly shows it: text alone, spaces and line ends visible."""
    shown = token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return figure_text(shown if len(shown) <= 14 else f"{shown[:13]}…")


def _hover(feature: int, explanation: str, cluster: str) -> str:
    told = explanation if len(explanation) <= HOVER_CHARACTERS else f"{explanation[: HOVER_CHARACTERS - 1]}…"
    lines = textwrap.wrap(told, HOVER_WIDTH) or ["no explanation"]
    return "<br>".join([f"<b>Feature {feature}</b>", *map(figure_text, lines), f"<i>{cluster}</i>"])


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
