"""The encoder product and the choice of active latents on a GPU.

Enters: centred rows, encoder weights, and k or a count. Leaves: codes in float32, latents in ascending order within a
row; how many there are stays on the device. The dtype of the weights is that of the product: float32, bf16 (sums in
float32, pre-activations rounded to bf16) or fp8 (weights times `FP8_SCALE`, rows scaled by their largest entry).

A row's k largest go through in chunks whose pre-activations mostly stay in the GPU's second-level cache between
product and selection. The largest of a whole batch need all pre-activations at once: the largest buffer of such a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels.dispatch import Backend
from sae.kernels.topk_select import BatchSelection, threshold_select, topk_select
from sae.selection import Selection

CHUNK_BYTES = 32 << 20
"""Pre-activations of a chunk of rows; at least `MIN_CHUNK_ROWS`."""
MIN_CHUNK_ROWS = 256
FP8 = torch.float8_e4m3fn
FP8_SCALE = 64.0
"""What weights are multiplied by in fp8: rows of unit norm have entries of about one, the largest possible is 448."""

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=9, d=8, d_sae=40, k=5),
    "odd widths": dict(n=7, d=5, d_sae=37, k=6),
    "several chunks": dict(n=700, d=3, d_sae=20, k=2),
    "fewer than k positive": dict(n=6, d=4, d_sae=12, k=11),
}
"""`n` rows of `d` columns."""


def strongest(
    centred: Float[Tensor, "n d_in"],
    W_enc: Tensor,
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    *,
    is_signed: bool = False,
    backend: Backend = "auto",
) -> Selection:
    """Returns the `k` largest positive pre-activations of every row (of largest size with `is_signed`)."""
    values = centred.new_empty(len(centred), k, dtype=torch.promote_types(centred.dtype, torch.float32))
    indices = torch.empty(len(centred), k, dtype=torch.int64, device=centred.device)
    for part, pre in _chunks(centred, W_enc, b_enc):
        chosen = topk_select(pre, k, is_signed=is_signed, backend=backend)
        values[part], indices[part] = chosen.values, chosen.indices
    return Selection(values, indices)


def strongest_of_batch(
    centred: Float[Tensor, "n d_in"],
    W_enc: Tensor,
    b_enc: Float[Tensor, " d_sae"],
    count: int,
    *,
    backend: Backend = "auto",
) -> BatchSelection:
    """Returns the `count` largest positive pre-activations of the batch, in room for as many."""
    pre = product(centred, W_enc, b_enc)
    codes, smallest = threshold_select(pre, min(count, pre.numel()), backend=backend)
    return BatchSelection(
        codes._replace(values=codes.values.to(torch.promote_types(pre.dtype, torch.float32))), smallest
    )


def product(
    centred: Float[Tensor, "n d_in"], W_enc: Tensor, b_enc: Float[Tensor, " d_sae"]
) -> Float[Tensor, "n d_sae"]:
    """Returns the pre-activations, in the dtype of the weights (bf16 for fp8)."""
    if W_enc.dtype != FP8:
        return torch.addmm(b_enc.to(W_enc.dtype), centred.to(W_enc.dtype), W_enc.T)
    limit = torch.finfo(FP8).max
    unit = centred.abs().amax().float().clamp(min=1e-12) / limit
    rows = (centred / unit).clamp(-limit, limit).to(FP8)
    weights_unit = torch.full_like(unit, 1 / FP8_SCALE)
    return torch._scaled_mm(rows, W_enc.T, unit, weights_unit, bias=b_enc.bfloat16(), out_dtype=torch.bfloat16)


def _chunks(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[slice, Tensor]]:
    bytes_per_row = len(W_enc) * max(2, W_enc.element_size())
    rows = max(MIN_CHUNK_ROWS, CHUNK_BYTES // bytes_per_row)
    for start in range(0, len(centred), rows):
        part = slice(start, start + rows)
        yield part, product(centred[part], W_enc, b_enc)


def fp8_trouble(device: torch.device, d_in: int, d_sae: int) -> str:
    """Returns why fp8 products do not run on this device with these widths; empty where they do."""
    if d_in % 16 or d_sae % 16:
        return f"d_in={d_in} and d_sae={d_sae} must be multiples of 16"
    if device.type != "cuda":
        return f"the device is {device}"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 9):
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, 8.9 or newer is needed"
    return ""
