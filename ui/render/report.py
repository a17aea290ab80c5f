"""Self-contained report pages: the demo's, and that of an evaluation.

Enters: results of `features` and `sae`. Leaves: one HTML file that opens anywhere, offline, light and dark, without a
script (`ui.render.html.page`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ui.render import figures, html
from ui.render.feature import feature_card
from ui.render.html import escape, table

if TYPE_CHECKING:
    from features.run import DemoReport
    from sae import Metrics

NAMES = {
    "explained_variance": "Explained variance",
    "ce_recovered": "Cross-entropy recovered",
    "dead_frac": "Silent latents",
    "l0": "Active latents per token (L0)",
    "dense_frac": "Dense latents",
    "mse": "Mean squared error",
    "cosine": "Cosine of input and reconstruction",
    "kl": "KL divergence (nats per token)",
    "ce_clean": "Cross-entropy of the model (nats)",
    "ce_sae": "Cross-entropy with the SAE spliced in",
    "ce_zero": "Cross-entropy with the site set to zero",
    "relative_norm": "Length of reconstruction by length of input",
    "n_rows": "Rows measured",
    "n_tokens": "Tokens predicted",
}
LEAD = (
    "A sparse autoencoder learned to write each activation of a language model as a sum of a few directions. Each "
    "direction is a feature. This page shows how faithful that dictionary is, and what some of its features mean."
)
DRAWN = (
    "Drawn blindly among the live ones, so good and bad appear as they are. A token's colour is the feature's "
    "activation on it, as a share of the feature's maximum; hover to read the value."
)
SHARES = ("dead_frac", "dense_frac")


def write_demo_report(report: DemoReport, path: Path) -> Path:
    """Writes the page of a whole run and returns its path."""
    return _write(path, demo_page(report))


def write_evaluation_report(results: Mapping[str, Metrics], path: Path) -> Path:
    """Writes the page that compares SAEs and returns its path."""
    return _write(path, evaluation_page(results))


def demo_page(report: DemoReport) -> str:
    """Returns the page of a whole run: what was measured, how long it took, and features to read."""
    metrics = [
        {
            "metric": escape(NAMES.get(row["metric"], row["metric"])),
            "value": f"<b>{escape(_value(row['metric'], row['value']))}</b>",
            "target": escape(row.get("target") or ""),
            "met": _met(row.get("met")),
        }
        for row in sorted(report.metrics_rows(), key=lambda row: _place(row["metric"]))
    ]
    total = sum(report.timings.values())
    timings = [
        {"step": escape(step), "time": f"{time_s:.1f} s", "bar": html.bar(time_s / total if total else 0)}
        for step, time_s in report.timings.items()
    ]
    timings.append({"step": "<b>all</b>", "time": f"<b>{total:.1f} s</b>", "bar": ""})
    columns = {"metric": "Measured on held-out text", "value": "Value", "target": "Target", "met": ""}
    chart = _densities(report.metrics) if report.metrics.density else ""
    cards = "".join(feature_card(feature) for feature in report.features)
    body = (
        f"<header class='stack'><h3>Glassbox</h3><h1>What this model thinks in</h1><p class='lead'>{LEAD}</p>"
        f"{html.facts(report.headline())}</header>"
        f'<section class="pair"><div class="card">{table(columns, metrics, "tight", numbers=("value", "target"))}</div>'
        f'<div class="card">{table({"step": "Step", "time": "Time", "bar": ""}, timings, "tight", numbers=("time",))}'
        f"{chart}</div></section>"
        f"<section><h2>{len(report.features)} features, drawn by seed</h2><p class='muted'>{DRAWN}</p>{cards}</section>"
        f"<section><h2>How it was made</h2><p class='muted'>{escape(report.recipe)}</p></section>"
    )
    return html.page("Glassbox: features of a run", body)


def evaluation_page(results: Mapping[str, Metrics]) -> str:
    """Returns the page that compares SAEs: one column for each folder."""
    names: dict[str, dict[str, float | None]] = {}
    for folder, metrics in results.items():
        for row in metrics.rows():
            names.setdefault(row["metric"], {})[folder] = row["value"]
    columns = {"metric": "Metric"} | {folder: folder for folder in results}
    rows = [
        {"metric": escape(NAMES.get(name, name))}
        | {folder: escape(_value(name, value)) for folder, value in values.items()}
        for name, values in names.items()
    ]
    listed = table(columns, rows, "wrap", numbers=list(results))
    body = (
        f'<header class="stack"><h3>Glassbox</h3><h1>Evaluation</h1></header><section class="card">{listed}</section>'
    )
    return html.page("Glassbox: evaluation", body)


def _densities(metrics: Metrics) -> str:
    return figures.svg(figures.density_chart(metrics.density))


def _place(metric: str) -> int:
    """Orders metrics as `NAMES` does, unknown ones last."""
    return list(NAMES).index(metric) if metric in NAMES else len(NAMES)


def _value(name: str, value: object) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.2%}" if name in SHARES else f"{value:.1f}" if name == "l0" else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _met(met: bool | None) -> str:
    if met is None:
        return ""
    return '<span class="good">met</span>' if met else '<span class="bad">missed</span>'


def _write(path: Path, content: str) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
    return path
