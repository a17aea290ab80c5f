"""The page, the tables and the pictures of an analysis, put together from `ui.render.analyses`.

Enters: an `activations.analyses` result. Leaves: terminal tables, one self-contained HTML page with the JSON beside
it, or heat maps that `ui.render.heatmap` draws as plotly figures and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ui.render import html
from ui.render.analyses import attention, attribution, causal, lenses, neurons
from ui.render.analyses.attribution import ATTRIBUTIONS, overlay
from ui.render.analyses.drawing import Drawing, section
from ui.render.heatmap import Heatmap, plotly_heatmap, save_heatmap
from ui.render.html import chip, escape, explained, visible
from ui.render.links import Link, plain
from ui.render.report import write_page
from ui.render.tables import records_table

if TYPE_CHECKING:
    import plotly.graph_objects

    from activations.analyses import Analysis
    from features.records import ActiveFeatures

SHOWN = 8
"""Records of a ranking in the terminal."""
DRAWINGS: dict[str, Drawing] = {
    **attribution.DRAWINGS,
    **lenses.DRAWINGS,
    **attention.DRAWINGS,
    **causal.DRAWINGS,
    **neurons.DRAWINGS,
}
"""By method."""


def write_analysis_report(result: Analysis, path: Path, extra: str = "") -> Path:
    """Writes the page of an analysis, and all of it as JSON beside it; returns the page's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path.with_suffix(".json"), result.to_json() + "\n")
    return write_page(path, analysis_page(result, extra))


def analysis_page(result: Analysis, extra: str = "") -> str:
    """Returns the page of an analysis; `extra` is HTML (already) that goes behind the rest."""
    facts = {"model": result.model, "tokens": f"{len(result.tokens):,}", "target": result.target}
    facts |= {"methods": str(len(result.results)), "seconds": f"{sum(result.time_s.values()):.1f}"}
    texts = _quoted(result.tokens)
    if result.compare is not None:
        texts += f'<p class="muted small">compared with</p><div class="text">{visible(result.compare)}</div>'
    left_out = "".join(
        f'<p class="notice">{escape(name)} was left out: {escape(why)}</p>' for name, why in result.left_out.items()
    )
    return html.page(
        "Glassbox: analysis",
        f'<header class="stack"><h3>Glassbox</h3><h1>Why did the model say that</h1>'
        f'<div class="card stack">{texts}</div>{html.facts(facts)}{left_out}</header>'
        f"{''.join(sections(result))}{extra}",
    )


def pair_page(results: Sequence[Analysis]) -> str:
    """Returns a page of analyses beside each other."""
    sides = "".join(
        f'<div class="stack"><h2>{escape(found.model)}: {escape(found.target)}</h2>'
        f'<div class="card">{_quoted(found.tokens)}</div>{"".join(sections(found))}</div>'
        for found in results
    )
    head = '<header class="stack"><h3>Glassbox</h3><h1>Why did the model say that</h1></header>'
    return html.page("Glassbox: analyses", f'{head}<section><div class="pair">{sides}</div></section>')


def sections(result: Analysis) -> list[str]:
    """Returns a section of HTML for each method, attributions together."""
    scored = {name: found for name, found in result.results.items() if name in ATTRIBUTIONS}
    parts = [section("Attribution", attribution.WHAT, attribution.section_body(scored))] if scored else []
    for name, found in result.results.items():
        if name not in scored:
            drawing = DRAWINGS[name]
            parts.append(section(drawing.heading, drawing.what, drawing.html(found)))
    return parts


def features_section(found: ActiveFeatures, link: Link = plain) -> str:
    """Returns the features that are active on the text, by their effect on the target."""
    rows = [
        {
            "feature": link(row["feature"], str(row["feature"])),
            "effect": f"{row['effect']:+.3g}",
            "activation": f"{row['activation']:.3g}",
            "token": chip(row["token"]),
            "explanation": explained(row["explanation"]),
        }
        for row in feature_rows(found)
    ]
    what = f"Features of the dictionary by their effect on the logit of {found.target!r} at the end of the text."
    columns = {"feature": "Feature", "effect": "Effect", "activation": "Activation", "token": "Strongest at"}
    listed = html.table(columns | {"explanation": "Explanation"}, rows, "list", numbers=("effect", "activation"))
    return section("Features", what, f'<div class="scrolls">{listed}</div>')


def feature_rows(found: ActiveFeatures) -> list[dict[str, Any]]:
    """Returns a record for each feature that is active on a text, the largest effect first."""
    return [
        {"feature": entry.feature, "effect": entry.total, "activation": entry.max_activation}
        | {"token": found.tokens[entry.token], "explanation": entry.explanation}
        for entry in found.ranked
    ]


def heatmaps(name: str, found: Any) -> list[Heatmap]:
    """Returns the pictures of one method's result."""
    return DRAWINGS[name].maps(found)


def figures(name: str, found: Any) -> list[plotly.graph_objects.Figure]:
    """Returns the pictures of one method's result as interactive plotly figures."""
    return [plotly_heatmap(chart) for chart in heatmaps(name, found)]


def save_pictures(result: Analysis, folder: Path, ending: str = ".svg") -> list[Path]:
    """Writes every picture of an analysis into `folder` as `METHOD-N` with `ending` (.png, .svg or .pdf)."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        save_heatmap(chart, folder / f"{name}-{number}{ending}")
        for name, found in result.results.items()
        for number, chart in enumerate(heatmaps(name, found), 1)
    ]


def analysis_tables(result: Analysis) -> list[Table | Text]:
    """Returns the text in colours by the first attribution, and a table for each method, for the terminal."""
    parts: list[Table | Text] = []
    for name, found in result.results.items():
        if name in ATTRIBUTIONS:
            parts += [Text(f"{ATTRIBUTIONS[name]}: {attribution.summary(found)}", style="bold"), overlay(found)]
    for name, found in result.results.items():
        if name not in ATTRIBUTIONS:
            heading, rows = DRAWINGS[name].heading, DRAWINGS[name].rows(found)
            more = f" (first {SHOWN} of {len(rows)}; all with --json or --out)" if len(rows) > 2 * SHOWN else ""
            parts.append(records_table(f"{heading}{more}", rows[:SHOWN] if more else rows))
    if result.left_out:
        parts.append(records_table("Left out", [{"method": k, "why": v} for k, v in result.left_out.items()]))
    return parts


def _quoted(tokens: Sequence[str]) -> str:
    return f'<div class="text">{"".join(visible(token) for token in tokens)}</div>'
