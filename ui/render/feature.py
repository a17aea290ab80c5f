"""HTML of features: the page of one, its short form in reports, lists of many, and what is active on a text.

Enters: results of `features`. Leaves: fragments for the browser and for reports. Links carry `data-feature`, which the
browser turns into navigation without a reload; in a report they lead nowhere and are left out (`link=None`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ui.render import figures, html
from ui.render.html import bar, chip, escape, explained, highlighted, table

if TYPE_CHECKING:
    from features import Feature
    from features.records import ActiveFeatures

Link = Callable[[int, str], str]
"""Makes a link to a feature from its number and the text to show (HTML already)."""

HEADLINE_EXAMPLES = 5
PER_TOKEN = 5
SMALLEST_SHARE = 0.005


def plain(_feature: int, shown: str) -> str:
    """Shows a feature's number without a link: the `Link` of reports."""
    return f"<b>{shown}</b>"


def linker(dictionary: str) -> Link:
    """Returns the `Link` of the browser for the dictionary of that name."""

    def link(feature: int, shown: str) -> str:
        return html.link(shown, "feature", dictionary, f' data-feature="{feature}"', feature=feature)

    return link


def frequency(density: float) -> str:
    """Says a density in words: `1 in 230 tokens`."""
    return f"1 in {round(1 / density):,} tokens" if density > 0 else "never"


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
        _explanations(feature),
        _facts(feature),
        _histogram(feature),
        _tokens(feature),
        _logits(feature),
        _neighbours(feature, link, explanations or {}),
    ]
    right = _dead_notice(feature, n_tokens) if feature.is_dead else _examples(feature)
    return (
        f'<div class="gb"><article class="stack feature-page">'
        f"{heading}"
        f'<div class="columns"><div class="stack">{"".join(left)}</div>'
        f'<div class="stack">{right}</div></div></article></div>'
    )


def feature_card(feature: Feature, link: Link = plain, examples: int = HEADLINE_EXAMPLES) -> str:
    """Returns the short form of a feature: explanation, promoted tokens and the strongest examples."""
    promoted = " ".join(chip(token) for token, _, _ in list(feature.top_logits)[:8])
    shown = "".join(_example(example, feature.max_activation) for example in list(feature.examples)[:examples])
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
                "explanation": says + why,
                "density": f"{row['density']:.3%}{bar(share)}",
                "max_activation": f"{row['max_activation']:.3g}",
                "score": "" if score is None else f"{score:.2f}",
            }
        )
    columns = {"feature": "Feature", "explanation": "Explanation", "density": "Density", "max_activation": "Maximum"}
    if any(row.get("score") is not None for row in rows):
        columns["score"] = "Score"
    return table(columns, cells, "list", numbers=("density", "max_activation", "score"))


def active_features(
    active: ActiveFeatures, explanations: Mapping[int, str], maxima: Sequence[float], link: Link
) -> str:
    """Returns what is active on a text: the features of the whole text, then of each token.

    `maxima[feature]` is the activation of full colour.
    """
    ranked = []
    for entry in active.ranked:
        scale = float(maxima[entry.feature]) or entry.max_activation
        shown = highlighted(active.tokens, active.activations(entry.feature), scale, peak=entry.token)
        number = f"<b>{link(entry.feature, str(entry.feature))}</b>"
        strength = f"{entry.max_activation:.3g}, {entry.max_activation / scale:.0%} of its maximum"
        ranked.append(
            f'<div class="card active-feature"><div class="head"><span>{number} {explained(entry.explanation)}</span>'
            f'<span class="muted small">{strength}</span></div>{shown}</div>'
        )
    tokens = []
    for token, entries in zip(active.tokens, active.per_token, strict=True):
        found = " ".join(
            f'<span class="tag" title="{escape(explanations.get(feature, ""))}">{link(feature, str(feature))}'
            f"<small> {value:.3g}</small></span>"
            for feature, value in entries[:PER_TOKEN]
        )
        tokens.append({"token": chip(token), "features": found or '<span class="muted">none</span>'})
    by_token = table({"token": "Token", "features": "Strongest features"}, tokens, "tight")
    return (
        '<div class="gb"><div class="stack"><h3>Features of the whole text</h3>'
        f'{"".join(ranked) or _nothing()}<h3>Token by token</h3><div class="card">{by_token}</div></div></div>'
    )


def _nothing() -> str:
    return '<p class="muted">No feature is active on this text.</p>'


def _explanations(feature: Feature) -> str:
    shown = []
    for explanation in feature.explanations:
        score = "" if explanation.score is None else f" · score {explanation.score:.2f}"
        day = f", {explanation.time[:10]}" if explanation.time else ""
        author = f" by {explanation.author}{day}" if explanation.method == "label" else ""
        source = escape(f"{explanation.method}{author}{score}")
        shown.append(
            f'<div><p class="says">{explained(explanation.text)}</p><span class="muted small">{source}</span></div>'
        )
    empty = '<p class="muted">No explanation yet.</p>'
    return f'<section class="card stack"><h3>Explanation</h3>{"".join(shown) or empty}</section>'


def _facts(feature: Feature) -> str:
    if feature.is_dead:
        return ""
    pairs = {
        "fires on": frequency(feature.density),
        "density": f"{feature.density:.3%}",
        "maximum": f"{feature.max_activation:.3g}",
        "mean when active": f"{feature.mean_activation:.3g}",
    }
    return f'<section class="card">{html.facts(pairs)}</section>'


def _histogram(feature: Feature) -> str:
    if feature.is_dead:
        return ""
    chart = figures.histogram_chart(feature.histogram.edges, feature.histogram.counts)
    return f'<section class="card stack"><h3>How strongly it fires</h3>{figures.svg(chart, 130)}</section>'


def _logits(feature: Feature) -> str:
    def side(title: str, entries: Sequence[tuple[str, int, float]]) -> str:
        rows = [{"token": chip(token), "logit": f"{logit:+.2f}"} for token, _, logit in entries[:10]]
        listed = table({"token": "", "logit": ""}, rows, "tight", numbers=("logit",))
        return f"<div><h3>{title}</h3>{listed}</div>"

    if not feature.top_logits:
        return ""
    return (
        f'<section class="card"><div class="pair">{side("Promotes", list(feature.top_logits))}'
        f"{side('Suppresses', list(feature.bottom_logits))}</div></section>"
    )


def _tokens(feature: Feature) -> str:
    rows = [
        {"token": chip(token), "bar": bar(share), "share": f"{share:.0%}"}
        for token, share, _ in feature.tokens[:8]
        if share >= SMALLEST_SHARE
    ]
    if not rows:
        return ""
    listed = table({"token": "", "bar": "", "share": ""}, rows, "tight", numbers=("share",))
    return f'<section class="card stack"><h3>Where it fires (share of activation)</h3>{listed}</section>'


def _neighbours(feature: Feature, link: Link, explanations: Mapping[int, str]) -> str:
    if not feature.neighbours:
        return ""
    rows = [
        {
            "feature": link(number, str(number)),
            "says": f'<span class="muted">{explained(explanations.get(number, ""))}</span>',
            "cosine": f"{cosine:.2f}",
        }
        for number, cosine in feature.neighbours
    ]
    listed = table({"feature": "", "says": "", "cosine": ""}, rows, "tight", numbers=("cosine",))
    return f'<section class="card stack"><h3>Nearest directions (cosine)</h3>{listed}</section>'


def _dead_notice(feature: Feature, n_tokens: int) -> str:
    return (
        '<section class="notice"><b>This latent never fired</b> on the '
        f"{n_tokens:,} tokens of this dictionary's text, so there are no examples, and nothing here says what it "
        "stands for. What it promotes is computed from its direction alone.</section>"
    )


def _examples(feature: Feature) -> str:
    strata: dict[int, list[Any]] = {}
    for example in feature.examples:
        strata.setdefault(example.stratum, []).append(example)
    name = f"lines-{feature.id}"
    sections = []
    for stratum, examples in sorted(strata.items()):
        shown = "".join(_example(example, feature.max_activation) for example in examples)
        sections.append(
            f'<section class="card"><h3>{_stratum_title(stratum, examples, len(strata))}</h3>{shown}</section>'
        )
    switch = f'<label class="switch"><input type="checkbox" id="{name}" data-lines> break lines</label>'
    return f'<div class="head"><h3>Examples</h3>{switch}</div>{"".join(sections)}'


def _stratum_title(stratum: int, examples: Sequence[Any], strata: int) -> str:
    if stratum == 0:
        return "Strongest"
    low = min(example.activation for example in examples)
    high = max(example.activation for example in examples)
    where = "weakest" if stratum == strata - 1 else ("strong" if stratum == 1 else "weaker")
    return f"Sample of {where} activations · {low:.3g} to {high:.3g}"


def _example(example: Any, scale: float) -> str:
    text = highlighted(example.tokens, example.activations, scale, peak=example.center)
    source = f"<span>{escape(example.document_name)} · token {example.position:,}</span>"
    return f'<div class="example"><div class="source">{source}<span>{example.activation:.3g}</span></div>{text}</div>'
