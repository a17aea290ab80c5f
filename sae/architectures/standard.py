"""Standard: ReLU latents under a penalty on their activations.

    P = λ · mean over rows of Σ_i φ(f_i · ‖d_i‖)

with φ the identity (l1; Bricken et al. 2023, with decoder norms as in Anthropic's April 2024 update), a power a^p
(lp), or tanh(c·a). ‖d_i‖ is summed over sites in a crosscoder (Lindsey et al. 2024).

On a CPU the step is sparse where few entries are active (`sae.ragged_step`): silent ones pay nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.architectures.architecture import Architecture, Moment, auxiliary, padded, strongest_entries
from sae.config import default
from sae.kernels.dispatch import is_fused
from sae.kernels.shrink import Penalty, shrink
from sae.ragged_step import few_entries, ragged_step
from sae.selection import Selection, latents_above
from sae.shares import batch_rows, share_of_mean
from sae.step import Parameters, StepResult


class Standard(Architecture):
    """ReLU with a penalty."""

    resampled_length = 0.2  # weak, so that new latents do not disturb (Bricken et al. 2023)

    @property
    def is_penalised(self) -> bool:
        return True

    def set_level(self, parameters: dict[str, Tensor], level: Tensor) -> None:
        parameters["b_enc"].fill_(-float(level))

    def step(self, parameters: Parameters, x: Tensor, y: Tensor, moment: Moment) -> StepResult:
        centred, b_enc = self.centre(parameters, x), parameters["b_enc"]
        codes = None
        if self.config.architecture != "clt":
            codes = few_entries(centred, parameters["W_enc"], b_enc, b_enc.new_zeros(()), self.buffers.get("l0"))
        if codes is None:
            return super().step(parameters, x, y, moment)
        W_dec, shape = parameters["W_dec"].detach().requires_grad_(), self.shape(moment)
        with torch.enable_grad():
            norms = self.decoder_norms({"W_dec": W_dec})
        of_codes = norms.detach()[codes.indices]
        written = codes.values * of_codes
        charged = shape.charge(written).sum()
        weight = self.coefficient(moment) * self.rescaling(charged, written.sum()) / batch_rows(x)
        slopes = weight * shape.slope(written)
        result, _ = ragged_step(
            parameters,
            x,
            y,
            codes,
            weight * charged,
            slopes=slopes * of_codes,
            subtracts_b_dec=self.config.subtracts_b_dec,
            auxiliary=auxiliary(self.config, moment),
        )
        of_norms = torch.zeros_like(b_enc).index_add_(0, codes.indices, slopes * codes.values)
        result.gradients["W_dec"] += torch.autograd.grad(norms, W_dec, of_norms)[0]
        return result

    def activate(self, parameters: Parameters, pre: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        norms = self.decoder_norms(parameters)
        if is_fused(pre[:, :1], pre[:, :1]):
            activations, charged, written = shrink(pre.contiguous(), norms, self.shape(moment))
            penalty = charged * self.rescaling(charged.detach(), written) / batch_rows(pre)
        else:
            activations = pre.relu()
            penalty = share_of_mean(self.penalty(activations * norms, moment).sum(1))
        return activations, self.coefficient(moment) * penalty

    def shape(self, moment: Moment) -> Penalty:
        """Returns φ as it is in this step."""
        kind = default(self.config.penalty, "l1")
        if kind == "tanh":
            return Penalty("tanh", default(self.config.tanh_scale, 4.0))
        return Penalty("l1") if kind == "l1" else Penalty("lp", default(self.config.penalty_exponent, 0.5))

    def rescaling(self, charged: Tensor, written: Tensor) -> Tensor | float:
        """Returns by what φ is multiplied in this step, given Σ φ(a) and Σ a over these rows."""
        return 1.0

    def penalty(self, written: Tensor, moment: Moment) -> Tensor:
        return self.shape(moment).charge(written)

    def encode(self, parameters: Parameters, centred: Tensor) -> Selection:
        if torch.is_grad_enabled() or self.config.architecture == "clt":
            return strongest_entries(self.dense_pre_activations(parameters, centred).relu())
        return padded(latents_above(centred, parameters["W_enc"], parameters["b_enc"], centred.new_zeros(())))
