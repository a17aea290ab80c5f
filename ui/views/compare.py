"""Two dictionaries side by side: figures, relations by kind, and any two features beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ui.render import comparison as render
from ui.render import feature as feature_render
from ui.render import html
from ui.render.comparison import entry_card, percent, short
from ui.render.html import escape, explained

if TYPE_CHECKING:
    from features import Dictionary
    from features.comparison_records import Comparison

KINDS = {"matched": "Matched", "unique": "Unique", "splits": "Split", "absorptions": "Absorbed"}
PAGE = 50
EXAMPLES = 6


class Pair:
    """The two dictionaries by side, with the browser's names for them; makes the links."""

    def __init__(self, dictionaries: Sequence[Dictionary], names: Sequence[str]) -> None:
        self.of = dict(zip("ab", dictionaries, strict=True))
        self.names = dict(zip("ab", names, strict=True))

    def link(self, side: str, feature: int) -> str:
        """Returns a link to a feature of one side, shown with its side's letter."""
        return html.link(f"{side} {feature}", "feature", self.names[side], feature=feature)

    def beside(self, a: int, b: int) -> str:
        """Returns a link that shows two features beside each other."""
        return self.page("side by side", pair=f"{a},{b}")

    def page(self, shown: str, attributes: str = "", **words: object) -> str:
        """Returns a link to this page, over the same two dictionaries."""
        return html.link(shown, "compare", "", attributes, a=self.names["a"], b=self.names["b"], **words)


def alone(name: str) -> str:
    """Returns what the page says where one dictionary is open."""
    return (
        '<div class="gb"><p class="notice">One dictionary is open, and a comparison needs two: start the browser with '
        f"<code>glassbox browse DICT_A DICT_B</code>. (<b>{escape(name)}</b> is open now.)</p></div>"
    )


def before() -> str:
    """Returns what the page says before anything was compared."""
    return (
        '<div class="gb"><p class="muted">Choose two dictionaries and press Compare: which features both have, which '
        "only one has, which are split among several or absorbed by others. A comparison is kept, so that the "
        "second time it is there at once.</p></div>"
    )


def waiting(a: str, b: str) -> str:
    """Returns what the page says while a comparison is made."""
    told = f"Comparing {a} with {b}: reading the events of the text that both have indexed…"
    return f'<div class="gb"><p class="notice" role="status">{escape(told)}</p></div>'


def refused(reason: str) -> str:
    """Returns why the two cannot be compared."""
    return f'<div class="gb"><p class="notice" role="status">{escape(reason)}</p></div>'


def comparison(result: Comparison, pair: Pair, kind: str, at: int) -> str:
    """Returns the figures of a comparison and a page of the relations of one kind."""
    notes = "".join(f'<p class="notice">{escape(note)}</p>' for note in result.notes)
    counts = {key: len(getattr(result, key)) for key in KINDS}
    links = []
    for key, title in KINDS.items():
        current = ' aria-current="page"' if key == kind else ""
        links.append(f"<li>{pair.page(f'{title} <small>{counts[key]:,}</small>', current, kind=key)}</li>")
    found = getattr(result, kind)
    pages = max(-(-len(found) // PAGE), 1)
    at = min(max(at, 0), pages - 1)
    shown = found[at * PAGE : (at + 1) * PAGE]
    rows = "".join(_CARDS[kind](entry, pair) for entry in shown) or '<p class="muted">None.</p>'
    turns = [
        pair.page(text, kind=kind, at=where)
        for text, where in (("← Previous", at - 1), ("Next →", at + 1))
        if 0 <= where < pages
    ]
    foot = (
        f'<nav class="nav" aria-label="Pages">{"".join(turns)}<span class="muted">page {at + 1} of {pages}</span></nav>'
    )
    return (
        f'<div class="gb"><article class="stack comparison">{notes}{_summary(result, pair)}'
        f'<nav aria-label="Relations"><ul class="kinds">{"".join(links)}</ul></nav>'
        f'<p class="muted small">{escape(render.WHAT[kind])}</p><div class="card">{rows}</div>{foot}</article></div>'
    )


def side_by_side(pair: Pair, a: int, b: int) -> str:
    """Returns two features beside each other, each with its strongest examples."""
    cards = []
    for side, feature in (("a", a), ("b", b)):
        dictionary = pair.of[side]
        if not 0 <= feature < dictionary.n_features:
            told = f"There is no feature {feature} in {pair.names[side]}: it has 0 to {dictionary.n_features - 1}."
            return f'<div class="gb"><p class="notice">{escape(told)}</p></div>'
        link = feature_render.linker(pair.names[side])
        card = feature_render.feature_card(dictionary.feature(feature), link, EXAMPLES)
        cards.append(f'<div class="stack"><h3>{side} · {escape(pair.names[side])}</h3>{card}</div>')
    back = pair.page("← All relations")
    return (
        f'<div class="gb"><article class="stack side-by-side"><p class="nav">{back}</p>'
        f'<div class="pair">{"".join(cards)}</div></article></div>'
    )


def _summary(result: Comparison, pair: Pair) -> str:
    rows = []
    for row in result.summary():
        cells = {side: render.figure(row["figure"], row[side]) for side in "ab"}
        rows.append({"figure": escape(row["figure"])} | cells)
    columns = {"figure": "", "a": f"a · {pair.names['a']}", "b": f"b · {pair.names['b']}"}
    table = html.table(columns, rows, "tight wrap", ["a", "b"])
    both = f"{result.shared_tokens:,} tokens of {result.shared_documents:,} documents"
    text = f"Matched by {result.by}, over {both} that both have indexed."
    return f'<div class="card stack">{table}<p class="muted small">{escape(text)}</p></div>'


def _matched(entry: Any, pair: Pair) -> str:
    says = explained(entry.explanation_a)
    if entry.explanation_b and entry.explanation_b != entry.explanation_a:
        says += f' <span class="muted">b:</span> {explained(entry.explanation_b)}'
    figures = {"cosine": short(entry.cosine), "correlation": short(entry.correlation)}
    figures |= {"share in a": percent(entry.share_a), "share in b": percent(entry.share_b)}
    title = f"{pair.link('a', entry.a)} = {pair.link('b', entry.b)} {pair.beside(entry.a, entry.b)}"
    return entry_card(title, says, figures, entry.examples, linked=True)


def _unique(entry: Any, pair: Pair) -> str:
    other = "b" if entry.side == "a" else "a"
    figures = {"share": percent(entry.share), "density": f"{entry.density:.3%}", "covered": percent(entry.covered)}
    near = []
    for what, partner, value in (
        ("closest direction", entry.nearest, entry.cosine),
        ("closest events", entry.companion, entry.correlation),
    ):
        if partner is not None:
            sides = (entry.feature, partner) if entry.side == "a" else (partner, entry.feature)
            near.append(f"{what}: {pair.link(other, partner)}, {short(value)} ({pair.beside(*sides)})")
    parts = f'<div class="small muted">{" · ".join(near)}</div>'
    title = f"only {pair.link(entry.side, entry.feature)}"
    return entry_card(title, explained(entry.explanation), figures, entry.examples, parts, linked=True)


def _split(entry: Any, pair: Pair) -> str:
    other = "b" if entry.side == "a" else "a"
    figures = {"coverage": percent(entry.coverage), "direction in their span": percent(entry.in_span)}
    rows = [
        {"feature": pair.link(other, part.feature), "says": explained(part.explanation)}
        | {"precision": percent(part.precision), "recall": percent(part.recall), "cosine": short(part.cosine)}
        for part in entry.parts
    ]
    columns = {"feature": "part", "says": "", "precision": "precision", "recall": "recall", "cosine": "cosine"}
    parts = html.table(columns, rows, "tight", ["precision", "recall", "cosine"])
    title = pair.link(entry.side, entry.feature)
    return entry_card(title, explained(entry.explanation), figures, entry.examples, parts, linked=True)


def _absorbed(entry: Any, pair: Pair) -> str:
    other = "b" if entry.side == "a" else "a"
    figures = {"absorbed events": f"{entry.events:,}", "counterpart silent there": percent(entry.silent)}
    figures |= {"active elsewhere": percent(entry.active_elsewhere)}
    rows = [
        {"role": role, "feature": pair.link(other, feature), "says": explained(says)}
        for role, feature, says in (
            ("counterpart", entry.counterpart, entry.counterpart_explanation),
            ("absorber", entry.absorber, entry.absorber_explanation),
        )
    ]
    parts = html.table({"role": "", "feature": "", "says": ""}, rows, "tight")
    title = pair.link(entry.side, entry.feature)
    return entry_card(title, explained(entry.explanation), figures, entry.examples, parts, linked=True)


_CARDS = {"matched": _matched, "unique": _unique, "splits": _split, "absorptions": _absorbed}
