"""The entries above a floor of their latent, of a whole batch: the codes of a thresholded kind on a GPU.

Enters: pre-activations, a floor for each latent, and room for so many entries. Leaves: codes in the order of latents
within a row, and how many entries there are, which stays on the device. Where they are more than there is room for, the
codes are the first of them, so that memory holds but a step on them would be wrong: whoever calls must look at the
count before the result is used (`sae.density`). Places to spare hold value 0.

Every row is read twice: once to count, so that rows know where to write, and once to write.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels.dispatch import Backend, check_shapes, uses_triton
from sae.sparse import RaggedCodes

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=5, d_sae=64, capacity=256),
    "odd width": dict(n=7, d_sae=37, capacity=200),
    "one row": dict(n=1, d_sae=19, capacity=16),
    "one latent": dict(n=9, d_sae=1, capacity=8),
    "more than a tile": dict(n=2, d_sae=2500, capacity=4096),
    "room for just as many": dict(n=3, d_sae=8, shift=100.0, capacity=24),
    "too little room": dict(n=6, d_sae=30, capacity=17),
    "room for none": dict(n=4, d_sae=12, capacity=1),
    "nothing above": dict(n=4, d_sae=12, shift=-100.0, capacity=8),
    "entries at their floor": dict(n=5, d_sae=9, at_floor=True, capacity=32),
    "not a number": dict(n=4, d_sae=9, has_nan=True, capacity=32),
}
"""Rows `n` of `d_sae` normal values shifted by `shift`."""


class Entries(NamedTuple):
    """What lies above the floors."""

    codes: RaggedCodes
    """With places to spare, or cut off where there is too little room."""
    count: Int[Tensor, ""]
    """How many entries there are."""


def above_select(
    pre: Float[Tensor, "n d_sae"], floor: Float[Tensor, " d_sae"], capacity: int, *, backend: Backend = "auto"
) -> Entries:
    """Returns the entries that exceed the floor of their latent, in room for `capacity`.

    Raises `ValueError` for shapes that do not fit and for a capacity out of range.
    """
    check_shapes("above_select", {"pre": (pre, pre.shape), "floor": (floor, pre.shape[1:])})
    if not 0 < capacity <= max(1, pre.numel()):
        raise ValueError(
            f"above_select got capacity={capacity} for {pre.numel()} values, expected 1 to {pre.numel()}: lower it"
        )
    counts = row_counts(pre, floor, backend=backend)
    ends = counts.cumsum(0)
    starts = torch.nn.functional.pad(ends, (1, 0)).clamp(max=capacity)
    if uses_triton(backend, pre):
        from sae.kernels import above_select_triton

        indices, values = above_select_triton.write(pre, floor, starts, capacity)
    else:
        indices, values = reference_write(pre, floor, capacity)
    return Entries(RaggedCodes(starts, indices, values), ends[-1])


def row_counts(
    pre: Float[Tensor, "n d_sae"], floor: Float[Tensor, " d_sae"], *, backend: Backend = "auto"
) -> Int[Tensor, " n"]:
    """Returns how many entries of each row exceed the floor of their latent."""
    if not uses_triton(backend, pre):
        return (pre > floor).sum(1)
    from sae.kernels import above_select_triton

    return above_select_triton.row_counts(pre, floor)


def reference_write(pre: Tensor, floor: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Indices and values in plain torch."""
    rows, latents = (pre > floor).nonzero(as_tuple=True)
    kept, found = slice(0, capacity), min(capacity, len(rows))
    indices, values = latents.new_zeros(capacity), pre.new_zeros(capacity)
    indices[:found], values[:found] = latents[kept], pre[rows[kept], latents[kept]]
    return indices, values
