"""One SAE trained by several processes, which divide the rows of each batch or the latents.

`divide: rows`: every process holds all weights and reads the same rows in the same order. Of each batch it works on its
own part; gradients and figures are summed, and all move their weights alike. The first batch calibrates whole, and
resampling looks at whole batches.

`divide: latents`: every process holds a part of the latents, with their moments, and works on whole batches. Candidates
for the k strongest are merged, partial reconstructions summed. Checkpoints and the finished SAE are put together: their
files are those of one process.

What couples rows or latents is in `sae.shares`. N processes learn what one learns, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from activations.processes import Processes
from sae.architectures import Moment
from sae.config import TrainConfig
from sae.fused import require
from sae.learner import Learner
from sae.model import SAE
from sae.optimizers import Optimizer
from sae.shares import latents_divided, rows_divided
from sae.step import StepResult

BY_LATENT = ("W_enc", "W_dec", "b_enc")
"""Weights of the top-k family that have a row for each latent."""


def learner_of(processes: Processes, config: TrainConfig, *of_learner: Any) -> Learner:
    """Returns the learner of a run: one that divides its work where there are several processes."""
    if not processes.are_several:
        return Learner(config, *of_learner)
    divided = LatentsDivided if config.divide == "latents" else RowsDivided
    return divided(processes, config, *of_learner)


class _Divided(Learner):
    """A learner that is one of several."""

    def __init__(self, processes: Processes, config: TrainConfig, *of_learner: Any) -> None:
        self._processes = processes
        super().__init__(config, *of_learner)
        self._has_compared = False

    def _new_optimizer(self) -> Optimizer:
        # gradients are summed over processes before weights move: no step that moves them on the way
        require(self.config, self.device, "several processes share their gradients")
        return Optimizer(self.config, self.parameters, self.architecture.constrain)

    def take(self, batch: Mapping[str, Tensor]) -> None:
        if not self._has_compared:
            check_same_rows(self._processes, batch, self.device)
            self._has_compared = True
        super().take(batch)


class RowsDivided(_Divided):
    """A learner whose batches are divided between processes."""

    def __init__(self, processes: Processes, config: TrainConfig, *of_learner: Any) -> None:
        super().__init__(processes, config, *of_learner)
        self._unit = 1 if self.objective is None else self.objective.context_tokens
        if config.batch_rows // self._unit < processes.world:
            what = "rows" if self.objective is None else f"sequences of {self._unit} tokens"
            raise ValueError(
                f"batch_rows={config.batch_rows} holds {config.batch_rows // self._unit} {what} for {processes.world} "
                "processes, expected one or more for each: raise batch_rows, or start fewer processes"
            )

    def _pass(self, batch: Mapping[str, Tensor], moment: Moment) -> StepResult:
        rows = self.config.batch_rows
        part = self._processes.share(rows, self._unit)
        # an objective leaves rows out as it finds them: those that are left must be counted
        with rows_divided(self._processes, rows if self.objective is None else None):
            result = super()._pass({site: value[part] for site, value in batch.items()}, moment)
        return self._joined(result)

    def _joined(self, result: StepResult) -> StepResult:
        """Returns the whole batch's result from this process's part of it."""
        gradients = {name: gradient.contiguous() for name, gradient in result.gradients.items()}
        figures = torch.stack([result.loss, result.squared_error, result.l0])
        fired = result.fired.int()
        self._processes.sum(*gradients.values(), figures, fired)
        loss, squared_error, l0 = figures
        return result._replace(gradients=gradients, loss=loss, squared_error=squared_error, l0=l0, fired=fired > 0)


class LatentsDivided(_Divided):
    """A learner whose latents are divided between processes.

    Raises:
        ValueError: the latents have no equal parts.
    """

    def __init__(self, processes: Processes, config: TrainConfig, *of_learner: Any) -> None:
        _check_parts(config, processes.world)
        self._part = processes.share(config.sae.d_sae)
        super().__init__(processes, config, *of_learner)

    def _own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[self._part].clone() if name in BY_LATENT else value for name, value in tensors.items()}

    def _pass(self, batch: Mapping[str, Tensor], moment: Moment) -> StepResult:
        with latents_divided(self._processes, self._part.start):
            return super()._pass(batch, moment)

    def _calibrate(self, x: Tensor, y: Tensor) -> None:
        with latents_divided(self._processes, self._part.start):
            super()._calibrate(x, y)

    def _norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        own, of_all = (
            torch.stack(
                [value.pow(2).sum() for name, value in gradients.items() if (name in BY_LATENT) == is_own]
            ).sum()
            for is_own in (True, False)
        )
        self._processes.sum(own)
        return (own + of_all).sqrt()

    def _dead_frac(self) -> float:
        dead = (self.silent_rows >= self.config.dead_after_rows).sum().double()
        self._processes.sum(dead)
        return float(dead / self.config.sae.d_sae)

    def _is_own(self, name: str, value: Tensor) -> bool:
        """Says whether a tensor of the state has a row for each latent."""
        if name == "silent_rows":
            return True
        kind, _, rest = name.partition("/")
        if kind in ("parameter", "average"):
            return rest in BY_LATENT
        if kind != "optimizer":
            return False
        where, _, key = rest.partition("/")
        if where in ("moved", "mean"):
            return key in BY_LATENT
        # moments are numbered in the order of the parameters
        return where.isdigit() and value.ndim > 0 and list(self.parameters)[int(key.split("/")[0])] in BY_LATENT

    def state(self) -> dict[str, Tensor]:
        """Returns the state of all latents, in the first process; elsewhere only what is not divided."""
        whole: dict[str, Tensor] = {}
        for name, value in super().state().items():
            if not self._is_own(name, value):
                whole[name] = value
            elif (parts := self._processes.collect(value)) is not None:
                whole[name] = torch.cat(parts)
        return whole

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        super().restore({n: value[self._part] if self._is_own(n, value) else value for n, value in tensors.items()})

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        whole = {name: value.cpu() for name, value in tensors.items()}
        for name in BY_LATENT:
            whole[name] = torch.cat(self._processes.gather(whole[name], aside=True))
        return whole

    def finished_sae(self) -> SAE:
        # put together on the CPU: the whole SAE need not fit on one GPU
        self.architecture.to(torch.device("cpu"))
        self.scale_in, self.scale_out = self.scale_in.cpu(), self.scale_out.cpu()
        return super().finished_sae()


def _check_parts(config: TrainConfig, world: int) -> None:
    if config.sae.d_sae % world:
        raise ValueError(
            f"d_sae={config.sae.d_sae} latents do not divide into {world} equal parts, expected a multiple for "
            "divide=latents: change d_sae or the number of processes, or divide rows"
        )


def check_same_rows(processes: Processes, batch: Mapping[str, Tensor], device: torch.device) -> None:
    """ValueError where a process has read another batch than the first one."""
    mark = torch.stack([value.double().sum() for value in batch.values()]).to(device)
    marks = processes.gather(mark)
    for rank, other in enumerate(marks):
        if not torch.equal(other, marks[0]):
            raise ValueError(
                f"process {rank} reads other rows than process 0, expected the same in the same order in all "
                f"{processes.world}: give every process the same rows and the same seed"
            )
