"""Features found by what stands in the text: phrases, and matches of a pattern.

Enters: a query. Leaves: features, by how much of their activation falls inside the places that match.

1. The places are looked up in the text as one string (`Text.joined`, the first 20 million tokens); none spans two
   documents. Of many, `PLACES` are taken at even distances.
2. A feature's strength there is Σ |activation| / maximum over its events on the places' tokens; its score is
   strength / √(events of the feature · places), at most 1: what is active at many of the places and seldom elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from features.patterns import TIMEOUT_S, matches
from features.store import Store
from features.text import Text, fold

if TYPE_CHECKING:
    from features.text_events import TextEvents

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


class _Active(NamedTuple):
    """Features that are active at some places."""

    features: np.ndarray
    masses: np.ndarray
    """Σ |activation| there."""
    places: np.ndarray
    """How many of them."""


def in_phrase(store: Store, text: Text, facts: Mapping[str, np.ndarray], phrase: str, limit: int) -> list[TextHit]:
    """Features active where the phrase stands, in any case; with its outer blanks where the text has it so.

    `facts` are the columns max_activation and count of the table features.
    """
    joined = text.joined
    for wanted in dict.fromkeys((fold(phrase), fold(phrase).strip())):
        spans = _spans(joined.folded, wanted)
        if spans.size:
            document = np.searchsorted(joined.document_ends, spans[:, 0], side="right")
            inside = spans[:, 1] <= joined.document_ends[document]
            if inside.any():
                return _active_in(store, text, facts, spans[inside, 0], spans[inside, 1], limit)
    return []


def _spans(text: str, wanted: str) -> np.ndarray:
    """int64 [n, 2]: where a phrase stands, one behind the other."""
    starts: list[int] = []
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        starts.append(start)
        start = text.find(wanted, start + len(wanted))
    return np.array(starts, dtype=np.int64)[:, None] + [0, len(wanted)]


def in_matches(
    store: Store,
    text: Text,
    facts: Mapping[str, np.ndarray],
    pattern: str,
    limit: int,
    timeout_s: float = TIMEOUT_S,
) -> list[TextHit]:
    """Features active where the pattern matches inside a document."""
    joined = text.joined
    found = matches(pattern, joined.text, joined.document_ends, timeout_s)
    if found.strings.size == 0:
        return []
    before = np.append(0, joined.document_ends)[found.strings]
    return _active_in(store, text, facts, found.starts + before, found.stops + before, limit)


def _active_in(
    store: Store, text: Text, facts: Mapping[str, np.ndarray], starts: np.ndarray, stops: np.ndarray, limit: int
) -> list[TextHit]:
    if starts.size > PLACES:
        chosen = np.linspace(0, starts.size - 1, PLACES).astype(np.int64)
        starts, stops = starts[chosen], stops[chosen]
    first, last = text.joined.tokens(starts, stops)
    lengths = last - first + 1
    place = np.repeat(np.arange(starts.size), lengths)
    ordinals = np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    held = text.events
    active = _from_table(store, text, ordinals, place) if held is None else _from_text(held, ordinals, place)
    maxima, counts = (facts[name][active.features].astype(np.float64) for name in ("max_activation", "count"))
    scores = np.minimum(1, active.masses / np.where(maxima > 0, maxima, np.inf) / np.sqrt(counts * starts.size))
    order = np.lexsort((active.features, -scores))
    order = order[maxima[order] > 0][:limit]
    sample = text.joined.text[int(starts[0]) : int(stops[0])]
    columns = (active.features[order].tolist(), scores[order].tolist(), active.places[order].tolist())
    return [TextHit(*row, int(starts.size), sample) for row in zip(*columns, strict=True)]


def _from_text(held: TextEvents, ordinals: np.ndarray, place: np.ndarray) -> _Active:
    """From the events of the tokens, read where they stand."""
    wanted, token = np.unique(ordinals, return_inverse=True)
    found = held.at(wanted)
    # a token that stands in two places counts in each
    counts = found.counts[token]
    starts = (np.cumsum(found.counts) - found.counts)[token]
    event = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    features, owner = np.unique(found.features[event], return_inverse=True)
    masses = np.bincount(owner, np.abs(found.activations[event].astype(np.float64)), minlength=features.size)
    pairs = np.unique(owner * (int(place.max()) + 1) + np.repeat(place, counts))
    places = np.bincount(pairs // (int(place.max()) + 1), minlength=features.size)
    return _Active(features, masses, places)


def _from_table(store: Store, text: Text, ordinals: np.ndarray, place: np.ndarray) -> _Active:
    """The same where an earlier version built the dictionary, or not all events are kept."""
    row = np.searchsorted(text.documents.first_token, ordinals, side="right") - 1
    found = store.query(
        """
        with places as (
            select unnest($documents)::integer as document, unnest($positions)::integer as position,
                unnest($places)::integer as place
        )
        select feature, sum(abs(activation)) as mass, count(distinct place) as places
        from events join places using (document, position) group by feature order by feature
        """,
        {
            "documents": text.documents.ids[row].tolist(),
            "positions": text.column("position", 0, int(ordinals.max()) + 1)[ordinals].tolist(),
            "places": place.tolist(),
        },
    )
    return _Active(*(column.to_numpy() for column in found.columns))
