"""Sparse codes: the latents of each row and their values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Codes:
    """The active latents of `n` rows. Rows with fewer than `k` of them are padded with index −1 and value 0."""

    values: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    d_sae: int
    scale: Float[Tensor, " n"] | None = None
    """What each row was divided by before it was encoded, where the SAE normalises single rows; decoding undoes it."""
    shift: Float[Tensor, " n"] | None = None
    """What was subtracted from each element of the row before that."""

    def to_dense(self) -> Float[Tensor, "n d_sae"]:
        """Returns the codes as a dense matrix, zero where a latent is silent."""
        # padding adds its zero to latent 0, so that no index needs to be dropped
        dense = torch.zeros(len(self.values), self.d_sae, dtype=self.values.dtype, device=self.values.device)
        return dense.scatter_add(1, self.indices.clamp(min=0).long(), self.values)

    @property
    def active(self) -> Tensor:
        """Marks the entries that are no padding: Bool[n, k]."""
        return self.indices >= 0
