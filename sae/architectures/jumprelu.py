"""JumpReLU: each latent is active above a threshold of its own, which is learned through straight-through estimates.

    f = z · H(z − θ),  z = W_enc (x − b_dec) + b_enc,  θ = exp(t) > 0;   K the rectangle of width ε around zero

* `step` (Rajamanoharan et al. 2024, arXiv 2407.14435): P = λ · mean Σ H(z − θ). Only θ sees the steps:
  ∂f/∂θ = −(θ/ε) K(z − θ),  ∂H/∂θ = −(1/ε) K(z − θ),  ∂f/∂z = H(z − θ).
* `tanh` (Anthropic, January 2025 update): P = λ · mean Σ tanh(c · f · ‖d‖) + λ_p · mean Σ ReLU(θ − z) ‖d‖, where the
  gradient of the step reaches z as well as θ and the penalty rises over the whole run.

A run begins dense and goes over to the sparse step (`sae.jump_step`; penalty `step`) as soon as few enough entries are
active or near their thresholds (`sae.ragged_step`; `sae.density` on a GPU).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae.architectures.architecture import Architecture, Moment, auxiliary, padded, strongest_entries
from sae.config import SAEConfig, default
from sae.density import step_by_density
from sae.jump_step import jump_step
from sae.kernels.dispatch import is_fused
from sae.kernels.jump import jump
from sae.ragged_step import few_entries
from sae.selection import Selection, latents_above
from sae.shares import batch_rows, share_of_mean
from sae.sparse import RaggedCodes
from sae.step import Parameters, StepResult

TANH_START = 1 / 8  # of the coefficient at which a latent pays: this penalty also shrinks what lies near a threshold
THRESHOLD_SPEED = 4.0  # Adam moves every parameter by about the rate: thresholds are exp(speed · parameter)


class Jump(torch.autograd.Function):
    """z · H(z − θ) with the rectangle's estimate of the step's gradient; `both` lets it reach z too."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, both: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.both = bandwidth, both
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        z, threshold = ctx.saved_tensors
        edge = ((z - threshold).abs() < ctx.bandwidth / 2) * (threshold / ctx.bandwidth) * grad
        through = (z > threshold) * grad
        return through + edge if ctx.both else through, -edge.sum(0), None, None


class Step(torch.autograd.Function):
    """H(z − θ), whose estimated gradient reaches θ alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (grad,) = grads
        z, threshold = ctx.saved_tensors
        is_near = (z - threshold).abs() < ctx.bandwidth / 2
        edge = is_near.to(grad) / ctx.bandwidth * grad  # a bare mask over a number is float32 in float64 runs too
        return None, -edge.sum(0), None


class JumpReLU(Architecture):
    """Learned thresholds; trained as their logarithms."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        self.is_anthropic = config.penalty == "tanh"
        self.bandwidth = default(config.bandwidth, 2.0 if self.is_anthropic else 0.1)

    @property
    def is_penalised(self) -> bool:
        return True

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        first = default(self.config.threshold_init, 0.1)
        return {
            **super().initial(generator),
            "log_threshold": torch.full((self.config.d_sae,), first).log() / THRESHOLD_SPEED,
        }

    def set_level(self, parameters: dict[str, Tensor], level: Tensor) -> None:
        if self.config.threshold_init is None:
            # thresholds move by about the learning rate, in logarithms: from far away they would never arrive
            parameters["log_threshold"].fill_(float(level.log()) / THRESHOLD_SPEED)

    def start_penalty(self, parameters: Parameters, level: Tensor) -> None:
        super().start_penalty(parameters, level)
        if self.is_anthropic and self.config.sparsity_coefficient is None:
            self.buffers["log_coefficient"] += math.log(TANH_START)

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parameters = super().adopt(tensors)
        if "threshold" in tensors:
            parameters["log_threshold"] = tensors["threshold"].clamp(min=1e-6).log() / THRESHOLD_SPEED
        return parameters

    def thresholds(self, parameters: Parameters) -> Tensor:
        """Returns θ of every latent."""
        return (THRESHOLD_SPEED * parameters["log_threshold"]).exp()

    def step(self, parameters: Parameters, x: Tensor, y: Tensor, moment: Moment) -> StepResult:
        threshold = self.thresholds(parameters)

        def dense() -> StepResult:
            return Architecture.step(self, parameters, x, y, moment)

        def sparse(entries: RaggedCodes) -> StepResult:
            result = jump_step(
                parameters,
                x,
                y,
                entries,
                threshold,
                self.bandwidth,
                self.coefficient(moment),
                subtracts_b_dec=self.config.subtracts_b_dec,
                auxiliary=auxiliary(self.config, moment),
            )
            slope = result.gradients.pop("threshold")
            result.gradients["log_threshold"] = slope * threshold * THRESHOLD_SPEED
            return result

        if is_fused(x, y) and moment.density is not None and self._has_sparse_step():
            return step_by_density(
                moment.density,
                moment.step,
                self.centre(parameters, x),
                parameters["W_enc"],
                parameters["b_enc"],
                threshold - self.bandwidth / 2,
                sparse=sparse,
                dense=dense,
                floors_are_positive=True,
            )
        entries = self._entries(parameters, x, threshold)
        return dense() if entries is None else sparse(entries)

    def _has_sparse_step(self) -> bool:
        config = self.config
        return not (self.is_anthropic or config.pre_activation_coefficient or config.architecture == "clt")

    def _entries(self, parameters: Parameters, x: Tensor, threshold: Tensor) -> RaggedCodes | None:
        """Returns, on a CPU, the entries of a sparse step; None where the dense step is the one to take."""
        floor = threshold - self.bandwidth / 2
        if not self._has_sparse_step() or x.device.type != "cpu" or not bool(floor.min() > 0):
            return None
        centred = self.centre(parameters, x)
        return few_entries(centred, parameters["W_enc"], parameters["b_enc"], floor, self.buffers.get("l0"))

    def activate(self, parameters: Parameters, pre: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        threshold, penalty = self.thresholds(parameters), pre.new_zeros(())
        if is_fused(pre[:, :1], pre[:, :1]):
            activations, count = jump(pre.contiguous(), threshold, self.bandwidth, both=self.is_anthropic)
            penalty = count / batch_rows(pre)
        else:
            read = pre if self.is_anthropic else pre.relu()
            activations = Jump.apply(read, threshold, self.bandwidth, self.is_anthropic)  # pyright: ignore
            if not self.is_anthropic:
                penalty = share_of_mean(Step.apply(read, threshold, self.bandwidth).sum(1))  # pyright: ignore
        if self.is_anthropic:
            norms = self.decoder_norms(parameters)
            penalty = share_of_mean(self.penalty(activations * norms, moment).sum(1))
        else:
            pre = pre.relu()
        penalty = self.coefficient(moment) * penalty
        below = default(self.config.pre_activation_coefficient, 3e-6 if self.is_anthropic else 0.0)
        if below:
            norms = self.decoder_norms(parameters)
            penalty = penalty + below * share_of_mean(((threshold - pre).relu() * norms).sum(1))
        return activations, penalty

    def penalty(self, written: Tensor, moment: Moment) -> Tensor:
        if self.is_anthropic:
            return (default(self.config.tanh_scale, 4.0) * written).tanh()
        return (written > 0).to(written)

    def finished(self, parameters: Parameters) -> tuple[SAEConfig, dict[str, Tensor]]:
        tensors = {name: value for name, value in parameters.items() if name != "log_threshold"}
        return self.config, {**tensors, "threshold": self.thresholds(parameters)}

    def encode(self, parameters: Parameters, centred: Tensor) -> Selection:
        threshold = parameters["threshold"].clamp(min=0)
        if torch.is_grad_enabled() or self.config.architecture == "clt":
            pre = self.dense_pre_activations(parameters, centred)
            return strongest_entries(torch.where(pre > threshold, pre, 0))
        return padded(latents_above(centred, parameters["W_enc"], parameters["b_enc"], threshold))
