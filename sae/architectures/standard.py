"""Standard: ReLU latents under a penalty on their activations.

    P = λ · mean over rows of Σ_i φ(f_i · ‖d_i‖)

with φ the identity (l1; Bricken et al. 2023, with decoder norms as in Anthropic's April 2024 update), a power a^p
(lp), or tanh(c·a). ‖d_i‖ is summed over sites in a crosscoder (Lindsey et al. 2024).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.architectures.architecture import Architecture, Moment, padded, strongest_entries
from sae.config import default
from sae.selection import Selection, latents_above
from sae.shares import share_of_mean
from sae.step import Parameters

POWER_FLOOR = 1e-3  # keeps the gradient of a^p finite at a = 0


class Standard(Architecture):
    """ReLU with a penalty."""

    resampled_length = 0.2  # weak, so that new latents do not disturb (Bricken et al. 2023)

    @property
    def is_penalised(self) -> bool:
        return True

    def set_level(self, parameters: dict[str, Tensor], level: Tensor) -> None:
        parameters["b_enc"].fill_(-float(level))

    def activate(self, parameters: Parameters, pre: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        activations = pre.relu()
        written = activations * self.decoder_norms(parameters)
        return activations, self.coefficient(moment) * share_of_mean(self.penalty(written, moment).sum(1))

    def penalty(self, written: Tensor, moment: Moment) -> Tensor:
        kind = default(self.config.penalty, "l1")
        if kind == "l1":
            return written
        if kind == "tanh":
            return (default(self.config.tanh_scale, 4.0) * written).tanh()
        return power(written, default(self.config.penalty_exponent, 0.5))

    def encode(self, parameters: Parameters, centred: Tensor) -> Selection:
        if torch.is_grad_enabled() or self.config.architecture == "clt":
            return strongest_entries(self.dense_pre_activations(parameters, centred).relu())
        return padded(latents_above(centred, parameters["W_enc"], parameters["b_enc"], centred.new_zeros(())))


def power(written: Tensor, exponent: float) -> Tensor:
    """Returns (a + ε)^p − ε^p, which is 0 at 0 and has a finite slope there."""
    return (written + POWER_FLOOR).pow(exponent) - POWER_FLOOR**exponent
