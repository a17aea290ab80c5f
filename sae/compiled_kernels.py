# pyright: reportUnknownParameterType=false
"""Loops of `sae.compiled`, compiled by numba; each works on a range of rows or latents and holds no lock.

Arrays are C-contiguous; what a loop writes is given to it. Sums may be taken in another order than written (`reassoc`),
but non-finite numbers are kept as they are.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit, prange

CARRIED_SLACK = 0.07
"""By how much less than a row's k-th largest value the next row is searched from."""
FAST = {"reassoc", "contract", "nsz"}


@no_type_check
@njit(nogil=True, cache=True)
def kth_largest(values, n, k):
    """Returns the k-th largest of the first n values, which are moved about (Hoare's selection)."""
    low, high, wanted = 0, n - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        left, right = low, high
        while left <= right:
            while values[left] > pivot:
                left += 1
            while values[right] < pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if wanted <= right:
            high = right
        elif wanted >= left:
            low = left
        else:
            break
    return values[wanted]


@no_type_check
@njit(nogil=True, cache=True)
def group_maxima(row, stride, maxima):
    """Writes, for every j < stride, the largest of row[j], row[j + stride], …"""
    d_sae = len(row)
    for j in range(stride):
        maxima[j] = row[j]
    for start in range(stride, d_sae, stride):
        part = row[start : min(start + stride, d_sae)]  # an index that cannot be negative: the loop is vectorised
        for j in range(len(part)):
            value = part[j]
            maxima[j] = value if value > maxima[j] else maxima[j]


@no_type_check
@njit(nogil=True, cache=True)
def strongest_in_rows(first, last, pre, k, stride, values, indices):
    """Writes the k largest of rows first … last, clipped at zero. At least k groups of latents have a maximum of the
    k-th largest maximum or more, so the k largest of the row are no smaller than it.
    """
    d_sae = pre.shape[1]
    maxima, sorted_maxima = np.empty(stride, pre.dtype), np.empty(stride, pre.dtype)
    found, scratch, places = np.empty(d_sae, pre.dtype), np.empty(d_sae, pre.dtype), np.empty(d_sae, np.int64)
    floor = pre.dtype.type(0)
    for r in range(first, last):
        row = pre[r]
        group_maxima(row, stride, maxima)
        passing = 0
        for j in range(stride):
            passing += maxima[j] >= floor
        if not k <= passing <= 2 * k:  # the last row's floor does not serve here
            for j in range(stride):
                sorted_maxima[j] = maxima[j]
            floor = kth_largest(sorted_maxima, stride, k)
        n = 0
        for j in range(stride):
            if maxima[j] >= floor:
                for i in range(j, d_sae, stride):
                    if row[i] >= floor:
                        found[n], places[n] = row[i], i
                        n += 1
        smallest = keep_strongest(n, k, found, places, scratch, values[r], indices[r])
        floor = smallest - CARRIED_SLACK * abs(smallest)


@no_type_check
@njit(nogil=True, cache=True)
def keep_strongest(n, k, found, places, scratch, values, indices):
    """Writes the k largest of n values, clipped at zero, and their places; returns the smallest of them."""
    if n < k:  # comparisons fail on what is not a number: hand it on, so that the loss shows it
        for c in range(k):
            values[c], indices[c] = np.nan, c
        return found.dtype.type(0)
    for c in range(n):
        scratch[c] = found[c]
    smallest = kth_largest(scratch, n, k)
    kept = 0
    for c in range(n):
        if found[c] > smallest:
            values[kept], indices[kept] = max(found[c], 0), places[c]
            kept += 1
    for c in range(n):
        if kept < k and found[c] == smallest:
            values[kept], indices[kept] = max(found[c], 0), places[c]
            kept += 1
    return smallest


@no_type_check
@njit(nogil=True, cache=True, fastmath=FAST)
def inner(a, b):
    """Returns the inner product of two rows."""
    total = a.dtype.type(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@no_type_check
@njit(nogil=True, cache=True)
def screened_in_rows(first, last, bits, k, stride, numbers, error, slack, x, W, b, values, indices):
    """Writes the k largest of rows first … last in the arithmetic of x and W, candidates chosen by bf16 products.

    `bits` are the products' bit patterns, `numbers` what each pattern stands for. A product differs from the true
    value by at most `error` of its row and, relative to itself, by `slack`: see `sae.compiled.strongest_screened`.
    """
    d_sae = bits.shape[1]
    maxima, sorted_maxima = np.empty(stride, bits.dtype), np.empty(stride, bits.dtype)
    found, scratch, places = np.empty(d_sae, x.dtype), np.empty(d_sae, x.dtype), np.empty(d_sae, np.int64)
    for r in range(first, last):
        row = bits[r]
        group_maxima(row, stride, maxima)  # bit patterns of positive numbers are in their order
        for j in range(stride):
            sorted_maxima[j] = maxima[j]
        floor = numbers[np.uint16(kth_largest(sorted_maxima, stride, k))]
        floor = (floor * (1 - slack) - 2 * error[r]) * (1 - slack)
        if floor <= 0:
            floor = -np.inf  # the bound tells nothing: all latents are candidates
        n = 0
        for j in range(stride):
            if numbers[np.uint16(maxima[j])] >= floor:
                for i in range(j, d_sae, stride):
                    if numbers[np.uint16(row[i])] >= floor:
                        places[n] = i
                        n += 1
        for c in range(n):
            found[c] = inner(x[r], W[places[c]]) + b[places[c]]
        keep_strongest(n, k, found, places, scratch, values[r], indices[r])


@no_type_check
@njit(nogil=True, cache=True)
def screened_above(first, last, bits, thresholds, stride, numbers, error, slack, x, W, b, values, indices, counts):
    """Packs the entries above their positive thresholds (one, or one each) to the rows' fronts, like `entries_above`,
    candidates chosen by bf16 products.
    """
    d_sae, is_one = bits.shape[1], len(thresholds) == 1
    maxima, lowest = np.empty(stride, bits.dtype), thresholds.min()
    for r in range(first, last):
        row = bits[r]
        group_maxima(row, stride, maxima)
        floor = (lowest - error[r]) * (1 - slack)
        n = 0
        for j in range(stride):
            if numbers[np.uint16(maxima[j])] >= floor:
                for i in range(j, d_sae, stride):
                    threshold = lowest if is_one else thresholds[i]
                    if numbers[np.uint16(row[i])] >= (threshold - error[r]) * (1 - slack):
                        value = inner(x[r], W[i]) + b[i]
                        if value > threshold:
                            values[r, n], indices[r, n] = value, i
                            n += 1
        counts[r] = n


@no_type_check
@njit(nogil=True, cache=True)
def entries_above(first, last, pre, threshold, stride, values, indices, counts):
    """Packs, in each of the rows first … last, the entries above one threshold to the row's front."""
    d_sae = pre.shape[1]
    maxima = np.empty(stride, pre.dtype)
    for r in range(first, last):
        row = pre[r]
        group_maxima(row, stride, maxima)
        n = 0
        for j in range(stride):
            if maxima[j] > threshold:
                for i in range(j, d_sae, stride):
                    if row[i] > threshold:
                        values[r, n], indices[r, n] = row[i], i
                        n += 1
        counts[r] = n


@no_type_check
@njit(nogil=True, cache=True)
def entries_above_each(first, last, pre, thresholds, values, indices, counts):
    """The same with a threshold for each latent."""
    width = 16
    d_sae = pre.shape[1]
    for r in range(first, last):
        row = pre[r]
        n = 0
        for start in range(0, d_sae, width):
            end = min(start + width, d_sae)
            hits = 0
            for i in range(start, end):
                hits += row[i] > thresholds[i]
            if hits:
                for i in range(start, end):
                    if row[i] > thresholds[i]:
                        values[r, n], indices[r, n] = row[i], i
                        n += 1
        counts[r] = n


@no_type_check
@njit(nogil=True, cache=True)
def pack(values, indices, starts, packed_values, packed_indices):
    """Lays the rows' fronts one after another, row r at starts[r]."""
    for r in range(len(values)):
        start = starts[r]
        for c in range(starts[r + 1] - start):
            packed_values[start + c], packed_indices[start + c] = values[r, c], indices[r, c]


@no_type_check
@njit(nogil=True, cache=True)
def keep_largest(starts, values, indices, smallest, room, kept_starts, kept_values, kept_indices):
    """Keeps what is larger than `smallest`, and the first `room` entries that equal it."""
    n = 0
    for r in range(len(starts) - 1):
        kept_starts[r] = n
        for c in range(starts[r], starts[r + 1]):
            is_level = values[c] == smallest and room > 0
            if is_level:
                room -= 1
            if is_level or values[c] > smallest:
                kept_values[n], kept_indices[n] = values[c], indices[c]
                n += 1
    kept_starts[len(starts) - 1] = n


@no_type_check
@njit(nogil=True, cache=True, fastmath=FAST)
def decode_backward(
    first, last, starts, indices, values, blocks, W_dec, target, scales, is_signed, errors, suffix, squared, dvalues
):
    """Decodes rows first … last at every nested width, and gives codes their gradients (see `sae.step`)."""
    groups, width = len(scales), W_dec.shape[1]
    written = np.empty((groups, width), W_dec.dtype)
    for r in range(first, last):
        written[:] = 0
        for c in range(starts[r], starts[r + 1]):
            value, latent = values[c], indices[c]
            if value != 0:
                part, direction = written[blocks[latent]], W_dec[latent]
                for j in range(width):
                    part[j] += value * direction[j]
        for g in range(groups):
            part, out = written[g], suffix[g, r]
            if g > 0:
                before = written[g - 1]
                for j in range(width):
                    part[j] += before[j]
            total = W_dec.dtype.type(0)
            scale = scales[g]
            for j in range(width):
                error = target[r, j] - part[j]
                total += error * error
                out[j] = scale * error
            squared[r, g] = total
        for j in range(width):
            errors[r, j] = target[r, j] - written[groups - 1, j]
        for g in range(groups - 2, -1, -1):
            out, after = suffix[g, r], suffix[g + 1, r]
            for j in range(width):
                out[j] += after[j]
        for c in range(starts[r], starts[r + 1]):
            if is_signed or values[c] > 0:
                latent = indices[c]
                dvalues[c] = inner(suffix[blocks[latent], r], W_dec[latent])
            else:
                dvalues[c] = 0


@no_type_check
@njit(nogil=True, cache=True)
def order_by_latent(starts, indices, latent_starts, rows, places):
    """Counting sort: row and place of every code, by latent, in row order within each."""
    for c in range(len(indices)):
        latent_starts[indices[c] + 1] += 1
    for i in range(len(latent_starts) - 1):
        latent_starts[i + 1] += latent_starts[i]
    cursor = latent_starts[:-1].copy()
    for r in range(len(starts) - 1):
        for c in range(starts[r], starts[r + 1]):
            latent = indices[c]
            place = cursor[latent]
            rows[place], places[place] = r, c
            cursor[latent] = place + 1


@no_type_check
@njit(nogil=True, cache=True, fastmath=FAST)
def latent_gradients(
    first, last, latent_starts, rows, places, values, dvalues, blocks, suffix, centred, dW_enc, dW_dec, db_enc
):
    """Sums the gradients of latents first … last over the codes that chose them."""
    for i in range(first, last):
        grad_dec, grad_enc, block = dW_dec[i], dW_enc[i], suffix[blocks[i]]
        grad_dec[:] = 0
        grad_enc[:] = 0
        bias = 0.0
        for p in range(latent_starts[i], latent_starts[i + 1]):
            value, dvalue = values[places[p]], dvalues[places[p]]
            grad, x = block[rows[p]], centred[rows[p]]
            if value != 0:
                for j in range(len(grad_dec)):
                    grad_dec[j] += value * grad[j]
            if dvalue != 0:
                for j in range(len(grad_enc)):
                    grad_enc[j] += dvalue * x[j]
                bias += dvalue
        db_enc[i] = bias


# Each loop on all of its rows or latents, divided among threads: those of OpenMP, which torch uses too.


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_strongest_in_rows(threads, count, pre, k, stride, values, indices):
    for share in prange(threads):
        strongest_in_rows(count * share // threads, count * (share + 1) // threads, pre, k, stride, values, indices)


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_screened_in_rows(threads, count, bits, k, stride, numbers, error, slack, x, W, b, values, indices):
    for share in prange(threads):
        screened_in_rows(
            count * share // threads,
            count * (share + 1) // threads,
            bits,
            k,
            stride,
            numbers,
            error,
            slack,
            x,
            W,
            b,
            values,
            indices,
        )


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_screened_above(
    threads, count, bits, thresholds, stride, numbers, error, slack, x, W, b, values, indices, counts
):
    for share in prange(threads):
        screened_above(
            count * share // threads,
            count * (share + 1) // threads,
            bits,
            thresholds,
            stride,
            numbers,
            error,
            slack,
            x,
            W,
            b,
            values,
            indices,
            counts,
        )


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_entries_above(threads, count, pre, threshold, stride, values, indices, counts):
    for share in prange(threads):
        entries_above(
            count * share // threads, count * (share + 1) // threads, pre, threshold, stride, values, indices, counts
        )


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_entries_above_each(threads, count, pre, thresholds, values, indices, counts):
    for share in prange(threads):
        entries_above_each(
            count * share // threads, count * (share + 1) // threads, pre, thresholds, values, indices, counts
        )


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_decode_backward(
    threads, count, starts, indices, values, blocks, W_dec, target, scales, is_signed, errors, suffix, squared, dvalues
):
    for share in prange(threads):
        decode_backward(
            count * share // threads,
            count * (share + 1) // threads,
            starts,
            indices,
            values,
            blocks,
            W_dec,
            target,
            scales,
            is_signed,
            errors,
            suffix,
            squared,
            dvalues,
        )


@no_type_check
@njit(nogil=True, cache=True, parallel=True)
def divided_latent_gradients(
    threads, count, latent_starts, rows, places, values, dvalues, blocks, suffix, centred, dW_enc, dW_dec, db_enc
):
    for share in prange(threads):
        latent_gradients(
            count * share // threads,
            count * (share + 1) // threads,
            latent_starts,
            rows,
            places,
            values,
            dvalues,
            blocks,
            suffix,
            centred,
            dW_enc,
            dW_dec,
            db_enc,
        )
