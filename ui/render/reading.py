"""HTML of a reading: features × tokens as a heat view, the text beneath it, one token's features, its lens.

Enters: `ActiveFeatures`, `LogitLens`, `ReadingComparison`. Leaves: fragments that `ui/assets/text.js` brings to life. A
lane (one feature over the tokens) is a button that carries its cells as numbers, `token value` by turns: the grid draws
those in sight alone, and the text takes its colours from them. The text itself is one span for each token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ui.render import html
from ui.render.html import chip, escape, explained, table, visible

if TYPE_CHECKING:
    from activations.analyses import LogitLens
    from features.records import ActiveFeature, ActiveFeatures
    from features.text_comparison import ReadFeature, ReadingComparison

Link = Callable[[int, str], str]
Scale = Callable[[int], float]
"""The value of full colour, for each feature."""

UNITS = {
    "activation": "activation",
    "surprise": "bits of surprise",
    "effect": "effect on the logit",
    "attribution": "attribution to the logit",
}
TOLD = {
    "activation": "share of each feature's maximum, summed over the text",
    "surprise": "how rarely a feature is that strong, in bits",
    "effect": "direct effect on the logit of {target} right after each token",
    "attribution": "effect on the logit of {target} after the last token, to first order",
}


def scales(reading: ActiveFeatures, maxima: Sequence[float]) -> Scale:
    """Returns the scale of a reading: each feature's maximum, or of other measures the largest on the text."""
    if reading.by == "activation":
        return lambda feature: float(maxima[feature]) or max(abs(c.activation) for c in reading.cells(feature))
    largest = max((abs(size) for sizes in reading.measures for size in sizes), default=1.0) or 1.0
    return lambda _feature: largest


def heat(
    reading: ActiveFeatures,
    lanes: Sequence[tuple[int, str]],
    scale: Scale,
    link: Link,
    *,
    title: str,
    side: str = "a",
    space: str = "",
    feature: int | None = None,
    token: int | None = None,
) -> str:
    """Returns the heat view of a reading over its text.

    `lanes` are features with their explanations, `title` is HTML already; `space` names what feature numbers belong
    to: heat views of one space show a chosen feature together. `feature` and `token` are chosen already. `data-made`
    differs where anything does, so that the element knows when another reading was put into it.
    """
    named = "".join(f"<li>{lane(reading, number, says, scale, side)}{link(number, '↗')}</li>" for number, says in lanes)
    special = set(reading.special)
    spans = "".join(_token(index, text, index in special) for index, text in enumerate(reading.tokens))
    target = f" “{escape(reading.target)}”" if reading.target is not None else ""
    told = TOLD[reading.by].format(target=target)
    chosen = "" if feature is None else f' data-feature="{feature}"'
    at = "" if token is None else f' data-token="{token}"'
    empty = "" if lanes else '<p class="muted">No feature is active on this text.</p>'
    body = (
        f'<div class="head"><h3>{title}</h3><span class="muted small">{len(reading.tokens):,} tokens · '
        f"{len(reading.features):,} features active</span></div>"
        f'{empty}<div class="heat-grid"{" hidden" if not lanes else ""}><div class="heat-names">'
        f'<p class="muted small">{told}</p><ol>{named}</ol></div>'
        '<div class="heat-scroll" tabindex="0" role="group" aria-label="Features over tokens; the text below says the '
        'same"><div class="heat-strip"></div></div></div>'
        '<div class="head heat-tools"><p class="small" data-shown aria-live="polite"></p><span>'
        '<label class="switch"><input type="checkbox" data-spaces> show spaces</label> '
        '<label class="switch"><input type="checkbox" data-lines checked> break lines</label></span></div>'
        '<div class="text reading" role="listbox" aria-label="Tokens of the text; arrow keys move, Enter chooses">'
        f"{spans}</div></gb-heat>"
    )
    data = f' data-side="{side}" data-space="{escape(space)}" data-unit="{UNITS[reading.by]}"{chosen}{at}'
    made = hashlib.blake2b(f"{data}{body}".encode(errors="replace"), digest_size=8).hexdigest()
    return f'<gb-heat class="card heat" data-made="{made}"{data}>{body}'


def _token(index: int, text: str, is_special: bool) -> str:
    shown = visible(text) or '<i class="mark">∅</i>'
    kind = ' class="special"' if is_special else ""
    return f'<span role="option" data-i="{index}"{kind}>{shown}</span>'


def lane(reading: ActiveFeatures, feature: int, says: str, scale: Scale, side: str) -> str:
    """Returns the button that shows a feature over the tokens."""
    by_activation = reading.by == "activation"
    cells = " ".join(
        f"{cell.token} {cell.activation if by_activation else cell.measure:.3g}" for cell in reading.cells(feature)
    )
    return (
        f'<button type="button" class="lane" data-lane="{feature}" data-side="{side}" data-scale="{scale(feature):.4g}"'
        f' data-cells="{cells}" aria-pressed="false" title="{escape(says)}"><b>{feature}</b> {explained(says)}</button>'
    )


def token_panel(
    reading: ActiveFeatures,
    token: int,
    explanations: Mapping[int, str],
    maxima: Sequence[float],
    link: Link,
    side: str,
) -> str:
    """Returns one token's features: values, shares of their maxima, the measure, and what they stand for."""
    scale = scales(reading, maxima)
    rows = []
    sizes = reading.measures[token] if reading.measures else []
    for place, (feature, value) in enumerate(reading.per_token[token]):
        largest = float(maxima[feature])
        share = f"{abs(value) / largest:.0%}" if largest > 0 else "–"
        row = {
            "lane": lane(reading, feature, explanations.get(feature, ""), scale, side),
            "value": f"{value:.3g}",
            "share": share,
            "open": link(feature, "↗"),
        }
        if reading.by != "activation":
            row["measure"] = f"{sizes[place]:+.3g}" if reading.by != "surprise" else f"{sizes[place]:.1f}"
        rows.append(row)
    columns = {"lane": "Feature", "value": "Value", "share": "of max."}
    if reading.by != "activation":
        columns["measure"] = {"surprise": "Bits"}.get(reading.by, "Effect")
    columns["open"] = ""
    if rows:
        listed = table(columns, rows, "tight features-here", numbers=("value", "share", "measure"))
    elif token in reading.special:
        listed = '<p class="muted">A special token: the dictionary has no events for it.</p>'
    elif reading.part is not None and not reading.part.all_events:
        listed = '<p class="muted">No event is stored here: this dictionary keeps those around its examples alone.</p>'
    else:
        listed = '<p class="muted">No feature is active here.</p>'
    where = f"token {token:,}"
    if reading.part is not None:
        where += f" · position {reading.part.first_position + token:,}"
    mark = ' <span class="tag special">special</span>' if token in reading.special else ""
    return (
        f'<div class="gb"><section class="card token-panel"><div class="head"><h3>Token {chip(reading.tokens[token])}'
        f'{mark}</h3><span class="muted small">{where}</span></div>{listed}</section></div>'
    )


def lens_panel(lens: LogitLens) -> str:
    """Returns what the model would predict after each layer at one token, and how it ranks the token that follows."""
    following = lens.target_tokens[0]
    rows = []
    for place, site in enumerate(lens.sites):
        probability = float(lens.top_probabilities[place, 0, 0])
        others = ", ".join(repr(token) for token in lens.top_tokens[place][0][1:])
        rank = "" if following is None else f"{int(lens.target_ranks[place, 0]) + 1:,}"
        rows.append(
            {
                "site": escape(_layer(site, place == len(lens.sites) - 1)),
                "top": f'<span title="{escape(f"then {others}")}">{chip(lens.top_tokens[place][0][0])}</span>',
                "probability": f"{probability:.0%}",
                "rank": rank,
            }
        )
    columns = {"site": "Layer", "top": "Predicts", "probability": ""}
    told = "the text ends here"
    if following is not None:
        columns["rank"] = "Rank of next"
        told = f"next in the text: {chip(following)}"
    listed = table(columns, rows, "tight lens", numbers=("probability", "rank"))
    return (
        f'<div class="gb"><section class="card lens-panel"><div class="head"><h3>Logit lens</h3>'
        f'<span class="muted small">{told}</span></div>{listed}</section></div>'
    )


def _layer(site: str, is_end: bool) -> str:
    kind, _, number = site.partition(".")
    if kind == "resid_pre" and number == "0":
        return "embeddings"
    return f"after {number}" + (" (end)" if is_end else "") if kind == "resid_post" else site


def comparison(found: ReadingComparison, names: tuple[str, str], links: tuple[Link, Link]) -> str:
    """Returns what two readings have and have not in common; `names` are plain text."""
    first, second = (escape(name) for name in names)

    def alone(entries: Sequence[ReadFeature], link: Link) -> str:
        rows = [
            {
                "feature": link(entry.feature, str(entry.feature)),
                "says": explained(entry.explanation),
                "total": f"{entry.total:.3g}",
                "tokens": f"{entry.tokens:,}",
            }
            for entry in entries
        ]
        columns = {"feature": "Feature", "says": "", "total": "Total", "tokens": "Tokens"}
        return table(columns, rows, "tight", numbers=("total", "tokens")) if rows else '<p class="muted">None.</p>'

    pairs = []
    for pair in found.both:
        number = links[0](pair.a.feature, str(pair.a.feature))
        if found.kind == "dictionaries":
            number += f" ↔ {links[1](pair.b.feature, str(pair.b.feature))}"
        says = explained(pair.a.explanation)
        if pair.b.explanation and pair.b.explanation != pair.a.explanation:
            says += f' <span class="muted">↔ {explained(pair.b.explanation)}</span>'
        pairs.append(
            {
                "feature": number,
                "says": says,
                "a": f"{pair.a.total:.3g}",
                "b": f"{pair.b.total:.3g}",
                "like": "" if pair.cosine is None else f"{pair.cosine:.2f}",
            }
        )
    columns = {"feature": "Feature", "says": "", "a": "Total, first", "b": "second"}
    if found.kind == "dictionaries":
        columns["like"] = "Cosine"
    both = table(columns, pairs, "tight", numbers=("a", "b", "like")) if pairs else '<p class="muted">None.</p>'
    told = {
        "texts": "Features of both texts, largest differences first",
        "models": "Features of both models, largest differences first",
        "dictionaries": "Counterparts on this text: each other's nearest by what they do on it",
    }[found.kind]
    counts = found.found
    return (
        '<section class="stack comparison-of-readings"><div class="pair">'
        f'<div class="card"><h3>Only in {first} ({counts["only_a"]:,})</h3>{alone(found.only_a, links[0])}</div>'
        f'<div class="card"><h3>Only in {second} ({counts["only_b"]:,})</h3>{alone(found.only_b, links[1])}</div></div>'
        f'<div class="card"><h3>{told} ({counts["both"]:,})</h3>{both}</div></section>'
    )


def lanes_of(ranked: Sequence[ActiveFeature]) -> list[tuple[int, str]]:
    """Returns the features of a ranking with their explanations."""
    return [(entry.feature, entry.explanation) for entry in ranked]


def document_heading(name: str, positions: str, links: Sequence[str]) -> str:
    """Returns the title of a piece of a document; `links` are HTML already."""
    return f'{escape(name)} <span class="muted">{escape(positions)}</span> {" ".join(links)}'


def document_list(hits: Sequence[tuple[int, str, int]], dictionary: str, by: str) -> str:
    """Returns links to documents: number, name and tokens of each."""
    if not hits:
        return '<div class="gb"><p class="muted small">No document has such a name.</p></div>'
    rows = "".join(
        f"<li>{html.link(escape(name), 'text', dictionary, document=number, by=by)}"
        f' <span class="muted small">{n_tokens:,} tokens</span></li>'
        for number, name, n_tokens in hits
    )
    return f'<div class="gb"><ul class="documents">{rows}</ul></div>'
