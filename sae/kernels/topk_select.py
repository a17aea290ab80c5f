"""The choice of active latents on a GPU: exactly the k largest of every row, or the n·k largest of a whole batch.

Enters: pre-activations. Leaves: codes, in the order of latents within a row. Nothing that is not positive is chosen; of
equal values those of lower index (in a batch: of earlier rows) are.

Positive floats are ordered as their bits are. So the smallest value that is kept is found digit by digit, eight bits at
a time from the top: a histogram of the digit over the values that share the digits found so far says in which bin the
k-th largest lies (radix selection; Alabi et al. 2012, "Fast k-selection algorithms for graphics processing units"). A
last pass writes what is above that value, and of its equals as many as there is room for.

A row's selection is one program; the batch's has a pass over all values per digit, whose histograms are added up in a
fixed order. Counts stay on the device: a batch's codes have room for all that can be chosen, and what is left over
holds value 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels.dispatch import Backend, uses_triton
from sae.selection import Selection
from sae.sparse import RaggedCodes

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=4, d_sae=64, k=5),
    "odd width": dict(n=5, d_sae=37, k=6),
    "one row": dict(n=1, d_sae=19, k=3),
    "one latent": dict(n=3, d_sae=1, k=1),
    "every latent": dict(n=3, d_sae=9, k=9),
    "more than a tile": dict(n=2, d_sae=2500, k=40),
    "fewer than k positive": dict(n=6, d_sae=30, k=12, shift=-1.0),
    "none positive": dict(n=3, d_sae=12, k=4, shift=-100.0),
    "many ties": dict(n=6, d_sae=50, k=9, ties=3),
    "all equal": dict(n=4, d_sae=40, k=7, ties=1),
    "ties across tiles": dict(n=2, d_sae=2300, k=1500, ties=1),
    "many magnitudes": dict(n=5, d_sae=60, k=8, spread=12.0),
}
"""Rows `n` of `d_sae` normal values shifted by `shift`, of at most `ties` different ones, over `spread` decades."""


class BatchSelection(NamedTuple):
    """What is chosen of a batch."""

    codes: RaggedCodes
    """With places to spare where fewer than were asked for are positive."""
    smallest: Float[Tensor, ""]
    """The smallest value chosen; infinite where none is."""


def _check(op: str, pre: Tensor, k: int, most: int) -> None:
    if not 0 < k <= most:
        raise ValueError(f"{op} got k={k} for {most} values, expected 1 to {most}: lower k")
    if not pre.is_contiguous():
        raise ValueError(f"{op} got strides {pre.stride()}, expected contiguous memory: call .contiguous()")


def _check_dtype(op: str, pre: Tensor) -> None:
    if pre.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{op} got {pre.dtype}, expected at most 32 bits: cast it or set backend='reference'")


def topk_select(
    pre: Float[Tensor, "n d_sae"], k: int, *, is_signed: bool = False, backend: Backend = "auto"
) -> Selection:
    """Returns the `k` largest positive values of every row with their indices, in the order of indices.

    With `is_signed` values are compared without their sign and keep it. A row that has fewer ends with value 0 at index
    0. Raises `ValueError` for k out of range, strides, and dtypes wider than 32 bits in the kernel.
    """
    _check("topk_select", pre, k, pre.shape[1])
    if not uses_triton(backend, pre):
        return reference_topk(pre, k, is_signed)
    _check_dtype("topk_select", pre)
    from sae.kernels import topk_select_triton

    return Selection(*topk_select_triton.topk_select(pre, k, is_signed))


def threshold_select(pre: Float[Tensor, "n d_sae"], count: int, *, backend: Backend = "auto") -> BatchSelection:
    """Returns the `count` largest positive values of the whole batch as codes with room for `count`.

    All values are read once for each digit and twice more; they may be bf16, which has half the digits. Raises
    `ValueError` as `topk_select` does.
    """
    _check("threshold_select", pre, count, pre.numel())
    if not uses_triton(backend, pre):
        codes = reference_threshold(pre, count)
    else:
        _check_dtype("threshold_select", pre)
        from sae.kernels import topk_select_triton

        codes = RaggedCodes(*topk_select_triton.threshold_select(pre, count))
    smallest = torch.where(codes.values > 0, codes.values, torch.inf).amin()
    return BatchSelection(codes, smallest)


def reference_topk(pre: Tensor, k: int, is_signed: bool = False) -> Selection:
    """The same by a stable sort of every row."""
    keys = pre.abs() if is_signed else pre
    ranked = keys.sort(dim=1, descending=True, stable=True)
    chosen = torch.where(ranked.values[:, :k] > 0, ranked.indices[:, :k], pre.shape[1]).sort(dim=1).values
    is_code = chosen < pre.shape[1]
    indices = torch.where(is_code, chosen, 0)
    return Selection(torch.where(is_code, pre.gather(1, indices), 0), indices)


def reference_threshold(pre: Tensor, count: int) -> RaggedCodes:
    """The same by one stable sort of the batch."""
    values, indices = reference_topk(pre.reshape(1, -1), count)
    starts = torch.searchsorted(
        torch.where(values[0] > 0, indices[0], pre.numel()),
        torch.arange(len(pre) + 1, device=pre.device) * pre.shape[1],
    )
    return RaggedCodes(starts, indices[0] % pre.shape[1], values[0])
