"""Which features spend how much of their activation on which token: the table feature_tokens in memory.

Enters: token ids. Leaves: features, by the share of their activation that falls on these tokens.

The table is ordered by token, so that a token's features are consecutive rows. It is read once, at the first question
(12 bytes a row), and shared by all who ask the same opened dictionary: a question is then some passes over a part.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from features.columns import as_array

NAMED_TOKENS = 4


class TokenHit(NamedTuple):
    """A feature that is active at some of the tokens."""

    feature: int
    share: float
    """Of its activation, on all of them together."""
    tokens: list[int]
    """Those with most of it, at most `NAMED_TOKENS`."""
    n_tokens: int
    """How many of them it is known to be active at."""


class _Rows(NamedTuple):
    tokens: np.ndarray
    features: np.ndarray
    shares: np.ndarray


class TokenPostings:
    """Finds features by tokens; safe to use from several threads."""

    def __init__(self, build: Path) -> None:
        self._path = build / "feature_tokens.parquet"
        self._lock = threading.Lock()
        self._held: _Rows | None = None

    def read(self) -> _Rows:
        """Reads the table where that was not done yet."""
        with self._lock:
            if self._held is None:
                table = pq.ParquetFile(self._path).read(["token_id", "feature", "mass"])
                columns = [as_array(table[name]) for name in ("token_id", "feature", "mass")]
                if np.any(np.diff(columns[0]) < 0):  # an earlier version ordered them otherwise
                    order = np.argsort(columns[0], kind="stable")
                    columns = [column[order] for column in columns]
                self._held = _Rows(*columns)
            return self._held

    def strongest(self, token_ids: list[int], limit: int) -> list[TokenHit]:
        """The features with the largest share of their activation on these tokens; of equals the lower number first."""
        wanted = np.unique(np.array(token_ids, dtype=np.int32))
        rows = self.read()
        first, last = (np.searchsorted(rows.tokens, wanted, side=side) for side in ("left", "right"))
        pieces = [slice(start, stop) for start, stop in zip(first.tolist(), last.tolist(), strict=True) if start < stop]
        if not pieces or limit < 1:
            return []
        features, shares = (np.concatenate([column[piece] for piece in pieces]) for column in rows[1:])
        total = np.bincount(features, shares)
        found = np.flatnonzero(total)
        if found.size > limit:
            least = np.partition(total[found], found.size - limit)[found.size - limit]
            found = found[total[found] >= least]
        found = found[np.lexsort((found, -total[found]))][:limit]
        place = np.full(total.size, -1)
        place[found] = np.arange(found.size)
        mine = np.flatnonzero(place[features] >= 0)
        tokens = np.repeat(wanted, last - first)[mine]
        order = np.lexsort((tokens, -shares[mine], place[features[mine]]))
        ends = np.searchsorted(place[features[mine]][order], np.arange(found.size + 1))
        tokens = tokens[order]
        return [
            TokenHit(feature, share, tokens[start : min(stop, start + NAMED_TOKENS)].tolist(), stop - start)
            for feature, share, start, stop in zip(
                found.tolist(), total[found].tolist(), ends[:-1].tolist(), ends[1:].tolist(), strict=True
            )
        ]
