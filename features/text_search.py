"""Features found by what stands in the text: phrases, and matches of a pattern.

Enters: a query. Leaves: features, by how much of their activation falls inside the places that match.

1. The places are looked up in the text as one string (`Text.joined`, the first 20 million tokens); none spans two
   documents. Of many, `PLACES` are taken at even distances.
2. A feature's strength there is Σ |activation| / maximum over its events on the places' tokens; its score is
   strength / √(events of the feature · places), at most 1: what is active at many of the places and seldom elsewhere.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from features.patterns import TIMEOUT_S, matches
from features.store import Store
from features.text import Text

PLACES = 5_000


class TextHit(NamedTuple):
    """A feature that is active at places of the text."""

    feature: int
    score: float
    places: int
    """Places at which it is active."""
    of: int
    """Places looked at."""
    sample: str
    """The text of the first place."""


def in_phrase(store: Store, text: Text, phrase: str, limit: int) -> list[TextHit]:
    """Features active where the phrase stands, in any case; with its outer blanks where the text has it so."""
    joined = text.joined
    for wanted in dict.fromkeys((phrase, phrase.strip())):
        found = [match.span() for match in re.finditer(re.escape(wanted), joined.text, re.IGNORECASE)] if wanted else []
        if found:
            spans = np.array(found)
            document = np.searchsorted(joined.document_ends, spans[:, 0], side="right")
            inside = spans[:, 1] <= joined.document_ends[document]
            if inside.any():
                return _active_in(store, text, spans[inside, 0], spans[inside, 1], limit)
    return []


def in_matches(store: Store, text: Text, pattern: str, limit: int, timeout_s: float = TIMEOUT_S) -> list[TextHit]:
    """Features active where the pattern matches inside a document."""
    joined = text.joined
    found = matches(pattern, joined.text, joined.document_ends, timeout_s)
    if found.strings.size == 0:
        return []
    before = np.append(0, joined.document_ends)[found.strings]
    return _active_in(store, text, found.starts + before, found.stops + before, limit)


def _active_in(store: Store, text: Text, starts: np.ndarray, stops: np.ndarray, limit: int) -> list[TextHit]:
    if starts.size > PLACES:
        chosen = np.linspace(0, starts.size - 1, PLACES).astype(np.int64)
        starts, stops = starts[chosen], stops[chosen]
    first, last = text.joined.tokens(starts, stops)
    lengths = last - first + 1
    place = np.repeat(np.arange(starts.size), lengths)
    ordinals = np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    row = np.searchsorted(text.documents.first_token, ordinals, side="right") - 1
    rows = store.query(
        """
        with places as (
            select unnest($documents)::integer as document, unnest($positions)::integer as position,
                unnest($places)::integer as place
        ), inside as (
            select feature, sum(abs(activation)) as mass, count(distinct place) as places
            from events join places using (document, position) group by feature
        )
        select feature, places, least(1, mass / max_activation / sqrt(count::double * $n)) as score
        from inside join features using (feature) where max_activation > 0
        order by score desc, feature limit $limit
        """,
        {
            "documents": text.documents.ids[row].tolist(),
            "positions": text.column("position", 0, int(ordinals.max()) + 1)[ordinals].tolist(),
            "places": place.tolist(),
            "n": int(starts.size),
            "limit": limit,
        },
    ).to_pylist()
    sample = text.joined.text[int(starts[0]) : int(stops[0])]
    return [TextHit(r["feature"], r["score"], r["places"], int(starts.size), sample) for r in rows]
