# pyright: reportUnknownParameterType=false
"""Loops over the events of the index, compiled by numba; they hold no lock, so that threads run side by side.

Arrays are C-contiguous; what a loop writes is given to it. Events of one feature stand together (`starts`, `counts`)
in the order of the text. Compiled at first use, some seconds in all, and kept in a cache on disk where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, no_type_check

import numpy as np
from numba import njit


def _compiled(loop: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(loop)
    except RuntimeError:  # no folder to keep it in: compiled anew by every process
        return njit(nogil=True)(loop)


HISTOGRAM_SHIFT = 21
"""Bits of a float32 below those that tell its bin: of 23 bits of mantissa two stay, four bins to an octave."""


@no_type_check
@_compiled
def take_codes(indices, values, ordinals, at, features_out, ordinals_out, values_out, counts):
    """Appends the non-zero codes of tokens (indices and values [n, k]) from place `at` on; returns the next place."""
    for row in range(indices.shape[0]):
        for column in range(indices.shape[1]):
            feature, value = indices[row, column], values[row, column]
            if feature >= 0 and value != 0:
                features_out[at], ordinals_out[at], values_out[at] = feature, ordinals[row], value
                counts[feature] += 1
                at += 1
    return at


@no_type_check
@_compiled
def gather_by_feature(features, ordinals, activations, counts, by_feature, values_by_feature):
    """Writes ordinals and activations in the order of the features, a counting sort that keeps each feature's order.

    It goes by the upper bits of the feature first, so that neither pass writes to more places than the caches hold.
    """
    n_features, n = len(counts), len(features)
    bits = 0
    while (n_features - 1) >> bits:
        bits += 1
    shift = (bits + 1) // 2
    n_groups = ((n_features - 1) >> shift) + 1
    place = np.empty(n_features + 1, np.int64)
    place[0] = 0
    for feature in range(n_features):
        place[feature + 1] = place[feature] + counts[feature]
    group_place = np.empty(n_groups, np.int64)
    for group in range(n_groups):
        group_place[group] = place[group << shift]
    features_between, ordinals_between = np.empty(n, np.int32), np.empty(n, ordinals.dtype)
    values_between = np.empty(n, np.float32)
    for event in range(n):
        group = features[event] >> shift
        target = group_place[group]
        group_place[group] = target + 1
        features_between[target], ordinals_between[target] = features[event], ordinals[event]
        values_between[target] = activations[event]
    for event in range(n):
        feature = features_between[event]
        target = place[feature]
        place[feature] = target + 1
        by_feature[target] = ordinals_between[event]
        values_by_feature[target] = values_between[event]


@no_type_check
@_compiled
def merge_chunk(counts, place, ordinals, activations, merged_ordinals, merged_activations):
    """Copies a chunk's events of a range of features behind those of earlier chunks; moves `place` on."""
    source = 0
    for feature in range(len(counts)):
        target, n = place[feature], counts[feature]
        for event in range(n):
            merged_ordinals[target + event] = ordinals[source + event]
            merged_activations[target + event] = activations[source + event]
        place[feature] = target + n
        source += n


@no_type_check
@_compiled
def statistics(
    starts, counts, ordinals, activations, bits, facts, first_bin, documents, positions, tokens, windows, mean,
    deviation, largest, document_counts, histogram,
):  # fmt: skip
    """Looks up each event's document, position, token and window, and sums up each feature.

    `facts` [text, 4] holds these of each place in the text, `bits` the activations' own as int32. Writes mean
    and standard deviation of |activation|, its maximum, the number of documents, and adds to the histogram [features,
    bins], whose bins are the upper bits of |activation|, counted from `first_bin` and limited to those that there are.
    """
    n_bins = histogram.shape[1]
    for feature in range(len(starts)):
        first, n = starts[feature], counts[feature]
        total, highest, seen, last = 0.0, np.float32(0), 0, np.int32(-1)
        for event in range(first, first + n):
            ordinal = ordinals[event]
            document = facts[ordinal, 0]
            documents[event], positions[event] = document, facts[ordinal, 1]
            tokens[event], windows[event] = facts[ordinal, 2], facts[ordinal, 3]
            size = abs(activations[event])
            total += size
            highest = max(highest, size)
            if document != last:
                seen += 1
                last = document
            place = ((bits[event] & np.int32(0x7FFFFFFF)) >> HISTOGRAM_SHIFT) - first_bin
            histogram[feature, min(max(place, 0), n_bins - 1)] += 1
        middle = total / max(n, 1)
        spread = 0.0
        for event in range(first, first + n):
            spread += (abs(activations[event]) - middle) ** 2
        mean[feature], deviation[feature] = middle, np.sqrt(spread / max(n, 1))
        largest[feature], document_counts[feature] = highest, seen


@no_type_check
@_compiled
def window_peaks(starts, counts, windows, bits, index_bits, peaks, keys, peak_counts):
    """Writes the first strongest event of each feature in each window, and a key that sorts it.

    `windows` are those of the events; the events of a feature in one window stand together. Keys rise with the feature,
    then fall with the strength, then rise with the event; `index_bits` of them number the peak. Returns how many peaks
    there are.
    """
    found = 0
    for feature in range(len(starts)):
        window, strongest, before = np.int32(-1), np.int32(-1), found
        for event in range(starts[feature], starts[feature] + counts[feature]):
            size = bits[event] & np.int32(0x7FFFFFFF)
            if windows[event] != window:
                window = windows[event]
                peaks[found], strongest = event, size
                found += 1
            elif size > strongest:
                peaks[found - 1], strongest = event, size
        for peak in range(before, found):
            size = np.int64(0x7FFFFFFF) - np.int64(bits[peaks[peak]] & np.int32(0x7FFFFFFF))
            strength = np.uint64((np.int64(feature) << 31) | size)
            keys[peak] = (strength << np.uint64(index_bits)) | np.uint64(peak)
        peak_counts[feature] = found - before
    return found


@no_type_check
@_compiled
def choose_peaks(
    order, peak_counts, peaks, documents, n_documents, top, per_document, draws, stratum_examples, out_events,
    out_strata, out_ranks, out_counts,
):  # fmt: skip
    """Writes the examples of each feature, whose peaks stand in `order` from strong to weak; returns how many.

    Stratum 0 is the first `top` peaks, at most `per_document` of a document. The others are cut into equal parts; from
    each `stratum_examples` are taken at even distances, from the start that `draws` [features, strata] gives.
    """
    strata = draws.shape[1]
    taken = np.zeros(n_documents, np.int32)
    others = np.empty(peak_counts.max() if len(peak_counts) else 0, np.int64)
    out, start = 0, 0
    for feature in range(len(peak_counts)):
        before, n_others, rank = out, 0, 0
        for place in range(start, start + peak_counts[feature]):
            event = peaks[order[place]]
            document = documents[event]
            if rank < top and taken[document] < per_document:
                taken[document] += 1
                out_events[out], out_strata[out], out_ranks[out] = event, 0, rank
                out += 1
                rank += 1
            else:
                others[n_others] = event
                n_others += 1
        for chosen in range(before, out):
            taken[documents[out_events[chosen]]] = 0
        start += peak_counts[feature]
        for stratum in range(strata):
            low, high = n_others * stratum // strata, n_others * (stratum + 1) // strata
            last, rank = np.int64(-1), 0
            for number in range(stratum_examples):
                place = np.int64((high - low) * (number + draws[feature, stratum]) / stratum_examples)
                place = min(place, high - low - 1)
                if place >= 0 and place != last:
                    out_events[out], out_strata[out], out_ranks[out] = others[low + place], stratum + 1, rank
                    out += 1
                    rank += 1
                last = place
        out_counts[feature] = out - before
    return out


@no_type_check
@_compiled
def mark_shown(starts, counts, documents, positions, example_counts, shown_events, before, after, mark):
    """Marks the events of each feature within `before` and `after` tokens of one of its `shown_events`.

    These stand by feature, `example_counts` of each, in any order; what is marked lies in the same document.
    """
    shown = 0
    for feature in range(len(starts)):
        first, end = starts[feature], starts[feature] + counts[feature]
        for example in range(shown, shown + example_counts[feature]):
            middle = shown_events[example]
            event = middle
            while event >= first and documents[event] == documents[middle]:
                if positions[event] < positions[middle] - before:
                    break
                mark[event] = True
                event -= 1
            event = middle + 1
            while event < end and documents[event] == documents[middle]:
                if positions[event] > positions[middle] + after:
                    break
                mark[event] = True
                event += 1
        shown += example_counts[feature]


@no_type_check
@_compiled
def strongest_tokens(starts, counts, activations, tokens, vocab, limit, out_tokens, out_counts, out_shares):
    """Writes the tokens with the largest share of a feature's |activation|, at most `limit`; returns rows by feature.

    `tokens` [n] are those of the events. Rows stand by feature, then from the largest share to the smallest, equal ones
    by token.
    """
    sums = np.zeros((vocab, 2), np.float64)  # times and mass side by side: one look into memory for each event
    touched = np.empty(vocab, np.int64)
    rows = np.zeros(len(starts), np.int64)
    out = 0
    for feature in range(len(starts)):
        n_touched, total = 0, 0.0
        for event in range(starts[feature], starts[feature] + counts[feature]):
            token, size = tokens[event], abs(activations[event])
            if sums[token, 0] == 0:
                touched[n_touched] = token
                n_touched += 1
            sums[token, 0] += 1
            sums[token, 1] += size
            total += size
        first, least = out, -1.0
        for place in range(n_touched):
            token = touched[place]
            times, mass = sums[token, 0], sums[token, 1]
            sums[token, 0], sums[token, 1] = 0, 0
            if mass < least:
                continue
            share = np.float32(mass / total) if total != 0 else np.float32(0)
            row = out
            if out - first == limit:
                row -= 1
                last = out_shares[row]
                if share < last or (share == last and token > out_tokens[row]):
                    continue
            else:
                out += 1
            while row > first and (
                share > out_shares[row - 1] or (share == out_shares[row - 1] and token < out_tokens[row - 1])
            ):
                out_shares[row], out_tokens[row] = out_shares[row - 1], out_tokens[row - 1]
                out_counts[row] = out_counts[row - 1]
                row -= 1
            out_shares[row], out_tokens[row], out_counts[row] = share, token, np.int64(times)
            if out - first == limit:
                # well below what rounds to the last row's share: spares the division
                least = (np.float64(out_shares[out - 1]) * (1 - 1e-6)) * total
        rows[feature] = out - first
    return rows


@no_type_check
@_compiled
def count_together(
    first,
    last,
    starts,
    tokens,
    values,
    token_starts,
    token_features,
    token_values,
    others,
    least,
    of_own,
    of_other,
    own,
    other,
    both,
    product,
):
    """Writes the pairs of features first ≤ i < last with features of another dictionary that are active together at
    `least` tokens and at a share `of_own` of the one's events or `of_other` of the other's; returns how many."""
    count = np.zeros(len(others), np.int64)
    joint = np.zeros(len(others))
    seen = np.empty(len(others), np.int64)
    found = 0
    for feature in range(first, last):
        n_seen = 0
        for event in range(starts[feature], starts[feature + 1]):
            token, value = tokens[event], values[event]
            for place in range(token_starts[token], token_starts[token + 1]):
                partner = token_features[place]
                if count[partner] == 0:
                    seen[n_seen] = partner
                    n_seen += 1
                count[partner] += 1
                joint[partner] += value * token_values[place]
        n = starts[feature + 1] - starts[feature]
        for place in range(n_seen):
            partner = seen[place]
            together = count[partner]
            if together >= least and (together >= of_own * n or together >= of_other * others[partner]):
                own[found], other[found] = feature, partner
                both[found], product[found] = together, joint[partner]
                found += 1
            count[partner], joint[partner] = 0, 0.0
    return found


@no_type_check
@_compiled
def count_pairs(starts, tokens, values, other_starts, other_tokens, other_values, own, other, both, product):
    """Writes at how many tokens the features of each given pair are active together, and the sum of their products."""
    for pair in range(len(own)):
        left, left_end = starts[own[pair]], starts[own[pair] + 1]
        right, right_end = other_starts[other[pair]], other_starts[other[pair] + 1]
        together, joint = 0, 0.0
        while left < left_end and right < right_end:
            if tokens[left] < other_tokens[right]:
                left += 1
            elif tokens[left] > other_tokens[right]:
                right += 1
            else:
                together += 1
                joint += values[left] * other_values[right]
                left += 1
                right += 1
        both[pair], product[pair] = together, joint


@no_type_check
@_compiled
def count_places(starts, counts, ordinals, activations, codes, bin_bits, bin_counts, bin_mass, at_boundaries):
    """Adds up events and their |activation| by the bin of each token, and events by the boundaries it stands at.

    `codes` holds of each token its bin in the lowest `bin_bits` bits and one bit for each boundary above them.
    """
    mask = (1 << bin_bits) - 1
    for feature in range(len(starts)):
        for event in range(starts[feature], starts[feature] + counts[feature]):
            code = np.int64(codes[ordinals[event]])
            place = code & mask
            bin_counts[feature, place] += 1
            bin_mass[feature, place] += abs(activations[event])
            ends = code >> bin_bits
            boundary = 0
            while ends:
                at_boundaries[feature, boundary] += ends & 1
                ends >>= 1
                boundary += 1


@no_type_check
@_compiled
def sampled_slots(starts, counts, ordinals, slot_of, slots, kept_counts):
    """Writes the number in the sample of each event's token that is in it, feature by feature; returns how many."""
    kept = 0
    for feature in range(len(starts)):
        before = kept
        for event in range(starts[feature], starts[feature] + counts[feature]):
            slot = slot_of[ordinals[event]]
            slots[kept] = slot
            kept += slot >= 0
        kept_counts[feature] = kept - before
    return kept


@no_type_check
@_compiled
def order_by_token(starts, slots, token_starts, token_features):
    """Writes the features of each token, rising; `starts` and `token_starts` end with the number of events."""
    place = token_starts.copy()
    for feature in range(len(starts) - 1):
        for event in range(starts[feature], starts[feature + 1]):
            slot = slots[event]
            token_features[place[slot]] = feature
            place[slot] += 1


@no_type_check
@_compiled
def coactive_features(first, last, starts, slots, token_starts, token_features, others, shared):
    """Writes for each feature from `first` to before `last` the others with the largest Jaccard, and the shared tokens.

    Rows of `others` and `shared` [features, k] stand from the largest to the smallest, equal ones by feature; where
    fewer others share a token with a feature, the rest stays as it was.
    """
    n_features, k = others.shape
    together = np.zeros(n_features, np.int32)
    met = np.empty(n_features + 1, np.int32)
    best = np.empty(k, np.float64)
    for feature in range(first, last):
        n_met = 0
        for event in range(starts[feature], starts[feature + 1]):
            slot = slots[event]
            for place in range(token_starts[slot], token_starts[slot + 1]):
                other = token_features[place]
                seen = together[other]
                met[n_met] = other
                n_met += seen == 0
                together[other] = seen + 1
        own, found = starts[feature + 1] - starts[feature], 0
        # Jaccard is at most the shared tokens by the feature's own: fewer cannot enter a full row
        least = 1
        together[feature] = 0
        for place in range(n_met):
            other = met[place]
            both = together[other]
            together[other] = 0
            if both < least:
                continue
            overlap = both / (own + starts[other + 1] - starts[other] - both)
            row = found
            if found == k:
                row -= 1
                if overlap < best[row] or (overlap == best[row] and other > others[feature, row]):
                    continue
            else:
                found += 1
            while row > 0 and (
                overlap > best[row - 1] or (overlap == best[row - 1] and other < others[feature, row - 1])
            ):
                best[row], others[feature, row] = best[row - 1], others[feature, row - 1]
                shared[feature, row] = shared[feature, row - 1]
                row -= 1
            best[row], others[feature, row], shared[feature, row] = overlap, other, both
            if found == k:
                least = max(1, np.int64(best[k - 1] * own))
