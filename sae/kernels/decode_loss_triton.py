# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernel of `sae.kernels.decode_loss`."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.tiles import accumulator, next_power, row_tile


@no_type_check
@triton.jit
def _decode_loss(
    starts,
    indices,
    values,
    W_dec,
    b_dec,
    target,
    scale,
    weights,
    error,
    gradient,
    squared_error,
    dvalues,
    d,
    GROUPS: tl.constexpr,
    IS_SIGNED: tl.constexpr,
    HAS_SILENT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    steps = tl.arange(0, BLOCK_K)
    left = tl.load(target + row * d + columns, mask=inside, other=0.0).to(ACC)  # [BLOCK_D]
    left -= tl.load(b_dec + columns, mask=inside, other=0.0).to(ACC)
    for group in range(GROUPS):
        virtual = row * GROUPS + group
        last = tl.load(starts + virtual + 1)
        for first in range(tl.load(starts + virtual), last, BLOCK_K):
            places = first + steps
            live = places < last
            latents = tl.load(indices + places, mask=live, other=0).to(tl.int64)
            coded = tl.load(values + places, mask=live, other=0.0).to(ACC)  # [BLOCK_K]
            where = latents[:, None] * d + columns[None, :]
            atoms = tl.load(W_dec + where, mask=live[:, None] & inside[None, :], other=0.0).to(
                ACC
            )  # [BLOCK_K, BLOCK_D]
            left -= tl.sum(coded[:, None] * atoms, axis=0)
        tl.store(squared_error + virtual, tl.sum(left * left, axis=0))
    tl.store(error + row * d + columns, left, mask=inside)

    unit = tl.load(scale).to(ACC)
    suffix = tl.zeros([BLOCK_D], dtype=ACC)
    for above in range(GROUPS):
        group = GROUPS - 1 - above
        virtual = row * GROUPS + group
        suffix += left * (tl.load(weights + group).to(ACC) * unit)
        tl.store(gradient + virtual * d + columns, suffix, mask=inside)
        last = tl.load(starts + virtual + 1)
        for first in range(tl.load(starts + virtual), last, BLOCK_K):
            places = first + steps
            live = places < last
            latents = tl.load(indices + places, mask=live, other=0).to(tl.int64)
            coded = tl.load(values + places, mask=live, other=0.0).to(ACC)
            where = latents[:, None] * d + columns[None, :]
            atoms = tl.load(W_dec + where, mask=live[:, None] & inside[None, :], other=0.0).to(ACC)
            slopes = tl.sum(atoms * suffix[None, :], axis=1)
            if not HAS_SILENT:
                active = coded != 0 if IS_SIGNED else coded > 0
                slopes = tl.where(active, slopes, 0.0)
            tl.store(dvalues + places, slopes, mask=live)
            if GROUPS > 1:
                left += tl.sum(coded[:, None] * atoms, axis=0)


def decode_loss(
    starts: Tensor,
    indices: Tensor,
    values: Tensor,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    scale: Tensor,
    weights: Tensor,
    is_signed: bool,
    has_silent: bool,
    gradient_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches one program a row; returns the fields of `DecodeLoss`."""
    (n, d), groups = target.shape, len(weights)
    wide = torch.promote_types(target.dtype, torch.float32)
    error = torch.empty_like(target)
    gradient = target.new_empty(n * groups, d, dtype=gradient_dtype)
    squared_error = torch.empty(n, groups, dtype=wide, device=target.device)
    dvalues = torch.zeros_like(values)
    BLOCK_D = next_power(d)
    BLOCK_K, num_warps = row_tile(BLOCK_D)
    if n:
        _decode_loss[(n,)](
            starts,
            indices,
            values,
            W_dec,
            b_dec,
            target,
            scale,
            weights,
            error,
            gradient,
            squared_error,
            dvalues,
            d,
            GROUPS=groups,
            IS_SIGNED=is_signed,
            HAS_SILENT=has_silent,
            ACC=accumulator(wide),
            BLOCK_K=BLOCK_K,
            BLOCK_D=BLOCK_D,
            num_warps=num_warps,
        )
    return error, gradient, squared_error, dvalues
