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
