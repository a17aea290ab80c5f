"""One SAE in training: weights, optimiser and counters; `take` is one step.

1. The first batch sets the input scale, `b_dec`, and whatever else its architecture calibrates.
2. Each step: loss and gradients by the architecture (`sae.architectures`), decoder gradients projected off the unit
   sphere's normal, the optimiser, decoder renormalised, counters of silent latents. On a GPU the top-k family takes
   all of it at once (`sae.fused`).
3. `finished_sae` folds the scale into the weights: the SAE reads and writes raw rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sae import fused
from sae.architectures import Architecture, Moment, architecture_of
from sae.architectures.topk import TopK
from sae.config import TrainConfig
from sae.density import Density
from sae.kernels.dispatch import is_fused
from sae.model import SAE, finished_config, normalized
from sae.optimizers import Optimizer
from sae.step import StepResult
from sae.warm_start import training_tensors


@dataclass(frozen=True)
class TrainMetrics:
    """Figures over the last stretch of training (up to `log_every_steps` steps), in the units of the rows given."""

    step: int
    rows: int
    loss: float
    explained_variance: float
    mse: float
    l0: float
    dead_frac: float
    lr: float
    time_s: float
    rows_per_s: float

    def to_json(self) -> str:
        import json

        return json.dumps(asdict(self))


@runtime_checkable
class Objective(Protocol):
    """Another aim than reconstruction (`sae.end_to_end`): it reads whole batches instead of rows."""

    context_tokens: int
    """Rows of a batch come in sequences of this length."""

    def rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the rows that the SAE sees in this batch, Float[m, d_in], for calibration."""
        ...

    def step(
        self,
        architecture: Architecture,
        parameters: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        moment: Moment,
        scale: Tensor,
    ) -> StepResult:
        """Returns loss and gradients; the batch is raw, `scale` [d_in] is what rows are multiplied by."""
        ...


class Learner:
    """Weights, optimiser and counters of one SAE."""

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        sites: tuple[str, ...] = ("rows",),
        target_sites: tuple[str, ...] = (),
        objective: Objective | None = None,
    ) -> None:
        self.config, self.device, self.objective = config, device, objective
        self.sites, self.target_sites = sites, target_sites
        self.step = 0
        self.architecture = architecture_of(config.sae)
        self.architecture.to(device)
        initial = self._own(self.architecture.initial(torch.Generator().manual_seed(_stream_seed(config.seed))))
        self.parameters = {name: value.to(device) for name, value in initial.items()}
        sae = config.sae
        self.scale_in = torch.ones(sae.d_in * sae.n_sites, device=device)
        self.scale_out = torch.ones(sae.output_width * sae.n_sites, device=device)
        self.silent_rows = torch.zeros(len(self.parameters["W_dec"]), dtype=torch.int64, device=device)
        self._window = torch.zeros(4, dtype=torch.float64, device=device)
        self._window_steps = 0
        self.optimizer = self._new_optimizer()
        has_kernels = is_fused(self.scale_in[None], self.scale_out[None])
        self._room = fused.DeadRoom(config) if has_kernels else None
        self._density = Density() if has_kernels and self.architecture.is_penalised else None
        self.average = {n: v.clone() for n, v in self.parameters.items()} if config.ema_decay is not None else None
        self._resample_steps = {round(point * config.steps) for point in config.resample_fracs}

    def _new_optimizer(self) -> Optimizer | fused.FusedTraining:
        trouble = fused.trouble(self.config, self.device, self.objective is not None)
        fused.require(self.config, self.device, trouble)
        if trouble:
            return Optimizer(self.config, self.parameters, self.architecture.constrain)
        assert isinstance(self.architecture, TopK)
        return fused.FusedTraining(self.config, self.architecture, self.parameters, self.silent_rows, self._count)

    def _own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what this process trains of the weights: all."""
        return tensors

    def _whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns all weights of what this process trains a part of: the same."""
        return dict(tensors)

    def take(self, batch: Mapping[str, Tensor]) -> None:
        """Trains on one batch of raw rows by site."""
        if self.step == 0:
            self._calibrate(*self._read(batch))
        if self.objective is None and self.step in self._resample_steps:
            self._resample(*self._scaled(batch))
        moment = self._moment()
        if isinstance(self.optimizer, fused.FusedTraining):
            lr = self.config.peak_lr * rate(self.config, self.step)
            result = self.optimizer.take(*self._scaled(batch), moment, lr)
        else:
            result = self._pass(batch, moment)
            self._apply(self.optimizer, result, moment)
            self._count(result)
        self._follow()
        self.architecture.observe(result, moment)
        self._window_steps += 1
        self.step += 1

    def _count(self, result: StepResult) -> None:
        """Adds a step to the counters, in place."""
        self.silent_rows.copy_(torch.where(result.fired, 0, self.silent_rows + self.config.batch_rows))
        self._window += torch.stack([result.loss, result.squared_error, result.variance, result.l0]).double()

    def _moment(self) -> Moment:
        config = self.config
        room = None if self._room is None else self._room.at(self.step, self.silent_rows)
        dead = self.silent_rows >= config.auxk_after_rows
        return Moment(self.step, config.steps, dead, room, self._density)

    def _pass(self, batch: Mapping[str, Tensor], moment: Moment) -> StepResult:
        """Returns loss and gradients of a batch."""
        if self.objective is not None:
            return self.objective.step(self.architecture, self.parameters, batch, moment, self.scale_in)
        x, y = self._scaled(batch)
        return self.architecture.step(self.parameters, x, y, moment)

    def _scaled(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns what is read and what is to be written, in training's units."""
        x, y = self._read(batch)
        x = x * self.scale_in
        return x, y * self.scale_out if self.config.sae.predicts_target else x

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if self.objective is not None:
            rows = self.objective.rows(batch).to(self.device, torch.float32)
            return rows, rows
        x = self._side_by_side(batch, self.sites)
        if self.config.sae.predicts_target:
            return x, self._side_by_side(batch, self.target_sites)
        x = normalized(x, self.config.sae)[0]
        return x, x

    def _side_by_side(self, batch: Mapping[str, Tensor], sites: tuple[str, ...]) -> Tensor:
        parts = [batch[site].to(self.device, torch.float32) for site in sites]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _calibrate(self, x: Tensor, y: Tensor) -> None:
        """Sets scales and first biases from the first batch, which is then trained on like any other."""
        sae = self.config.sae
        if sae.normalize_activations == "expected_average_only_in":
            self.scale_in = _scale(x, sae.n_sites)
            self.scale_out = _scale(y, sae.n_sites)
        if self.config.init_from is None:
            self.architecture.calibrate(self.parameters, x * self.scale_in, y * self.scale_out)
        else:
            source = SAE.load(self.config.init_from, device=self.device)
            given = training_tensors(source, self.architecture, self.scale_in, self.scale_out)
            for name, value in self._own(given).items():
                self.parameters[name].copy_(value)
            self.architecture.constrain(self.parameters)
            if sae.l0_goal is not None:
                level = self.architecture.level(self.parameters, x * self.scale_in)
                self.architecture.start_penalty(self.parameters, level)
        self.optimizer.restart()

    def _apply(self, optimizer: Optimizer, result: StepResult, moment: Moment) -> None:
        config, gradients = self.config, result.gradients
        self.architecture.project(self.parameters, gradients, moment)
        if config.clip_norm is not None:
            norm = self._norm(gradients)
            for gradient in gradients.values():
                gradient.mul_((config.clip_norm / norm).clamp(max=1.0))
        optimizer.step(gradients, config.peak_lr * rate(config, self.step))

    @torch.no_grad()
    def _follow(self) -> None:
        """Moves the average of the weights towards them."""
        if self.average is not None and self.config.ema_decay is not None:
            # a plain mean at first, so that the random start is forgotten
            keep = min(self.config.ema_decay, self.step / (self.step + 1))
            for name, mean in self.average.items():
                mean.lerp_(self.parameters[name], 1 - keep)

    def _norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Returns the norm of the whole gradient."""
        return torch.stack([gradient.pow(2).sum() for gradient in gradients.values()]).sum().sqrt()

    def _dead_frac(self) -> float:
        return float((self.silent_rows >= self.config.dead_after_rows).double().mean())

    @torch.no_grad()
    def _resample(self, x: Tensor, y: Tensor) -> None:
        """Lets dead latents start anew on badly explained rows, drawn by their squared loss (Bricken et al. 2023)."""
        dead = (self.silent_rows >= self.config.dead_after_rows).nonzero().squeeze(1)
        if not len(dead):
            return
        moment = self._moment()
        error = y - self.architecture.forward(self.parameters, x, moment).x_hat
        loss = error.pow(2).sum(1).double().cpu()
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        chosen = torch.multinomial(loss.pow(2) + 1e-30, len(dead), replacement=len(dead) > len(x), generator=generator)
        chosen = chosen.to(self.device)
        self.parameters["W_dec"][dead] = torch.nn.functional.normalize(error[chosen], dim=1)
        if "W_enc" in self.parameters:
            W_enc = self.parameters["W_enc"]
            alive = torch.ones(len(W_enc), dtype=torch.bool, device=self.device)
            alive[dead] = False
            length = W_enc[alive].norm(dim=1).mean() if bool(alive.any()) else 1.0
            length = self.architecture.resampled_length * length
            read = error if W_enc.shape[1] == error.shape[1] and not self.config.sae.predicts_target else x
            if W_enc.shape[1] == read.shape[1]:
                W_enc[dead] = torch.nn.functional.normalize(read[chosen], dim=1) * length
        for name in ("b_enc", "b_gate", "b_mag", "r_mag"):
            if name in self.parameters:
                self.parameters[name][dead] = 0
        self.architecture.constrain(self.parameters)
        self.optimizer.forget(dead)
        self.silent_rows[dead] = 0

    def read_metrics(self, time_s: float, rows_done: int) -> TrainMetrics:
        """Reads the sums since the last call (the one host synchronisation of the loop) and clears them."""
        config = self.config
        loss, squared_error, variance, l0 = self._window.tolist()
        if loss != loss:
            raise ValueError(
                f"the loss is not finite before step {self.step}, expected a number: lower lr (now {config.peak_lr})"
            )
        rows = self._window_steps * config.batch_rows
        columns = len(self.scale_out)
        metrics = TrainMetrics(
            step=self.step,
            rows=self.step * config.batch_rows,
            loss=loss / self._window_steps,
            explained_variance=1 - squared_error / variance if variance else float("nan"),
            mse=squared_error / float(self.scale_out.pow(2).mean()) / (rows * columns),
            l0=l0 / self._window_steps,
            dead_frac=self._dead_frac(),
            lr=config.peak_lr * rate(config, self.step - 1),
            time_s=round(time_s, 3),
            rows_per_s=round(rows_done / max(time_s, 1e-9), 1),
        )
        self._window.zero_()
        self._window_steps = 0
        return metrics

    def state(self) -> dict[str, Tensor]:
        """Returns everything that the next step depends on."""
        tensors = {f"parameter/{name}": value for name, value in self.parameters.items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        tensors |= {f"architecture/{name}": value for name, value in self.architecture.buffers.items()}
        tensors |= {f"average/{name}": value for name, value in (self.average or {}).items()}
        tensors |= {"scale_in": self.scale_in, "scale_out": self.scale_out, "silent_rows": self.silent_rows}
        tensors |= {} if self._room is None else {"room": self._room.state()}
        tensors |= {} if self._density is None else {"density": self._density.state()}
        return {name: value.detach().cpu() for name, value in tensors.items()} | {"step": torch.tensor(self.step)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a saved state."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}

        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
        self.optimizer.restore(part("optimizer/"))
        for name, value in part("architecture/").items():
            self.architecture.buffers[name] = value.to(self.device)
        for name, value in part("average/").items():
            assert self.average is not None
            self.average[name].copy_(value)
        self.step = int(tensors["step"])
        self.scale_in, self.scale_out = tensors["scale_in"].to(self.device), tensors["scale_out"].to(self.device)
        self.silent_rows.copy_(tensors["silent_rows"])
        if self._room is not None and "room" in tensors:
            self._room.restore(tensors["room"])
        if self._density is not None and "density" in tensors:
            self._density.restore(tensors["density"])

    @torch.no_grad()
    def finished_sae(self) -> SAE:
        """Returns the SAE with scales folded in: it reads and writes raw activations."""
        kept = self.optimizer.kept() if self.average is None else self.average
        if self.average is not None:
            self.architecture.constrain(self.average)
        config, tensors = self.architecture.finished(self._whole(kept))
        config, tensors = self.architecture.fold(config, tensors, self.scale_in, self.scale_out)
        return SAE.from_tensors(finished_config(config), {name: value.cpu() for name, value in tensors.items()})


def _stream_seed(seed: int) -> int:
    """Returns the seed of the first weights: data that somebody drew by `seed` itself must not resemble them."""
    digest = hashlib.blake2b(f"first weights {seed}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _scale(rows: Tensor, n_sites: int) -> Tensor:
    """Returns, for every column, √d over the mean norm of its site's rows."""
    by_site = rows.view(len(rows), n_sites, -1)
    norms = by_site.norm(dim=2).mean(0)
    if not bool((norms > 0).all()):
        raise ValueError("the first batch of rows is all zero, expected activations: check the site and the model")
    return (by_site.shape[2] ** 0.5 / norms).repeat_interleave(by_site.shape[2])


def rate(config: TrainConfig, step: int) -> float:
    """Returns the share of the peak learning rate at `step`: linear warm-up, plateau, decay to zero."""
    warmup, decay = config.warmup_frac * config.steps, config.decay_frac * config.steps
    up = (step + 1) / warmup if warmup >= 1 else 1.0
    if config.schedule_free or config.lr_schedule == "constant":
        return min(1.0, up)
    down = min(1.0, (config.steps - step) / decay) if decay >= 1 else 1.0
    if config.lr_schedule == "cosine":
        down = 0.5 - 0.5 * math.cos(math.pi * down)
    return min(1.0, up, down)
