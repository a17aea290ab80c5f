"""The hand-written sparse training step of a TopK SAE, and the plain-torch reference it is tested against.

With x a batch of (scaled) rows, v, i the k largest of ReLU((x − b_dec) W_encᵀ + b_enc) and x̂ = b_dec + Σ v W_dec[i]:

    L = Σ‖x̂ − x‖² / Σ‖x − x̄‖²  +  α · Σ‖ê − e‖² / Σ‖e − ē‖²

where e = x − x̂ is held constant and ê decodes the `auxk_latents` strongest *dead* latents of each row (Gao et al. 2024,
arXiv 2406.04093, section A.2). Beyond the encoder product everything is k-sparse: with g = ∂L/∂x̂,

    ∂v = ⟨W_dec[i], g⟩ · [v > 0]      ∂W_dec = Σ v ⊗ g       ∂W_enc = Σ ∂v ⊗ (x − b_dec)
    ∂b_enc = Σ ∂v                     ∂b_dec = Σ g − ∂b_enc W_enc

(the last term is the input's share of `b_dec`, folded over the batch before it meets W_enc).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae import sparse
from sae.selection import strongest_latents


class Parameters(NamedTuple):
    """Weights of an SAE, or their gradients; row i of either matrix is latent i."""

    W_enc: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]


class StepResult(NamedTuple):
    """What one forward and backward pass gives; scalars stay on the device."""

    gradients: Parameters
    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    """Σ‖x − x̂‖² over the batch, in the units of the rows given."""
    variance: Float[Tensor, ""]
    """Σ‖x − x̄‖² over the batch."""
    fired: Bool[Tensor, " d_sae"]
    """Latents that were active in at least one row."""
    l0: Float[Tensor, ""]
    """Active latents a row, on average."""


def _total_variance(x: Tensor) -> Tensor:
    # a constant batch has no variance to explain; the floor keeps the loss finite there
    limits = torch.finfo(x.dtype)
    return torch.maximum((x - x.mean(0)).pow(2).sum(), limits.eps * x.pow(2).sum() + limits.tiny)


@torch.no_grad()
def sparse_step(
    parameters: Parameters,
    x: Float[Tensor, "n d_in"],
    k: int,
    *,
    dead: Bool[Tensor, " d_sae"] | None = None,
    auxk_k: int = 0,
    auxk_alpha: float = 0.0,
) -> StepResult:
    """Returns loss and gradients of one batch; `dead` marks the latents that the auxiliary loss revives."""
    W_enc, W_dec, b_enc, b_dec = parameters
    d_sae = len(W_enc)
    centred = x - b_dec
    values, indices = strongest_latents(centred, W_enc, b_enc, k)
    error = x - (sparse.decode(values, indices, W_dec) + b_dec)
    variance = _total_variance(x)
    squared_error = error.pow(2).sum()
    grad = error * (-2 / variance)
    dW_enc, dW_dec, db_enc = _latent_gradients(values, indices, grad, centred, W_dec)
    gradients = Parameters(W_enc=dW_enc, W_dec=dW_dec, b_enc=db_enc, b_dec=grad.sum(0) - db_enc @ W_enc)
    loss = squared_error / variance
    if dead is not None and auxk_alpha > 0:
        rows = dead.nonzero().squeeze(1)
        if len(rows):
            loss = loss + _add_auxk(parameters, gradients, centred, error, rows, auxk_k, auxk_alpha)
    positive = values > 0
    fired = torch.zeros(d_sae, dtype=torch.bool, device=x.device)
    fired[indices[positive]] = True
    return StepResult(gradients, loss, squared_error, variance, fired, positive.sum().to(x.dtype) / len(x))


def _latent_gradients(
    values: Tensor, indices: Tensor, grad: Tensor, centred: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ∂W_enc, ∂W_dec and ∂b_enc of codes whose decoding has gradient `grad`."""
    layout = sparse.LatentLayout(indices, len(W_dec))
    dvalues = sparse.code_gradients(grad, indices, W_dec) * (values > 0)
    return layout.reduce(dvalues, centred), layout.reduce(values, grad), layout.reduce_values(dvalues)


def _add_auxk(
    parameters: Parameters,
    gradients: Parameters,
    centred: Tensor,
    error: Tensor,
    rows: Tensor,
    auxk_k: int,
    alpha: float,
) -> Tensor:
    """Adds the auxiliary loss's gradients in place and returns its value; works on the dead latents alone."""
    W_enc, W_dec = parameters.W_enc[rows], parameters.W_dec[rows]
    values, indices = strongest_latents(centred, W_enc, parameters.b_enc[rows], min(auxk_k, len(rows)))
    missing = error - sparse.decode(values, indices, W_dec)
    variance = _total_variance(error)
    grad = missing * (-2 * alpha / variance)
    dW_enc, dW_dec, db_enc = _latent_gradients(values, indices, grad, centred, W_dec)
    gradients.W_enc.index_add_(0, rows, dW_enc)
    gradients.W_dec.index_add_(0, rows, dW_dec)
    gradients.b_enc.index_add_(0, rows, db_enc)
    gradients.b_dec.sub_(db_enc @ W_enc)
    return alpha * missing.pow(2).sum() / variance


def reference_loss(
    parameters: Parameters,
    x: Float[Tensor, "n d_in"],
    k: int,
    *,
    dead: Bool[Tensor, " d_sae"] | None = None,
    auxk_k: int = 0,
    auxk_alpha: float = 0.0,
) -> Float[Tensor, ""]:
    """The same loss in dense, differentiable torch: every latent's column, `scatter` and two full products.

    It is both what `sparse_step` is checked against and the dense step that the benchmark compares it with.
    """
    W_enc, W_dec, b_enc, b_dec = parameters
    pre = torch.relu((x - b_dec) @ W_enc.T + b_enc)
    top, indices = torch.topk(pre, k, dim=1, sorted=False)
    dense = torch.zeros_like(pre).scatter(1, indices, top)
    error = x - (dense @ W_dec + b_dec)
    loss = error.pow(2).sum() / _total_variance(x)
    if dead is not None and auxk_alpha > 0 and bool(dead.any()):
        masked = torch.where(dead, pre, -torch.inf)
        top, indices = torch.topk(masked, min(auxk_k, int(dead.sum())), dim=1, sorted=False)
        revived = torch.zeros_like(pre).scatter(1, indices, top)
        held = error.detach()
        loss = loss + auxk_alpha * (held - revived @ W_dec).pow(2).sum() / _total_variance(held)
    return loss
