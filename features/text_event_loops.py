# pyright: reportUnknownParameterType=false
"""Loops over events in the order of the text, compiled (`features.compiled`); the format is `features.text_events`'."""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from features.compiled import compiled


@no_type_check
@compiled
def by_token(feature_counts, events, first, token_counts, features, bits):
    """Puts events (token << 32 | bits of the activation), ordered by feature, in the order of their tokens.

    `feature_counts` says how many of them each feature has; those of a token keep their order. Writes how many each
    token from `first` on has, and feature and bits of each event.
    """
    for event in range(len(events)):
        token_counts[np.int64(events[event] >> np.uint64(32)) - first] += 1
    place = np.cumsum(token_counts) - token_counts
    event = 0
    for feature in range(len(feature_counts)):
        for _ in range(feature_counts[feature]):
            token = np.int64(events[event] >> np.uint64(32)) - first
            target = place[token]
            place[token] = target + 1
            features[target], bits[target] = feature, np.uint32(events[event] & np.uint64(0xFFFFFFFF))
            event += 1


@no_type_check
@compiled
def split_bytes(counts, features, bits, block_starts, out):
    """Writes the bytes of the events of each block, byte by byte: of differences 1, 2, 3 and activations 3, then of
    differences 0 and activations 2, 1, 0."""
    token, end = -1, 0
    for block in range(len(block_starts) - 1):
        start, n = block_starts[block], block_starts[block + 1] - block_starts[block]
        at = 8 * start
        for event in range(n):
            if start + event >= end:
                before = 0
                while start + event >= end:
                    token += 1
                    end += counts[token]
            difference = np.uint32(features[start + event] - before)
            before = features[start + event]
            value = bits[start + event]
            out[at + event] = (difference >> np.uint32(8)) & np.uint32(255)
            out[at + n + event] = (difference >> np.uint32(16)) & np.uint32(255)
            out[at + 2 * n + event] = difference >> np.uint32(24)
            out[at + 3 * n + event] = value >> np.uint32(24)
            out[at + 4 * n + event] = difference & np.uint32(255)
            out[at + 5 * n + event] = (value >> np.uint32(16)) & np.uint32(255)
            out[at + 6 * n + event] = (value >> np.uint32(8)) & np.uint32(255)
            out[at + 7 * n + event] = value & np.uint32(255)


@no_type_check
@compiled
def join_bytes(starts, counts, wanted, alike, other, features, bits):
    """Writes feature and bits of the events of the `wanted` tokens of a block, whose events begin at `starts`."""
    n = len(alike) // 4
    target = 0
    for place in range(len(wanted)):
        token = wanted[place]
        feature = np.uint32(0)
        for event in range(starts[token], starts[token] + counts[token]):
            difference = np.uint32(alike[event]) << np.uint32(8) | np.uint32(alike[n + event]) << np.uint32(16)
            difference |= np.uint32(alike[2 * n + event]) << np.uint32(24) | np.uint32(other[event])
            value = np.uint32(alike[3 * n + event]) << np.uint32(24) | np.uint32(other[n + event]) << np.uint32(16)
            value |= np.uint32(other[2 * n + event]) << np.uint32(8) | np.uint32(other[3 * n + event])
            feature += difference
            features[target], bits[target] = feature, value
            target += 1
