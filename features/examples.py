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

from features import event_loops
from features.event_loops import mark_strongest
from features.events import EventRange


@dataclass(frozen=True)
class ExampleRows:
    """Rows of `examples`, ordered by (feature, stratum, rank); tokens by their number in the text."""

    features: np.ndarray
    strata: np.ndarray
    ranks: np.ndarray
    ordinals: np.ndarray
    activations: np.ndarray


def uniform(seed: int, features: np.ndarray, n: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [features, n]: what a feature draws depends on `seed` and on itself alone.

    Counters are mixed as by SplitMix64 (Steele, Lea and Flood 2014), which costs nothing for each feature.
    """
    number = features.astype(np.uint64)[:, None] * np.uint64(n) + np.arange(n, dtype=np.uint64)
    state = (number + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def window_peaks(events: EventRange, windows: np.ndarray) -> EventRange:
    """The first strongest event of each feature in each window; `windows` numbers the window of each token."""
    peaks = np.empty(events.features.size, dtype=np.int64)
    found = event_loops.window_peaks(events.starts, events.counts, events.ordinals, events.activations, windows, peaks)
    return events.select(peaks[:found])


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


def rank_within(groups: np.ndarray) -> np.ndarray:
    """For sorted `groups`: 0, 1, 2, … inside each run of equal values."""
    if groups.size == 0:
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1])))
    return np.arange(groups.size) - np.repeat(starts, np.diff(np.append(starts, groups.size)))


def choose_examples(
    events: EventRange,
    *,
    windows: np.ndarray,
    documents: np.ndarray,
    top: int,
    per_document: int,
    strata: int,
    stratum_examples: int,
    seed: int,
) -> ExampleRows:
    """Chooses the examples of a range of features; `windows` and `documents` number those of each token."""
    peaks = window_peaks(events, windows)
    order = order_by_activation(peaks.features, np.abs(peaks.activations))
    features = peaks.features[order]
    is_top = np.zeros(features.size, dtype=bool)
    n_documents = int(documents.max(initial=-1)) + 1
    mark_strongest(features, documents[peaks.ordinals[order]], n_documents, top, per_document, is_top)

    others = np.flatnonzero(~is_top)
    chosen = [np.flatnonzero(is_top)]
    chosen_strata = [np.zeros(chosen[0].size, dtype=np.int8)]
    if strata and stratum_examples and others.size:
        other_counts = np.bincount(features[others] - events.first, minlength=events.last - events.first)
        other_starts = np.cumsum(other_counts) - other_counts
        start = uniform(seed, np.arange(events.first, events.last), strata)[:, :, None]
        edges = other_counts[:, None] * np.arange(strata + 1) // strata
        low, length = edges[:, :-1, None], np.diff(edges, axis=1)[:, :, None]
        place = (length * (np.arange(stratum_examples) + start) / stratum_examples).astype(np.int64)
        place = low + np.minimum(place, np.maximum(length - 1, 0))
        valid = np.broadcast_to(length > 0, place.shape).copy()
        valid[:, :, 1:] &= place[:, :, 1:] != place[:, :, :-1]
        index = (other_starts[:, None, None] + place)[valid]
        chosen.append(others[index])
        chosen_strata.append(np.broadcast_to(np.arange(1, strata + 1)[:, None], place.shape)[valid].astype(np.int8))

    index = np.concatenate(chosen)
    stratum = np.concatenate(chosen_strata)
    final = np.lexsort((index, stratum, features[index]))
    index, stratum = index[final], stratum[final]
    ranks = rank_within(features[index].astype(np.int64) * (strata + 1) + stratum)
    source = order[index]
    return ExampleRows(features[index], stratum, ranks, peaks.ordinals[source], peaks.activations[source])
