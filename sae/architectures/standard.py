"""Standard: ReLU latents under a penalty on their activations.

    P = λ · mean over rows of Σ_i φ(f_i · ‖d_i‖)

with φ the identity (l1; Bricken et al. 2023, with decoder norms as in Anthropic's April 2024 update), a power a^p
(lp), or tanh(c·a). ‖d_i‖ is summed over sites in a crosscoder (Lindsey et al. 2024).

The step is sparse where few entries are active (`sae.ragged_step`; `sae.density` on a GPU): silent ones pay nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.architectures.architecture import Architecture, Moment, auxiliary, padded, strongest_entries
from sae.config import default
from sae.density import step_by_density
from sae.kernels.dispatch import is_fused
from sae.kernels.latent_reduce import latent_sums
from sae.kernels.shrink import Penalty, shrink
from sae.kernels.step import penalised_step
from sae.ragged_step import few_entries, ragged_step
from sae.selection import Selection, latents_above
from sae.shares import batch_rows, share_of_mean
from sae.sparse import RaggedCodes
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
        def dense() -> StepResult:
            return Architecture.step(self, parameters, x, y, moment)

        if self.config.architecture == "clt":
            return dense()
        b_enc = parameters["b_enc"]
        given = self.centre(parameters, x), parameters["W_enc"], b_enc, b_enc.new_zeros(())
        if is_fused(x, y) and moment.density is not None:

            def sparse(codes: RaggedCodes) -> StepResult:
                return self._sparse_step(parameters, x, y, codes, moment, has_kernels=True)

            return step_by_density(moment.density, moment.step, *given, sparse=sparse, dense=dense)
        codes = few_entries(*given, self.buffers.get("l0"))
        return dense() if codes is None else self._sparse_step(parameters, x, y, codes, moment, has_kernels=False)

    def _sparse_step(
        self, parameters: Parameters, x: Tensor, y: Tensor, codes: RaggedCodes, moment: Moment, *, has_kernels: bool
    ) -> StepResult:
        """Returns what the dense step returns; with kernels `codes` may have places to spare."""
        W_dec, shape, is_code = parameters["W_dec"].detach().requires_grad_(), self.shape(moment), codes.values > 0
        with torch.enable_grad():
            norms = self.decoder_norms({"W_dec": W_dec})
        of_codes = norms.detach()[codes.indices]
        written = codes.values * of_codes
        charged = torch.where(is_code, shape.charge(written), 0).sum()
        weight = self.coefficient(moment) * self.rescaling(charged, written.sum()) / batch_rows(x)
        slopes = torch.where(is_code, weight * shape.slope(written), 0)
        step = penalised_step if has_kernels else ragged_step
        result, _ = step(
            parameters,
            x,
            y,
            codes,
            weight * charged,
            slopes=slopes * of_codes,
            subtracts_b_dec=self.config.subtracts_b_dec,
            auxiliary=auxiliary(self.config, moment),
        )
        charges = slopes * codes.values
        if has_kernels:
            of_norms = latent_sums(codes, charges, len(norms))
        else:
            of_norms = torch.zeros_like(norms.detach()).index_add_(0, codes.indices, charges)
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
