# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernels of `sae.kernels.above_select`."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.tiles import accumulator, next_power

MAX_BLOCK = 2048
"""Values of a tile."""
NUM_WARPS = 8


@no_type_check
@triton.jit
def load_above(pre, floor, row, start, d_sae, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """Returns a tile of values and which of them exceed their floor; what is not a number does not."""
    columns = start + tl.arange(0, BLOCK)
    inside = columns < d_sae
    values = tl.load(pre + row * d_sae + columns, mask=inside, other=0.0).to(ACC)  # [BLOCK]
    floors = tl.load(floor + columns, mask=inside, other=0.0).to(ACC)
    return values, ((values > floors) & inside).to(tl.int32)


@no_type_check
@triton.jit
def _count_above(pre, floor, counts, d_sae, ACC: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    counted = 0
    for start in range(0, d_sae, BLOCK):
        _, above = load_above(pre, floor, row, start, d_sae, ACC, BLOCK)
        counted += tl.sum(above, axis=0)
    tl.store(counts + row, counted)


@no_type_check
@triton.jit
def _write_above(pre, floor, starts, indices, values, d_sae, ACC: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(starts + row)
    end = tl.load(starts + row + 1)  # a row without room writes less than it holds
    if end > first:
        for start in range(0, d_sae, BLOCK):
            tile, above = load_above(pre, floor, row, start, d_sae, ACC, BLOCK)
            place = first + tl.cumsum(above, axis=0) - above
            keep = (above > 0) & (place < end)
            tl.store(values + place, tile, mask=keep)
            tl.store(indices + place, (start + tl.arange(0, BLOCK)).to(tl.int64), mask=keep)
            first += tl.sum(above, axis=0)


def _told(pre: Tensor) -> dict[str, Any]:
    """Returns what both kernels are told."""
    acc = accumulator(torch.promote_types(pre.dtype, torch.float32))
    return dict(ACC=acc, BLOCK=min(MAX_BLOCK, max(128, next_power(pre.shape[1]))), num_warps=NUM_WARPS)


def row_counts(pre: Tensor, floor: Tensor) -> Tensor:
    """Launches one program a row."""
    n, d_sae = pre.shape
    counts = torch.empty(n, dtype=torch.int64, device=pre.device)
    if n:
        _count_above[(n,)](pre, floor, counts, d_sae, **_told(pre))
    return counts


def write(pre: Tensor, floor: Tensor, starts: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Launches one program a row; returns indices and values of `capacity` places."""
    n, d_sae = pre.shape
    indices = torch.zeros(capacity, dtype=torch.int64, device=pre.device)
    values = torch.zeros(capacity, dtype=pre.dtype, device=pre.device)
    if n:
        _write_above[(n,)](pre, floor, starts, indices, values, d_sae, **_told(pre))
    return indices, values
