# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernels of `sae.kernels.gate`."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.tiles import accumulator

BLOCK_N = 16
BLOCK_D = 128
SLAB_ROWS = 64
"""Rows that one program adds up."""
NUM_WARPS = 4


@no_type_check
@triton.jit
def _gate(
    product,
    b_gate,
    r_mag,
    b_mag,
    norms,
    values,
    opened,
    charged,
    n,
    d_sae,
    ACC: tl.constexpr,
    SLAB: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slab = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d_sae
    of_gate = tl.load(b_gate + columns, mask=inside, other=0.0).to(ACC)
    scale = tl.exp(tl.load(r_mag + columns, mask=inside, other=0.0).to(ACC))
    of_magnitude = tl.load(b_mag + columns, mask=inside, other=0.0).to(ACC)
    norm = tl.load(norms + columns, mask=inside, other=0.0).to(ACC)
    summed = tl.zeros([BLOCK_D], dtype=ACC)
    for start in range(0, SLAB, BLOCK_N):
        rows = slab * SLAB + start + tl.arange(0, BLOCK_N)
        live = (rows < n)[:, None] & inside[None, :]
        where = rows[:, None] * d_sae + columns[None, :]
        p = tl.load(product + where, mask=live, other=0.0).to(ACC)  # [BLOCK_N, BLOCK_D]
        open_by = tl.where(live, tl.maximum(p + of_gate[None, :], 0.0), 0.0)
        magnitude = tl.maximum(p * scale[None, :] + of_magnitude[None, :], 0.0)
        tl.store(values + where, tl.where(open_by > 0, magnitude, 0.0), mask=live)
        tl.store(opened + where, open_by, mask=live)
        summed += tl.sum(open_by * norm[None, :], axis=0)
    tl.store(charged + slab * tl.num_programs(1) + tl.program_id(1), tl.sum(summed, axis=0))


@no_type_check
@triton.jit
def _gate_backward(
    product,
    b_gate,
    r_mag,
    b_mag,
    norms,
    grad,
    opened_grad,
    charge_grad,
    grad_product,
    partial,
    n,
    d_sae,
    ACC: tl.constexpr,
    SLAB: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    slab, slabs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d_sae
    of_gate = tl.load(b_gate + columns, mask=inside, other=0.0).to(ACC)
    scale = tl.exp(tl.load(r_mag + columns, mask=inside, other=0.0).to(ACC))
    of_magnitude = tl.load(b_mag + columns, mask=inside, other=0.0).to(ACC)
    charge = tl.load(norms + columns, mask=inside, other=0.0).to(ACC) * tl.load(charge_grad).to(ACC)
    opening_sum = tl.zeros([BLOCK_D], dtype=ACC)
    scale_sum = tl.zeros([BLOCK_D], dtype=ACC)
    through_sum = tl.zeros([BLOCK_D], dtype=ACC)
    for start in range(0, SLAB, BLOCK_N):
        rows = slab * SLAB + start + tl.arange(0, BLOCK_N)
        live = (rows < n)[:, None] & inside[None, :]
        where = rows[:, None] * d_sae + columns[None, :]
        p = tl.load(product + where, mask=live, other=0.0).to(ACC)  # [BLOCK_N, BLOCK_D]
        slope = tl.load(grad + where, mask=live, other=0.0).to(ACC)
        opened_slope = tl.load(opened_grad + where, mask=live, other=0.0).to(ACC)
        is_open = (p + of_gate[None, :] > 0) & live
        has_magnitude = p * scale[None, :] + of_magnitude[None, :] > 0
        through = tl.where(is_open & has_magnitude, slope, 0.0)
        opening = tl.where(is_open, opened_slope + charge[None, :], 0.0)
        scaled = through * scale[None, :]
        tl.store(grad_product + where, scaled + opening, mask=live)
        opening_sum += tl.sum(opening, axis=0)
        scale_sum += tl.sum(scaled * p, axis=0)
        through_sum += tl.sum(through, axis=0)
    tl.store(partial + slab * d_sae + columns, opening_sum, mask=inside)
    tl.store(partial + (slabs + slab) * d_sae + columns, scale_sum, mask=inside)
    tl.store(partial + (2 * slabs + slab) * d_sae + columns, through_sum, mask=inside)


def _launch(product: Tensor) -> tuple[tuple[int, int], torch.dtype, dict[str, Any]]:
    """Returns the grid, the dtype of sums, and what both kernels are told."""
    grid = -(-len(product) // SLAB_ROWS), -(-product.shape[1] // BLOCK_D)
    wide = torch.promote_types(product.dtype, torch.float32)
    told: dict[str, Any] = dict(
        ACC=accumulator(wide), SLAB=SLAB_ROWS, BLOCK_N=BLOCK_N, BLOCK_D=BLOCK_D, num_warps=NUM_WARPS
    )
    return grid, wide, told


def forward(
    product: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns values, gates and what these are charged."""
    grid, wide, told = _launch(product)
    values, opened = torch.empty_like(product), torch.empty_like(product)
    charged = torch.empty(*grid, dtype=wide, device=product.device)
    _gate[grid](product, b_gate, r_mag, b_mag, norms, values, opened, charged, *product.shape, **told)
    return values, opened, charged.sum()


def backward(
    product: Tensor,
    b_gate: Tensor,
    r_mag: Tensor,
    b_mag: Tensor,
    norms: Tensor,
    grad: Tensor,
    opened_grad: Tensor,
    charge_grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of product, b_gate, r_mag and b_mag."""
    grid, wide, told = _launch(product)
    grad_product = torch.empty_like(product)
    partial = torch.empty(3, grid[0], product.shape[1], dtype=wide, device=product.device)
    given = product, b_gate, r_mag, b_mag, norms, grad, opened_grad, charge_grad
    _gate_backward[grid](*given, grad_product, partial, *product.shape, **told)
    of_gate, of_scale, of_magnitude = partial.sum(1).to(b_gate.dtype).unbind()
    return grad_product, of_gate, of_scale, of_magnitude
