# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernels of `sae.kernels.shrink`."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.shrink import POWER_FLOOR, Penalty
from sae.kernels.tiles import accumulator

BLOCK_N = 16
BLOCK_D = 128
SLAB_ROWS = 64
"""Rows that one program adds up."""
NUM_WARPS = 4


@no_type_check
@triton.jit
def _shrink(
    pre,
    norms,
    number,
    values,
    charged,
    written,
    n,
    d_sae,
    KIND: tl.constexpr,
    FLOOR: tl.constexpr,
    ACC: tl.constexpr,
    SLAB: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d_sae
    norm = tl.load(norms + columns, mask=inside, other=0.0).to(ACC)
    given = tl.load(number).to(ACC)
    of_charge = tl.zeros([BLOCK_D], dtype=ACC)
    of_written = tl.zeros([BLOCK_D], dtype=ACC)
    for start in range(0, SLAB, BLOCK_N):
        rows = slab * SLAB + start + tl.arange(0, BLOCK_N)
        live = (rows < n)[:, None] & inside[None, :]
        where = rows[:, None] * d_sae + columns[None, :]
        z = tl.load(pre + where, mask=live, other=0.0).to(ACC)  # [BLOCK_N, BLOCK_D]
        active = z > 0
        value = tl.where(active, z, 0.0)
        tl.store(values + where, value, mask=live)
        strength = value * norm[None, :]
        of_written += tl.sum(strength, axis=0)
        if KIND == "tanh":
            fall = tl.exp(-2.0 * given * strength)  # strengths are positive: it cannot overflow
            of_charge += tl.sum((1.0 - fall) / (1.0 + fall), axis=0)
        if KIND == "lp":
            floor = tl.zeros_like(strength) + FLOOR
            raised = tl.exp2(given * tl.log2(strength + floor)) - tl.exp2(given * tl.log2(floor))
            of_charge += tl.sum(tl.where(active, raised, 0.0), axis=0)
    place = slab * tl.num_programs(1) + tl.program_id(1)
    summed = tl.sum(of_written, axis=0)
    tl.store(written + place, summed)
    if KIND == "l1":
        tl.store(charged + place, summed)
    else:
        tl.store(charged + place, tl.sum(of_charge, axis=0))


@no_type_check
@triton.jit
def _shrink_backward(
    pre,
    norms,
    number,
    grad,
    charge_grad,
    grad_pre,
    partial,
    n,
    d_sae,
    KIND: tl.constexpr,
    FLOOR: tl.constexpr,
    ACC: tl.constexpr,
    SLAB: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d_sae
    norm = tl.load(norms + columns, mask=inside, other=0.0).to(ACC)
    given = tl.load(number).to(ACC)
    of_charge = tl.load(charge_grad).to(ACC)
    summed = tl.zeros([BLOCK_D], dtype=ACC)
    for start in range(0, SLAB, BLOCK_N):
        rows = slab * SLAB + start + tl.arange(0, BLOCK_N)
        live = (rows < n)[:, None] & inside[None, :]
        where = rows[:, None] * d_sae + columns[None, :]
        z = tl.load(pre + where, mask=live, other=0.0).to(ACC)  # [BLOCK_N, BLOCK_D]
        through = tl.load(grad + where, mask=live, other=0.0).to(ACC)
        active = z > 0
        value = tl.where(active, z, 0.0)
        slope = tl.zeros_like(value) + of_charge
        if KIND == "tanh":
            fall = tl.exp(-2.0 * given * value * norm[None, :])
            slope *= given * 4.0 * fall / ((1.0 + fall) * (1.0 + fall))
        if KIND == "lp":
            floored = value * norm[None, :] + FLOOR
            slope *= given * tl.exp2((given - 1.0) * tl.log2(floored))
        tl.store(grad_pre + where, tl.where(active, through + slope * norm[None, :], 0.0), mask=live)
        summed += tl.sum(slope * value, axis=0)
    tl.store(partial + slab * d_sae + columns, summed, mask=inside)


def _launch(pre: Tensor, penalty: Penalty) -> tuple[tuple[int, int], Tensor, dict[str, Any]]:
    """Returns the grid, φ's number on the device (a run may change it in every step) and what both kernels are told."""
    grid = -(-len(pre) // SLAB_ROWS), -(-pre.shape[1] // BLOCK_D)
    wide = torch.promote_types(pre.dtype, torch.float32)
    told: dict[str, Any] = dict(
        KIND=penalty.kind,
        FLOOR=POWER_FLOOR,
        ACC=accumulator(wide),
        SLAB=SLAB_ROWS,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        num_warps=NUM_WARPS,
    )
    return grid, torch.full((), penalty.number, dtype=wide, device=pre.device), told


def forward(pre: Tensor, norms: Tensor, penalty: Penalty) -> tuple[Tensor, Tensor, Tensor]:
    """Returns values, what they are charged, and what they write."""
    grid, number, told = _launch(pre, penalty)
    values, (charged, written) = torch.empty_like(pre), number.new_empty(2, *grid)
    _shrink[grid](pre, norms, number, values, charged, written, *pre.shape, **told)
    return values, charged.sum(), written.sum()


def backward(pre: Tensor, norms: Tensor, grad: Tensor, charge_grad: Tensor, penalty: Penalty) -> tuple[Tensor, Tensor]:
    """Returns the gradients of pre-activations and norms."""
    grid, number, told = _launch(pre, penalty)
    grad_pre, partial = torch.empty_like(pre), number.new_empty(grid[0], pre.shape[1])
    _shrink_backward[grid](pre, norms, number, grad, charge_grad, grad_pre, partial, *pre.shape, **told)
    return grad_pre, partial.sum(0).to(norms.dtype)
