"""Matching pursuit: latents are chosen one after another, each the best for what is still unexplained (Costa et al.
2025, arXiv 2506.03093).

    r ← x − b_dec;   repeat:  i = argmax ⟨d_i, r⟩,  v = ReLU⟨d_i, r⟩,  r ← r − v d_i

There is no encoder: `W_enc` is the unit-norm decoder. A row stops after `k` choices where k is set, when its residual
norm falls below `residual_threshold`, or when a choice adds no new latent (as SAELens's `matching_pursuit` does).
Gradients flow through the whole chain of residuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sae.architectures.architecture import Architecture, Forward, Moment, strongest_entries
from sae.config import SAEConfig, default
from sae.selection import Selection
from sae.step import Parameters


class MatchingPursuit(Architecture):
    """A tied dictionary with a greedy encoder."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        parameters = super().initial(generator)
        return {name: parameters[name] for name in ("W_dec", "b_dec")}

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors[name] for name in ("W_dec", "b_dec")}

    def forward(self, parameters: Parameters, x: Tensor, moment: Moment) -> Forward:
        activations, residual = self.pursue(parameters["W_dec"], x - parameters["b_dec"])
        return Forward(x - residual, activations, x.new_zeros(()))

    def pursue(self, W_dec: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Returns dense activations and what is left unexplained; differentiable."""
        d_sae = len(W_dec)
        smallest = default(self.config.residual_threshold, 1e-2)
        residual, activations = centred, centred.new_zeros(len(centred), d_sae)
        done = residual.detach().norm(dim=1) < smallest
        for _ in range(default(self.config.k, d_sae)):
            best = (residual.detach() @ W_dec.detach().T).argmax(1)
            atoms = W_dec[best]
            values = torch.where(done, 0, (residual * atoms).sum(1).relu())
            is_new = (activations.detach().gather(1, best[:, None]).squeeze(1) == 0) & (values.detach() > 0)
            activations = activations.scatter_add(1, best[:, None], values[:, None])
            residual = residual - values[:, None] * atoms
            done = done | ~is_new | (residual.detach().norm(dim=1) < smallest)
            if bool(done.all()):
                break
        return activations, residual

    def revival_pre_activations(self, parameters: Parameters, x: Tensor) -> Tensor:
        return (x - parameters["b_dec"]) @ parameters["W_dec"].T

    def finished(self, parameters: Parameters) -> tuple[SAEConfig, dict[str, Tensor]]:
        W_dec = parameters["W_dec"]
        return self.config, {**parameters, "W_enc": W_dec.clone(), "b_enc": W_dec.new_zeros(len(W_dec))}

    def fold(
        self, config: SAEConfig, tensors: dict[str, Tensor], scale_in: Tensor, scale_out: Tensor
    ) -> tuple[SAEConfig, dict[str, Tensor]]:
        # choices do not depend on scale: the dictionary keeps its unit norm, values grow in its stead
        scale = float(scale_in[0])
        smallest = default(config.residual_threshold, 1e-2) / scale
        return replace(config, residual_threshold=smallest), {**tensors, "b_dec": tensors["b_dec"] / scale}

    def encode(self, parameters: Parameters, centred: Tensor) -> Selection:
        return strongest_entries(self.pursue(parameters["W_dec"], centred)[0])
