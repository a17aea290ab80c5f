"""HTML of what is known about one feature beside its examples: explanations, numbers, tokens, logits, relations.

Enters: a `Feature` and its scores. Leaves: cards, empty where there is nothing to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ui.render import figures, html
from ui.render.html import bar, chip, escape, explained, table
from ui.render.links import Link, frequency

if TYPE_CHECKING:
    from features import Feature
    from features.labels import Explanation, Score
    from features.records import Histogram

DENSE = 0.1
LOGITS, NEIGHBOURS = 10, 8
SMALLEST_SHARE = 0.005
PLACES = {
    "document_first": "first token of a document",
    "document_last": "last token of a document",
    "context_first": "first token the model reads",
    "context_last": "last token the model reads",
}


def card(title: str, body: str, classes: str = "") -> str:
    """Returns a titled card around HTML."""
    return f'<section class="card stack {classes}"><h3>{escape(title)}</h3>{body}</section>'


def folded(title: str, body: str, is_open: bool = False) -> str:
    """Returns a part that opens on demand."""
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{body}</details>"


def explanations(feature: Feature, scores: Sequence[Score] = ()) -> str:
    """Returns labels and explanations, the shown one first, each with its scores to unfold."""
    found = [_explanation(explanation, scores) for explanation in feature.explanations]
    earlier = [e for e in feature.explanations if e.method == "label"][1:]
    first = [html_ for html_, e in zip(found, feature.explanations, strict=True) if e not in earlier]
    rest = [html_ for html_, e in zip(found, feature.explanations, strict=True) if e in earlier]
    history = folded(f"{len(rest)} earlier label{'s' * (len(rest) > 1)}", "".join(rest)) if rest else ""
    methods = {explanation.method for explanation in feature.explanations}
    others = [score for score in scores if score.method not in methods]
    baseline = folded("Scores of baselines", _scores(others, with_method=True)) if others else ""
    empty = '<p class="muted">No explanation yet.</p>'
    return card("Explanation", "".join(first) + history + baseline or empty, "explanations")


def _explanation(explanation: Explanation, scores: Sequence[Score]) -> str:
    score = "" if explanation.score is None else f" · score {explanation.score:.2f}"
    day = f", {explanation.time[:10]}" if explanation.time else ""
    author = f" by {explanation.author}{day}" if explanation.method == "label" else ""
    source = escape(f"{explanation.method}{author}{score}")
    own = [entry for entry in scores if entry.method == explanation.method]
    drill = folded(f"{len(own)} scores", _scores(own)) if own else ""
    return (
        f'<div class="explanation"><p class="says">{explained(explanation.text)}</p>'
        f'<span class="muted small">{source}</span>{drill}</div>'
    )


def _scores(scores: Sequence[Score], with_method: bool = False) -> str:
    rows = []
    for score in scores:
        interval = "" if score.low is None or score.high is None else f"{score.low:.2f} to {score.high:.2f}"
        failed = f", {score.failures:,} without an answer" if score.failures else ""
        name = f"{score.method}: {score.scorer}" if with_method else score.scorer
        rows.append(
            {
                "scorer": escape(name.replace("_", " ")),
                "score": f"<b>{score.score:.2f}</b>",
                "interval": f'<span class="muted">{interval}</span>',
                "n": f'<span class="muted">{"" if score.n is None else f"{score.n:,}"}{failed}</span>',
            }
        )
    columns = {"scorer": "Scorer", "score": "Score", "interval": "95 %", "n": "Windows"}
    return table(columns, rows, "tight wrap", numbers=("score", "interval", "n"))


def facts(feature: Feature) -> str:
    """Returns the numbers of a live feature."""
    if feature.is_dead:
        return ""
    pairs = {
        "fires on": frequency(feature.density),
        "density": f"{feature.density:.3%}",
        "maximum": f"{feature.max_activation:.3g}",
        "mean when active": f"{feature.mean_activation:.3g}",
        "documents": f"{feature.documents:,}",
        "decoder norm": f"{feature.decoder_norm:.3g}",
    }
    return f'<section class="card">{html.facts(pairs)}</section>'


def histogram(feature: Feature) -> str:
    """Returns the histogram of activations; `data-` attributes say the scale, for a line at a token's value."""
    if feature.is_dead or not feature.histogram.counts:
        return ""
    chart = figures.histogram_chart(feature.histogram.edges, feature.histogram.counts)
    scale = f'data-low="{chart.x[0]:.6g}" data-high="{chart.x[-1]:.6g}" data-log="{int(chart.log_x)}"'
    return card("How strongly it fires", f'<div class="histogram" {scale}>{figures.svg(chart, 130)}</div>')


def logit_histogram(found: Histogram) -> str:
    """Returns the histogram of a feature's effects on all logits, with the numbers that tell its tails."""
    chart = figures.Chart(
        title="Effects on the logits of all tokens",
        x_label="change of a token's logit per unit of activation",
        y_label="tokens",
        kind="bars",
        x=found.edges,
        y=[math.log10(1 + count) for count in found.counts],
    )
    n = sum(found.counts)
    middles = [(low + high) / 2 for low, high in zip(found.edges[:-1], found.edges[1:], strict=True)]
    mean = sum(m * c for m, c in zip(middles, found.counts, strict=True)) / n
    moments = [sum(c * (m - mean) ** k for m, c in zip(middles, found.counts, strict=True)) / n for k in (2, 3, 4)]
    spread = math.sqrt(moments[0]) or 1.0
    skew, tails = moments[1] / spread**3, moments[2] / spread**4
    said = (
        f"{n:,} tokens; mean {mean:.3g}, standard deviation {spread:.3g}, skewness {skew:.2g}, "
        f"kurtosis {tails:.3g} (3 without heavy tails). Heights are logarithmic."
    )
    shown = f'{figures.svg(chart, 130)}<p class="muted small">{said}</p>'
    return f'<div class="gb">{card("Effects on all logits", shown)}</div>'


def tokens(feature: Feature) -> str:
    """Returns the tokens that hold most of its activation."""
    rows = [
        {"token": chip(token), "bar": bar(share), "share": f"{share:.0%}"}
        for token, share, _ in feature.tokens[:8]
        if share >= SMALLEST_SHARE
    ]
    if not rows:
        return ""
    listed = table({"token": "", "bar": "", "share": ""}, rows, "tight", numbers=("share",))
    return card("Where it fires (share of activation)", listed)


def logits(feature: Feature) -> str:
    """Returns what it promotes and suppresses, as it is and through the final norm."""

    def side(title: str, entries: Sequence[tuple[str, int, float]]) -> str:
        rows = [{"token": chip(token), "logit": f"{logit:+.2f}"} for token, _, logit in entries[:LOGITS]]
        listed = table({"token": "", "logit": ""}, rows, "tight", numbers=("logit",))
        return f"<div><h3>{title}</h3>{listed}</div>"

    def pair(top: Sequence[Any], bottom: Sequence[Any]) -> str:
        return f'<div class="pair">{side("Promotes", top)}{side("Suppresses", bottom)}</div>'

    if not feature.top_logits and not feature.top_normed_logits:
        return ""
    shown = pair(feature.top_logits, feature.bottom_logits) if feature.top_logits else ""
    if feature.top_normed_logits:
        normed = pair(feature.top_normed_logits, feature.bottom_normed_logits)
        shown += folded("Through the final norm", normed, is_open=not shown)
    return f'<section class="card stack logits">{shown}</section>'


def relations(feature: Feature, link: Link, says: Mapping[int, str]) -> str:
    """Returns the closest features by decoder, by encoder, and those active on the same tokens."""

    def listed(rows: Sequence[tuple[int, Mapping[str, str]]], columns: Mapping[str, str]) -> str:
        cells = [
            {
                "feature": link(number, str(number)),
                "says": f'<span class="muted">{explained(says.get(number, ""))}</span>',
                **values,
            }
            for number, values in rows
        ]
        return table({"feature": "", "says": "", **columns}, cells, "tight", numbers=tuple(columns))

    parts = []
    for title, found in (
        ("Nearest directions (decoder)", feature.neighbours),
        ("Nearest by encoder", feature.encoder_neighbours),
    ):
        if found:
            rows = [(number, {"cosine": f"{cosine:.2f}"}) for number, cosine in found[:NEIGHBOURS]]
            parts.append(folded(title, listed(rows, {"cosine": "cosine"}), is_open=not parts))
    if feature.coactivations:
        rows = [
            (other.feature, {"jaccard": f"{other.jaccard:.2f}", "pmi": f"{other.pmi:.1f}"})
            for other in feature.coactivations[:NEIGHBOURS]
        ]
        listing = listed(rows, {"jaccard": "Jaccard", "pmi": "PMI, bits"})
        parts.append(folded("Active on the same tokens", listing, is_open=not parts))
    return card("Related features", "".join(parts), "relations") if parts else ""


def positions(feature: Feature) -> str:
    """Returns where in the model's context it fires, and how often at the ends."""
    parts = []
    if len(feature.positions) > 1:
        most = max(entry.density for entry in feature.positions) or 1.0
        rows = [
            {
                "place": f"{entry.low:,}" if entry.high == entry.low + 1 else f"{entry.low:,} to {entry.high - 1:,}",
                "bar": bar(entry.density / most),
                "density": f"{entry.density:.2%}",
            }
            for entry in feature.positions
        ]
        parts.append(table({"place": "Position", "bar": "", "density": "Density"}, rows, "tight", numbers=("density",)))
    ends = [
        {
            "place": escape(PLACES.get(entry.place, entry.place)),
            "share": f"{entry.share:.1%}",
            "base": f'<span class="muted">{entry.base_share:.1%}</span>',
        }
        for entry in feature.boundaries
        if entry.count
    ]
    if ends:
        columns = {"place": "Its activations on the", "share": "Share", "base": "All tokens"}
        parts.append(table(columns, ends, "tight", numbers=("share", "base")))
    if not parts:
        return ""
    return f'<section class="card stack">{folded("Where in the context it fires", "".join(parts))}</section>'


def notices(feature: Feature, n_tokens: int) -> str:
    """Says of a dead or a very dense feature what it is."""
    if feature.is_dead:
        return (
            '<section class="notice"><b>This latent never fired</b> on the '
            f"{n_tokens:,} tokens of this dictionary's text, so there are no examples, and nothing here says what it "
            "stands for. What it promotes is computed from its direction alone.</section>"
        )
    if feature.density >= DENSE:
        return (
            f'<section class="notice"><b>A very dense feature</b>: it fires on {feature.density:.0%} of all tokens. '
            "Such latents seldom stand for one thing; the strongest examples show their far end only.</section>"
        )
    return ""
