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


@no_type_check
@_compiled
def gather_by_feature(features, ordinals, activations, counts, by_feature, values_by_feature):
    """Writes ordinals and activations in the order of the features, a counting sort that keeps each feature's order."""
    place = np.empty(len(counts), np.int64)
    first = 0
    for feature in range(len(counts)):
        place[feature] = first
        first += counts[feature]
    for event in range(len(features)):
        feature = features[event]
        target = place[feature]
        place[feature] = target + 1
        by_feature[target] = ordinals[event]
        values_by_feature[target] = activations[event]


@no_type_check
@_compiled
def statistics(starts, counts, documents, activations, mean, deviation, largest, document_counts):
    """Writes mean and standard deviation of |activation|, its maximum, and the number of documents of each feature."""
    for feature in range(len(starts)):
        first, n = starts[feature], counts[feature]
        total, highest, seen = 0.0, np.float32(0), 0
        for event in range(first, first + n):
            size = abs(activations[event])
            total += size
            highest = max(highest, size)
            if event == first or documents[event] != documents[event - 1]:
                seen += 1
        middle = total / max(n, 1)
        spread = 0.0
        for event in range(first, first + n):
            spread += (abs(activations[event]) - middle) ** 2
        mean[feature], deviation[feature] = middle, np.sqrt(spread / max(n, 1))
        largest[feature], document_counts[feature] = highest, seen


@no_type_check
@_compiled
def window_peaks(starts, counts, ordinals, activations, windows, peaks):
    """Writes the first strongest event of each feature in each window; returns how many there are."""
    found = 0
    for feature in range(len(starts)):
        window, strongest = np.int64(-1), np.float32(0)
        for event in range(starts[feature], starts[feature] + counts[feature]):
            size = abs(activations[event])
            if windows[ordinals[event]] != window:
                window = windows[ordinals[event]]
                peaks[found], strongest = event, size
                found += 1
            elif size > strongest:
                peaks[found - 1], strongest = event, size
    return found


@no_type_check
@_compiled
def mark_strongest(features, documents, n_documents, top, per_document, mark):
    """Marks the first `top` of each feature's peaks, from strong to weak, at most `per_document` of a document."""
    taken = np.zeros(n_documents, np.int32)
    event = 0
    while event < len(features):
        first, found = event, 0
        while event < len(features) and features[event] == features[first]:
            document = documents[event]
            if found < top and taken[document] < per_document:
                taken[document] += 1
                mark[event] = True
                found += 1
            event += 1
        for settled in range(first, event):
            taken[documents[settled]] = 0


@no_type_check
@_compiled
def strongest_tokens(starts, counts, ordinals, activations, tokens, vocab, limit, out_tokens, out_counts, out_shares):
    """Writes the tokens with the largest share of a feature's |activation|, at most `limit`; returns rows by feature.

    Rows stand by feature, then from the largest share to the smallest, equal ones by token.
    """
    times, mass = np.zeros(vocab, np.int64), np.zeros(vocab, np.float64)
    touched = np.empty(vocab, np.int64)
    rows = np.zeros(len(starts), np.int64)
    out = 0
    for feature in range(len(starts)):
        n_touched, total = 0, 0.0
        for event in range(starts[feature], starts[feature] + counts[feature]):
            token, size = tokens[ordinals[event]], abs(activations[event])
            if times[token] == 0:
                touched[n_touched] = token
                n_touched += 1
            times[token] += 1
            mass[token] += size
            total += size
        first = out
        for place in range(n_touched):
            token = touched[place]
            share = np.float32(mass[token] / total) if total != 0 else np.float32(0)
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
            out_shares[row], out_tokens[row], out_counts[row] = share, token, times[token]
        for place in range(n_touched):
            times[touched[place]] = 0
            mass[touched[place]] = 0
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
