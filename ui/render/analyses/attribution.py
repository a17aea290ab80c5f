"""Scores of tokens: the text in colours, method by method, and how far the methods agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from ui.render import html
from ui.render.analyses.drawing import Drawing, matrix
from ui.render.figures import short
from ui.render.heatmap import Heatmap
from ui.render.html import escape, highlighted

if TYPE_CHECKING:
    from activations.analyses import Agreement, Attribution

ATTRIBUTIONS = {
    "gradient_norm": "Gradient norm",
    "gradient_x_input": "Gradient × input",
    "integrated_gradients": "Integrated gradients",
    "attn_lrp": "Relevance (AttnLRP)",
    "cp_lrp": "Relevance (CP-LRP)",
    "leave_one_out": "Leave one out",
    "substitution": "Substitution",
    "shapley": "Shapley values",
}
"""Attributions by name; they share one section."""
RELEVANCES = ("attn_lrp", "cp_lrp")
WHAT = (
    "How much each token makes of the target's number, by different questions: how sensitive it is (gradient norm), "
    "what shrinking a token's embedding would do (gradient × input), what replacing it by padding adds up to "
    "(integrated gradients), what is handed back to it through each layer (relevance), what leaving it out or putting "
    "another in its place changes, what it adds in all orders (Shapley values). Orange raises the number, blue lowers "
    "it; hover to read the value."
)


def section_body(scored: dict[str, Attribution]) -> str:
    parts = []
    for name, found in scored.items():
        largest = max((abs(float(score)) for score in found.scores), default=0.0)
        text = highlighted(found.tokens, [float(score) for score in found.scores], largest, unit="score")
        parts.append(
            f'<div class="card stack"><h3>{escape(ATTRIBUTIONS[name])}</h3>{text}'
            f'<p class="muted small">{escape(summary(found))}</p></div>'
        )
    return "".join(parts)


def overlay(found: Attribution) -> Text:
    """Returns the text with its tokens coloured by score, for the terminal."""
    largest = max((abs(float(score)) for score in found.scores), default=0.0) or 1.0
    shown = Text()
    for token, score in zip(found.tokens, found.scores, strict=True):
        strength = round(200 * abs(float(score)) / largest)
        # orange raises, blue lowers; the ink stays dark enough to read on both
        colour = (
            f"rgb(255,{255 - strength // 2},{255 - strength})"
            if score > 0
            else (f"rgb({255 - strength},{255 - strength // 2},255)")
        )
        label = token.translate(html.UNSEEN | {9: "⇥", 10: "⏎", 13: "␍"})
        shown.append(label, style=f"black on {colour}" if strength > 12 else "")
    return shown


def summary(found: Attribution) -> str:
    """Returns in words what was explained, and how far the scores are from adding up to it."""
    said = f"{found.target} is {short(found.value)}"
    if found.baseline_value is None or found.error is None:
        return said
    if found.method in RELEVANCES:
        rest = "the softmax, biases and positions" if found.method == "attn_lrp" else "biases and positions"
        return f"{said}; the scores sum to {short(found.value + found.error)}, {rest} keep what is missing"
    said += f", {short(found.baseline_value)} at the baseline, error {short(found.error)}"
    if (found.relative_error or 0) > 0.05:
        said += " (large: more steps, or another baseline)"
    if found.standard_errors is not None:
        said += f"; standard errors up to {short(float(found.standard_errors.max()))}"
    return said


def _agreement_map(found: Agreement) -> Heatmap:
    names = [ATTRIBUTIONS.get(name, name) for name in found.methods]
    return Heatmap(
        title="Agreement of methods",
        x_label="method",
        y_label="method",
        unit="rank correlation",
        columns=names,
        rows=names,
        values=matrix(found.correlations),
        is_token_axis=False,
    )


def _scores_map(found: Attribution) -> list[Heatmap]:
    return [
        Heatmap(
            title=f"{ATTRIBUTIONS[found.method]}: {found.target}",
            x_label="token",
            y_label="method",
            unit="score",
            columns=found.tokens,
            rows=[ATTRIBUTIONS[found.method]],
            values=matrix([found.scores]),
        )
    ]


DRAWINGS = {name: Drawing(heading=title, what=WHAT, maps=_scores_map) for name, title in ATTRIBUTIONS.items()}
DRAWINGS["agreement"] = Drawing(
    heading="Agreement of the methods",
    what="Rank correlation of the methods' absolute scores: 1 ranks tokens alike, 0 has nothing in common.",
    maps=lambda found: [_agreement_map(found)],
)
