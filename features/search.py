"""Search without a language model: by token, part of a token, phrase, label and explanation.

Enters: a query. Leaves: features, best first, each with the reason it was found.

1. The query is looked up among the model's tokens (exact, with or without surrounding blanks, then as a part); the
   table feature_tokens, ordered by token, says which features spend how much of their activation there.
2. Where no single token holds it, the query is a phrase: its places in the text are found, and features are ranked by
   how much of their activation near there they spend on it against how often they are active anyway.
3. Labels and explanations that contain the query come on top of both.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from features.store import Store
from features.text import Text

PHRASE_TOKENS = 20_000_000
PHRASE_PLACES = 2_000

SHOWN_EXPLANATIONS = """
    select feature, text, score from (
        select feature, text, score, row_number() over (
            partition by feature order by is_label desc, position desc, score desc nulls last
        ) as place
        from (
            select feature, text, null::double as score, true as is_label, rowid as position from labels
            union all
            select feature, text, score, false as is_label, 0 as position from explanations
        )
    ) where place = 1
"""


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


def search(store: Store, text: Text, query: str, limit: int) -> list[SearchHit]:
    """Finds features for a query; an empty query finds nothing."""
    wanted = query.strip()
    if not wanted or limit < 1:
        return []
    found: dict[int, tuple[float, str]] = {}
    for feature, score, reason in (*_in_words(store, wanted, limit), *_in_tokens(store, text, query, limit)):
        if feature not in found or score > found[feature][0]:
            found[feature] = score, reason
    best = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))[:limit]
    shown = store.query(
        f"select feature, text from ({SHOWN_EXPLANATIONS}) where list_contains($wanted, feature)",
        {"wanted": [feature for feature, _ in best]},
    ).to_pylist()
    texts = {row["feature"]: row["text"] for row in shown}
    return [SearchHit(feature, reason, score, texts.get(feature, "")) for feature, (score, reason) in best]


def _in_words(store: Store, query: str, limit: int) -> list[tuple[int, float, str]]:
    rows = store.query(
        """
        select feature, text, is_label, score from (
            select feature, text, true as is_label, 1.0::double as score from labels
            union all
            select feature, text, false, coalesce(score, 0.5) from explanations
        ) where contains(lower(text), lower($query)) order by is_label desc, score desc limit $limit
        """,
        {"query": query, "limit": limit},
    ).to_pylist()
    return [
        (row["feature"], 2.0 if row["is_label"] else row["score"], "label" if row["is_label"] else "explanation")
        for row in rows
    ]


def _in_tokens(store: Store, text: Text, query: str, limit: int) -> list[tuple[int, float, str]]:
    wanted = query.strip().lower()
    exact, part = [], []
    for token_id, token in enumerate(text.vocabulary):
        lowered = token.lower()
        if token == query or lowered.strip() == wanted:
            exact.append(token_id)
        elif wanted in lowered:
            part.append(token_id)
    hits = [(f, 1.0 + s, f"token {t}") for f, s, t in _features_at(store, text, exact, limit)] if exact else []
    if part:
        hits += [(f, s, f"token {t}") for f, s, t in _features_at(store, text, part, limit)]
    return hits if exact or part else _in_phrase(store, text, query, limit)


def _features_at(store: Store, text: Text, token_ids: list[int], limit: int) -> list[tuple[int, float, str]]:
    rows = store.query(
        """
        select feature, sum(mass) as share, arg_max(token_id, mass) as token_id
        from feature_tokens join ids using (token_id)
        group by feature order by share desc, feature limit $limit
        """.replace("ids using", "(select unnest($ids)::integer as token_id) using"),
        {"ids": token_ids, "limit": limit},
    ).to_pylist()
    return [
        (row["feature"], row["share"], f"{text.vocabulary[row['token_id']]!r} ({row['share']:.0%} of its activation)")
        for row in rows
    ]


def _in_phrase(store: Store, text: Text, phrase: str, limit: int) -> list[tuple[int, float, str]]:
    """Features that are active inside the phrase, weighted by how rare they are elsewhere."""
    ids = text.column("token_id", 0, min(text.n_tokens, PHRASE_TOKENS))
    positions = text.column("position", 0, ids.size)
    lengths = np.array([len(token) for token in text.vocabulary])
    ends = np.cumsum(lengths[ids])
    corpus = "".join(text.vocabulary[i] for i in ids).lower()
    places: list[int] = []
    wanted = phrase.lower() if phrase.lower() in corpus else phrase.strip().lower()
    start = corpus.find(wanted)
    while start >= 0 and len(places) < PHRASE_PLACES:
        places.append(start)
        start = corpus.find(wanted, start + len(wanted))
    if not places:
        return []
    first = np.searchsorted(ends, np.array(places), side="right")
    last = np.searchsorted(ends, np.array(places) + len(wanted) - 1, side="right")
    ordinals = np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)])
    row = np.searchsorted(text.documents.first_token, ordinals, side="right") - 1
    document = text.documents.ids[row]
    rows = store.query(
        """
        with places as (
            select unnest($documents)::integer as document, unnest($positions)::integer as position
        ), inside as (
            select feature, sum(abs(activation) / max_activation) as strength, count(*) as hits
            from events join places using (document, position) join features using (feature) group by feature
        )
        select feature, hits, strength / sqrt(features.count::double * $n) as score
        from inside join features using (feature) order by score desc, feature limit $limit
        """,
        {
            "documents": document.tolist(),
            "positions": positions[ordinals].tolist(),
            "n": len(places),
            "limit": limit,
        },
    ).to_pylist()
    return [(r["feature"], min(r["score"], 1.0), f"active in {phrase.strip()!r} ({r['hits']} times)") for r in rows]
