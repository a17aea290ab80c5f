"""The self-contained report page of a run, and the names of figures on every page.

Enters: a `DemoReport`. Leaves: one HTML file that opens anywhere, offline, light and dark, without a
script (`ui.render.html.page`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ui.render import figures, html
from ui.render.feature import feature_card
from ui.render.html import escape, table

if TYPE_CHECKING:
    from features.demo_report import DemoReport
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
    "explained_variance_se": "Explained variance, standard error",
    "fvu": "Fraction of variance unexplained",
    "l1": "Sum of activations per token (L1)",
    "relative_bias": "Relative reconstruction bias",
    "norm_in": "Length of input",
    "norm_out": "Length of reconstruction",
    "alive_frac": "Live latents",
    "common_frac": "Latents above 1 % density",
    "activation_mean": "Activation, mean",
    "activation_std": "Activation, standard deviation",
    "activation_max": "Activation, largest",
    "negative_frac": "Negative activations",
    "rescale_q10": "Rescale factor, 10th percentile",
    "rescale_median": "Rescale factor, median",
    "rescale_q90": "Rescale factor, 90th percentile",
    "decoder_max_cosine": "Nearest decoder row, mean cosine",
    "decoder_max_cosine_q50": "Nearest decoder row, median",
    "decoder_max_cosine_q90": "Nearest decoder row, 90th percentile",
    "decoder_max_cosine_q99": "Nearest decoder row, 99th percentile",
    "duplicate_frac": "Latents with a twin (cosine above 0.9)",
    "encoder_max_cosine": "Nearest encoder row, mean cosine",
    "encoder_decoder_cosine": "Encoder with decoder row, mean cosine",
    "ce_recovered_se": "Cross-entropy recovered, standard error",
    "kl_zero": "KL divergence with the site set to zero",
    "kl_score": "KL score",
    "consistent_activation": "Tokens fired per sequence fired in",
    "meta_explained_variance": "Decoder variance explained by a meta-SAE",
    "meta_explained_variance_shuffled": "The same, coordinates shuffled",
    "absorption_fraction": "Absorption fraction",
    "full_absorption": "Full absorption",
    "main_latents": "Main latents per letter",
}
HEADLINES = tuple(NAMES)[:14]
"""Figures that a run's own page and table show; `glassbox evaluate` shows all."""
LEAD = (
    "A sparse autoencoder learned to write each activation of a language model as a sum of a few directions. Each "
    "direction is a feature. This page shows how faithful that dictionary is, and what some of its features mean."
)
DRAWN = (
    "Drawn blindly among the live ones, so good and bad appear as they are. A token's colour is the feature's "
    "activation on it, as a share of the feature's maximum; hover to read the value."
)
SHARES = ("dead_frac", "alive_frac", "dense_frac", "common_frac", "duplicate_frac", "negative_frac")


def write_demo_report(report: DemoReport, path: Path) -> Path:
    """Writes the page of a whole run and returns its path."""
    return write_page(path, demo_page(report))


def demo_page(report: DemoReport) -> str:
    """Returns the page of a whole run: what was measured, how long it took, and features to read."""
    metrics = [
        {
            "metric": escape(NAMES.get(row["metric"], row["metric"])),
            "value": f"<b>{escape(value_text(row['metric'], row['value']))}</b>",
            "target": escape(row.get("target") or ""),
            "met": _met(row.get("met")),
        }
        for row in sorted(report.metrics_rows(), key=lambda row: _place(row["metric"]))
        if row["metric"] in HEADLINES
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


def _densities(metrics: Metrics) -> str:
    return figures.svg(figures.density_chart(metrics.density))


def _place(metric: str) -> int:
    """Orders metrics as `NAMES` does, unknown ones last."""
    return list(NAMES).index(metric) if metric in NAMES else len(NAMES)


def value_text(name: str, value: object) -> str:
    """Returns a figure as people read it: shares in percent, counts with separators."""
    if value is None:
        return "not measured"
    if isinstance(value, float):
        return f"{value:.2%}" if name in SHARES else f"{value:.1f}" if name == "l0" else f"{round(value, 4) + 0.0:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _met(met: bool | None) -> str:
    if met is None:
        return ""
    return '<span class="good">met</span>' if met else '<span class="bad">missed</span>'


def write_page(path: Path, content: str) -> Path:
    """Writes a page, whole or not at all, and returns its path."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
    return path
