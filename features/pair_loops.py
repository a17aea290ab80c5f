# pyright: reportUnknownParameterType=false
"""Loops over pairs of features that are active on the same tokens, compiled (`features.compiled`)."""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from features.compiled import compiled, prefetch


@no_type_check
@compiled
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
@compiled
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
@compiled
def sampled_ordinals(starts, counts, ordinals, facts, kept_ordinals, kept_counts):
    """Writes the tokens of the events that lie in the sample, feature by feature; returns how many.

    `facts` (`features.token_facts`) tell in their lowest bit whether the event's token is in the sample.
    """
    kept = 0
    for feature in range(len(starts)):
        before = kept
        for event in range(starts[feature], starts[feature] + counts[feature]):
            kept_ordinals[kept] = ordinals[event]
            kept += np.int64(facts[event] & np.uint64(1))
        kept_counts[feature] = kept - before
    return kept


@no_type_check
@compiled
def order_by_token(by_count, starts, counts, slots, token_starts, token_ranks):
    """Writes the ranks of the features of each token, rising; feature `by_count[rank]` has the events at `starts`."""
    place = token_starts[:-1].copy()
    for rank in range(len(by_count)):
        first = starts[by_count[rank]]
        for event in range(first, first + counts[by_count[rank]]):
            slot = slots[event]
            token_ranks[place[slot]] = rank
            place[slot] += 1


AHEAD = 6
"""Tokens between asking for the features of one and counting them."""
BLOCK = 64
"""Features whose counts are looked at together; `together` ends with a whole block."""


@no_type_check
@compiled
def coactive_features(
    first, last, by_count, ranked, starts, counts, slots, token_starts, token_ranks, together, others, shared
):  # fmt: skip
    """Writes for features of the ranks `first` to before `last` the others with the largest Jaccard, and the shared
    tokens.

    `by_count` [features] are the features by their rank, those with most tokens first, `ranked` how many these are.
    Rows of `others` and `shared` [features, k] stand from the largest to the smallest, equal ones by feature; where
    fewer others share a token with a feature, the rest stays as it was. `together` [features and more] is all zeros
    before and after, of a type that holds every feature's tokens.
    """
    k, n_features, n_blocks = others.shape[1], len(by_count), len(together) // BLOCK
    best = np.empty(k, np.float64)
    for rank in range(first, last):
        feature = by_count[rank]
        own, found, n_pairs, bound = counts[feature], 0, 0, 0.0
        events = slots[starts[feature] : starts[feature] + own]
        for event in range(own):
            prefetch(token_starts, np.int64(events[min(event + 2 * AHEAD, own - 1)]))
            ahead = token_starts[events[min(event + AHEAD, own - 1)]]
            prefetch(token_ranks, ahead)
            prefetch(token_ranks, ahead + 31)
            begin, end = token_starts[events[event]], token_starts[events[event] + 1]
            for place in range(begin, end):
                together[token_ranks[place]] += 1
            n_pairs += end - begin
        together[rank] = 0
        # Jaccard ≥ j where both ≥ j / (1 + j) · (own + its), which `bound` keeps a hair below for a full row
        if 4 * n_pairs < n_blocks:  # few: those that were counted are walked again
            for event in range(own):
                for place in range(token_starts[events[event]], token_starts[events[event] + 1]):
                    other = token_ranks[place]
                    both = np.int64(together[other])
                    if both > 0 and both >= bound * (own + ranked[other]):
                        found, bound = _enter(feature, by_count[other], both, found, counts, best, others, shared)
                    together[other] = 0
            continue
        # the closest in count first, whose overlaps can be large: what follows is mostly passed over by whole blocks
        for step in range(n_blocks):
            block = (rank // BLOCK + step) % n_blocks
            low, high = block * BLOCK, min((block + 1) * BLOCK, n_features)
            most = together[low]
            for other in range(low, low + BLOCK):
                most = max(most, together[other])
            if most == 0:
                continue
            least = bound * (own + ranked[high - 1])
            if most >= least:
                for other in range(low, high):
                    both = np.int64(together[other])
                    if both >= least and both > 0 and both >= bound * (own + ranked[other]):
                        found, bound = _enter(feature, by_count[other], both, found, counts, best, others, shared)
            for other in range(low, low + BLOCK):
                together[other] = 0


@no_type_check
@compiled
def _enter(feature, other, both, found, counts, best, others, shared):
    """Puts a feature where it belongs in the row of another; returns the row's length and the bound of what enters."""
    k = len(best)
    overlap = both / (counts[feature] + counts[other] - both)
    row = found
    if found == k:
        row -= 1
        if overlap < best[row] or (overlap == best[row] and other > others[feature, row]):
            return found, best[row] / (1 + best[row]) * (1 - 1e-9)
    else:
        found += 1
    while row > 0 and (overlap > best[row - 1] or (overlap == best[row - 1] and other < others[feature, row - 1])):
        best[row], others[feature, row] = best[row - 1], others[feature, row - 1]
        shared[feature, row] = shared[feature, row - 1]
        row -= 1
    best[row], others[feature, row], shared[feature, row] = overlap, other, both
    return found, best[k - 1] / (1 + best[k - 1]) * (1 - 1e-9) if found == k else 0.0
