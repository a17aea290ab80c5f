"""The text that two dictionaries have both indexed, and the events of each on it.

Enters: two opened dictionaries whose models share a tokenizer. Leaves: tokens numbered alike for both, and each
dictionary's events at those numbers, by feature.

Documents are found by name; one whose tokens differ is left out and counted. Of long texts whole documents are drawn by
seed, so that what is held in memory has a bound.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from features.dictionary import Dictionary
from features.event_loops import gather_by_feature
from features.events import read_events, split_features
from features.text import Text


@dataclass(frozen=True)
class SharedText:
    """Tokens that both dictionaries have indexed, document after document."""

    first: np.ndarray
    """int64 [n]: each token's number in the first dictionary's text."""
    second: np.ndarray
    """int64 [n]: the same in the second one's."""
    documents: np.ndarray
    """int32 [n]: the document of each token, counted from 0."""
    n_documents: int
    differing: int
    """Documents of one name whose tokens differ; they are left out."""
    same_context: float
    """Share of the tokens that both models saw at the same position of their rows."""

    @property
    def n_tokens(self) -> int:
        return self.first.size


def shared_text(a: Dictionary, b: Dictionary, sample_tokens: int, seed: int = 0) -> SharedText:
    """The tokens that both have indexed, at most `sample_tokens` of them."""
    rows_of = defaultdict(list)
    for row, name in enumerate(b.text.documents.names):
        rows_of[name].append(row)
    pairs = []
    for row, name in enumerate(a.text.documents.names):
        if rows_of[name]:
            pairs.append((row, rows_of[name].pop(0)))
    drawn = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    found: list[tuple[int, np.ndarray, np.ndarray, float]] = []
    tokens = differing = 0
    for number in drawn:
        left, right = _indexed(a.text, pairs[number][0]), _indexed(b.text, pairs[number][1])
        if left.ids.size == 0 or right.ids.size == 0:
            continue
        start, stop = max(left.start, right.start), min(left.start + left.ids.size, right.start + right.ids.size)
        if stop <= start:
            continue
        mine, theirs = slice(start - left.start, stop - left.start), slice(start - right.start, stop - right.start)
        if not np.array_equal(left.ids[mine], right.ids[theirs]):
            differing += 1
            continue
        kept = np.flatnonzero(left.is_indexed[mine] & right.is_indexed[theirs])[: sample_tokens - tokens]
        alike = (left.context[mine] == right.context[theirs])[kept]
        found.append(
            (number, left.ordinal + mine.start + kept, right.ordinal + theirs.start + kept, float(alike.sum()))
        )
        tokens += kept.size
        if tokens >= sample_tokens:
            break
    found.sort(key=lambda piece: piece[0])
    nothing = [np.zeros(0, dtype=np.int64)]
    return SharedText(
        first=np.concatenate(nothing + [piece[1] for piece in found]),
        second=np.concatenate(nothing + [piece[2] for piece in found]),
        documents=np.repeat(np.arange(len(found), dtype=np.int32), [piece[1].size for piece in found]),
        n_documents=len(found),
        differing=differing,
        same_context=sum(piece[3] for piece in found) / max(tokens, 1),
    )


@dataclass(frozen=True)
class _Document:
    start: int
    """Position of its first token."""
    ordinal: int
    ids: np.ndarray
    is_indexed: np.ndarray
    context: np.ndarray


def _indexed(text: Text, row: int) -> _Document:
    first = int(text.documents.first_token[row])
    last = first + int(text.documents.n_tokens[row])
    ids, is_indexed, context = (
        text.column(name, first, last) for name in ("token_id", "is_indexed", "context_position")
    )
    start = int(text.column("position", first, first + 1)[0]) if last > first else 0
    return _Document(start, first, ids, is_indexed, context)


@dataclass(frozen=True)
class SharedEvents:
    """One dictionary's events on the shared text, by feature and token."""

    starts: np.ndarray
    """int64 [n_features + 1]: first event of each feature."""
    tokens: np.ndarray
    """int32 [events]"""
    values: np.ndarray
    """float32 [events]"""
    n_tokens: int

    @property
    def counts(self) -> np.ndarray:
        """int64 [n_features]"""
        return np.diff(self.starts)

    @property
    def n_features(self) -> int:
        return self.starts.size - 1

    def sums(self, values: np.ndarray) -> np.ndarray:
        """float64 [n_features]: sums of a value of every event."""
        running = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
        return running[self.starts[1:]] - running[self.starts[:-1]]

    def of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and values of a feature's events."""
        part = slice(self.starts[feature], self.starts[feature + 1])
        return self.tokens[part], self.values[part]

    def by_token(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same events by token: (starts [n_tokens + 1], features, values)."""
        features = np.repeat(np.arange(self.n_features, dtype=np.int64), self.counts)
        counts = np.bincount(self.tokens, minlength=self.n_tokens)
        order = np.arange(features.size)
        gather_by_feature(self.tokens, order, counts, np.empty(order.size, np.uint16), np.empty_like(order))
        return np.concatenate(([0], np.cumsum(counts))), features[order], self.values[order]


def shared_events(dictionary: Dictionary, ordinals: np.ndarray) -> SharedEvents:
    """A dictionary's events at the tokens numbered `ordinals` in its text."""
    dictionary.store.require_all_events("comparing events")
    facts = dictionary.store.query("select count, first_event from features order by feature")
    counts, first_event = (column.to_numpy() for column in facts.columns)
    number = np.full(dictionary.text.n_tokens, -1, dtype=np.int32)
    number[ordinals] = np.arange(ordinals.size)
    features: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for first, last in split_features(counts, 4_000_000, 65_536):
        start, stop = int(first_event[first]), int(first_event[last - 1] + counts[last - 1])
        events = read_events(dictionary.store.build / "events.parquet", start, stop)
        place = number[dictionary.text.ordinals(events.documents, events.positions)]
        kept = place >= 0
        features.append(events.features[kept])
        tokens.append(place[kept])
        values.append(events.activations[kept].astype(np.float32))
    found, place, value = np.concatenate(features), np.concatenate(tokens), np.concatenate(values)
    keys = found.astype(np.int64) * max(ordinals.size, 1) + place
    if (keys[1:] < keys[:-1]).any():  # documents stand in another order in the two texts
        order = np.argsort(keys, kind="stable")
        found, place, value = found[order], place[order], value[order]
    starts = np.searchsorted(found, np.arange(counts.size + 1)).astype(np.int64)
    return SharedEvents(starts, place.astype(np.int32), value, ordinals.size)
