"""Matryoshka BatchTopK: nested dictionaries that must each reconstruct alone (Bussmann et al. 2025, arXiv 2503.17547).

The codes are those of BatchTopK; the loss is the mean over nested widths m_1 < … < d_sae of the loss of the
reconstruction from the first m latents. General features settle in the small dictionaries, which fights absorption.

By default nesting is late (docs/log.md): training begins as BatchTopK with a larger k; at `nesting_start` of the run
latents are ranked once by the energy Σ f² that they have had, and the nested losses fade in over a tenth of the run.
The finished SAE has its latents in that order. `nesting_start: 0` nests from the first step, as published.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures.architecture import Forward, Moment
from sae.architectures.batchtopk import BatchTopK
from sae.config import SAEConfig
from sae.kernels.latent_order import latent_order
from sae.kernels.latent_reduce import latent_reduce
from sae.shares import first_latent, over_latents, over_rows, total_variance
from sae.sparse import RaggedCodes
from sae.step import Parameters, StepResult

FADE_FRAC = 0.1
ENERGY_MEMORY_STEPS = 50


class Matryoshka(BatchTopK):
    """BatchTopK whose first latents reconstruct on their own."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        if config.nesting_from > 0:
            self.buffers |= {"energy": torch.zeros(config.d_sae), "rank": torch.arange(config.d_sae)}

    def ranks(self) -> Int[Tensor, " d_sae"] | None:
        return self.buffers.get("rank")

    def _is_ranking(self, moment: Moment) -> bool:
        """Says whether latents still await their ranks, and no nested loss counts."""
        return moment.step < math.ceil(self.config.nesting_from * moment.steps)

    def activate(self, parameters: Parameters, pre: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        activations, penalty = super().activate(parameters, pre, moment)
        if self._is_ranking(moment):
            self.noted["energy"] = over_rows(activations.detach().pow(2).sum(0))
        return activations, penalty

    def choose(self, parameters: Parameters, centred: Tensor, moment: Moment) -> RaggedCodes:
        codes = super().choose(parameters, centred, moment)
        if self._is_ranking(moment):
            latents = codes.indices + (first_latent() or 0)
            energy = energies(codes._replace(indices=latents), self.config.d_sae)
            self.noted["energy"] = over_latents(over_rows(energy))
        return codes

    def observe(self, result: StepResult, moment: Moment) -> None:
        super().observe(result, moment)
        if "energy" not in self.noted or not self._is_ranking(moment):
            return
        energy = self.buffers["energy"]
        energy += (self.noted["energy"].to(energy) - energy) / min(ENERGY_MEMORY_STEPS, moment.step + 1)
        if not self._is_ranking(moment._replace(step=moment.step + 1)):
            order = energy.argsort(descending=True, stable=True)
            self.buffers["rank"][order] = torch.arange(len(order), device=order.device)

    def group_weights(self, moment: Moment, like: Tensor) -> tuple[list[int], Float[Tensor, " groups"] | None]:
        widths, start = self.config.nested_widths, self.config.nesting_from
        if self._is_ranking(moment):
            return [self.config.d_sae], None
        shown = 1.0 if start == 0 else min(1.0, (moment.progress - start) / FADE_FRAC)
        weights = torch.full((len(widths),), shown / len(widths), dtype=like.dtype, device=like.device)
        weights[-1] += 1 - shown
        return widths, weights

    def reconstruction_loss(
        self, parameters: Parameters, forward: Forward, x: Tensor, y: Tensor, moment: Moment
    ) -> Float[Tensor, ""]:
        widths, weights = self.group_weights(moment, x)
        if weights is None:
            return super().reconstruction_loss(parameters, forward, x, y, moment)
        ranks = self.ranks()
        ranks = torch.arange(self.config.d_sae, device=x.device) if ranks is None else ranks
        total = x.new_zeros(())
        for width, weight in zip(widths, weights, strict=True):
            nested = torch.where(ranks < width, forward.activations, 0)
            total = total + weight * (self.write(parameters, nested, x) - y).pow(2).sum()
        return total / total_variance(y)

    def finished(self, parameters: Parameters) -> tuple[SAEConfig, dict[str, Tensor]]:
        config, tensors = super().finished(parameters)
        ranks = self.ranks()
        if ranks is not None:
            order = ranks.argsort()
            tensors = {name: value[order] if len(value) == len(order) else value for name, value in tensors.items()}
            tensors["b_dec"] = parameters["b_dec"]
        return config, tensors


def energies(codes: RaggedCodes, d_sae: int) -> Float[Tensor, " d_sae"]:
    """Returns Σ f² of every latent, on a GPU in one order of terms on every run."""
    squares = codes.values.pow(2)
    if not squares.is_cuda:
        return squares.new_zeros(d_sae).index_add_(0, codes.indices, squares)
    rows = squares.new_zeros(codes.n_rows, 1)
    return latent_reduce(latent_order(codes, d_sae), codes.values, squares, rows, rows).b_enc
