"""The hand-written sparse forward and backward pass of the top-k family.

With x a batch of (scaled) rows, y what is to be written (x itself in an autoencoder), codes v, i chosen from
pre = (x − b_dec) W_encᵀ + b_enc, nested dictionaries of widths m_1 < … < m_G = d_sae (G = 1 but for Matryoshka) with
weights w_g, and x̂_g = b_dec + Σ_{i < m_g} v W_dec[i] (+ x W_skipᵀ):

    L = Σ_g w_g Σ‖x̂_g − y‖² / Σ‖y − ȳ‖²  +  α · Σ‖ê − e‖² / Σ‖e − ē‖²

where e = y − x̂_G is held constant and ê decodes the `auxk_k` strongest *dead* latents of each row (Gao et al. 2024,
arXiv 2406.04093, section A.2). Beyond the encoder product everything is k-sparse. A code of block b (m_{b−1} ≤ i < m_b)
takes part in x̂_b, …, x̂_G, so its gradient meets the suffix sum g = Σ_{h ≥ b} ∂L/∂x̂_h:

    ∂v = ⟨W_dec[i], g⟩ · [v > 0]      ∂W_dec = Σ v ⊗ g       ∂W_enc = Σ ∂v ⊗ (x − b_dec)
    ∂b_enc = Σ ∂v                     ∂b_dec = Σ g_1 − ∂b_enc W_enc      ∂W_skip = Σ g_1 ⊗ x

(the last term of ∂b_dec is the input's share, folded over the batch before it meets W_enc; it is absent where the
encoder reads x itself). What passes through codes is one call of `sae.row_pass`.

On a GPU the same is done by the kernels of `sae.kernels.step`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.kernels.dispatch import is_fused
from sae.row_pass import row_pass
from sae.shares import batch_rows, first_latent, over_latents, strongest_of_rows, total_variance
from sae.sparse import RaggedCodes

DENSE_DEAD_LATENTS = 8
"""AuxK's products are dense while dead latents are at most so many times those that a row uses."""

Parameters = Mapping[str, Tensor]
"""Weights of an SAE in training, or their gradients, by name; row i of `W_enc` and `W_dec` is latent i."""


class StepResult(NamedTuple):
    """What one forward and backward pass gives; scalars stay on the device.

    Where several processes divide rows or latents, it is their part of these as `sae.shares` says.
    """

    gradients: dict[str, Tensor]
    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    """Σ‖y − ŷ‖² over the batch, in the units of the rows given."""
    variance: Float[Tensor, ""]
    """Σ‖y − ȳ‖² over the batch."""
    fired: Bool[Tensor, " d_sae"]
    """Latents that were active in at least one row."""
    l0: Float[Tensor, ""]
    """Active latents a row, on average."""


class Auxiliary(NamedTuple):
    """The auxiliary loss of one step: which latents are dead, how many of them a row uses, and its weight."""

    dead: Bool[Tensor, " d_sae"]
    k: int
    alpha: float
    capacity: int | None = None
    """On a GPU, room for so many dead latents, or more than there are (0: none are); None is room for all."""


@torch.no_grad()
def sparse_step(
    parameters: Parameters,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    codes: RaggedCodes,
    *,
    is_signed: bool = False,
    subtracts_b_dec: bool = True,
    widths: Sequence[int] = (),
    weights: Float[Tensor, " groups"] | None = None,
    ranks: Int[Tensor, " d_sae"] | None = None,
    auxiliary: Auxiliary | None = None,
) -> StepResult:
    """Returns loss and gradients of one batch whose codes are chosen.

    `is_signed` says that codes may be negative (then all of them get gradients); `widths` and `weights` are the nested
    dictionaries and the shares of their losses, `ranks` the latents' places in them (default their own order).
    """
    if is_fused(x, y) and first_latent() is None:
        from sae.kernels.step import fused_step

        return fused_step(
            parameters,
            x,
            y,
            codes,
            is_signed=is_signed,
            subtracts_b_dec=subtracts_b_dec,
            widths=widths,
            weights=weights,
            ranks=ranks,
            auxiliary=auxiliary,
        )
    W_enc, W_dec, b_dec = parameters["W_enc"], parameters["W_dec"], parameters["b_dec"]
    groups = max(1, len(widths))
    if weights is None:
        weights = torch.full((groups,), 1 / groups, dtype=x.dtype, device=x.device)
    centred = x - b_dec if subtracts_b_dec else x
    target = y - b_dec
    if "W_skip" in parameters:
        target = target - x @ parameters["W_skip"].T
    variance = total_variance(y)
    blocks = _blocks(len(W_dec), widths, ranks, x.device) if groups > 1 else None
    done = row_pass(codes, W_dec, target, centred, weights * (-2 / variance), blocks=blocks, is_signed=is_signed)
    loss = (weights * done.by_group).sum() / variance
    gradients = {**done.latents, "b_dec": done.grad_shared.sum(0)}
    if subtracts_b_dec:
        gradients["b_dec"] -= over_latents(gradients["b_enc"] @ W_enc)
    if "W_skip" in parameters:
        gradients["W_skip"] = done.grad_shared.T @ x
    if auxiliary is not None and auxiliary.alpha > 0:
        loss = loss + add_auxk(parameters, gradients, centred, done.errors, auxiliary, is_signed, subtracts_b_dec)
    alive = codes.values != 0
    fired = torch.zeros(len(W_dec), dtype=torch.bool, device=x.device)
    fired[codes.indices[alive]] = True
    l0 = over_latents(alive.sum().to(x.dtype)) / batch_rows(x)
    return StepResult(gradients, loss, done.by_group[-1], variance, fired, l0)


def _blocks(latents: int, widths: Sequence[int], ranks: Tensor | None, device: torch.device) -> Int[Tensor, " latents"]:
    """Returns the first nested dictionary that each latent at hand stands in."""
    own = torch.arange(latents, device=device) + (first_latent() or 0)
    places = own if ranks is None else ranks[own]
    return torch.bucketize(places, torch.tensor(widths, device=device), right=True)


def add_auxk(
    parameters: Parameters,
    gradients: dict[str, Tensor],
    centred: Tensor,
    error: Tensor,
    auxiliary: Auxiliary,
    is_signed: bool,
    subtracts_b_dec: bool,
) -> Tensor:
    """Adds the auxiliary loss's gradients in place and returns its value; works on the dead latents alone."""
    n_dead = int(over_latents(auxiliary.dead.sum()))
    if not n_dead:
        return error.new_zeros(())
    auxiliary = auxiliary._replace(k=min(auxiliary.k, n_dead))
    rows = auxiliary.dead.nonzero().squeeze(1)
    W_enc, W_dec, b_enc = (parameters[name][rows] for name in ("W_enc", "W_dec", "b_enc"))
    variance = total_variance(error)
    scale = -2 * auxiliary.alpha / variance
    if first_latent() is None and len(rows) <= DENSE_DEAD_LATENTS * auxiliary.k:
        squared_error, added = _dense_revival(W_enc, W_dec, b_enc, centred, error, auxiliary.k, scale, is_signed)
    else:
        codes = strongest_of_rows(centred, W_enc, b_enc, auxiliary.k, is_signed)
        done = row_pass(codes, W_dec, error, centred, scale[None], is_signed=is_signed)
        squared_error, added = done.by_group[0], done.latents
    for name, value in added.items():
        gradients[name].index_add_(0, rows, value)
    if subtracts_b_dec:
        gradients["b_dec"].sub_(over_latents(added["b_enc"] @ W_enc))
    return auxiliary.alpha * squared_error / variance


def _dense_revival(
    W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, centred: Tensor, error: Tensor, k: int, scale: Tensor, is_signed: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the squared error left by the k strongest of a few latents, and their gradients, by dense products."""
    pre = torch.addmm(b_enc, centred, W_enc.T)
    takes_part = torch.ones_like(pre, dtype=torch.bool) if is_signed else pre > 0
    if k < len(W_enc):
        chosen = torch.topk(pre.abs() if is_signed else pre, k, dim=1, sorted=False).indices
        takes_part &= torch.zeros_like(takes_part).scatter_(1, chosen, True)
    values = pre * takes_part
    missing = error - values @ W_dec
    grad = missing * scale
    dvalues = (grad @ W_dec.T) * takes_part
    gradients = {"W_enc": dvalues.T @ centred, "W_dec": values.T @ grad, "b_enc": dvalues.sum(0)}
    return missing.pow(2).sum(), gradients
