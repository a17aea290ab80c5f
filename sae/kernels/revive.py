"""The auxiliary loss of dead latents without waiting for the device to say how many there are.

    ê = Σ over the k strongest dead latents of v W_dec[i]        AuxK = α Σ‖ê − e‖² / Σ‖e − ē‖²

(Gao et al. 2024, arXiv 2406.04093, section A.2; e is held constant). Dead latents are listed in room for a fixed number
of them; unused room has pre-activation 0 and is never chosen. k is about d/2 and the list short, so that dense products
over the list cost less than gathering k rows for every row: five of n × listed × d, in chunks of rows. Their gradients
join those of the main loss by latent.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.kernels.dispatch import Backend
from sae.kernels.latent_adam import Added
from sae.kernels.topk_select import topk_select
from sae.shares import total_variance
from sae.step import Auxiliary, Parameters

CHUNK_BYTES = 64 << 20
"""Pre-activations of dead latents that are held at once."""


class Revival(NamedTuple):
    """The auxiliary loss and its gradients."""

    gradients: Added
    loss: Float[Tensor, ""]
    """Weighted; 0 where nothing is dead."""


def listed(
    dead: Bool[Tensor, " d_sae"], capacity: int, turn: Int[Tensor, ""] | int = 0
) -> tuple[Int[Tensor, " capacity"], Bool[Tensor, " capacity"]]:
    """Returns `capacity` dead latents, and which places of the list are used.

    Of more than that, `turn` says whose turn it is: the list begins at latent turn · capacity, and goes on from 0 after
    the last.
    """
    d_sae = len(dead)
    first = turn * capacity % d_sae
    places = (torch.arange(d_sae, device=dead.device) - first) % d_sae
    latents = torch.sort(torch.where(dead, places, d_sae), stable=True).indices[:capacity]
    return latents, dead[latents]


def revive(
    parameters: Parameters,
    centred: Float[Tensor, "n d_in"],
    error: Float[Tensor, "n d"],
    auxiliary: Auxiliary,
    *,
    unit: Float[Tensor, ""] | None = None,
    is_signed: bool = False,
    dtype: torch.dtype | None = None,
    turn: Int[Tensor, ""] | int = 0,
    backend: Backend = "auto",
) -> Revival:
    """Returns the auxiliary loss of a batch and its gradients.

    The list has room for `auxiliary.capacity` latents (default: all of them). The loss is multiplied by `unit`.
    Products are in `dtype` (default: that of `centred`), sums over rows in float32 at least. Raises `ValueError` for a
    capacity out of range.
    """
    d_sae, n = len(auxiliary.dead), len(centred)
    capacity = d_sae if auxiliary.capacity is None else auxiliary.capacity
    if not 0 < capacity <= d_sae:
        raise ValueError(f"revive got capacity={capacity}, expected 1 to {d_sae}: leave it at its default")
    low = centred.dtype if dtype is None else dtype
    latents, is_used = listed(auxiliary.dead, capacity, turn)
    W_enc, W_dec, b_enc = (parameters[name][latents].to(low) for name in ("W_enc", "W_dec", "b_enc"))
    variance = total_variance(error)
    alpha = auxiliary.alpha * is_used.any().to(error.dtype)
    alpha = alpha if unit is None else alpha * unit
    wide = torch.promote_types(error.dtype, torch.float32)
    sums = {
        "W_dec": error.new_zeros(capacity, error.shape[1], dtype=wide),
        "W_enc": error.new_zeros(capacity, centred.shape[1], dtype=wide),
        "b_enc": error.new_zeros(capacity, dtype=wide),
    }
    missed = error.new_zeros((), dtype=wide)
    chunk_rows = max(64, CHUNK_BYTES // (capacity * torch.finfo(low).bits // 8))
    for start in range(0, n, chunk_rows):
        part = slice(start, start + chunk_rows)
        read = centred[part].to(low)
        pre = torch.where(is_used, torch.addmm(b_enc, read, W_enc.T), 0)
        codes = _strongest(pre, min(auxiliary.k, capacity), is_signed, backend)
        missing = error[part] - (codes @ W_dec).to(error.dtype)
        missed += missing.pow(2).sum(dtype=wide)
        gradient = (missing * (-2 * alpha / variance)).to(low)
        slopes = (gradient @ W_dec.T) * (codes != 0)
        sums["W_dec"] += codes.T @ gradient
        sums["W_enc"] += slopes.T @ read
        sums["b_enc"] += slopes.sum(0, dtype=wide)
    slots = torch.full((d_sae,), -1, dtype=torch.int32, device=error.device)
    places = torch.arange(capacity, dtype=torch.int32, device=error.device)
    slots.scatter_(0, latents, torch.where(is_used, places, -1))
    return Revival(Added(slots, **sums), alpha * missed.to(error.dtype) / variance)


def _strongest(pre: Float[Tensor, "n listed"], k: int, is_signed: bool, backend: Backend) -> Float[Tensor, "n listed"]:
    """Returns pre-activations with all but the k strongest of each row at zero."""
    n, width = pre.shape
    if k >= width:
        return pre if is_signed else pre.relu()
    values, indices = topk_select(pre, k, is_signed=is_signed, backend=backend)
    # places without a code write into a column of their own, which is cut off
    indices = torch.where(values != 0, indices, width)
    return pre.new_zeros(n, width + 1).scatter_(1, indices, values)[:, :width]
