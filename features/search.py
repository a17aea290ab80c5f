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
from features.patterns import matches
from features.semantic import closest_texts
from features.store import Store
from features.text import Text

KINDS = ("auto", "token", "text", "regex", "explanation", "semantic")
NAMED_TOKENS = 4


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


def search(
    store: Store,
    text: Text,
    told: Callable[[Iterable[int]], dict[int, str]],
    query: str,
    limit: int,
    kind: str = "auto",
    embedder: Embedder | None = None,
) -> list[SearchHit]:
    """Finds features for a query; an empty query finds nothing. `told` gives the texts that features are shown by.

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
        "auto": lambda: _anything(store, text, query, limit),
        "token": lambda: _tokens(store, text, query, limit),
        "text": lambda: _phrase(store, text, query, limit),
        "regex": lambda: _pattern(store, text, query, limit),
        "explanation": lambda: _words(store, query, limit),
        "semantic": lambda: _meaning(store, embedder, query, limit) if embedder else (),
    }
    best: dict[int, _Found] = {}
    for hit in ways[kind]():
        if hit.feature not in best or hit.score > best[hit.feature].score:
            best[hit.feature] = hit
    found = sorted(best.values(), key=lambda hit: (-hit.score, hit.feature))[:limit]
    texts = told([hit.feature for hit in found])
    return [SearchHit(hit.feature, hit.reason, hit.score, texts.get(hit.feature, "")) for hit in found]


def _anything(store: Store, text: Text, query: str, limit: int) -> Iterable[_Found]:
    """Labels come first, then whole tokens; the score of an explanation scales how well it matches."""
    hits = [hit for hit in bm25.ranked_texts(store, query, 4 * limit) if hit.has_all]
    most = hits[0].score if hits else 1.0
    for hit in hits:
        share = hit.score / most
        trust = 0.5 if hit.method_score is None else max(hit.method_score, 0.0)
        yield _Found(hit.feature, 2.0 + share if hit.is_newest else share * trust, _told(hit))
    tokens = list(_tokens(store, text, query, limit))
    yield from tokens or _phrase(store, text, query, limit)


def _words(store: Store, query: str, limit: int) -> Iterable[_Found]:
    # several texts of one feature can be among the best
    for hit in bm25.ranked_texts(store, query, 4 * limit):
        yield _Found(hit.feature, hit.score, _told(hit))


def _told(hit: bm25.WordHit) -> str:
    what = "label" if hit.is_newest else "earlier label" if hit.is_label else "explanation"
    return f"{what} has {', '.join(hit.words)}"


def _meaning(store: Store, embedder: Embedder, query: str, limit: int) -> Iterable[_Found]:
    for hit in closest_texts(store, embedder, query, limit):
        what = "label" if hit.is_label else "explanation"
        yield _Found(hit.feature, hit.cosine, f"{what} means alike (cosine {hit.cosine:.2f})")


def _tokens(store: Store, text: Text, query: str, limit: int) -> Iterable[_Found]:
    wanted = query.strip().lower()
    held = [token_id for token_id, token in enumerate(text.lowered) if wanted in token]
    exact = [i for i in held if text.vocabulary[i] == query or text.lowered[i].strip() == wanted]
    part = sorted(set(held) - set(exact))
    for ids, offset in ((exact, 1.0), (part, 0.0)):
        for feature, share, told in _features_at(store, text, ids, limit):
            yield _Found(feature, offset + share, told)


def _features_at(store: Store, text: Text, token_ids: list[int], limit: int) -> list[tuple[int, float, str]]:
    """Features by the share of their activation on these tokens, with a text that names the heaviest of them."""
    if not token_ids:
        return []
    rows = store.query(
        """
        select feature, sum(mass) as share, list(token_id order by mass desc, token_id) as tokens
        from feature_tokens join (select unnest($ids)::integer as token_id) using (token_id)
        group by feature order by share desc, feature limit $limit
        """,
        {"ids": token_ids, "limit": limit},
    ).to_pylist()
    found = []
    for row in rows:
        named = ", ".join(repr(text.vocabulary[i]) for i in row["tokens"][:NAMED_TOKENS])
        more = f" and {len(row['tokens']) - NAMED_TOKENS} more" if len(row["tokens"]) > NAMED_TOKENS else ""
        found.append((row["feature"], row["share"], f"token {named}{more} ({row['share']:.0%} of its activation)"))
    return found


def _among(store: Store) -> str:
    """What a count of places is short of."""
    return "" if store.keeps_all_events else ", as far as kept around its examples"


def _phrase(store: Store, text: Text, query: str, limit: int) -> Iterable[_Found]:
    for hit in text_search.in_phrase(store, text, query, limit):
        told = f"active at {hit.places:,} of {hit.of:,} places of {query.strip()!r}{_among(store)}"
        yield _Found(hit.feature, hit.score, told)


def _pattern(store: Store, text: Text, pattern: str, limit: int) -> Iterable[_Found]:
    vocabulary = text.vocabulary
    ends = np.cumsum([len(token) for token in vocabulary])
    found = np.unique(matches(pattern, "".join(vocabulary), ends).strings).tolist()
    in_tokens = {feature: (share, told) for feature, share, told in _features_at(store, text, found, limit)}
    in_text = {hit.feature: hit for hit in text_search.in_matches(store, text, pattern, limit)}
    for feature in in_tokens.keys() | in_text.keys():
        share, told = in_tokens.get(feature, (0.0, ""))
        hit = in_text.get(feature)
        places = f"active at {hit.places:,} of {hit.of:,} matches such as {hit.sample!r}{_among(store)}" if hit else ""
        score = max(share, hit.score if hit else 0.0)
        yield _Found(feature, score, "; ".join(part for part in (told, places) if part))
