"""Which features of two dictionaries are active together: counts of pairs, never a matrix of all of them.

Enters: both dictionaries' events on one text. Leaves: every pair that shares a part of the events of either, with
Jaccard and the correlation of their activations over all tokens of the text.

The events of the second dictionary are put in the order of the tokens; going through the events of a feature of the
first one then meets all its partners. That costs tokens × events of either at a token, and holds one row of counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.pair_loops import count_pairs, count_together
from features.shared_text import SharedEvents

LEAST_TOGETHER = 5
OF_OWN, OF_OTHER = 0.05, 0.3
"""Shares of either feature's events below which a pair is not looked at."""
PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class PairTable:
    """Pairs of features that are active together, ordered by the first."""

    own: np.ndarray
    """int64 [pairs]: feature of the first dictionary."""
    other: np.ndarray
    """int64 [pairs]: feature of the second."""
    both: np.ndarray
    """int64 [pairs]: tokens at which both are active."""
    jaccard: np.ndarray
    """float64 [pairs]"""
    correlation: np.ndarray
    """float64 [pairs]: Pearson, over all tokens of the text."""

    def turned(self) -> PairTable:
        """The same pairs, ordered by the second dictionary's feature."""
        order = np.lexsort((self.own, self.other))
        return PairTable(
            self.other[order], self.own[order], self.both[order], self.jaccard[order], self.correlation[order]
        )

    def starts(self, n_features: int) -> np.ndarray:
        """int64 [n_features + 1]: first pair of each feature of the first dictionary."""
        return np.searchsorted(self.own, np.arange(n_features + 1))

    def best(self, n_features: int) -> tuple[np.ndarray, np.ndarray]:
        """(partner of the largest correlation, −1 for none; that correlation, 0 for none) of each feature."""
        order = np.lexsort((self.other, -self.correlation, self.own))
        features, places = np.unique(self.own[order], return_index=True)
        partner, value = np.full(n_features, -1), np.zeros(n_features)
        partner[features] = self.other[order][places]
        value[features] = self.correlation[order][places]
        return partner, value


def pairs_together(a: SharedEvents, b: SharedEvents) -> PairTable:
    """All pairs that share at least `LEAST_TOGETHER` tokens, and a part of either's events."""
    token_starts, token_features, token_values = b.by_token()
    step = max(1, PAIRS_AT_ONCE // max(b.n_features, 1))
    buffers = (np.empty(step * b.n_features, np.int64), np.empty(step * b.n_features, np.int64))
    counts = (np.empty(step * b.n_features, np.int64), np.empty(step * b.n_features))
    pieces: list[tuple[np.ndarray, ...]] = []
    for first in range(0, a.n_features, step):
        found = count_together(
            first,
            min(first + step, a.n_features),
            a.starts,
            a.tokens,
            a.values,
            token_starts,
            token_features,
            token_values,
            b.counts,
            LEAST_TOGETHER,
            OF_OWN,
            OF_OTHER,
            *buffers,
            *counts,
        )
        pieces.append(tuple(part[:found].copy() for part in (*buffers, *counts)))
    own, other, both, product = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    order = np.lexsort((other, own))
    own, other, both, product = own[order], other[order], both[order], product[order]
    return PairTable(own, other, both, *_likeness(a, b, own, other, both, product))


def given_pairs(a: SharedEvents, b: SharedEvents, own: np.ndarray, other: np.ndarray) -> PairTable:
    """The same figures of given pairs, in the order given."""
    own, other = own.astype(np.int64), other.astype(np.int64)
    both, product = np.zeros(own.size, np.int64), np.zeros(own.size)
    count_pairs(a.starts, a.tokens, a.values, b.starts, b.tokens, b.values, own, other, both, product)
    return PairTable(own, other, both, *_likeness(a, b, own, other, both, product))


def _likeness(
    a: SharedEvents, b: SharedEvents, own: np.ndarray, other: np.ndarray, both: np.ndarray, product: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n = max(a.n_tokens, 1)
    union = a.counts[own] + b.counts[other] - both
    moments = [
        (events.sums(events.values), events.sums(np.square(events.values, dtype=np.float64))) for events in (a, b)
    ]
    (x, xx), (y, yy) = ((first[of], second[of]) for (first, second), of in zip(moments, (own, other), strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = (n * product - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y))
    return both / np.maximum(union, 1), np.nan_to_num(correlation)
