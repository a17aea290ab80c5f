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

from features.events import EventRange


@dataclass(frozen=True)
class ExampleRows:
    """Rows of `examples`, ordered by (feature, stratum, rank); tokens by their number in the text."""

    features: np.ndarray
    strata: np.ndarray
    ranks: np.ndarray
    ordinals: np.ndarray
    activations: np.ndarray


def window_peaks(events: EventRange, windows: np.ndarray) -> EventRange:
    """The first strongest event of each feature in each window; `windows` numbers the window of each token."""
    if events.features.size == 0:
        return events
    window = windows[events.ordinals]
    starts_here = np.empty(window.size, dtype=bool)
    starts_here[0] = True
    np.not_equal(window[1:], window[:-1], out=starts_here[1:])
    starts_here[1:] |= events.features[1:] != events.features[:-1]
    starts = np.flatnonzero(starts_here)
    sizes = np.abs(events.activations)
    strongest = np.maximum.reduceat(sizes, starts)
    lengths = np.diff(np.append(starts, window.size))
    at_peak = np.flatnonzero(sizes == np.repeat(strongest, lengths))
    segment = np.searchsorted(starts, at_peak, side="right") - 1
    first_of_segment = np.empty(at_peak.size, dtype=bool)
    first_of_segment[:1] = True
    first_of_segment[1:] = segment[1:] != segment[:-1]
    return events.select(at_peak[first_of_segment])


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
    rank = rank_within(features)
    is_top = _strongest(features, rank, documents[peaks.ordinals[order]], top, per_document)

    others = np.flatnonzero(~is_top)
    chosen = [np.flatnonzero(is_top)]
    chosen_strata = [np.zeros(chosen[0].size, dtype=np.int8)]
    if strata and stratum_examples and others.size:
        other_counts = np.bincount(features[others] - events.first, minlength=events.last - events.first)
        other_starts = np.cumsum(other_counts) - other_counts
        # one draw for all features of the dictionary would cost memory; one per feature keeps ranges independent
        draws = np.stack(
            [
                np.random.Generator(np.random.Philox(key=[seed, feature])).random((strata, stratum_examples))
                for feature in range(events.first, events.last)
            ]
        )
        edges = other_counts[:, None] * np.arange(strata + 1) // strata
        low, length = edges[:, :-1, None], np.diff(edges, axis=1)[:, :, None]
        place = (length * (np.arange(stratum_examples) + draws) / stratum_examples).astype(np.int64)
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


def _strongest(
    features: np.ndarray, rank: np.ndarray, documents: np.ndarray, top: int, per_document: int
) -> np.ndarray:
    """Marks the first `top` peaks of each feature, counting at most `per_document` of one document."""
    depth = 4 * top
    while True:
        head = np.flatnonzero(rank < depth)
        # stable sort by (feature, document) keeps the order of activation, so the rank inside is the document's own
        order = np.lexsort((documents[head], features[head]))
        pair_feature, pair_document = features[head][order], documents[head][order]
        within = np.empty(head.size, dtype=np.int64)
        within[order] = rank_within(pair_feature.astype(np.int64) << 32 | pair_document)
        kept = head[within < per_document]
        kept = kept[rank_within(features[kept]) < top]
        # a feature is settled when its list is full, or when all its peaks have been looked at
        found = np.bincount(features[kept], minlength=int(features.max(initial=0)) + 1)
        unsettled = np.unique(features[rank == depth]) if rank.size else np.zeros(0, dtype=np.int64)
        if not np.any(found[unsettled] < top):
            mark = np.zeros(features.size, dtype=bool)
            mark[kept] = True
            return mark
        depth *= 4
