"""Matryoshka BatchTopK: nested dictionaries that must each reconstruct alone (Bussmann et al. 2025, arXiv 2503.17547).

The codes are those of BatchTopK; the loss is the mean over nested widths m_1 < … < d_sae of the loss of the
reconstruction from the first m latents. General features settle in the small dictionaries, which fights absorption.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.architectures.architecture import Forward, Moment
from sae.architectures.batchtopk import BatchTopK
from sae.step import Parameters, total_variance


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents reconstruct on their own."""

    def group_weights(self, moment: Moment, like: Tensor) -> tuple[list[int], Float[Tensor, " groups"] | None]:
        widths = self.config.nested_widths
        return widths, torch.full((len(widths),), 1 / len(widths), dtype=like.dtype, device=like.device)

    def reconstruction_loss(
        self, parameters: Parameters, forward: Forward, x: Tensor, y: Tensor, moment: Moment
    ) -> Float[Tensor, ""]:
        widths, weights = self.group_weights(moment, x)
        assert weights is not None
        total = x.new_zeros(())
        for width, weight in zip(widths, weights, strict=True):
            nested = torch.nn.functional.pad(forward.activations[:, :width], (0, self.config.d_sae - width))
            total = total + weight * (self.write(parameters, nested, x) - y).pow(2).sum()
        return total / total_variance(y)
