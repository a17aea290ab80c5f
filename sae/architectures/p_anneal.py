"""p-anneal: a ReLU SAE whose penalty turns from L1 towards L0 (Karvonen et al. 2024, arXiv 2408.00113, section 3.2).

The penalty is Σ f^p with p falling linearly from 1, after the sparsity warm-up, to `penalty_exponent` at the run's end.
It is scaled in each step so that its value is that of the L1 penalty: only its shape changes as p falls. The finished
SAE is a `standard` one.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sae.architectures.architecture import Moment
from sae.architectures.standard import Standard
from sae.config import SAEConfig, default
from sae.kernels.shrink import Penalty
from sae.shares import over_rows
from sae.step import Parameters


class PAnneal(Standard):
    """Standard with a falling exponent."""

    def exponent(self, moment: Moment) -> float:
        """Returns p in this step."""
        warmup = self.config.sparsity_warmup
        annealed = max(0.0, moment.progress - warmup) / max(1e-9, 1 - warmup)
        return 1 + (default(self.config.penalty_exponent, 0.2) - 1) * annealed

    def shape(self, moment: Moment) -> Penalty:
        return Penalty("lp", self.exponent(moment))

    def rescaling(self, charged: Tensor, written: Tensor) -> Tensor:
        as_l1, as_power = over_rows(torch.stack([written, charged]))
        return as_l1 / as_power.clamp(min=1e-12)

    def penalty(self, written: Tensor, moment: Moment) -> Tensor:
        charged = super().penalty(written, moment)
        return charged * self.rescaling(charged.detach().sum(), written.detach().sum())

    def finished(self, parameters: Parameters) -> tuple[SAEConfig, dict[str, Tensor]]:
        return replace(self.config, architecture="standard", penalty=None, penalty_exponent=None), dict(parameters)
