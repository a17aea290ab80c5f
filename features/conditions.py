"""Conditions over events: documents where A and not B is active, places where A is active within n tokens of B.

Enters: a condition, as an object or as text. Leaves: counts, how often chance alone would meet it, and the places.

    condition = term { "&" term } [ "within" TOKENS [ "before" | "after" ] ]
    term      = [ "!" ] FEATURE [ ">" SHARE ]

`12 & 40 & !7` asks for documents in which 12 and 40 are active and 7 is not. `12 & 40>0.5 within 5` asks for events of
12 with 40, at more than half of its maximum, at most five tokens away on either side; `… within 5 after` for 40 one to
five tokens behind 12, `… within 5 before` ahead of it. A share is one of the feature's maximum in the indexed text.

1. Each feature's events are read once; they stand in the order of (document, position), so that windows are found by
   bisection.
2. Chance: terms as if independent. Of D documents, Π pᵢ·D are expected, pᵢ being the share in which term i holds. Of
   the first feature's n events, Π qᵢ·n are, qᵢ being the share of all tokens of the text that have an event of feature
   i in such a window. Lift is found / expected. Long documents hold more of everything: lift over documents says less.
3. Places are ranked by their weakest link: the smallest activation of the features asked for, as a share of its
   maximum (of several events of a feature in the window or document the strongest counts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from features.text import Text

if TYPE_CHECKING:
    from features.dictionary import Dictionary

SIDES = ("either", "before", "after")
CONTEXT = (16, 8)
"""Tokens shown before and after a place."""
_TERM = re.compile(r"(!?)\s*(\d+)(?:\s*>\s*(\d*\.?\d+)\s*(%?))?")
_WINDOW = re.compile(r"\s+within\s+(\d+)(?:\s+(before|after))?$")


class Term(NamedTuple):
    """A feature that is active above a share of its maximum, or is not."""

    feature: int
    share: float = 0.0
    is_absent: bool = False

    def __str__(self) -> str:
        return f"{'!' if self.is_absent else ''}{self.feature}{f'>{self.share:g}' if self.share else ''}"


@dataclass(frozen=True)
class Condition:
    """Terms that hold together: in a document, or within some tokens of the first one's events."""

    terms: tuple[Term, ...]
    within: int | None = None
    """Tokens between an event of the first feature and the others; None: anywhere in the document."""
    side: Literal["either", "before", "after"] = "either"
    """Where the others stand, as seen from the first."""

    def __post_init__(self) -> None:
        if not self.terms or all(term.is_absent for term in self.terms):
            raise ValueError("the condition asks for no active feature, expected at least one without `!`: add one")
        if any(not 0 <= term.share < 1 for term in self.terms):
            raise ValueError(f"the condition {self} has a share outside 0 to 1, expected one of a maximum: correct it")
        if self.within is not None and (self.terms[0].is_absent or len(self.terms) < 2):
            raise ValueError(
                f"the condition {self} looks around its first feature, expected an active one and others: begin with "
                "it, and name what should (not) stand around it"
            )
        if self.within is not None and self.within < (self.side != "either"):
            raise ValueError(f"the condition {self} has an empty window, expected at least one token: widen it")

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads a condition.

        Raises:
            ValueError: text that is none.
        """
        found = _WINDOW.search(text)
        terms = []
        for part in (text[: found.start()] if found else text).split("&"):
            term = _TERM.fullmatch(part.strip())
            if term is None:
                raise ValueError(
                    f"the condition has {part.strip()!r}, expected a feature's number, with ! before it or > and a "
                    "share behind it: write for example `12 & 40>0.5 & !7 within 5`"
                )
            absent, feature, share, percent = term.groups()
            terms.append(Term(int(feature), float(share or 0) / (100 if percent else 1), bool(absent)))
        return cls(tuple(terms), int(found[1]) if found else None, found[2] or "either" if found else "either")  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        window = "" if self.within is None else f" within {self.within}"
        return " & ".join(map(str, self.terms)) + window + ("" if self.side == "either" else f" {self.side}")


@dataclass(frozen=True)
class Met:
    """A place that meets a condition."""

    document: int
    document_name: str
    position: int
    strength: float
    """The smallest activation among the features asked for, as a share of its maximum."""
    events: list[tuple[int, int, float]]
    """For each of them the event that counts: feature, position in the document, activation."""
    tokens: list[str]
    center: int
    """Index in `tokens` of the token at `position`."""


@dataclass(frozen=True)
class Answer:
    """What a condition found."""

    condition: str
    counted: str
    """What was counted: documents, or events of the first feature."""
    found: int
    of: int
    """Documents of the text, or events of the first feature."""
    expected: float
    """How many would be found if the terms were independent."""
    lift: float | None
    """found / expected; None where nothing is expected."""
    terms: list[dict[str, Any]]
    """For each term: events and documents of its feature above its share, and the share of cases in which it holds."""
    places: list[Met]

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(place) for place in self.places]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


class _Events(NamedTuple):
    """A term's events in the order of the text."""

    keys: np.ndarray
    """int64: document << 32 | position."""
    activations: np.ndarray
    shares: np.ndarray

    @property
    def documents(self) -> np.ndarray:
        return self.keys >> 32

    def strongest(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Index of the strongest event of each run first ≤ i < last; runs are not empty."""
        best = np.empty(first.size, dtype=np.int64)
        for place, (start, stop) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
            best[place] = start + int(np.argmax(self.shares[start:stop]))
        return best

    def largest_shares(self, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The largest share in each run first ≤ i < last; runs are not empty."""
        if first.size == 0:
            return np.zeros(0)
        padded = np.append(self.shares, -np.inf)
        return np.maximum.reduceat(padded, np.stack([first, last], axis=1).reshape(-1))[::2]


def find(dictionary: Dictionary, condition: str | Condition, limit: int = 20) -> Answer:
    """Places that meet a condition, at most `limit` of them, strongest first.

    Raises:
        ValueError: a condition that cannot be read, or a feature that does not exist.
    """
    dictionary.store.require_all_events("conditions over events")
    asked = Condition.parse(condition) if isinstance(condition, str) else condition
    events = [_read(dictionary, term) for term in asked.terms]
    if asked.within is None:
        return _in_documents(dictionary, asked, events, limit)
    return _around(dictionary, asked, events, limit)


def _read(dictionary: Dictionary, term: Term) -> _Events:
    feature = dictionary.check_feature(term.feature)
    keys, activations = dictionary.events_of(feature)
    maximum = float(np.abs(activations).max()) if activations.size else 1.0
    shares = np.abs(activations).astype(float) / maximum
    kept = shares > term.share
    return _Events(keys[kept], activations[kept], shares[kept])


def _in_documents(dictionary: Dictionary, asked: Condition, events: Sequence[_Events], limit: int) -> Answer:
    documents = dictionary.text.documents.ids
    holds = np.ones(documents.size, dtype=bool)
    rates = []
    for term, mine in zip(asked.terms, events, strict=True):
        is_in = np.isin(documents, np.unique(mine.documents))
        is_met = ~is_in if term.is_absent else is_in
        holds &= is_met
        rates.append(float(is_met.mean()))
    found = documents[holds].astype(np.int64)
    bounds = [
        (np.searchsorted(mine.keys, found << 32), np.searchsorted(mine.keys, (found + 1) << 32))
        for mine in _present(asked, events)
    ]
    places = _strongest(dictionary, asked, events, bounds, None, limit)
    return _answer(asked, "documents", events, rates, found.size, documents.size, places)


def _around(dictionary: Dictionary, asked: Condition, events: Sequence[_Events], limit: int) -> Answer:
    within = asked.within or 0
    low, high = {"either": (-within, within), "before": (-within, -1), "after": (1, within)}[asked.side]
    anchor = events[0]
    holds = np.ones(anchor.keys.size, dtype=bool)
    rates, bounds = [1.0], []
    for term, mine in zip(asked.terms[1:], events[1:], strict=True):
        # documents lie 2³² apart: no window reaches from one into another
        first = np.searchsorted(mine.keys, anchor.keys + low)
        last = np.searchsorted(mine.keys, anchor.keys + high, side="right")
        near = _share_near(dictionary.text, mine.keys, low, high)
        holds &= (last == first) if term.is_absent else (last > first)
        rates.append(1 - near if term.is_absent else near)
        if not term.is_absent:
            bounds.append((first, last))
    met = np.flatnonzero(holds)
    bounds = [(met, met + 1), *((first[met], last[met]) for first, last in bounds)]
    places = _strongest(dictionary, asked, events, bounds, anchor.keys[met], limit)
    return _answer(asked, f"events of {asked.terms[0]}", events, rates, met.size, anchor.keys.size, places)


def _share_near(text: Text, keys: np.ndarray, low: int, high: int) -> float:
    """Share of the text's tokens p with an event at p + low … p + high."""
    documents, positions = keys >> 32, keys & 0xFFFFFFFF
    begin, length = text.extents(documents)
    start = np.maximum(positions - high, begin)
    stop = np.minimum(positions - low, begin + length - 1)
    # windows are as long as each other and in order: each begins behind the one before it
    behind = np.where(np.diff(documents, prepend=-1) == 0, np.append(-1, stop[:-1]) + 1, start)
    return float(np.maximum(stop - np.maximum(start, behind) + 1, 0).sum() / text.n_tokens)


def _present(asked: Condition, events: Sequence[_Events]) -> list[_Events]:
    return [mine for term, mine in zip(asked.terms, events, strict=True) if not term.is_absent]


def _strongest(
    dictionary: Dictionary,
    asked: Condition,
    events: Sequence[_Events],
    bounds: Sequence[tuple[np.ndarray, np.ndarray]],
    anchors: np.ndarray | None,
    limit: int,
) -> list[Met]:
    """The places with the strongest weakest link; `bounds` hold each present feature's run of events at each place."""
    present = _present(asked, events)
    features = [term.feature for term in asked.terms if not term.is_absent]
    weakest = np.min([mine.largest_shares(*run) for mine, run in zip(present, bounds, strict=True)], axis=0)
    best = np.argsort(-weakest, kind="stable")[: max(limit, 0)]
    chosen = [mine.strongest(first[best], last[best]) for mine, (first, last) in zip(present, bounds, strict=True)]
    places = []
    for row, place in enumerate(best.tolist()):
        at = [int(mine.keys[index[row]]) for mine, index in zip(present, chosen, strict=True)]
        key = at[0] if anchors is None else int(anchors[place])
        document, position = key >> 32, key & 0xFFFFFFFF
        window = dictionary.text.window(document, position, *CONTEXT)
        found = [
            (feature, where & 0xFFFFFFFF, float(mine.activations[index[row]]))
            for feature, where, mine, index in zip(features, at, present, chosen, strict=True)
        ]
        name = dictionary.text.name(document)
        places.append(Met(document, name, position, float(weakest[place]), found, window.tokens, window.center))
    return places


def _answer(
    asked: Condition,
    counted: str,
    events: Sequence[_Events],
    rates: Sequence[float],
    found: int,
    of: int,
    places: list[Met],
) -> Answer:
    expected = float(of * np.prod(rates))
    terms = [
        {"term": str(term), "events": mine.keys.size, "documents": np.unique(mine.documents).size, "holds": rate}
        for term, mine, rate in zip(asked.terms, events, rates, strict=True)
    ]
    lift = found / expected if expected > 0 else None
    return Answer(str(asked), counted, int(found), int(of), expected, lift, terms, places)
