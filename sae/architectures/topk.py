"""TopK: the k largest pre-activations of each row, clipped at zero (Gao et al. 2024, arXiv 2406.04093).

`k_start` lets k fall linearly to its final value over the first `sparsity_warmup_frac` of the run.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.architecture import Architecture, Moment, auxiliary
from sae.selection import Selection, select, strongest_latents
from sae.shares import over_latents, strongest_of_rows
from sae.sparse import RaggedCodes, decode
from sae.step import Parameters, StepResult, sparse_step


class TopK(Architecture):
    """Exactly k latents a row."""

    is_signed = False

    def k(self, moment: Moment) -> int:
        """Returns k in this step."""
        config = self.config
        first = config.first_active
        annealed = moment.progress / max(1e-9, config.sparsity_warmup)
        return round(first + (config.active - first) * min(1.0, annealed))

    def activate(self, parameters: Parameters, pre: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        chosen = self.strongest(pre, self.k(moment))
        return torch.zeros_like(pre).scatter(1, chosen.indices, chosen.values), pre.new_zeros(())

    def choose(self, parameters: Parameters, centred: Tensor, moment: Moment) -> RaggedCodes:
        """Returns the codes of a training batch."""
        return strongest_of_rows(
            centred, parameters["W_enc"], parameters["b_enc"], self.k(moment), is_signed=self.is_signed
        )

    def first_written(self, parameters: Parameters, x: Tensor) -> Float[Tensor, "n d_out"]:
        codes = self.choose(parameters, self.centre(parameters, x), Moment(0, 1))
        self.noted.clear()  # the first step chooses for itself
        return over_latents(decode(codes, parameters["W_dec"]))

    def group_weights(self, moment: Moment, like: Tensor) -> tuple[list[int], Float[Tensor, " groups"] | None]:
        """Returns the nested dictionaries that the loss is a mean over, and their weights."""
        return [], None

    def ranks(self) -> Int[Tensor, " d_sae"] | None:
        """Returns the latents' places in the nested dictionaries; None for their own order."""
        return None

    def step(self, parameters: Parameters, x: Tensor, y: Tensor, moment: Moment) -> StepResult:
        if self.config.architecture == "clt":
            return super().step(parameters, x, y, moment)  # its encoder is no single product
        codes = self.choose(parameters, self.centre(parameters, x), moment)
        widths, weights = self.group_weights(moment, x)
        return sparse_step(
            parameters,
            x,
            y,
            codes,
            is_signed=self.is_signed,
            subtracts_b_dec=self.config.subtracts_b_dec,
            widths=widths,
            weights=weights,
            ranks=self.ranks(),
            auxiliary=auxiliary(self.config, moment),
        )

    def encode(self, parameters: Parameters, centred: Tensor) -> Selection:
        if torch.is_grad_enabled() or self.config.architecture == "clt":
            return select(self.dense_pre_activations(parameters, centred), self.config.active)
        return strongest_latents(centred, parameters["W_enc"], parameters["b_enc"], self.config.active)
