# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernels of `sae.kernels.topk_select`."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.tiles import next_power

MAX_BLOCK = 2048
"""Values of a tile."""
NUM_WARPS = 8
DIGIT_BITS = 8


@no_type_check
@triton.jit
def load_keys(pre, row, start, d_sae, IS_SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Returns a tile of values, and integers in their order: 0 for what is never chosen."""
    columns = start + tl.arange(0, BLOCK)
    values = tl.load(pre + row * d_sae + columns, mask=columns < d_sae, other=0.0).to(tl.float32)  # [BLOCK]
    keys = values
    if IS_SIGNED:
        keys = tl.abs(values)
    # what is not a number is not above zero
    keys = tl.where(keys > 0, keys, 0.0).to(tl.int32, bitcast=True)
    return values, keys


@no_type_check
@triton.jit
def count_digits(pre, row, d_sae, prefix, shift, IS_FIRST: tl.constexpr, IS_SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Returns the histogram of one digit over a row's keys that begin with `prefix`."""
    counts = tl.zeros([256], dtype=tl.int32)
    for start in range(0, d_sae, BLOCK):
        _, keys = load_keys(pre, row, start, d_sae, IS_SIGNED, BLOCK)
        alike = keys > 0
        if not IS_FIRST:
            alike = alike & ((keys >> (shift + 8)) == prefix)
        counts += tl.histogram((keys >> shift) & 255, 256, mask=alike)
    return counts


@no_type_check
@triton.jit
def compact(pre, row, d_sae, edge, room, first, values, indices, IS_SIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """Writes a row's values whose key is above `edge`, and of those at it the first `room`; returns their end."""
    ties = 0
    for start in range(0, d_sae, BLOCK):
        tile, keys = load_keys(pre, row, start, d_sae, IS_SIGNED, BLOCK)
        level = ((keys == edge) & (keys > 0)).to(tl.int32)
        rank = ties + tl.cumsum(level, axis=0) - level
        keep = ((keys > edge) | ((level > 0) & (rank < room))).to(tl.int32)
        place = first + tl.cumsum(keep, axis=0) - keep
        tl.store(values + place, tile, mask=keep > 0)
        tl.store(indices + place, (start + tl.arange(0, BLOCK)).to(tl.int64), mask=keep > 0)
        first += tl.sum(keep, axis=0)
        ties += tl.sum(level, axis=0)
    return first


@no_type_check
@triton.jit
def _topk_rows(
    pre,
    values,
    indices,
    d_sae,
    k,
    IS_SIGNED: tl.constexpr,
    LAST_SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    bins = tl.arange(0, 256)
    counts = count_digits(pre, row, d_sae, 0, 24, True, IS_SIGNED, BLOCK)
    prefix = 0
    wanted = k
    for shift in tl.static_range(24, LAST_SHIFT - 8, -8):
        if shift < 24:
            counts = count_digits(pre, row, d_sae, prefix, shift, False, IS_SIGNED, BLOCK)
        above = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0)
        hit = (above < wanted) & (above + counts >= wanted)
        prefix = prefix * 256 + tl.sum(tl.where(hit, bins, 0), axis=0)
        wanted -= tl.sum(tl.where(hit, above, 0), axis=0)
    # a row with fewer than k positive values hits no bin at any digit: its edge is 0
    end = compact(pre, row, d_sae, prefix << LAST_SHIFT, wanted, row * k, values, indices, IS_SIGNED, BLOCK)
    for start in range(0, k, BLOCK_K):
        places = row * k + start + tl.arange(0, BLOCK_K)
        empty = (places >= end) & (places < row * k + k)
        tl.store(values + places, tl.zeros([BLOCK_K], dtype=tl.float32), mask=empty)
        tl.store(indices + places, tl.zeros([BLOCK_K], dtype=tl.int64), mask=empty)


@no_type_check
@triton.jit
def _digit_counts(pre, prefix, counts, d_sae, shift, IS_FIRST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    found = count_digits(pre, row, d_sae, tl.load(prefix).to(tl.int32), shift, IS_FIRST, False, BLOCK)
    tl.store(counts + row * 256 + tl.arange(0, 256), found)


@no_type_check
@triton.jit
def _edge_counts(pre, edge, above, level, d_sae, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    smallest = tl.load(edge).to(tl.int32)
    n_above = 0
    n_level = 0
    for start in range(0, d_sae, BLOCK):
        _, keys = load_keys(pre, row, start, d_sae, False, BLOCK)
        n_above += tl.sum((keys > smallest).to(tl.int32), axis=0)
        n_level += tl.sum(((keys == smallest) & (keys > 0)).to(tl.int32), axis=0)
    tl.store(above + row, n_above)
    tl.store(level + row, n_level)


@no_type_check
@triton.jit
def _write_rows(pre, edge, room, starts, values, indices, d_sae, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(starts + row)
    if tl.load(starts + row + 1) > first:
        smallest = tl.load(edge).to(tl.int32)
        compact(pre, row, d_sae, smallest, tl.load(room + row), first, values, indices, False, BLOCK)


def _sizes(pre: Tensor) -> tuple[int, int]:
    """Returns the tile's width and the last digit's shift: 16-bit floats of bf16 end in sixteen zeros."""
    return min(MAX_BLOCK, max(128, next_power(pre.shape[1]))), 16 if pre.dtype == torch.bfloat16 else 0


def topk_select(pre: Tensor, k: int, is_signed: bool) -> tuple[Tensor, Tensor]:
    """Launches one program a row; returns the fields of `Selection`."""
    n, d_sae = pre.shape
    values = pre.new_empty(n, k)
    indices = torch.empty(n, k, dtype=torch.int64, device=pre.device)
    block, last_shift = _sizes(pre)
    if n:
        _topk_rows[(n,)](
            pre,
            values,
            indices,
            d_sae,
            k,
            IS_SIGNED=is_signed,
            LAST_SHIFT=last_shift,
            BLOCK=block,
            BLOCK_K=min(1024, next_power(k)),
            num_warps=NUM_WARPS,
        )
    return values, indices


def threshold_select(pre: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the batch's threshold and compacts what is above it; returns the fields of `RaggedCodes`."""
    n, d_sae = pre.shape
    block, last_shift = _sizes(pre)
    device = pre.device
    bins = torch.arange(256, device=device)
    by_row = torch.empty(n, 256, dtype=torch.int32, device=device)
    edge = torch.zeros((), dtype=torch.int64, device=device)
    wanted = torch.full((), count, dtype=torch.int64, device=device)
    for shift in range(24, last_shift - DIGIT_BITS, -DIGIT_BITS):
        is_first = shift == 24
        _digit_counts[(n,)](pre, edge, by_row, d_sae, shift, IS_FIRST=is_first, BLOCK=block, num_warps=NUM_WARPS)
        counts = by_row.sum(0)
        above = counts.sum() - counts.cumsum(0)
        hit = (above < wanted) & (above + counts >= wanted)
        edge = edge * 256 + torch.where(hit, bins, 0).sum()
        wanted = wanted - torch.where(hit, above, 0).sum()
    edge = edge << last_shift
    n_above, n_level = (torch.empty(n, dtype=torch.int32, device=device) for _ in range(2))
    _edge_counts[(n,)](pre, edge, n_above, n_level, d_sae, BLOCK=block, num_warps=NUM_WARPS)
    # what rows before have taken of the room at the edge is gone
    room = (wanted - (n_level.cumsum(0) - n_level)).clamp(min=0).minimum(n_level)
    starts = torch.nn.functional.pad((n_above + room).cumsum(0), (1, 0))
    values = torch.zeros(count, dtype=pre.dtype, device=device)
    indices = torch.zeros(count, dtype=torch.int64, device=device)
    _write_rows[(n,)](pre, edge, room, starts, values, indices, d_sae, BLOCK=block, num_warps=NUM_WARPS)
    return starts, indices, values
