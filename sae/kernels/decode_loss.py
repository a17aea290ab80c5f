"""Decoding, its error and loss, and the gradients of the codes, in one launch.

Enters: codes in row order, decoder, what the codes are to reconstruct. Leaves: errors, squared errors, the gradient of
the loss with respect to each reconstruction, and that of each code's value.

With nested dictionaries of G blocks, row r and block b are virtual row r·G + b of the codes, as in `sae.step`:

    x̂_b = b_dec + Σ over codes of blocks ≤ b of v · W_dec[i]        e_b = target − x̂_b
    g_b = scale · Σ_{h ≥ b} w_h e_h                                 ∂v = ⟨W_dec[i], g_b⟩ · [v > 0]

One program holds a row. It reads the decoder rows once upwards through the blocks, then once more downwards, where
adding a block's part back to e_b gives e_{b−1}: no error but the last is stored. That code gradients are cheapest where
the rows are at hand anyway is the idea of openai/sparse_autoencoder, kernels.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels.dispatch import Backend, check_shapes, check_width, rows_of, uses_triton
from sae.sparse import RaggedCodes

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=5, d=16, d_sae=24, most=4),
    "odd widths": dict(n=7, d=13, d_sae=37, most=6),
    "batch of one": dict(n=1, d=5, d_sae=9, most=3),
    "one column": dict(n=4, d=1, d_sae=9, most=3),
    "more codes than a tile": dict(n=3, d=7, d_sae=90, most=60),
    "silent entries and spare places": dict(n=6, d=9, d_sae=20, most=5, silent_frac=0.4, spare=11),
    "no codes at all": dict(n=4, d=6, d_sae=10, most=0),
    "negative values": dict(n=6, d=9, d_sae=20, most=5, is_signed=True),
    "silent entries that get gradients": dict(n=6, d=9, d_sae=20, most=5, silent_frac=0.4, spare=3, has_silent=True),
    "nested": dict(n=5, d=11, d_sae=30, most=3, groups=3),
    "nested with spare places": dict(n=4, d=8, d_sae=30, most=2, groups=4, spare=5, silent_frac=0.3),
}
"""Settings of `random_codes` with `n` rows of `d` columns and `groups` blocks."""


class DecodeLoss(NamedTuple):
    """What one pass over a batch's codes gives."""

    error: Float[Tensor, "n d"]
    """target − x̂ of the widest dictionary."""
    gradient: Float[Tensor, "virtual d"]
    """g of every virtual row: the gradient that its codes meet."""
    squared_error: Float[Tensor, "n groups"]
    """‖e_b‖², summed in float32 at least."""
    dvalues: Float[Tensor, " nnz"]
    """Gradient of each code's value; 0 at places beyond the last code and, unless asked for, where a code is silent."""


def decode_loss(
    codes: RaggedCodes,
    W_dec: Float[Tensor, "d_sae d"],
    b_dec: Float[Tensor, " d"],
    target: Float[Tensor, "n d"],
    scale: Float[Tensor, ""],
    weights: Float[Tensor, " groups"] | None = None,
    *,
    is_signed: bool = False,
    has_silent: bool = False,
    gradient_dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> DecodeLoss:
    """Returns errors, losses and gradients of a batch whose codes are chosen.

    `codes` has n · groups virtual rows and may have places to spare; `scale`, a scalar on the device, is −2 ∂L/∂‖e‖²;
    `weights` are the shares of nested losses (default: one dictionary of weight 1). With `is_signed` negative codes get
    gradients too, with `has_silent` all codes, those of value 0 among them. Sums are in float32 (float64 for float64),
    results in the dtype of `target` (the gradient in `gradient_dtype`, where it is given), code gradients in that of
    the values. Raises `ValueError` for shapes that do not fit.
    """
    n, d = target.shape
    groups = 1 if weights is None else len(weights)
    check_shapes(
        "decode_loss",
        {
            "target": (target, (n, d)),
            "W_dec": (W_dec, (len(W_dec), d)),
            "b_dec": (b_dec, (d,)),
            "codes.starts": (codes.starts, (n * groups + 1,)),
            "codes.values": (codes.values, codes.indices.shape),
        },
    )
    if weights is None:
        weights = torch.ones(1, dtype=target.dtype, device=target.device)
    low = target.dtype if gradient_dtype is None else gradient_dtype
    if not uses_triton(backend, target):
        found = reference(codes, W_dec, b_dec, target, scale, weights, is_signed, has_silent)
        return found._replace(gradient=found.gradient.to(low))
    check_width("decode_loss", d)
    from sae.kernels import decode_loss_triton

    how = is_signed, has_silent, low
    return DecodeLoss(*decode_loss_triton.decode_loss(*codes, W_dec, b_dec, target, scale, weights, *how))


def reference(
    codes: RaggedCodes,
    W_dec: Tensor,
    b_dec: Tensor,
    target: Tensor,
    scale: Tensor,
    weights: Tensor,
    is_signed: bool,
    has_silent: bool = False,
) -> DecodeLoss:
    """The same in plain torch; makes a buffer of codes × d."""
    (n, d), groups = target.shape, len(weights)
    rows = rows_of(codes.starts, len(codes.indices))
    live = rows < codes.n_rows
    rows = rows.clamp(max=codes.n_rows - 1)
    atoms = W_dec[codes.indices].to(target)
    coded = torch.where(live, codes.values, 0)
    parts = target.new_zeros(n * groups, d).index_add_(0, rows, coded[:, None] * atoms).view(n, groups, d)
    up_to = torch.ones(groups, groups).tril().to(parts)
    errors = (target - b_dec)[:, None] - up_to @ parts
    gradient = (up_to.T @ (errors * (weights[:, None] * scale))).reshape(n * groups, d)
    dvalues = (atoms * gradient[rows]).sum(1)
    active = codes.values != 0 if is_signed else codes.values > 0
    dvalues = torch.where(live & (active | has_silent), dvalues, 0)
    return DecodeLoss(errors[:, -1].contiguous(), gradient, errors.pow(2).sum(2), dvalues)
