"""Matching pursuit: latents are chosen one after another, each the best for what is still unexplained (Costa et al.
2025, arXiv 2506.03093).

    r ← x − b_dec;   repeat:  i = argmax ⟨d_i, r⟩,  v = ReLU⟨d_i, r⟩,  r ← r − v d_i

There is no encoder: `W_enc` is the unit-norm decoder. A row stops after `k` choices where k is set, when its residual
norm falls below `residual_threshold`, or when a choice adds no new latent (as SAELens's `matching_pursuit` does).
Gradients flow through the whole chain of residuals. On a CPU `sae.pursuit` chooses and differentiates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from sae import pursuit
from sae.architectures.architecture import Architecture, Forward, Moment, strongest_entries
from sae.config import SAEConfig, default
from sae.selection import Selection
from sae.shares import batch_rows, total_variance
from sae.step import Parameters, StepResult


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

    @property
    def smallest_residual(self) -> float:
        """The residual norm below which a row is explained."""
        return default(self.config.residual_threshold, 1e-2)

    def most_choices(self, d_sae: int) -> int:
        """Returns how many latents a row may choose."""
        return min(d_sae, default(self.config.k, d_sae))

    def pursue(self, W_dec: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Returns dense activations and what is left unexplained; differentiable."""
        d_sae, smallest = len(W_dec), self.smallest_residual
        residual, activations = centred, centred.new_zeros(len(centred), d_sae)
        done = residual.detach().norm(dim=1) < smallest
        for _ in range(self.most_choices(d_sae)):
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

    def step(self, parameters: Parameters, x: Tensor, y: Tensor, moment: Moment) -> StepResult:
        W_dec = parameters["W_dec"]
        if not pursuit.is_pursued(W_dec):
            return super().step(parameters, x, y, moment)
        found = pursuit.pursue(W_dec, x - parameters["b_dec"], self.most_choices(len(W_dec)), self.smallest_residual)
        variance, squared = total_variance(y), found.residual.pow(2).sum()
        dW_dec, dx = pursuit.pursuit_gradients(W_dec, found, found.residual * (2 / variance))
        gradients, loss = {"W_dec": dW_dec, "b_dec": -dx.sum(0)}, squared / variance
        if moment.dead is not None and self.config.auxk_alpha > 0 and bool(moment.dead.any()):
            leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
            with torch.enable_grad():
                revival = self.config.auxk_alpha * self.auxk_loss(leaves, x, found.residual, moment.dead)
                for name, gradient in zip(leaves, torch.autograd.grad(revival, list(leaves.values())), strict=True):
                    gradients[name] += gradient
            loss = loss + revival.detach()
        values, indices = found.codes()
        active = values != 0
        fired = torch.zeros(len(W_dec), dtype=torch.bool)
        fired[indices[active]] = True
        return StepResult(gradients, loss, squared, variance, fired, active.sum().to(x.dtype) / batch_rows(x))

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
        W_dec = parameters["W_dec"]
        if torch.is_grad_enabled() or not pursuit.is_pursued(W_dec):
            return strongest_entries(self.pursue(W_dec, centred)[0])
        values, indices = pursuit.pursue(W_dec, centred, self.most_choices(len(W_dec)), self.smallest_residual).codes()
        width = max(1, int((values != 0).sum(1).max())) if len(values) else 1
        return Selection(values[:, :width], indices[:, :width])
