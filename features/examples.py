"""Which windows of the text show a feature: its strongest ones, and a fair sample of the weaker ones.

Enters: a range of features' events in the order of the text. Leaves: rows of the table `examples`.

1. The text is cut into windows of `window_tokens` tokens of one document; of each (feature, window) the strongest
   event stays, so that one sentence cannot fill the list. These peaks are sorted by activation (by its size, where it
   may be negative).
2. Stratum 0: the strongest peaks, at most `per_document` of one document.
3. Strata 1, 2, …: the other peaks, cut into equally many from strong to weak; from each a systematic random sample,
   in which every peak has the same chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.event_loops import choose_windows
from features.events import EventRange
from features.scratch import scratch


@dataclass(frozen=True)
class ExampleRows:
    """Rows of `examples`, ordered by (feature, stratum, rank)."""

    counts: np.ndarray
    """int64 [features]: examples of each feature of the range."""
    events: np.ndarray
    """int64 [n]: the event that each example is about, by its number in the range."""
    strata: np.ndarray
    """int8 [n]."""
    ranks: np.ndarray
    """int32 [n]."""


def uniform(seed: int, features: np.ndarray, n: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [features, n]: what a feature draws depends on `seed` and on itself alone.

    Counters are mixed as by SplitMix64 (Steele, Lea and Flood 2014), which costs nothing for each feature.
    """
    number = features.astype(np.uint64)[:, None] * np.uint64(n) + np.arange(n, dtype=np.uint64)
    state = (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def order_by_activation(features: np.ndarray, activations: np.ndarray) -> np.ndarray:
    """Indices that sort by (feature, strongest activation first, earlier event first)."""
    bits = activations.view(np.uint32)
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    feature = (features - features.min()).astype(np.uint64) if features.size else features.astype(np.uint64)
    index_bits = max(int(features.size - 1).bit_length(), 1)
    feature_bits = int(feature.max()).bit_length() if features.size else 0
    if index_bits + feature_bits > 32:
        return np.lexsort((~rising, feature))
    packed = (feature << np.uint64(32 + index_bits)) | ((~rising).astype(np.uint64) << np.uint64(index_bits))
    packed |= np.arange(features.size, dtype=np.uint64)
    packed.sort()
    return (packed & np.uint64((1 << index_bits) - 1)).astype(np.int64)


def choose_examples(
    events: EventRange,
    documents: np.ndarray,
    *,
    n_documents: int,
    top: int,
    per_document: int,
    strata: int,
    stratum_examples: int,
    seed: int,
) -> ExampleRows:
    """Chooses the examples of a range of features; `documents` [text] are those of all tokens."""
    n = events.last - events.first
    draws = uniform(seed, np.arange(events.first, events.last), strata)
    most = int(np.minimum(events.counts, top + strata * stratum_examples).sum())
    chosen, in_strata, ranks = np.empty(most, np.int64), np.empty(most, np.int8), np.empty(most, np.int32)
    counts = np.empty(n, np.int64)
    largest = int(events.counts.max(initial=0))
    stop = choose_windows(
        events.starts,
        events.counts,
        events.facts,
        events.activations.view(np.int32),
        events.ordinals,
        documents,
        n_documents,
        top,
        per_document,
        draws,
        stratum_examples,
        scratch("keys", largest, np.uint64),
        scratch("ordered", largest, np.uint64),
        chosen,
        in_strata,
        ranks,
        counts,
    )
    return ExampleRows(counts, chosen[:stop], in_strata[:stop], ranks[:stop])
