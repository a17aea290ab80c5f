"""What a dictionary is: where to begin, its origin, quality, densities and map, and the others that are open."""

from __future__ import annotations

import base64
import shlex
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from features.feature_map import stored_map
from features.overview import frontier
from ui.render import curves, html
from ui.render.figures import short
from ui.render.html import chip, escape, explained

if TYPE_CHECKING:
    from features import Dictionary
    from features.feature_map import FeatureMap
    from features.overview import ClearFeature, DensityBin, Overview

METRICS = {
    "explained_variance": ("explained variance", "1 − Σ‖y − ŷ‖² / Σ‖y − μ‖² on held-out text; 1 is perfect"),
    "l0": ("active per token", "L0: latents that are active on a token, on average"),
    "ce_recovered": (
        "loss recovered",
        "share of the loss kept, between ablating the site (0) and leaving it alone (1)",
    ),
    "dead_frac": ("dead", "share of latents that were silent on all held-out rows"),
    "dense_frac": ("dense", "share of latents active on more than a tenth of the rows"),
    "duplicate_frac": ("duplicates", "share of latents whose direction another one has nearly too"),
}
SHARES = ("ce_recovered", "dead_frac", "dense_frac", "duplicate_frac")
TEXT_CHARACTERS = 300
CLUSTERS_TOLD = 12
MAP_GRID = 65_535
"""Steps of the map's plane along each side, which two bytes hold."""


def overview(dictionary: Dictionary, name: str = "", open_too: Mapping[str, Dictionary] | None = None) -> str:
    """Returns the page; `open_too` holds all the opened dictionaries by their names in the browser."""
    found, known = dictionary.overview, open_too or {name: dictionary}
    head = f'<div class="head"><h2>{escape(name or dictionary.name)}</h2>{_counts(dictionary)}</div>'
    measured = f'<div class="stack">{_quality(found)}{_density(found.densities, name)}</div>'
    return (
        f'<div class="gb"><article class="stack overview-page">{head}{_start(found.start, name)}'
        f'<div class="halves">{_origin(found)}{measured}'
        f"</div>{_frontier(known, name)}{_map(dictionary, name)}{_table(known, name)}</article></div>"
    )


def map_points(dictionary: Dictionary) -> dict[str, Any]:
    """Returns the stored map for `overview.js`: 4 bytes a feature number, then 2 each for x, y and cluster.

    Also the clusters' names and a feature near the middle of each. Empty where no map is stored.
    """
    found = stored_map(dictionary)
    if found is None:
        return {}
    packed = array("i", found.features).tobytes()
    for values in (found.x, found.y):
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        packed += array("H", [int((value - low) / span * MAP_GRID) for value in values]).tobytes()
    packed += array("h", found.cluster).tobytes()
    names = {str(cluster.cluster): " ".join(_shown(token) for token in cluster.tokens) for cluster in found.clusters}
    return {"points": base64.b64encode(packed).decode(), "n": len(found.features), "clusters": names}


def told(dictionary: Dictionary, feature: int) -> str:
    """Returns what a feature is called, as plain text: for the map's tooltip."""
    return dictionary.explanations_of([feature]).get(feature, "") if 0 <= feature < dictionary.n_features else ""


def _counts(dictionary: Dictionary) -> str:
    info = dictionary.info
    silent = info["n_features"] - info["n_live"]
    per_token = info["n_events"] / max(info["n_indexed_tokens"], 1)
    words = f"{info['n_features']:,} features · {silent:,} never fired · {per_token:.1f} active per token of the index"
    return f'<span class="muted small">{escape(words)}</span>'


def _start(start: ClearFeature | None, name: str) -> str:
    if start is None:
        return '<p class="notice">No feature of this dictionary ever fired on the indexed text.</p>'
    says = explained(start.explanation) or "a feature that is clear to see"
    score = "" if start.score is None else f' <span class="muted">(score {start.score:.2f})</span>'
    text = start.text.strip()[:TEXT_CHARACTERS]
    shown = text if len(text) <= 90 else f"{text[:89]}…"
    links = [
        (html.link("Meet a feature", "feature", name, feature=start.feature), f"{says}{score}"),
        (html.link("Read a text with features", "text", name, text=text), f'<span class="mono">{escape(shown)}</span>'),
        (
            html.link("Steer the model", "steer", name, features=start.feature),
            f"make feature {start.feature} stronger, and see what the model writes",
        ),
    ]
    cards = "".join(f'<li class="card"><b>{link}</b><p class="small muted">{what}</p></li>' for link, what in links)
    return f'<section aria-label="Start here"><h3>Start here</h3><ul class="start">{cards}</ul></section>'


def _origin(found: Overview) -> str:
    rows = []
    for key, value in found.facts.items():
        shown = value.rstrip("/").rpartition("/")[2] if key == "model" and value.startswith(("/", ".")) else value
        rows.append({"key": f'<span class="muted">{escape(key)}</span>', "value": escape(shown)})
    return f'<section class="card stack"><h3>Origin</h3>{html.table({"key": "", "value": ""}, rows, "tight")}</section>'


def _quality(found: Overview) -> str:
    if found.metrics is None:
        body = (
            '<p class="muted small">Not recorded: no evaluation stands beside this dictionary. '
            "<code>glassbox evaluate SAE_DIR</code> measures explained variance, L0, recovered loss and dead latents "
            "on held-out text.</p>"
        )
    else:
        cells = []
        for key, (title, meaning) in METRICS.items():
            value = found.metrics.get(key)
            told = "not recorded" if value is None else _figure(key, value)
            error = found.metrics.get(f"{key}_se")
            spread = (
                "" if error is None else f' <small class="muted">± {error * (100 if key in SHARES else 1):.2g}</small>'
            )
            cells.append(
                f'<div class="fact" title="{escape(meaning)}"><b>{told}{spread}</b><span>{escape(title)}</span></div>'
            )
        rows = found.metrics.get("n_rows")
        on = f'<p class="muted small">Measured on {int(rows):,} held-out rows.</p>' if rows else ""
        body = f'<div class="facts">{"".join(cells)}</div>{on}'
    return f'<section class="card stack"><h3>Quality</h3>{body}</section>'


def _figure(key: str, value: float) -> str:
    if key in SHARES:
        return f"{value:.1%}" if value >= 0.01 or value == 0 else f"{value:.2%}"
    return f"{value:.3f}" if key == "explained_variance" else f"{value:.1f}"


def _density(bins: Sequence[DensityBin], name: str) -> str:
    tallest = max((entry.features for entry in bins), default=0)
    if not tallest:
        return ""
    bars, first = [], True
    for entry in bins:
        told = escape(f"{entry.features:,} features with density {short(entry.low)} to {short(entry.high)}")
        if not entry.features:
            bars.append("<i></i>")
            continue
        tall = f"--h:{max(entry.features / tallest, 0.02):.3f}"
        where = {"low": f"{entry.low:.6g}", "high": f"{entry.high:.6g}"}
        said = " ".join(f'data-{key}="{value}"' for key, value in where.items())
        attributes = f' style="{tall}" title="{told}" aria-label="{told}" tabindex="{0 if first else -1}" {said}'
        bars.append(html.link("", "features", name, attributes, **where))
        first = False
    middle = bins[len(bins) // 2]
    ticks = "".join(f"<span>{escape(short(value))}</span>" for value in (bins[0].low, middle.low, bins[-1].high))
    return (
        '<section class="card stack"><h3>Features by density</h3>'
        f'<div class="density" data-density role="group" aria-label="Features by density, choose a range">'
        f'{"".join(bars)}</div><div class="ticks muted small">{ticks}</div>'
        '<p class="muted small">Share of tokens on which a feature '
        f"fires, logarithmic; the tallest bar is {tallest:,} features. Click a bar, or drag over several, to list "
        "them.</p></section>"
    )


def _frontier(known: Mapping[str, Dictionary], name: str) -> str:
    names, points = list(known), frontier(list(known.values()))
    if len(points) < 2:
        return ""
    series: dict[str, list[curves.Point]] = {"this dictionary": [], "open too": [], "others of the run": []}
    for point in points:
        which = "others of the run" if point.opened is None else "open too"
        if point.opened is not None and names[point.opened] == name:
            which = "this dictionary"
        shown = point.name if point.opened is None else names[point.opened]
        series[which].append(curves.Point(shown, point.l0, point.explained_variance, point.explained_variance_se))
    series = {which: found for which, found in series.items() if found}
    picture = curves.scatter_svg(
        curves.Scatter(
            title="Explained variance against L0", x_label="active latents per token (L0)",
            y_label="explained variance", series=series, log_x=True,
        )
    )  # fmt: skip
    return (
        f'<section class="card stack"><h3>Frontier</h3><div class="frontier">{picture}</div>'
        f"{curves.legend(list(series))}</section>"
    )


def _map(dictionary: Dictionary, name: str) -> str:
    found = stored_map(dictionary)
    if found is None:
        command = escape(f"glassbox dict map {shlex.quote(str(dictionary.path))}")
        body = (
            '<p class="muted small">No map of this dictionary was made yet. This draws one, with similar features '
            f"close together, and keeps it (it needs the extra <code>glassbox-sae[map]</code>):</p><pre>{command}</pre>"
        )
        return f'<section class="card stack"><h3>Map of features</h3>{body}</section>'
    told = f"Map of {len(found.features):,} features in {len(found.clusters):,} clusters"
    return (
        f'<section class="card stack"><h3>Map of features</h3><div class="map" data-map data-dict="{escape(name)}">'
        f'<canvas tabindex="0" role="application" aria-label="{told}: arrow keys move, plus and minus zoom, Enter '
        'opens the feature in the middle"></canvas><p class="map-told small" role="status" hidden></p>'
        '<div class="map-keys"><button type="button" data-zoom="in" aria-label="Zoom in">+</button>'
        '<button type="button" data-zoom="out" aria-label="Zoom out">−</button>'
        '<button type="button" data-zoom="all">All</button></div></div>'
        '<p class="muted small">Each point is a feature; those with similar directions stand close, dense places are '
        "clusters, named by the tokens that tell them apart. Distances are a picture, not a measure. Drag to move, "
        "double-click to zoom, click a point to open it.</p>"
        f"{_clusters(found, name)}</section>"
    )


def _clusters(found: FeatureMap, name: str) -> str:
    """The largest clusters as links, each to its feature nearest to the middle: the map without a mouse."""
    if not found.clusters:
        return ""
    members: dict[int, list[int]] = {}
    for place, cluster in enumerate(found.cluster):
        if 0 <= cluster < CLUSTERS_TOLD:
            members.setdefault(cluster, []).append(place)
    rows = []
    for cluster in found.clusters[:CLUSTERS_TOLD]:
        places = members.get(cluster.cluster) or []
        if not places:
            continue
        x, y = (sum(axis[place] for place in places) / len(places) for axis in (found.x, found.y))
        middle = min(places, key=lambda place: (found.x[place] - x) ** 2 + (found.y[place] - y) ** 2)
        feature = found.features[middle]
        tokens = " ".join(chip(token) for token in cluster.tokens)
        link = html.link(f"{cluster.features:,} around feature {feature}", "feature", name, feature=feature)
        rows.append(f"<li>{link} {tokens}</li>")
    return (
        f'<details><summary>The {len(rows)} largest clusters</summary><ul class="clusters small">{"".join(rows)}</ul>'
        "</details>"
    )


def _table(known: Mapping[str, Dictionary], name: str) -> str:
    if len(known) < 2:
        return ""
    rows = []
    for other, dictionary in known.items():
        info, metrics = dictionary.info, dictionary.overview.metrics or {}
        link = html.link(escape(other), "overview", other)
        model = str(info["model"]["name"]).rstrip("/").rpartition("/")[2]
        rows.append(
            {
                "name": f"<b>{escape(other)}</b> (shown)" if other == name else link,
                "model": escape(model),
                "site": escape(dictionary.site),
                "kind": escape(str(info["sae"].get("architecture") or "")),
                "features": f"{info['n_features']:,}",
                "tokens": f"{info['n_indexed_tokens']:,}",
                "ev": f"{metrics['explained_variance']:.3f}" if "explained_variance" in metrics else "not recorded",
                "l0": f"{metrics['l0']:.1f}" if "l0" in metrics else "not recorded",
            }
        )
    columns = {"name": "dictionary", "model": "model", "site": "site", "kind": "kind", "features": "features"}
    columns |= {"tokens": "tokens", "ev": "EV", "l0": "L0"}
    table = html.table(columns, rows, "tight", ["features", "tokens", "ev", "l0"])
    return (
        f'<section class="card stack"><div class="head"><h3>Open dictionaries</h3>'
        f'</div><div class="scrolls">{table}</div></section>'
    )


def _shown(token: str) -> str:
    """A token as the canvas writes it: plain text, spaces and line ends visible."""
    told = token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍").translate(html.UNSEEN)
    return told if len(told) <= 16 else f"{told[:15]}…"
