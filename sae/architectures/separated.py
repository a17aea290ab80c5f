"""Separated BatchTopK, the recommended recipe: BatchTopK whose decoder rows are kept from overlapping.

To BatchTopK's loss it adds

    S = s · mean_i Σ_{j ≠ i} relu(|cos(d_i, d_j)| − τ)²,        s = `separation`, τ = `separation_cosine`

and lets the decoder learn at a fifth of the encoder's rate. Where features form hierarchies a sparse dictionary has two
ways to reconstruct well from wrong directions: a child's latent may hold its parent's direction too (absorption:
siblings overlap with positive cosine), or the parent's latent the mean of its children, which each child then subtracts
(hedging: siblings overlap with negative cosine). Both overlap more than features do, so both are priced. On worlds
whose features are known this finds more of them, and truer, than nested dictionaries do (docs/log.md).

The gradient of all overlaps costs 4 · d_sae² · d operations. It changes as slowly as the decoder does, so each step
renews it for a few latents in turn, as many as make its cost a quarter of the encoder product, and applies it for all.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures.architecture import Moment
from sae.architectures.batchtopk import BatchTopK
from sae.config import SAEConfig, default
from sae.step import Parameters

RENEWED_PER_ROW = 1 / 8  # latents renewed in a step, for each row of the batch


class SeparatedBatchTopK(BatchTopK):
    """BatchTopK with separated decoder rows; finished as JumpReLU."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.strength = default(config.separation, 400.0)
        self.cosine = default(config.separation_cosine, 0.2)
        self.buffers["overlap_gradient"] = torch.zeros(config.d_sae, config.d_in)

    def project(self, parameters: Parameters, gradients: dict[str, Tensor], moment: Moment) -> None:
        stored, d_sae = self.buffers["overlap_gradient"], self.config.d_sae
        size = max(1, min(d_sae, int(moment.batch_rows * RENEWED_PER_ROW)))
        first = moment.step % -(-d_sae // size) * size
        rows = slice(first, first + size) if moment.step else slice(0, d_sae)
        stored[rows] = overlap_gradient(parameters["W_dec"], rows, self.strength, self.cosine)
        gradients["W_dec"] += stored
        super().project(parameters, gradients, moment)


def overlap_gradient(
    W_dec: Float[Tensor, "d_sae d"], rows: slice, strength: float, cosine: float
) -> Float[Tensor, "rows d"]:
    """Returns ∂S/∂d_i of the unit rows i in `rows`."""
    cosines = W_dec[rows] @ W_dec.T
    own = torch.arange(len(W_dec), device=W_dec.device)[rows]
    cosines[torch.arange(len(own), device=W_dec.device), own] = 0
    return (cosines - cosines.clamp(-cosine, cosine)) @ W_dec * (4 * strength / len(W_dec))
