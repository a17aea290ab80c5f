"""The list of features: pages of those that meet conditions, and what a search finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ui.render import feature as render
from ui.render import html
from ui.render.html import escape

if TYPE_CHECKING:
    from features import Dictionary

PAGE_FEATURES = 50
SEARCHED = 500
"""Of what a search finds, those that are filtered and paged."""
BEST = "Best first"
ORDERS = {
    "Number": "feature",
    "Frequent first": "density",
    "Rare first": "rare",
    "Maximum": "max_activation",
    "Score": "score",
    "Random": "random",
}
SHOWN = {"Live": "live", "Silent": "dead", "Very dense": "dense", "All": "all"}
KINDS = {
    "Anything": "auto",
    "Token": "token",
    "Phrase in the text": "text",
    "Regular expression": "regex",
    "Words of explanations": "explanation",
    "Number": "number",
}
DENSITIES = {
    "Any": (None, None),
    "below 0.01 %": (None, 1e-4),
    "0.01 to 0.1 %": (1e-4, 1e-3),
    "0.1 to 1 %": (1e-3, 1e-2),
    "1 to 10 %": (1e-2, 1e-1),
    "above 10 %": (1e-1, None),
}
ANY = "Any"


def feature_list(dictionary: Dictionary, words: Mapping[str, str], page: int, name: str) -> str:
    """Returns a page of the list, counted from 0, with links to the pages around it.

    `words` are those of the address: `q`, `kind`, `order`, `show`, `density`, `labelled`, `score`, `list`, `cluster`.
    """
    link = render.linker(name)
    query = words.get("q", "").strip()
    try:
        found = _found(dictionary, query, KINDS.get(words.get("kind", ""), "auto")) if query else None
    except ValueError as error:  # a regular expression is broken most of the time that one types it
        return f'<div class="gb"><p class="notice">{escape(error)}</p></div>'
    order = ORDERS.get(words.get("order", ""), None if found is not None else "feature")
    among = None if found is None else list(found)
    start = max(page, 0) * PAGE_FEATURES
    only = _filter(words)
    listed = dictionary.listing.page(order, only, PAGE_FEATURES, start, among)
    if not listed.features and listed.total:
        start = 0
        listed = dictionary.listing.page(order, only, PAGE_FEATURES, 0, among)
    rows = [row | {"why": (found or {}).get(row["feature"], "")} for row in listed.features]
    head = ""
    if found is not None:
        told = f"{listed.total:,} found" if len(found) < SEARCHED else f"among the best {SEARCHED}, {listed.total:,}"
        head = f'<p class="muted small">{told} for <b>{escape(query)}</b></p>'
    else:
        head = f'<p class="muted small">{listed.total:,} of {dictionary.n_features:,} features</p>'
    pages = max(-(-listed.total // PAGE_FEATURES), 1)
    kept = {key: value for key, value in words.items() if value and key != "at"}
    turn = _turn(start // PAGE_FEATURES, pages, name, kept) if pages > 1 else ""
    return f'<div class="gb">{head}{render.feature_list(rows, link)}{turn}</div>'


def _found(dictionary: Dictionary, query: str, kind: str) -> dict[int, str]:
    """What a search finds, best first, each with the reason."""
    numbered: dict[int, str] = {}
    if query.isascii() and query.isdigit() and kind in ("auto", "number"):
        exact = [int(query)] if int(query) < dictionary.n_features else []
        begun = [n for n in range(dictionary.n_features) if str(n).startswith(query)] if kind == "number" else []
        numbered = {number: f"feature {number}" for number in dict.fromkeys([*exact, *begun])}
    if kind == "number":
        return dict(list(numbered.items())[:SEARCHED])
    hits = dictionary.search(query, limit=SEARCHED, kind=kind)
    return numbered | {hit.feature: hit.reason for hit in hits if hit.feature not in numbered}


def _filter(words: Mapping[str, str]) -> Any:
    from features.listing import FeatureFilter

    least, most = DENSITIES.get(words.get("density", ""), (None, None))
    least, most = share(words.get("low", "")) or least, share(words.get("high", "")) or most
    cluster = words.get("cluster", "")
    return FeatureFilter(
        show=SHOWN.get(words.get("show", ""), "live"),
        least_density=least,
        most_density=most,
        has_label=words.get("labelled") == "true",
        least_score=share(words.get("score", "")),
        on_list=words.get("list", ANY) if words.get("list") not in ("", ANY, None) else None,
        cluster=int(cluster) if cluster.isascii() and cluster.isdigit() and len(cluster) < 9 else None,
    )


def share(given: str) -> float | None:
    """Returns a number above 0 and up to 1, or None."""
    try:
        found = float(given)
    except ValueError:
        return None
    return found if 0 < found <= 1 else None


def clusters(dictionary: Dictionary) -> list[str]:
    """Returns the clusters of the map, where one was made."""
    rows = dictionary.store.query("select distinct cluster from feature_map where cluster >= 0 order by 1")
    return [str(cluster) for cluster in rows["cluster"].to_pylist()]


def _turn(page: int, pages: int, name: str, words: Mapping[str, str]) -> str:
    def step(to: int, shown: str, attribute: str) -> str:
        there = html.link(shown, "features", name, f" data-{attribute}", **words, at=to)
        return there if 0 <= to < pages else f'<span class="muted">{shown}</span>'

    back, on = step(page - 1, "← Previous page", "back"), step(page + 1, "Next page →", "on")
    where = f'<span class="muted small">page {page + 1:,} of {pages:,}</span>'
    return f'<nav class="turn" aria-label="Pages of the list">{back}{where}{on}</nav>'
