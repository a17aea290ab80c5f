"""HTML of features: the page of one, its short form in reports, and lists of many.

Enters: results of `features`. Leaves: fragments for the browser and for reports. Links carry `data-feature`, which the
browser turns into navigation without a reload; in a report they lead nowhere and are left out (`link=None`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ui.render import feature_examples as shown_examples
from ui.render import feature_parts as parts
from ui.render.html import bar, chip, escape, explained, table
from ui.render.links import Link, frequency, linker, plain

if TYPE_CHECKING:
    from features import Feature

__all__ = ["Link", "feature_card", "feature_list", "feature_page", "frequency", "linker", "plain"]

HEADLINE_EXAMPLES = 5


def feature_page(
    feature: Feature,
    n_tokens: int,
    link: Link,
    heading: str,
    explanations: Mapping[int, str] | None = None,
) -> str:
    """Returns the whole page of one feature; `explanations` are its neighbours' where they have any.

    `heading` is HTML already.
    """
    left = [
        parts.explanations(feature),
        parts.facts(feature),
        parts.histogram(feature),
        parts.tokens(feature),
        parts.logits(feature),
        parts.relations(feature, link, explanations or {}),
        parts.positions(feature),
    ]
    right = parts.notices(feature, n_tokens) + ("" if feature.is_dead else shown_examples.examples(feature))
    return (
        f'<div class="gb"><article class="stack feature-page">'
        f"{heading}"
        f'<div class="columns"><div class="stack">{"".join(left)}</div>'
        f'<div class="stack">{right}</div></div></article></div>'
    )


def feature_card(feature: Feature, link: Link = plain, examples: int = HEADLINE_EXAMPLES) -> str:
    """Returns the short form of a feature: explanation, promoted tokens and the strongest examples."""
    promoted = " ".join(chip(token) for token, _, _ in list(feature.top_logits)[:8])
    shown = "".join(
        shown_examples.example(example, feature.max_activation) for example in list(feature.examples)[:examples]
    )
    says = explained(feature.explanation) or '<span class="muted">no explanation</span>'
    return (
        f'<article class="card stack"><div class="head"><h2>{link(feature.id, f"Feature {feature.id}")}</h2>'
        f'<span class="muted small">fires on {frequency(feature.density)} · '
        f"strongest {feature.max_activation:.3g}</span></div>"
        f'<p class="says">{says}</p><p class="small muted">promotes {promoted}</p><div>{shown}</div></article>'
    )


def feature_list(rows: Sequence[dict[str, Any]], link: Link) -> str:
    """Returns a table of features.

    A row has `feature`, `density`, `max_activation`, `is_dead`, and may have `explanation`, `score` and `why`.
    """
    if not rows:
        return '<p class="muted">No feature found.</p>'
    densest = max((row["density"] for row in rows), default=0.0) or 1.0
    cells = []
    for row in rows:
        says = explained(row.get("explanation") or "")
        if row["is_dead"]:
            says = '<span class="muted">never fired</span>'
        why = f'<div class="why">{escape(row["why"])}</div>' if row.get("why") else ""
        share = (row["density"] / densest) ** 0.5
        score = row.get("score")
        cells.append(
            {
                "feature": f'<span class="id">{link(row["feature"], str(row["feature"]))}</span>',
                "explanation": ('<span class="tag-label">label</span> ' if row.get("is_label") else "") + says + why,
                "density": f"{row['density']:.3%}{bar(share)}",
                "max_activation": f"{row['max_activation']:.3g}",
                "score": "" if score is None else f"{score:.2f}",
            }
        )
    columns = {"feature": "Feature", "explanation": "Explanation", "density": "Density", "max_activation": "Maximum"}
    if any(row.get("score") is not None for row in rows):
        columns["score"] = "Score"
    return table(columns, cells, "list", numbers=("density", "max_activation", "score"))
