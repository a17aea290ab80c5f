"""Codes sorted by latent: the layout from which each latent's sums are taken without atomics.

Enters: codes in row order. Leaves: where each latent's codes begin, and for each code in that order its place and row.
Codes of one latent stand in row order, so that every sum has one order of terms. Silent entries (value 0) are left out.

There is no kernel of our own: `torch.sort` of int32 keys is a radix sort on a GPU, stable, and takes as long as a few
passes over keys that are a thousandth of what the sums read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from sae.kernels.dispatch import rows_of
from sae.sparse import RaggedCodes


class LatentOrder(NamedTuple):
    """Codes in the order of their latents; those of latent i stand from `starts[i]` to `starts[i + 1]`."""

    starts: Int[Tensor, " d_sae_and_1"]
    places: Int[Tensor, " nnz"]
    """Place of each code in row order; the entries left out stand at the end."""
    rows: Int[Tensor, " nnz"]
    """Row of each code."""


def latent_order(codes: RaggedCodes, d_sae: int) -> LatentOrder:
    """Returns the codes' order by latent, without waiting for the device; `codes` may have places to spare."""
    rows = rows_of(codes.starts, len(codes.indices))
    counts = (rows < codes.n_rows) & (codes.values != 0)
    keys, places = torch.sort(torch.where(counts, codes.indices, d_sae).int(), stable=True)
    latents = torch.arange(d_sae + 1, dtype=torch.int32, device=keys.device)
    return LatentOrder(torch.searchsorted(keys, latents), places, rows[places])
