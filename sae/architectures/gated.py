"""Gated: one encoder decides which latents are active, its rescaled copy how much (Rajamanoharan et al. 2024,
arXiv 2404.16014).

    π = W_enc (x − b_dec) + b_gate        f = 1[π > 0] · ReLU(exp(r_mag) · W_enc (x − b_dec) + b_mag)
    P = λ · mean Σ ReLU(π)  +  mean ‖x − x̂(ReLU(π))‖²,     the last with W_dec and b_dec held constant
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.architectures.architecture import Architecture, Forward, Moment, strongest_entries
from sae.kernels.dispatch import is_fused
from sae.kernels.gate import gate
from sae.selection import Selection
from sae.shares import batch_rows, share_of_mean
from sae.step import Parameters


class Gated(Architecture):
    """Gate and magnitude from shared weights."""

    resampled_length = 0.2

    @property
    def is_penalised(self) -> bool:
        return True

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        parameters = super().initial(generator)
        zeros = parameters.pop("b_enc")
        return {**parameters, "b_gate": zeros, "r_mag": zeros.clone(), "b_mag": zeros.clone()}

    def set_level(self, parameters: dict[str, Tensor], level: Tensor) -> None:
        parameters["b_gate"].fill_(-float(level))

    def forward(self, parameters: Parameters, x: Tensor, moment: Moment) -> Forward:
        pre = self.pre_activations(parameters, self.centre(parameters, x))
        held = {name: value.detach() for name, value in parameters.items()}
        norms = self.decoder_norms(held)
        if is_fused(pre[:, :1], pre[:, :1]):
            b_gate, r_mag, b_mag = (parameters[name] for name in ("b_gate", "r_mag", "b_mag"))
            activations, opened, charged = gate(pre.contiguous(), b_gate, r_mag, b_mag, norms)
            penalty = self.coefficient(moment) * charged / batch_rows(pre)
        else:
            opened = (pre + parameters["b_gate"]).relu()
            activations = self._activations(parameters, pre)
            penalty = self.coefficient(moment) * share_of_mean((opened * norms).sum(1))
        error = x - self.write(held, opened, x)
        penalty = penalty + share_of_mean(error.pow(2).sum(1))
        return Forward(self.write(parameters, activations, x), activations, penalty)

    def _activations(self, parameters: Parameters, pre: Tensor) -> Tensor:
        magnitude = (pre * parameters["r_mag"].exp() + parameters["b_mag"]).relu()
        return torch.where(pre + parameters["b_gate"] > 0, magnitude, 0)

    def revival_pre_activations(self, parameters: Parameters, x: Tensor) -> Tensor:
        return self.pre_activations(parameters, self.centre(parameters, x)) + parameters["b_gate"]

    def encode(self, parameters: Parameters, centred: Tensor) -> Selection:
        return strongest_entries(self._activations(parameters, self.pre_activations(parameters, centred)))
