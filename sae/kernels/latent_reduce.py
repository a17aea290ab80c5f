"""The gradients of W_dec, W_enc and b_enc: one pass over codes sorted by latent, without atomics.

    ∂W_dec[i] = Σ v g[row]      ∂W_enc[i] = Σ ∂v (x − b_dec)[row]      ∂b_enc[i] = Σ ∂v

A program holds both rows of a latent. Where a latent has more than `segment` codes, the rest is cut into segments that
programs of their own sum into scratch memory before; the latent's program adds these in order. So a latent that is
active everywhere delays nothing, and every sum has one order of terms, on every run the same.

Sorting codes by latent to replace atomics follows openai/sparse_autoencoder, kernels.py, whose segments still meet in
atomic additions; here they meet in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels.dispatch import Backend, check_shapes, check_width, rows_of, uses_triton
from sae.kernels.latent_order import LatentOrder, latent_order
from sae.sparse import RaggedCodes

SEGMENT = 512
"""Codes that one program sums at most."""

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=9, d_out=16, d_in=8, d_sae=12, most=4),
    "odd widths": dict(n=11, d_out=5, d_in=13, d_sae=7, most=5),
    "batch of one": dict(n=1, d_out=3, d_in=3, d_sae=5, most=3),
    "one column": dict(n=6, d_out=1, d_in=1, d_sae=5, most=3),
    "no codes at all": dict(n=4, d_out=6, d_in=6, d_sae=10, most=0),
    "one latent of every row": dict(n=40, d_out=5, d_in=6, d_sae=9, most=2, frequent=3, segment=4),
    "segments that end with the codes": dict(n=12, d_out=5, d_in=6, d_sae=9, most=0, frequent=8, segment=4),
    "silent entries and spare places": dict(
        n=20, d_out=5, d_in=6, d_sae=9, most=4, silent_frac=0.4, spare=17, segment=3
    ),
    "negative values": dict(n=9, d_out=5, d_in=6, d_sae=9, most=4, is_signed=True),
    "nested": dict(n=7, d_out=5, d_in=6, d_sae=12, most=3, groups=3, segment=2),
}
"""Settings of `random_codes` with `n` rows, `groups` blocks, and `segment`."""


class LatentSums(NamedTuple):
    """Sums over each latent's codes."""

    W_dec: Float[Tensor, "d_sae d_out"]
    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    fired: Int[Tensor, " d_sae"]
    """In how many virtual rows each latent was active."""


class Segments(NamedTuple):
    """The parts of long latents beyond their first segment."""

    starts: Int[Tensor, " d_sae_and_1"]
    """Of each latent's segments in the scratch memory."""
    latents: Int[Tensor, " most"]
    """Latent of each segment; d_sae where there is none."""


def segments(order: LatentOrder, segment: int) -> Segments:
    """Returns which further segments the latents have, in room for as many as there can be."""
    further = ((order.starts.diff() - 1) // segment).clamp(min=0)
    starts = torch.nn.functional.pad(further.cumsum(0), (1, 0))
    return Segments(starts, rows_of(starts, len(order.places) // segment))


def check(
    op: str,
    order: LatentOrder,
    values: Tensor,
    dvalues: Tensor,
    gradient: Tensor,
    centred: Tensor,
    groups: int,
    segment: int,
) -> None:
    """Raises `ValueError` for what does not fit together."""
    (n, d_in), d_out = centred.shape, gradient.shape[1]
    check_shapes(
        op,
        {
            "values": (values, order.places.shape),
            "dvalues": (dvalues, order.places.shape),
            "gradient": (gradient, (n * groups, d_out)),
            "centred": (centred, (n, d_in)),
        },
    )
    if segment < 1:
        raise ValueError(f"{op} got segment={segment}, expected at least 1: leave it at its default")


def latent_reduce(
    order: LatentOrder,
    values: Float[Tensor, " nnz"],
    dvalues: Float[Tensor, " nnz"],
    gradient: Float[Tensor, "virtual d_out"],
    centred: Float[Tensor, "n d_in"],
    *,
    groups: int = 1,
    segment: int = SEGMENT,
    backend: Backend = "auto",
) -> LatentSums:
    """Returns the latents' gradients; `values` and `dvalues` are in row order.

    `gradient` has a row for every one of n · groups virtual rows; row r · groups + b reads `centred[r]`. Sums are in
    float32 (float64 for float64), results in the dtype of `gradient` or float32, whichever is wider. Raises
    `ValueError` for shapes that do not fit.
    """
    check("latent_reduce", order, values, dvalues, gradient, centred, groups, segment)
    if not uses_triton(backend, gradient):
        return reference(order, values, dvalues, gradient, centred, groups)
    for width in (gradient.shape[1], centred.shape[1]):
        check_width("latent_reduce", width)
    from sae.kernels import latent_reduce_triton

    further = segments(order, segment)
    return LatentSums(
        *latent_reduce_triton.latent_reduce(*order, *further, values, dvalues, gradient, centred, groups, segment)
    )


def latent_sums(
    codes: RaggedCodes, terms: Float[Tensor, " nnz"], d_sae: int, *, backend: Backend = "auto"
) -> Float[Tensor, " d_sae"]:
    """Returns the sum of each latent's terms, one term a code, in the same order on every run."""
    order = latent_order(codes._replace(values=terms), d_sae)
    nothing = terms.new_zeros(codes.n_rows, 1)
    return latent_reduce(order, terms, terms, nothing, nothing, backend=backend).b_enc


def reference(
    order: LatentOrder, values: Tensor, dvalues: Tensor, gradient: Tensor, centred: Tensor, groups: int
) -> LatentSums:
    """The same in plain torch; makes a buffer of codes × d."""
    d_sae = len(order.starts) - 1
    wide = torch.promote_types(gradient.dtype, torch.float32)
    latents = rows_of(order.starts, len(order.places))
    live = latents < d_sae
    latents, places, rows = latents[live], order.places[live], order.rows[live]

    def summed(terms: Tensor) -> Tensor:
        return terms.new_zeros(d_sae, *terms.shape[1:]).index_add_(0, latents, terms)

    coded, slopes = values[places].to(wide), dvalues[places].to(wide)
    return LatentSums(
        summed(coded[:, None] * gradient[rows].to(wide)),
        summed(slopes[:, None] * centred[rows // groups].to(wide)),
        summed(slopes),
        summed(torch.ones_like(rows, dtype=torch.int32)),
    )
