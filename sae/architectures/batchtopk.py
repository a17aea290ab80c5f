"""BatchTopK: the n·k largest pre-activations of a batch of n rows (Bussmann et al. 2024, arXiv 2412.06410).

Rows differ in how many latents they get. At inference a batch must not matter, so the smallest value that was kept,
averaged over the last tenth of the run, becomes the threshold of a JumpReLU SAE, which is what is saved.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sae.architectures.architecture import Moment
from sae.architectures.topk import TopK
from sae.config import SAEConfig
from sae.shares import smallest_of_largest, strongest_of_batch
from sae.sparse import RaggedCodes
from sae.step import Parameters, StepResult

THRESHOLD_MEMORY_FRAC = 0.1
GUESSED_SHARE = 0.9  # of the last batch's smallest kept value, where the search for this batch's begins


class BatchTopK(TopK):
    """k latents a row on average over the batch; finished as JumpReLU with one threshold for all latents."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.buffers["threshold"] = torch.zeros(())

    def activate(self, parameters: Parameters, pre: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        smallest = smallest_of_largest(pre, self.k(moment)).clamp(min=0)
        self.noted["kept"] = smallest
        return torch.where(pre >= smallest, pre, 0).relu(), pre.new_zeros(())

    def choose(self, parameters: Parameters, centred: Tensor, moment: Moment) -> RaggedCodes:
        kept = None if centred.is_cuda else self.noted.pop("kept", None)  # a captured step must not read another's
        guess = None if kept is None else kept * GUESSED_SHARE
        chosen = strongest_of_batch(centred, parameters["W_enc"], parameters["b_enc"], self.k(moment), guess)
        self.noted.pop("kept", None)
        if chosen.smallest is not None:
            self.noted["kept"] = chosen.smallest
        return chosen.codes

    def observe(self, result: StepResult, moment: Moment) -> None:
        super().observe(result, moment)
        if "kept" in self.noted:
            # a plain mean at first, then a moving one
            steps = min(moment.step + 1, max(1.0, THRESHOLD_MEMORY_FRAC * moment.steps))
            kept, threshold = self.noted["kept"].float(), self.buffers["threshold"]
            threshold += torch.where(kept.isfinite(), kept - threshold, 0) / steps

    def finished(self, parameters: Parameters) -> tuple[SAEConfig, dict[str, Tensor]]:
        config = self.config
        threshold = self.buffers["threshold"].to(parameters["b_enc"]).expand(config.d_sae).clone()
        tensors = {**parameters, "threshold": threshold}
        return as_jumprelu(config), tensors


def as_jumprelu(config: SAEConfig) -> SAEConfig:
    """Returns the config under which an SAE trained on batches is saved."""
    unread = ("k", "k_start", "matryoshka_widths", "nesting_start", "sparsity_warmup_frac")
    plain: dict[str, Any] = dict.fromkeys(unread)
    if config.activation is not None:
        return replace(config, activation="jumprelu", **plain)
    return replace(config, architecture="jumprelu", **plain)
