# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernels of `sae.kernels.jump`."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.tiles import accumulator

BLOCK_N = 16
BLOCK_D = 128
SLAB_ROWS = 64
"""Rows whose share in the thresholds' gradient one program adds up."""
NUM_WARPS = 4


@no_type_check
@triton.jit
def _forward(
    pre,
    threshold,
    values,
    counts,
    n,
    d_sae,
    BOTH: tl.constexpr,
    ACC: tl.constexpr,
    SLAB: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d_sae
    edge = tl.load(threshold + columns, mask=inside, other=0.0).to(ACC)
    counted = tl.zeros([BLOCK_D], dtype=tl.int32)
    for start in range(0, SLAB, BLOCK_N):
        rows = slab * SLAB + start + tl.arange(0, BLOCK_N)
        live = (rows < n)[:, None] & inside[None, :]
        where = rows[:, None] * d_sae + columns[None, :]
        z = tl.load(pre + where, mask=live, other=0.0).to(ACC)  # [BLOCK_N, BLOCK_D]
        if not BOTH:
            z = tl.maximum(z, 0.0)
        active = (z > edge[None, :]) & live
        tl.store(values + where, tl.where(active, z, 0.0), mask=live)
        counted += tl.sum(active.to(tl.int32), axis=0)
    tl.store(counts + slab * d_sae + columns, counted, mask=inside)


@no_type_check
@triton.jit
def _backward(
    pre,
    threshold,
    grad,
    count_grad,
    grad_pre,
    partial,
    n,
    d_sae,
    BANDWIDTH: tl.constexpr,
    BOTH: tl.constexpr,
    ACC: tl.constexpr,
    SLAB: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d_sae
    edge = tl.load(threshold + columns, mask=inside, other=0.0).to(ACC)
    of_count = tl.load(count_grad).to(ACC) * (1 / BANDWIDTH)
    summed = tl.zeros([BLOCK_D], dtype=ACC)
    for start in range(0, SLAB, BLOCK_N):
        rows = slab * SLAB + start + tl.arange(0, BLOCK_N)
        live = (rows < n)[:, None] & inside[None, :]
        where = rows[:, None] * d_sae + columns[None, :]
        z = tl.load(pre + where, mask=live, other=0.0).to(ACC)  # [BLOCK_N, BLOCK_D]
        slope = tl.load(grad + where, mask=live, other=0.0).to(ACC)
        if not BOTH:
            z = tl.maximum(z, 0.0)
        near = (tl.abs(z - edge[None, :]) < BANDWIDTH / 2) & live
        through = tl.where(z > edge[None, :], slope, 0.0)
        jumped = tl.where(near, slope * (edge[None, :] * (1 / BANDWIDTH)), 0.0)
        summed += tl.sum(jumped + tl.where(near, of_count, 0.0), axis=0)
        if BOTH:
            through += jumped
        else:
            through = tl.where(z > 0, through, 0.0)
        tl.store(grad_pre + where, through, mask=live)
    tl.store(partial + slab * d_sae + columns, -summed, mask=inside)


def _grid(pre: Tensor) -> tuple[int, int]:
    return -(-len(pre) // SLAB_ROWS), -(-pre.shape[1] // BLOCK_D)


def forward(pre: Tensor, threshold: Tensor, both: bool) -> tuple[Tensor, Tensor]:
    """Returns values and the number of active entries."""
    (n, d_sae), wide = pre.shape, torch.promote_types(pre.dtype, torch.float32)
    values = torch.empty_like(pre)
    counts = torch.empty(_grid(pre)[0], d_sae, dtype=torch.int32, device=pre.device)
    _forward[_grid(pre)](
        pre,
        threshold,
        values,
        counts,
        n,
        d_sae,
        BOTH=both,
        ACC=accumulator(wide),
        SLAB=SLAB_ROWS,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        num_warps=NUM_WARPS,
    )
    return values, counts.sum().to(wide)


def backward(
    pre: Tensor, threshold: Tensor, grad: Tensor, count_grad: Tensor, bandwidth: float, both: bool
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of pre-activations and thresholds."""
    (n, d_sae), wide = pre.shape, torch.promote_types(pre.dtype, torch.float32)
    grad_pre = torch.empty_like(pre)
    partial = torch.empty(_grid(pre)[0], d_sae, dtype=wide, device=pre.device)
    _backward[_grid(pre)](
        pre,
        threshold,
        grad,
        count_grad,
        grad_pre,
        partial,
        n,
        d_sae,
        BANDWIDTH=bandwidth,
        BOTH=both,
        ACC=accumulator(wide),
        SLAB=SLAB_ROWS,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        num_warps=NUM_WARPS,
    )
    return grad_pre, partial.sum(0).to(threshold.dtype)
