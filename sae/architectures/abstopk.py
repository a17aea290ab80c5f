"""AbsTopK: the k pre-activations of largest absolute value, with their signs.

One latent then stands for a direction and its opposite (Zhu et al. 2025, arXiv 2510.00404, "AbsTopK").
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.architectures.topk import TopK
from sae.selection import Selection, largest_latents
from sae.step import Parameters


class AbsTopK(TopK):
    """Exactly k latents a row, positive or negative."""

    is_signed = True

    def strongest(self, pre: Tensor, k: int) -> Selection:
        indices = torch.topk(pre.abs(), k, dim=1, sorted=False).indices
        return Selection(pre.gather(1, indices), indices)

    def encode(self, parameters: Parameters, centred: Tensor) -> Selection:
        if torch.is_grad_enabled():
            return self.strongest(self.dense_pre_activations(parameters, centred), self.config.active)
        return largest_latents(centred, parameters["W_enc"], parameters["b_enc"], self.config.active)
