"""The auxiliary loss of dead latents without waiting for the device to say how many there are.

    ê = Σ over the k strongest dead latents of v W_dec[i]        AuxK = α Σ‖ê − e‖² / Σ‖e − ē‖²

(Gao et al. 2024, arXiv 2406.04093, section A.2; e is held constant). Dead latents are listed in room for a fixed number
of them; unused room has pre-activation 0 and is never chosen. Selection, decoding and gradients are those of the main
loss (`topk_select`, `decode_loss`); the codes found here join the main ones in the pass over latents.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.kernels.decode_loss import decode_loss
from sae.kernels.dispatch import Backend
from sae.kernels.topk_select import topk_select
from sae.shares import total_variance
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, Parameters

CHUNK_BYTES = 256 << 20
"""Pre-activations of dead latents that are held at once."""


class Revival(NamedTuple):
    """The auxiliary loss and what its gradients are made of."""

    codes: RaggedCodes
    """k codes a row, of dead latents only; silent where a row has fewer."""
    dvalues: Float[Tensor, " nnz"]
    gradient: Float[Tensor, "n d"]
    loss: Float[Tensor, ""]
    """Weighted; 0 where nothing is dead."""


def listed(dead: Bool[Tensor, " d_sae"], capacity: int) -> tuple[Int[Tensor, " capacity"], Bool[Tensor, " capacity"]]:
    """Returns the first `capacity` dead latents in order, and which places of the list are used."""
    latents = torch.sort(~dead, stable=True).indices[:capacity]
    return latents, dead[latents]


def revive(
    parameters: Parameters,
    centred: Float[Tensor, "n d_in"],
    error: Float[Tensor, "n d"],
    auxiliary: Auxiliary,
    *,
    capacity: int | None = None,
    is_signed: bool = False,
    backend: Backend = "auto",
) -> Revival:
    """Returns the auxiliary loss of a batch, its codes and their gradients.

    Of more than `capacity` dead latents the first take part (default: all, at the price of a second encoder product of
    full width). Raises `ValueError` for a capacity out of range, and as the operations it consists of do.
    """
    d_sae, n = len(auxiliary.dead), len(centred)
    capacity = d_sae if capacity is None else capacity
    if not 0 < capacity <= d_sae:
        raise ValueError(f"revive got capacity={capacity}, expected 1 to {d_sae}: leave it at its default")
    latents, is_used = listed(auxiliary.dead, capacity)
    W_enc, b_enc = (parameters[name][latents].to(centred) for name in ("W_enc", "b_enc"))
    k, chunk_rows = min(auxiliary.k, capacity), max(64, CHUNK_BYTES // (capacity * centred.element_size()))
    values = centred.new_empty(n, k)
    indices = torch.empty(n, k, dtype=torch.int64, device=centred.device)
    for start in range(0, n, chunk_rows):
        part = slice(start, start + chunk_rows)
        pre = torch.where(is_used, torch.addmm(b_enc, centred[part], W_enc.T), 0)
        values[part], indices[part] = topk_select(pre, k, is_signed=is_signed, backend=backend)
    codes = RaggedCodes.of(values, latents[indices])
    variance = total_variance(error)
    alpha = auxiliary.alpha * is_used.any().to(error.dtype)
    W_dec = parameters["W_dec"]
    decoded = decode_loss(
        codes,
        W_dec,
        error.new_zeros(error.shape[1]),
        error,
        -2 * alpha / variance,
        is_signed=is_signed,
        backend=backend,
    )
    assert decoded.gradient.shape == (n, W_dec.shape[1])
    return Revival(codes, decoded.dvalues, decoded.gradient, alpha * decoded.squared_error.sum() / variance)
