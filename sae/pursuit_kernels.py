# pyright: reportUnknownParameterType=false
"""Loops of `sae.pursuit`, compiled by numba; each works on a range of rows and holds no lock."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit, prange

from sae.compiled_kernels import FAST, inner

LANES = 64
"""Running maxima, so that finding the largest of a row is a loop over vectors."""


@no_type_check
@njit(nogil=True, cache=True, fastmath=FAST)
def take(correlations, row, value, maxima):
    """Subtracts value · row from a row's correlations, and writes the largest of every LANES-th entry to `maxima`."""
    for start in range(0, len(row), LANES):
        left, products = correlations[start : start + LANES], row[start : start + LANES]
        if start == 0:
            for j in range(len(left)):
                left[j] -= value * products[j]
                maxima[j] = left[j]
        else:
            for j in range(len(left)):
                left[j] -= value * products[j]
                maxima[j] = left[j] if left[j] > maxima[j] else maxima[j]


@no_type_check
@njit(nogil=True, cache=True)
def place_of_largest(correlations, maxima):
    """Returns where the largest correlation stands, given the largest of every lane."""
    lane = 0
    for j in range(1, min(LANES, len(correlations))):
        if maxima[j] > maxima[lane]:
            lane = j
    for i in range(lane, len(correlations), LANES):
        if correlations[i] == maxima[lane]:
            return i
    return lane


@no_type_check
@njit(nogil=True, cache=True)
def pursue(first, last, correlations, gram, W_dec, k, smallest, residual, chosen, values):
    """Chooses latents for rows first … last, one after another, and leaves what they do not explain in `residual`.

    `correlations` are ⟨W_dec[i], residual⟩ on entry; they are carried along by the rows of `gram`, while values are
    computed from the residual itself. After a row's end `chosen` holds −1.
    """
    maxima, nothing = np.empty(LANES, W_dec.dtype), W_dec.dtype.type(0)
    for r in range(first, last):
        row, left = correlations[r], residual[r]
        for t in range(k):
            chosen[r, t], values[r, t] = -1, 0
        if np.sqrt(inner(left, left)) < smallest:
            continue
        take(row, gram[0], nothing, maxima)
        for t in range(k):
            best = place_of_largest(row, maxima)
            atom = W_dec[best]
            value = inner(left, atom)
            if value <= 0:
                break
            is_new = True
            for earlier in range(t):
                is_new &= chosen[r, earlier] != best
            chosen[r, t], values[r, t] = best, value
            for j in range(len(left)):
                left[j] -= value * atom[j]
            if not is_new or np.sqrt(inner(left, left)) < smallest:
                break
            take(row, gram[best], value, maxima)


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_pursue(threads, count, correlations, gram, W_dec, k, smallest, residual, chosen, values):
    for share in prange(threads):
        pursue(
            count * share // threads,
            count * (share + 1) // threads,
            correlations,
            gram,
            W_dec,
            k,
            smallest,
            residual,
            chosen,
            values,
        )


@no_type_check
@njit(nogil=True, cache=True, fastmath=FAST)
def unwind(first, last, chosen, values, W_dec, residual, grad, dW_dec):
    """Goes back through the choices of rows first … last, from the last to the first.

    `grad` is the gradient with respect to what was left and becomes that with respect to the centred row; `residual`
    becomes the centred row again; `dW_dec` is added to.
    """
    for r in range(first, last):
        left, slope = residual[r], grad[r]
        for t in range(chosen.shape[1] - 1, -1, -1):
            if chosen[r, t] < 0:
                continue
            latent, value = chosen[r, t], values[r, t]
            atom, sums = W_dec[latent], dW_dec[latent]
            along = inner(slope, atom)
            for j in range(len(left)):
                left[j] += value * atom[j]
                sums[j] -= value * slope[j] + along * left[j]
                slope[j] -= along * atom[j]


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_unwind(parts, count, chosen, values, W_dec, residual, grad, dW_dec):
    for part in prange(parts):
        unwind(count * part // parts, count * (part + 1) // parts, chosen, values, W_dec, residual, grad, dW_dec[part])
