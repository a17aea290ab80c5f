# pyright: reportUnknownParameterType=false
"""Loops over the events of the index, compiled (`features.compiled`).

Arrays are C-contiguous; what a loop writes is given to it. Events of one feature stand together (`starts`, `counts`)
in the order of the text.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from features.compiled import compiled, prefetch

AHEAD = 16
"""Events between asking for the facts of a token and taking them."""
WINDOW_SHIFT, TOKEN_SHIFT, PLACE_SHIFT = 33, 10, 1
"""Where the parts of a token's facts begin (`features.token_facts`): 31, 23 and 9 bits; the lowest: in the sample."""
HISTOGRAM_SHIFT = 21
"""Bits of a float32 below those that tell its bin: of 23 bits of mantissa two stay, four bins to an octave."""


@no_type_check
@compiled
def take_codes(indices, bits, ordinals, at, features_out, events_out, counts):
    """Appends the non-zero codes of tokens (indices and values [n, k]) from place `at` on; returns the next place.

    `bits` are the values' own, as int32. An event is one number: the token's above, these bits below.
    """
    for row in range(indices.shape[0]):
        token = np.uint64(ordinals[row]) << np.uint64(32)
        for column in range(indices.shape[1]):
            feature, value = indices[row, column], bits[row, column]
            if feature >= 0 and value & np.int32(0x7FFFFFFF) != 0:
                features_out[at], events_out[at] = feature, token | np.uint64(np.uint32(value))
                counts[feature] += 1
                at += 1
    return at


@no_type_check
@compiled
def gather_by_feature(features, events, counts, rest_between, events_between):
    """Puts `events` in the order of their features, a counting sort that keeps each feature's order.

    It goes by the upper bits of the feature first, so that neither pass writes to more places than the caches hold.
    `rest_between` (uint16) and `events_between` are memory for as many events.
    """
    n_features, n = len(counts), len(features)
    bits = 0
    while (n_features - 1) >> bits:
        bits += 1
    shift = (bits + 1) // 2
    assert shift <= 16
    n_groups = ((n_features - 1) >> shift) + 1
    group_starts = np.empty(n_groups + 1, np.int64)
    total = 0
    for feature in range(n_features):
        if feature & ((1 << shift) - 1) == 0:
            group_starts[feature >> shift] = total
        total += counts[feature]
    group_starts[n_groups] = total
    group_place = group_starts[:-1].copy()
    for event in range(n):
        feature = features[event]
        group = feature >> shift
        target = group_place[group]
        group_place[group] = target + 1
        rest_between[target], events_between[target] = feature - (group << shift), events[event]
    place = np.empty(1 << shift, np.int64)
    for group in range(n_groups):
        target = group_starts[group]
        for feature in range(group << shift, min((group + 1) << shift, n_features)):
            place[feature - (group << shift)] = target
            target += counts[feature]
        for event in range(group_starts[group], group_starts[group + 1]):
            rest = rest_between[event]
            target = place[rest]
            place[rest] = target + 1
            events[target] = events_between[event]


@no_type_check
@compiled
def merge_chunk(counts, place, events, facts, merged_ordinals, merged_bits, merged_facts):
    """Copies a chunk's events of a range of features behind those of earlier chunks; moves `place` on.

    Looks up `facts` [text] of their tokens on the way: those of one chunk lie close together, and stay in the caches.
    """
    source, last = 0, len(events) - 1
    for feature in range(len(counts)):
        target, n = place[feature], counts[feature]
        for event in range(n):
            prefetch(facts, events[min(source + event + AHEAD, last)] >> np.uint64(32))
            packed = events[source + event]
            ordinal = packed >> np.uint64(32)
            merged_ordinals[target + event] = ordinal
            merged_bits[target + event] = np.uint32(packed)
            merged_facts[target + event] = facts[ordinal]
        place[feature] = target + n
        source += n


@no_type_check
@compiled
def statistics(
    starts, counts, activations, bits, facts, first_bin, window_documents, mean, deviation, largest, document_counts,
    histogram,
):  # fmt: skip
    """Sums up each feature's events, of whose tokens `facts` (`features.token_facts`) are given.

    `bits` are the activations' own as int32, `window_documents` [windows] the document of each. Writes mean
    and standard deviation of |activation|, its maximum, the number of documents, and adds to the histogram [features,
    bins], whose bins are the upper bits of |activation|, counted from `first_bin` and limited to those that there are.
    """
    n_bins = histogram.shape[1]
    for feature in range(len(starts)):
        first, n = starts[feature], counts[feature]
        total, highest, seen, last_window, last = 0.0, np.int32(0), 0, np.int64(-1), np.int32(-1)
        for event in range(first, first + n):
            window = np.int64(facts[event] >> np.uint64(WINDOW_SHIFT))
            if window != last_window:
                last_window = window
                document = window_documents[window]
                seen += document != last
                last = document
            size = bits[event] & np.int32(0x7FFFFFFF)
            highest = max(highest, size)
            place = (size >> HISTOGRAM_SHIFT) - first_bin
            histogram[feature, min(max(place, 0), n_bins - 1)] += 1
            total += abs(activations[event])
        middle = total / max(n, 1)
        spread = 0.0
        for event in range(first, first + n):
            spread += (abs(activations[event]) - middle) ** 2
        mean[feature], deviation[feature] = middle, np.sqrt(spread / max(n, 1))
        largest[feature], document_counts[feature] = highest, seen


@no_type_check
@compiled
def choose_windows(
    starts, counts, facts, bits, ordinals, documents, n_documents, top, per_document, draws, stratum_examples, keys,
    ordered, out_events, out_strata, out_ranks, out_counts,
):  # fmt: skip
    """Writes the examples of each feature, the strongest events of its windows; returns how many.

    `facts` tell the windows of the events, `ordinals` their tokens, `documents` [text] those of all tokens; `bits` are
    the activations' own as int32; `keys` and `ordered` are memory for the events of any feature. Stratum 0 is the first
    `top` windows, at most `per_document` of a document. The others are cut into equal parts; from each
    `stratum_examples` are taken at even distances, from the start that `draws` [features, strata] gives.
    """
    strata = draws.shape[1]
    taken, passed = np.zeros(n_documents, np.int32), np.empty(len(keys), np.int64)
    bins, is_sorted = np.empty(MOST_BINS, np.int64), np.empty(MOST_BINS, np.bool_)
    out = 0
    for feature in range(len(starts)):
        first, before = starts[feature], out
        n_peaks = _window_peaks(first, counts[feature], facts, bits, keys)
        if n_peaks:
            low_bin, shift = _bin(keys, n_peaks, bins, is_sorted, ordered)
        place, n_passed, rank = 0, 0, 0
        while place < n_peaks and rank < top:
            event = first + _at(place, low_bin, shift, bins, is_sorted, ordered)
            document = documents[ordinals[event]]
            if taken[document] < per_document:
                taken[document] += 1
                out_events[out], out_strata[out], out_ranks[out] = event, 0, rank
                out += 1
                rank += 1
            else:
                passed[n_passed] = event
                n_passed += 1
            place += 1
        for chosen in range(before, out):
            taken[documents[ordinals[out_events[chosen]]]] = 0
        n_others = n_passed + n_peaks - place
        for stratum in range(strata):
            low, high = n_others * stratum // strata, n_others * (stratum + 1) // strata
            last, rank = np.int64(-1), 0
            for number in range(stratum_examples):
                other = np.int64((high - low) * (number + draws[feature, stratum]) / stratum_examples)
                other = min(other, high - low - 1)
                if other >= 0 and other != last:
                    if low + other < n_passed:
                        event = passed[low + other]
                    else:
                        behind = place + low + other - n_passed
                        event = first + _at(behind, low_bin, shift, bins, is_sorted, ordered)
                    out_events[out], out_strata[out], out_ranks[out] = event, stratum + 1, rank
                    out += 1
                    rank += 1
                last = other
        out_counts[feature] = out - before
    return out


@no_type_check
@compiled
def _window_peaks(first, n, facts, bits, keys):
    """Writes a key of the first strongest event of a feature in each window; returns how many there are.

    Keys fall with the strength, then rise with the event, whose number in the feature is their lower half.
    """
    found, last, strongest = -1, np.int64(-1), np.int32(-1)
    for event in range(n):
        size = bits[first + event] & np.int32(0x7FFFFFFF)
        window = np.int64(facts[first + event] >> np.uint64(WINDOW_SHIFT))
        if window != last or size > strongest:
            found += window != last
            last, strongest = window, size
            keys[found] = np.uint64(np.int64(0x7FFFFFFF) - np.int64(size)) << np.uint64(32) | np.uint64(event)
    return found + 1


MOST_BINS = 1 << 15


@no_type_check
@compiled
def _bin(keys, n, bins, is_sorted, ordered):
    """Cuts the range of strengths into equal bins, about two keys in each, and writes the `n` keys bin after bin into
    `ordered`, and where each bin ends into `bins`; returns the strength of the first bin and the width in bits."""
    low, high = keys[0] >> np.uint64(32), keys[0] >> np.uint64(32)
    for place in range(n):
        low, high = min(low, keys[place] >> np.uint64(32)), max(high, keys[place] >> np.uint64(32))
    n_bins, shift = 16, np.uint64(0)
    while 2 * n_bins < n and n_bins < MOST_BINS:
        n_bins *= 2
    while (high - low) >> shift >= np.uint64(n_bins):
        shift += np.uint64(1)
    bins[:n_bins], is_sorted[:n_bins] = 0, False
    for place in range(n):
        bins[((keys[place] >> np.uint64(32)) - low) >> shift] += 1
    total = 0
    for number in range(n_bins):
        total, bins[number] = total + bins[number], total
    for place in range(n):
        number = ((keys[place] >> np.uint64(32)) - low) >> shift
        ordered[bins[number]] = keys[place]
        bins[number] += 1
    return low, shift


@no_type_check
@compiled
def _at(place, low, shift, bins, is_sorted, ordered):
    """The event of the key at a place in the order of all; only the bins that are asked for are sorted."""
    number = np.int64(((ordered[place] >> np.uint64(32)) - low) >> shift)
    if not is_sorted[number]:
        start, end = bins[number - 1] if number else 0, bins[number]
        if end - start > 32:
            ordered[start:end].sort()
        else:
            for key in range(start + 1, end):
                _insert(ordered[key], start, key, ordered)
        is_sorted[number] = True
    return np.int64(ordered[place] & np.uint64(0xFFFFFFFF))


@no_type_check
@compiled
def _insert(key, start, place, ordered):
    """Puts a key where it belongs among those at `start` to before `place`, which are in order."""
    while place > start and ordered[place - 1] > key:
        ordered[place] = ordered[place - 1]
        place -= 1
    ordered[place] = key


@no_type_check
@compiled
def mark_shown(starts, counts, ordinals, documents, positions, example_counts, shown_events, before, after, mark):
    """Marks the events of each feature within `before` and `after` tokens of one of its `shown_events`.

    These stand by feature, `example_counts` of each, in any order; what is marked lies in the same document. `ordinals`
    are the events' tokens, `documents` and `positions` [text] those of all tokens.
    """
    shown = 0
    for feature in range(len(starts)):
        first, end = starts[feature], starts[feature] + counts[feature]
        for example in range(shown, shown + example_counts[feature]):
            middle = shown_events[example]
            token = ordinals[middle]
            document, position = documents[token], positions[token]
            mark[middle] = True
            # of two tokens of a document the positions lie at least as far apart as the ordinals
            event = middle - 1
            while event >= first and token - ordinals[event] <= before:
                if documents[ordinals[event]] != document or position - positions[ordinals[event]] > before:
                    break
                mark[event] = True
                event -= 1
            event = middle + 1
            while event < end and ordinals[event] - token <= after:
                if documents[ordinals[event]] != document or positions[ordinals[event]] - position > after:
                    break
                mark[event] = True
                event += 1
        shown += example_counts[feature]


@no_type_check
@compiled
def _sink(heap, node, n):
    """Lets the number at `node` of a heap with the smallest first sink to its place."""
    moved = heap[node]
    while 2 * node + 1 < n:
        child = 2 * node + 1
        if child + 1 < n and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= moved:
            break
        heap[node] = heap[child]
        node = child
    heap[node] = moved


@no_type_check
@compiled
def strongest_tokens(starts, counts, activations, facts, vocab, limit, out_tokens, out_counts, out_shares):
    """Writes the tokens with the largest share of a feature's |activation|, at most `limit`; returns rows by feature.

    `facts` tell the tokens of the events. Rows stand by feature, then from the largest share to the smallest, equal
    ones by token.
    """
    sums = np.zeros((vocab, 2), np.float64)  # times and mass side by side: one look into memory for each event
    touched = np.empty(vocab, np.int64)
    heap = np.empty(limit, np.uint64)
    rows = np.zeros(len(starts), np.int64)
    mask, low_half = np.uint64((1 << (WINDOW_SHIFT - TOKEN_SHIFT)) - 1), np.uint64(0xFFFFFFFF)
    share = np.empty(1, np.float32)
    share_bits = share.view(np.uint32)
    out = 0
    for feature in range(len(starts)):
        n_touched, total = 0, 0.0
        for event in range(starts[feature], starts[feature] + counts[feature]):
            token, size = np.int64((facts[event] >> np.uint64(TOKEN_SHIFT)) & mask), abs(activations[event])
            touched[n_touched] = token
            n_touched += sums[token, 0] == 0
            sums[token, 0] += 1
            sums[token, 1] += size
            total += size
        held = 0
        for place in range(n_touched):
            token = touched[place]
            share[0] = sums[token, 1] / total
            key = np.uint64(share_bits[0]) << np.uint64(32) | (low_half - np.uint64(token))
            if held < limit:
                heap[held] = key
                held += 1
                if held == limit:
                    for node in range(limit // 2 - 1, -1, -1):
                        _sink(heap, node, limit)
            elif key > heap[0]:
                heap[0] = key
                _sink(heap, 0, limit)
        largest = np.sort(heap[:held])
        for place in range(held - 1, -1, -1):
            token = np.int64(low_half - (largest[place] & low_half))
            share_bits[0] = largest[place] >> np.uint64(32)
            out_tokens[out], out_counts[out], out_shares[out] = token, np.int64(sums[token, 0]), share[0]
            out += 1
        for place in range(n_touched):
            sums[touched[place], 0], sums[touched[place], 1] = 0, 0
        rows[feature] = held
    return rows


@no_type_check
@compiled
def count_places(starts, counts, activations, facts, bin_bits, bin_counts, bin_mass, at_boundaries):
    """Adds up events and their |activation| by the bin of each token, and events by the boundaries it stands at.

    `facts` tell of each token its bin in the lowest `bin_bits` bits of its place and one bit for each boundary above.
    """
    n_bins = bin_counts.shape[1]
    mask, place_mask = (1 << bin_bits) - 1, (1 << (TOKEN_SHIFT - PLACE_SHIFT)) - 1
    # two sums in turn: one would wait for itself where events share a bin
    times, mass = np.zeros((2, n_bins), np.int64), np.zeros((2, n_bins), np.float64)
    for feature in range(len(starts)):
        for event in range(starts[feature], starts[feature] + counts[feature]):
            code = np.int64(facts[event] >> np.uint64(PLACE_SHIFT)) & place_mask
            turn, place = event & 1, code & mask
            times[turn, place] += 1
            mass[turn, place] += abs(activations[event])
            ends = code >> bin_bits
            boundary = 0
            while ends:
                at_boundaries[feature, boundary] += ends & 1
                ends >>= 1
                boundary += 1
        for place in range(n_bins):
            bin_counts[feature, place] += times[0, place] + times[1, place]
            bin_mass[feature, place] += mass[0, place] + mass[1, place]
        times[:], mass[:] = 0, 0
