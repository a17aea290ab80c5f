"""What the browser shows, as HTML: from a dictionary and what a person typed to a fragment, without any Gradio.

Every text that a person or the corpus supplied passes `ui.render`, which escapes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ui.render import feature as render
from ui.render import figures, html
from ui.render.html import escape

if TYPE_CHECKING:
    from features import Dictionary

PAGE_FEATURES = 50
ACTIVE_FEATURES = 12
STREAM_INTERVAL_S = 0.05
ORDERS = {
    "Number": "feature",
    "Frequent first": "density",
    "Rare first": "rare",
    "Maximum": "max_activation",
    "Score": "score",
    "Random": "random",
}
SHOWN = ("Live", "Silent", "All")


class Shelf:
    """The opened dictionaries by the name under which the browser shows them."""

    def __init__(self, dictionaries: Sequence[Dictionary]) -> None:
        if not dictionaries:
            raise ValueError("no dictionary was given, expected at least one folder: name one")
        self.by_name: dict[str, Dictionary] = {}
        for dictionary in dictionaries:
            name, number = str(dictionary.name), 2
            while name in self.by_name:
                name, number = f"{dictionary.name} ({number})", number + 1
            self.by_name[name] = dictionary

    @property
    def names(self) -> list[str]:
        """Names in the order in which the dictionaries were given."""
        return list(self.by_name)

    def get(self, name: str | None) -> Dictionary:
        """Returns the dictionary of that name, or the first where the name is unknown."""
        return self.by_name.get(name or "") or self.by_name[self.names[0]]


def overview(dictionary: Dictionary) -> str:
    """Returns the strip over the feature list: what this dictionary is."""
    info = dictionary.info
    pairs = {
        "features": f"{info['n_features']:,}",
        "never fired": f"{info['n_features'] - info['n_live']:,}",
        "tokens of text": f"{info['n_tokens']:,}",
        "documents": f"{info['n_documents']:,}",
        "active per token": f"{info['n_events'] / max(info['n_indexed_tokens'], 1):.1f}",
    }
    model, architecture = str(info["model"]["name"]), str(info["sae"].get("architecture") or "sae")
    source = escape(f"{model.rstrip('/').rpartition('/')[2]} · {info['site']} · {architecture}")
    densities = dictionary.sql("select density from features where not is_dead")["density"].to_pylist()
    chart = figures.svg(figures.density_chart(densities), 120)
    return (
        f'<div class="gb"><div class="card overview"><div class="stack"><p class="muted small mono">{source}</p>'
        f'{html.facts(pairs)}</div><div class="wide-only">{chart}</div></div></div>'
    )


def feature_list(
    dictionary: Dictionary, query: str, order: str, shown: str, page: int, name: str
) -> tuple[str, int, int]:
    """Returns the list, the page it is (from 0), and how many pages there are."""
    link = render.linker(name)
    if query.strip():
        found = find(dictionary, query.strip(), PAGE_FEATURES)
        told = f"{len(found)} found" if len(found) < PAGE_FEATURES else f"the best {len(found)}"
        head = f'<p class="muted small">{told} for <b>{escape(query.strip())}</b></p>'
        return f'<div class="gb">{head}{render.feature_list(found, link)}</div>', 0, 1
    page = max(page, 0)
    for start in (page * PAGE_FEATURES, 0):
        if shown == "Silent":
            total, rows = _silent(dictionary, start)
        else:
            by = ORDERS.get(order, "feature")
            listed = dictionary.features(order=by, live_only=shown == "Live", limit=PAGE_FEATURES, offset=start)
            total, rows = listed.total, listed.features
        if rows:
            break
        page = 0
    pages = max(-(-total // PAGE_FEATURES), 1)
    return f'<div class="gb">{render.feature_list(rows, link)}</div>', page, pages


def find(dictionary: Dictionary, query: str, limit: int) -> list[dict[str, Any]]:
    """Returns the rows of the features that a search finds; a number finds the feature of that number first."""
    reasons = {hit.feature: (hit.reason, hit.explanation) for hit in dictionary.search(query, limit=limit)}
    if query.isascii() and query.isdigit() and int(query) < dictionary.n_features:
        number = int(query)
        says = reasons.pop(number, ("", dictionary.explanations_of([number]).get(number, "")))[1]
        reasons = {number: (f"feature {number}", says)} | reasons
    numbers = list(reasons)[:limit]
    if not numbers:
        return []
    wanted = ", ".join(map(str, numbers))
    rows = dictionary.sql(f"select feature, density, max_activation, is_dead from features where feature in ({wanted})")
    facts = {row["feature"]: row for row in rows.to_pylist()}
    return [facts[number] | {"why": reasons[number][0], "explanation": reasons[number][1]} for number in numbers]


def _silent(dictionary: Dictionary, start: int) -> tuple[int, list[dict[str, Any]]]:
    rows = dictionary.sql(
        "select feature, density, max_activation, is_dead from features where is_dead "
        f"order by feature limit {PAGE_FEATURES} offset {start}"
    )
    return dictionary.info["n_features"] - dictionary.info["n_live"], rows.to_pylist()


def feature_page(dictionary: Dictionary, feature: int | None, name: str) -> str:
    """Returns the page of a feature, or says which numbers exist."""
    if feature is None:
        return '<div class="gb"><p class="muted">Choose a feature from the list, or search for one.</p></div>'
    if not 0 <= feature < dictionary.n_features:
        told = f"There is no feature {feature}: this dictionary has 0 to {dictionary.n_features - 1}."
        return f'<div class="gb"><p class="notice">{told}</p></div>'
    found = dictionary.feature(feature)
    return render.feature_page(
        found,
        dictionary.n_features,
        dictionary.info["n_indexed_tokens"],
        render.linker(name),
        dictionary.explanations_of([neighbour.feature for neighbour in found.neighbours]),
    )


def active(dictionary: Dictionary, text: str, name: str) -> str:
    """Returns the features that are active on a text, over all of it and token by token."""
    if not text:
        return '<div class="gb"><p class="muted">Type or paste a text.</p></div>'
    found = dictionary.active_on(text, top=ACTIVE_FEATURES)
    shown = {feature for row in found.per_token for feature, _ in row[: render.PER_TOKEN]}
    explanations = dictionary.explanations_of(shown)
    return render.active_features(found, explanations, dictionary.max_activations.tolist(), render.linker(name))


def continuation(prompt: str, text: str, title: str, running: bool) -> str:
    """Returns one side of the steering comparison."""
    cursor = '<i class="mark cursor">▍</i>' if running else ""
    return (
        f'<div class="gb"><div class="card stack continuation"><h3>{escape(title)}</h3>'
        f'<span class="text"><span class="muted">{escape(prompt)}</span>{escape(text)}{cursor}</span></div></div>'
    )


def merged(left: Iterator[str], right: Iterator[str]) -> Iterator[tuple[str, str, bool]]:
    """Runs two streams side by side; yields both texts so far, and whether more is to come.

    Closing this iterator closes both streams, which ends the model's work.
    """
    texts, streams = ["", ""], {0: left, 1: right}
    shown = 0.0
    try:
        while streams:
            for side in list(streams):
                piece = next(streams[side], None)
                if piece is None:
                    del streams[side]
                else:
                    texts[side] += piece
            if time.monotonic() - shown > STREAM_INTERVAL_S:
                shown = time.monotonic()
                yield texts[0], texts[1], True
        yield texts[0], texts[1], False
    finally:
        for stream in (left, right):
            close = getattr(stream, "close", None)
            if close is not None:
                close()


def slot(dictionary: Dictionary, feature: int, name: str) -> str:
    """Returns the name of a steered feature: its number, what it is called, and its unit of strength."""
    says = html.explained(dictionary.explanations_of([feature]).get(feature, ""))
    maximum = float(dictionary.max_activations[feature])
    return (
        f'<div class="gb"><b>{render.linker(name)(feature, f"Feature {feature}")}</b> '
        f'<span class="muted small">maximum {maximum:.3g}</span><br><span class="small">{says}</span></div>'
    )
