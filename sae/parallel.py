"""One SAE trained by several processes: each takes its share of every batch's rows.

Every process holds all weights and reads the same rows in the same order. Of each batch it works on its own part;
gradients and figures are summed, and all move their weights alike. What couples the rows of a batch is computed over
all parts (`sae.shares`), the first batch calibrates and lost latents start anew from whole batches: N processes learn
what one learns, to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from activations.processes import Processes
from sae.architectures import Moment
from sae.config import TrainConfig
from sae.learner import Learner
from sae.shares import shared
from sae.step import StepResult


def learner_of(processes: Processes, config: TrainConfig, *of_learner: Any) -> Learner:
    """Returns the learner of a run: one that divides its work where there are several processes."""
    return RowsDivided(processes, config, *of_learner) if processes.are_several else Learner(config, *of_learner)


class RowsDivided(Learner):
    """A learner whose batches are divided between processes."""

    def __init__(self, processes: Processes, config: TrainConfig, *of_learner: Any) -> None:
        super().__init__(config, *of_learner)
        self._processes = processes
        self._unit = 1 if self.objective is None else self.objective.context_tokens
        if config.batch_rows // self._unit < processes.world:
            what = "rows" if self.objective is None else f"sequences of {self._unit} tokens"
            raise ValueError(
                f"batch_rows={config.batch_rows} holds {config.batch_rows // self._unit} {what} for {processes.world} "
                "processes, expected one or more for each: raise batch_rows, or start fewer processes"
            )
        self._has_compared = False

    def _pass(self, batch: Mapping[str, Tensor], moment: Moment) -> StepResult:
        self._compare(batch)
        rows = self.config.batch_rows
        part = self._processes.share(rows, self._unit)
        # an objective leaves rows out as it finds them: those that are left must be counted
        with shared(self._processes, rows if self.objective is None else None):
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

    def _compare(self, batch: Mapping[str, Tensor]) -> None:
        """Makes sure, once, that all processes read the same rows."""
        if self._has_compared:
            return
        self._has_compared = True
        check_same_rows(self._processes, batch, self.device)


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
