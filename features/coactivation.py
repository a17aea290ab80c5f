"""Which features are active on the same tokens.

Enters: the events of all features, range by range, and the corpus. Leaves: the table `coactivations`.

1. Where more tokens are indexed than `coactivation_tokens`, pairs are counted on a sample: the text is cut into as many
   equal parts as tokens are wanted, and a token of each is drawn by seed (a token at a fixed distance from the last
   would always stand at the same places of the model's context). Otherwise on all, and the counts are exact.
2. The sampled events stay in memory twice, ordered by feature and by token: 8 bytes an event at most.
3. A feature's tokens are walked, and the other features of these tokens counted in an array with one place for each
   feature, ordered by how many tokens they have. It is looked through by blocks, of which most hold no count that
   can enter the row any more. The k largest overlaps stay: O(d_sae · k), never d_sae².

With n_a, n_b the tokens of the sample on which a and b are active, n_ab those on which both are, N all of them:
Jaccard n_ab / (n_a + n_b − n_ab), and pointwise mutual information log₂(N · n_ab / (n_a · n_b)) in bits: how many
times more often both are active than if they knew nothing of each other, 0 for once. Nothing is smoothed.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import pyarrow as pa

from features import schema
from features.events import EventRange
from features.examples import uniform
from features.pair_loops import BLOCK, coactive_features, order_by_token, sampled_ordinals
from features.scratch import scratch

MOST_PAIRS = 4_000_000_000
"""Pairs to count at most: where more latents are active per token than top-k SAEs have, the sample is made smaller."""
PARTS = 16


def sample_size(n_indexed: int, n_events: int, most_tokens: int) -> int:
    """Tokens on which pairs are counted: all `n_indexed`, at most `most_tokens`, and about `MOST_PAIRS` pairs."""
    per_token = n_events / max(n_indexed, 1)
    affordable = int(MOST_PAIRS / max(per_token * per_token, 1))
    return min(n_indexed, most_tokens, max(affordable, 1))


def sample_tokens(is_indexed: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Token numbers int64 [size], rising: one drawn from each of `size` equal parts of the indexed tokens."""
    indexed = np.flatnonzero(is_indexed)
    edges = indexed.size * np.arange(size + 1, dtype=np.int64) // max(size, 1)
    lengths = np.diff(edges)
    draws = uniform(seed, np.arange(size), 1)[:, 0]
    return indexed[edges[:-1] + np.minimum((draws * lengths).astype(np.int64), lengths - 1)]


class Coactivations:
    """Takes ranges of features, in any order and from several threads, and gives the table of the pairs."""

    def __init__(self, is_indexed: np.ndarray, n_features: int, n_events: int, most_tokens: int, seed: int) -> None:
        self.n_features = n_features
        self.size = sample_size(int(is_indexed.sum()), n_events, most_tokens)
        self._slot_of = np.full(is_indexed.size, -1, dtype=np.int32)
        self._slot_of[sample_tokens(is_indexed, self.size, seed)] = np.arange(self.size, dtype=np.int32)
        self.is_sampled = self._slot_of >= 0
        """bool [text]: tokens on which pairs are counted."""
        self._parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def take(self, events: EventRange) -> None:
        """Keeps the events of a range of features at the sample's tokens."""
        ordinals = scratch("sampled", events.ordinals.size + 1, np.int32)
        counts = np.empty(events.counts.size, dtype=np.int64)
        kept = sampled_ordinals(events.starts, events.counts, events.ordinals, events.facts, ordinals, counts)
        self._parts[events.first] = counts, self._slot_of[ordinals[:kept]]

    def table(self, k: int, pool: Executor) -> pa.Table:
        """The `k` features with the largest Jaccard to each feature; equal ones by their number.

        It is counted in parts by the threads of `pool`, and does not depend on how many these are.
        """
        parts = [self._parts[first] for first in sorted(self._parts)]
        counts = np.concatenate([part[0] for part in parts] or [np.zeros(self.n_features, dtype=np.int64)])
        slots = np.concatenate([part[1] for part in parts] or [np.zeros(0, dtype=np.int32)])
        self._parts.clear()
        starts = np.cumsum(counts) - counts
        by_count = np.argsort(-counts, kind="stable")
        ranked = counts[by_count]
        token_starts = np.concatenate(([0], np.cumsum(np.bincount(slots, minlength=self.size))))
        # half the memory to jump about in, where numbers fit; what is met most lies together
        ranks = np.empty(slots.size, dtype=np.uint16 if self.n_features <= 1 << 16 else np.int32)
        order_by_token(by_count, starts, counts, slots, token_starts, ranks)
        k = min(k, self.n_features - 1)
        others = np.full((self.n_features, k), -1, dtype=np.int32)
        shared = np.zeros((self.n_features, k), dtype=np.int64)
        if k > 0:
            kind = np.uint16 if counts.max() < 1 << 16 else np.int32

            def count(first: int, last: int) -> None:
                together = np.zeros(-(-self.n_features // BLOCK) * BLOCK, dtype=kind)
                coactive_features(
                    first, last, by_count, ranked, starts, counts, slots, token_starts, ranks, together, others, shared
                )

            # parts of about as many events
            before = np.cumsum(ranked)
            edges = np.searchsorted(before, slots.size * np.arange(1, PARTS) / PARTS)
            edges = np.concatenate(([0], edges, [self.n_features]))
            list(pool.map(count, edges[:-1].tolist(), edges[1:].tolist()))
        feature, rank = np.nonzero(others >= 0)
        other, both = others[feature, rank], shared[feature, rank]
        own, its = counts[feature].astype(np.float64), counts[other].astype(np.float64)
        return pa.table(
            [
                feature.astype(np.int32),
                rank.astype(np.int32),
                other,
                (both / (own + its - both)).astype(np.float32),
                both,
                np.log2(both * self.size / (own * its)).astype(np.float32),
            ],
            schema=schema.TABLES["coactivations"].arrow_schema(),
        )
