"""Search: features by token, by text, by pattern, by the words of their explanations, by meaning.

Enters: a query and its kind. Leaves: features, best first, each with the reason it was found.

* `token`: the query is a token (in any case, with or without blanks around it), or part of some. The table
  feature_tokens says which features spend how much of their activation there.
* `text`: the query is a phrase; features active where it stands (`features.text_search`).
* `regex`: the query is a regular expression over single tokens and over the text of documents (`features.patterns`).
* `explanation`: words of labels and explanations, ranked with BM25 (`features.bm25`).
* `semantic`: labels and explanations that mean alike, where an embedding model is given (`features.semantic`).
* `auto`: labels and explanations that hold every word of the query, and tokens; the text where no token holds it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from features import bm25, text_search
from features.embedders import Embedder
from features.listing import Listing
from features.patterns import matches
from features.semantic import closest_texts
from features.store import Store
from features.text import Text
from features.token_postings import TokenPostings

KINDS = ("auto", "token", "text", "regex", "explanation", "semantic")


@dataclass(frozen=True)
class SearchHit:
    """A feature that a search found."""

    feature: int
    reason: str
    """Why it was found, for people."""
    score: float
    """Larger is better; comparable within one search only."""
    explanation: str = ""
    """The text shown for the feature."""

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(self)]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


class _Found(NamedTuple):
    feature: int
    score: float
    reason: str


class Sources:
    """What searches of one dictionary read; what they keep in memory is read at the first search, or by `read`."""

    def __init__(self, store: Store, text: Text, listing: Listing) -> None:
        self.store, self.text, self.listing = store, text, listing
        self.words = bm25.WordIndex(store)
        self.tokens = TokenPostings(store.build)

    def read(self) -> None:
        """Reads now what the first search would wait for (phrases alone also join the text, at their first search)."""
        self.words.read()
        self.tokens.read()


def search(
    sources: Sources, query: str, limit: int, kind: str = "auto", embedder: Embedder | None = None
) -> list[SearchHit]:
    """Finds features for a query; an empty query finds nothing.

    Raises:
        ValueError: an unknown kind, a query that is no Unicode, a pattern that is broken or slow, or a semantic search
            without an embedder.
    """
    if kind not in KINDS:
        raise ValueError(f"search kind {kind!r} is unknown, expected one of {', '.join(KINDS)}: choose one of these")
    if kind == "semantic" and embedder is None:
        raise ValueError(
            "a semantic search got no embedding model, expected a folder of one or the address of an endpoint: "
            "give one (--embed), or search with kind explanation"
        )
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the query has half a character at {error.start}, expected Unicode: remove it") from None
    if not query.strip() or limit < 1:
        return []
    ways: dict[str, Callable[[], Iterable[_Found]]] = {
        "auto": lambda: _anything(sources, query, limit),
        "token": lambda: _tokens(sources, query, limit),
        "text": lambda: _phrase(sources, query, limit),
        "regex": lambda: _pattern(sources, query, limit),
        "explanation": lambda: _words(sources, query, limit),
        "semantic": lambda: _meaning(sources, embedder, query, limit) if embedder else (),
    }
    best: dict[int, _Found] = {}
    for hit in ways[kind]():
        if hit.feature not in best or hit.score > best[hit.feature].score:
            best[hit.feature] = hit
    found = sorted(best.values(), key=lambda hit: (-hit.score, hit.feature))[:limit]
    texts = sources.listing.texts([hit.feature for hit in found])
    return [SearchHit(hit.feature, hit.reason, hit.score, texts.get(hit.feature, "")) for hit in found]


def _anything(sources: Sources, query: str, limit: int) -> Iterable[_Found]:
    """Labels come first, then whole tokens; the score of an explanation scales how well it matches."""
    hits = [hit for hit in sources.words.ranked(query, 4 * limit) if hit.has_all]
    most = hits[0].score if hits else 1.0
    for hit in hits:
        share = hit.score / most
        trust = 0.5 if hit.method_score is None else max(hit.method_score, 0.0)
        yield _Found(hit.feature, 2.0 + share if hit.is_newest else share * trust, _told(hit))
    tokens = list(_tokens(sources, query, limit))
    yield from tokens or _phrase(sources, query, limit)


def _words(sources: Sources, query: str, limit: int) -> Iterable[_Found]:
    # several texts of one feature can be among the best
    for hit in sources.words.ranked(query, 4 * limit):
        yield _Found(hit.feature, hit.score, _told(hit))


def _told(hit: bm25.WordHit) -> str:
    what = "label" if hit.is_newest else "earlier label" if hit.is_label else "explanation"
    return f"{what} has {', '.join(hit.words)}"


def _meaning(sources: Sources, embedder: Embedder, query: str, limit: int) -> Iterable[_Found]:
    for hit in closest_texts(sources.store, embedder, query, limit):
        what = "label" if hit.is_label else "explanation"
        yield _Found(hit.feature, hit.cosine, f"{what} means alike (cosine {hit.cosine:.2f})")


def _tokens(sources: Sources, query: str, limit: int) -> Iterable[_Found]:
    text, wanted = sources.text, query.strip().lower()
    held = [token_id for token_id, token in enumerate(text.lowered) if wanted in token]
    exact = [i for i in held if text.vocabulary[i] == query or text.lowered[i].strip() == wanted]
    part = sorted(set(held) - set(exact))
    for ids, offset in ((exact, 1.0), (part, 0.0)):
        for feature, share, told in _features_at(sources, ids, limit):
            yield _Found(feature, offset + share, told)


def _features_at(sources: Sources, token_ids: list[int], limit: int) -> list[tuple[int, float, str]]:
    """Features by the share of their activation on these tokens, with a text that names the heaviest of them."""
    found = []
    for hit in sources.tokens.strongest(token_ids, limit):
        named = ", ".join(repr(sources.text.vocabulary[i]) for i in hit.tokens)
        more = f" and {hit.n_tokens - len(hit.tokens)} more" if hit.n_tokens > len(hit.tokens) else ""
        found.append((hit.feature, hit.share, f"token {named}{more} ({hit.share:.0%} of its activation)"))
    return found


def _among(store: Store) -> str:
    """What a count of places is short of."""
    return "" if store.keeps_all_events else ", as far as kept around its examples"


def _phrase(sources: Sources, query: str, limit: int) -> Iterable[_Found]:
    for hit in text_search.in_phrase(sources.store, sources.text, sources.listing.facts, query, limit):
        told = f"active at {hit.places:,} of {hit.of:,} places of {query.strip()!r}{_among(sources.store)}"
        yield _Found(hit.feature, hit.score, told)


def _pattern(sources: Sources, pattern: str, limit: int) -> Iterable[_Found]:
    store, text = sources.store, sources.text
    vocabulary = text.vocabulary
    ends = np.cumsum([len(token) for token in vocabulary])
    found = np.unique(matches(pattern, "".join(vocabulary), ends).strings).tolist()
    in_tokens = {feature: (share, told) for feature, share, told in _features_at(sources, found, limit)}
    in_text = {hit.feature: hit for hit in text_search.in_matches(store, text, sources.listing.facts, pattern, limit)}
    for feature in in_tokens.keys() | in_text.keys():
        share, told = in_tokens.get(feature, (0.0, ""))
        hit = in_text.get(feature)
        places = f"active at {hit.places:,} of {hit.of:,} matches such as {hit.sample!r}{_among(store)}" if hit else ""
        score = max(share, hit.score if hit else 0.0)
        yield _Found(feature, score, "; ".join(part for part in (told, places) if part))
