"""Trains one SAE on a stream of rows, exactly resumable.

Enters: a `TrainConfig` and rows (any iterable of Float[n, d_in], any n). Leaves: a run folder with the SAE in the
SAELens layout, `metrics.jsonl`, `config.yaml`, `provenance.json`, and `state/`, from which a killed run goes on.

1. Cut the rows into batches of `batch_rows`; refuse non-finite ones.
2. From the first batch estimate the input scale and `b_dec`; encoder rows start as the unit-norm decoder's.
3. Each step: sparse loss and gradients (`sae.step`), decoder gradients projected off the unit sphere's normal, Adam,
   decoder renormalised, counters of silent latents.
4. Every `checkpoint_every_steps`: one atomic file with weights, moments, counters, the position in the rows and, where
   the rows offer `state()` / `restore()`, their own state. A resumed run ends with the bits of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from activations.progress import progress
from sae.config import SAEConfig, TrainConfig
from sae.formats import write_json, write_tensors
from sae.model import SAE
from sae.step import Parameters, StepResult, sparse_step

STATE_FILE = "state.safetensors"
RUN_FREE_FIELDS = {"out", "device", "checkpoint_every_steps", "log_every_steps"}


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
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the SAE, its last training metrics, and the folder the SAE stands in."""

    sae: SAE
    metrics: TrainMetrics
    path: Path


def train(
    config: TrainConfig,
    rows: Iterable[Float[Tensor, "_ d_in"]],
    resume: bool = False,
    *,
    metadata: dict[str, Any] | None = None,
) -> TrainResult:
    """Trains the SAE of `config` on `rows`.

    `resume=True` goes on from the last checkpoint (rows must be the same from their start: those consumed are skipped,
    or `rows.restore` is called where it exists), starts afresh where nothing is saved, and returns the result of a
    finished run. `metadata` is saved with the SAE; `metadata["site"]` names its site.

    Raises:
        ValueError: rows end early, are non-finite or of another width; the saved run has another config.
        FileExistsError: `config.out` holds a run and `resume` is false.
    """
    run = _Run(config, dict(metadata or {}))
    if run.has_content() and not resume:
        raise FileExistsError(
            f"{config.out} holds a run already, expected an empty folder: pass resume=True (--resume) to go on, "
            "or choose another out"
        )
    finished = run.finished_result() if resume else None
    return finished or run.execute(rows)


class _Run:
    """The files and the loop of one training run."""

    def __init__(self, config: TrainConfig, metadata: dict[str, Any]) -> None:
        self.config = config
        self.metadata = metadata
        self.out = Path(config.out)
        self.state_path = self.out / "state" / STATE_FILE
        self.metrics_path = self.out / "metrics.jsonl"
        self.config_path = self.out / "config.yaml"
        site = str(metadata.get("site") or "rows")
        self.sae_path = self.out / "sae" / site / str(metadata.get("name") or config.sae.architecture)
        self.device = torch.device(_device(config.device))

    def has_content(self) -> bool:
        return self.config_path.exists() or self.state_path.exists() or (self.sae_path / "cfg.json").exists()

    def finished_result(self) -> TrainResult | None:
        """Returns the result of a finished run of this config, or None where there is none."""
        if not (self.sae_path / "cfg.json").exists():
            return None
        sae = SAE.load(self.sae_path)
        self._check_same_config(sae.metadata.get("train_config"), self.sae_path)
        last = json.loads(self.metrics_path.read_text(encoding="utf-8").splitlines()[-1])
        return TrainResult(sae, TrainMetrics(**last), self.sae_path)

    def _check_same_config(self, saved: Any, where: Path) -> None:
        mine = _comparable(self.config)
        if saved is None:
            raise ValueError(f"{where} does not say how it was trained, expected this run's config: choose another out")
        for key, value in mine.items():
            if saved.get(key) != value:
                raise ValueError(
                    f"{where} was trained with {key}={saved.get(key)!r}, this config says {value!r}: "
                    "choose another out, or restore the setting"
                )

    def execute(self, rows: Iterable[Tensor]) -> TrainResult:
        from configs import dump

        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(dump(self.config), encoding="utf-8")
        write_json(self.out / "provenance.json", provenance(self.config.seed, self.metadata))
        batches = _Batches(rows, self.config.batch_rows, self.config.sae.d_in, self.config.total_rows)
        trainer = _Trainer(self.config, self.device)
        if self.state_path.exists():
            self._restore(trainer, batches)
        self._drop_later_metrics(trainer.step)
        metrics = self._loop(trainer, batches)
        sae = trainer.finished_sae()
        sae.metadata.update({**self.metadata, "train_config": _comparable(self.config)})
        sae.save(self.sae_path)
        return TrainResult(sae, metrics, self.sae_path)

    def _loop(self, trainer: _Trainer, batches: _Batches) -> TrainMetrics:
        config, began, first_step = self.config, time.time(), trainer.step
        metrics: TrainMetrics | None = None
        if trainer.step == config.steps:
            metrics = TrainMetrics(**json.loads(self.metrics_path.read_text(encoding="utf-8").splitlines()[-1]))
        with (
            progress("train", config.steps * config.batch_rows, "rows", trainer.step * config.batch_rows) as advance,
            self.metrics_path.open("a", encoding="utf-8") as log,
        ):
            note = ""
            while trainer.step < config.steps:
                trainer.take(next(batches))
                at_checkpoint = trainer.step % config.checkpoint_every_steps == 0 and trainer.step < config.steps
                # a window also closes at each checkpoint and at the end, so that no unfinished sum needs saving
                if trainer.step % config.log_every_steps == 0 or trainer.step == config.steps or at_checkpoint:
                    done = (trainer.step - first_step) * config.batch_rows
                    metrics = trainer.read_metrics(time.time() - began, done)
                    log.write(metrics.to_json() + "\n")
                    log.flush()
                    note = f"EV {metrics.explained_variance:.3f} dead {metrics.dead_frac:.1%}"
                advance(config.batch_rows, note)
                if at_checkpoint:
                    self._save(trainer, batches)
        assert metrics is not None
        return metrics

    def _save(self, trainer: _Trainer, batches: _Batches) -> None:
        tensors = {**trainer.state(), **{f"rows/{name}": value for name, value in batches.state().items()}}
        write_tensors(self.state_path, tensors, {"config": json.dumps(_comparable(self.config))})

    def _restore(self, trainer: _Trainer, batches: _Batches) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.state_path, framework="pt") as stored:
                self._check_same_config(json.loads(stored.metadata()["config"]), self.state_path)
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}
        except SafetensorError as error:
            raise ValueError(f"{self.state_path} is no whole state ({error}): delete it to start afresh") from error
        trainer.restore({name: value for name, value in tensors.items() if not name.startswith("rows/")})
        batches.restore(
            {name.removeprefix("rows/"): value for name, value in tensors.items() if name.startswith("rows/")}
        )

    def _drop_later_metrics(self, step: int) -> None:
        """Keeps the lines up to `step`: what was logged after the checkpoint is trained, and logged, again."""
        if not self.metrics_path.exists():
            return
        kept = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                logged = json.loads(line)["step"]
            except (json.JSONDecodeError, KeyError):
                break  # the line that a kill cut short
            if logged <= step:
                kept.append(line + "\n")
        partial = self.metrics_path.with_name(self.metrics_path.name + ".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, self.metrics_path)


def _comparable(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(config).items() if key not in RUN_FREE_FIELDS}


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def provenance(seed: int, metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns what a reader needs to repeat a run: versions, commit, data and seed."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("glassbox-sae", "transformers", "safetensors", "duckdb"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "versions": versions,
        "commit": _commit(),
        "platform": platform.platform(),
        "seed": seed,
        "metadata": metadata,
    }


def _commit() -> str | None:
    """Returns the commit that this file is tracked at; None where there is no git, or the file is an installed copy."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__)

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=False)

    # an environment may lie inside somebody else's repository, whose commit says nothing about this code
    is_tracked = git("ls-files", "--error-unmatch", here.name).returncode == 0
    return git("rev-parse", "HEAD").stdout.strip() or None if is_tracked else None


class _Batches:
    """Cuts rows of any sizes into batches of one size, checks them, and knows how to go on after a kill."""

    def __init__(self, rows: Iterable[Tensor], batch_rows: int, d_in: int, total_rows: int) -> None:
        self._source = rows
        self._iterator: Iterator[Tensor] | None = None
        self._left: list[Tensor] = []
        self._left_rows = 0
        self._batch_rows, self._d_in, self._total_rows = batch_rows, d_in, total_rows
        self._consumed = 0
        self._skip = 0

    def __next__(self) -> Tensor:
        if self._iterator is None:
            self._iterator = iter(self._source)
        while self._left_rows < self._batch_rows:
            self._add(self._read())
        pool = self._left[0] if len(self._left) == 1 else torch.cat(self._left)
        batch, rest = pool[: self._batch_rows], pool[self._batch_rows :]
        self._left, self._left_rows = ([rest], len(rest)) if len(rest) else ([], 0)
        self._consumed += self._batch_rows
        return batch

    def _read(self) -> Tensor:
        assert self._iterator is not None
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"the rows ended after {self._consumed + self._left_rows}, expected total_rows={self._total_rows}: "
                "give more rows or lower total_rows"
            ) from None

    def _add(self, piece: Tensor) -> None:
        if piece.ndim != 2 or piece.shape[1] != self._d_in:
            raise ValueError(
                f"rows of shape {tuple(piece.shape)} came, expected [n, d_in={self._d_in}]: set sae.d_in to the "
                "activations' width"
            )
        if self._skip:
            dropped = min(self._skip, len(piece))
            self._skip -= dropped
            piece = piece[dropped:]
        if not len(piece):
            return
        finite = torch.isfinite(piece)
        if not finite.all():
            row, column = (int(i) for i in (~finite).nonzero()[0])
            raise ValueError(
                f"row {self._consumed + self._left_rows + row} holds {piece[row, column].item()} in column {column}, "
                "expected finite activations: check the model's precision, or drop such rows"
            )
        self._left.append(piece)
        self._left_rows += len(piece)

    def state(self) -> dict[str, Tensor]:
        left = torch.cat(self._left) if self._left else torch.zeros(0, self._d_in)
        state = {"consumed": torch.tensor(self._consumed), "left": left.cpu()}
        if hasattr(self._source, "state"):
            state |= {f"source/{name}": value for name, value in self._source.state().items()}  # pyright: ignore
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        self._consumed = int(state["consumed"])
        source = {name.removeprefix("source/"): value for name, value in state.items() if name.startswith("source/")}
        if source and hasattr(self._source, "restore"):
            self._source.restore(source)  # pyright: ignore[reportAttributeAccessIssue]
            left = state["left"]
            self._left, self._left_rows = ([left], len(left)) if len(left) else ([], 0)
        else:
            self._skip = self._consumed


class _Trainer:
    """Weights, optimiser and counters; `take` is one step."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.step = 0
        generator = torch.Generator().manual_seed(config.seed)
        sae = config.sae
        directions = torch.nn.functional.normalize(torch.randn(sae.d_sae, sae.d_in, generator=generator), dim=1)
        self.parameters = Parameters(
            W_enc=directions.clone().to(device),
            W_dec=directions.clone().to(device),
            b_enc=torch.zeros(sae.d_sae, device=device),
            b_dec=torch.zeros(sae.d_in, device=device),
        )
        self.optimizer = torch.optim.Adam(
            list(self.parameters), lr=config.lr, betas=(config.beta1, config.beta2), fused=True
        )
        self.scale = torch.ones((), device=device)
        self.silent_rows = torch.zeros(sae.d_sae, dtype=torch.int64, device=device)
        self._clear_window()

    def _clear_window(self) -> None:
        self._window = torch.zeros(4, dtype=torch.float64, device=self.device)
        self._window_steps = 0

    def take(self, batch: Tensor) -> None:
        """Trains on one batch of raw rows."""
        config = self.config
        x = batch.to(self.device, torch.float32)
        if self.step == 0:
            self._calibrate(x)
        x = x * self.scale
        result = sparse_step(
            self.parameters,
            x,
            config.sae.active,
            dead=self.silent_rows >= config.dead_after_rows,
            auxk_k=config.sae.auxk_latents,
            auxk_alpha=config.sae.auxk_alpha,
        )
        self._apply(result)
        self.silent_rows += len(x)
        self.silent_rows[result.fired] = 0
        self._window += torch.stack([result.loss, result.squared_error, result.variance, result.l0]).double()
        self._window_steps += 1
        self.step += 1

    def _calibrate(self, x: Tensor) -> None:
        """Sets the input scale and `b_dec` from the first batch, which is then trained on like any other."""
        if self.config.sae.normalize_activations == "expected_average_only_in":
            norm = x.norm(dim=1).mean()
            if not norm > 0:
                raise ValueError(
                    "the first batch of rows is all zero, expected activations: check the site and the model"
                )
            self.scale = (self.config.sae.d_in**0.5) / norm
        if self.config.sae.decoder_bias_init == "mean":
            self.parameters.b_dec.copy_((x * self.scale).mean(0))

    def _apply(self, result: StepResult) -> None:
        config, gradients = self.config, result.gradients
        W_dec = self.parameters.W_dec
        if config.sae.normalize_decoder:
            along = (gradients.W_dec * W_dec).sum(1, keepdim=True)
            gradients.W_dec.addcmul_(along, W_dec, value=-1)
        if config.clip_norm is not None:
            norm = torch.stack([gradient.pow(2).sum() for gradient in gradients]).sum().sqrt()
            for gradient in gradients:
                gradient.mul_((config.clip_norm / norm).clamp(max=1.0))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.param_groups[0]["lr"] = config.lr * rate(config, self.step)
        self.optimizer.step()
        if config.sae.normalize_decoder:
            W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))

    def read_metrics(self, time_s: float, rows_done: int) -> TrainMetrics:
        """Reads the sums since the last call (the one host synchronisation of the loop) and clears them."""
        config = self.config
        loss, squared_error, variance, l0 = self._window.tolist()
        if loss != loss:
            raise ValueError(
                f"the loss is not finite before step {self.step}, expected a number: lower lr (now {config.lr})"
            )
        scale, rows = float(self.scale), self._window_steps * config.batch_rows
        metrics = TrainMetrics(
            step=self.step,
            rows=self.step * config.batch_rows,
            loss=loss / self._window_steps,
            explained_variance=1 - squared_error / variance if variance else float("nan"),
            mse=squared_error / scale**2 / (rows * config.sae.d_in),
            l0=l0 / self._window_steps,
            dead_frac=float((self.silent_rows >= config.dead_after_rows).double().mean()),
            lr=config.lr * rate(config, self.step - 1),
            time_s=round(time_s, 3),
            rows_per_s=round(rows_done / max(time_s, 1e-9), 1),
        )
        self._clear_window()
        return metrics

    def state(self) -> dict[str, Tensor]:
        tensors = {f"parameter/{name}": value for name, value in self.parameters._asdict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{index}/{name}": value for name, value in entries.items()}
        tensors |= {"step": torch.tensor(self.step), "scale": self.scale, "silent_rows": self.silent_rows}
        return {name: value.detach().cpu() for name, value in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        adam: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam/"):
                _, index, key = name.split("/")
                adam.setdefault(int(index), {})[key] = value
        for name, parameter in self.parameters._asdict().items():
            parameter.copy_(tensors[f"parameter/{name}"])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": adam})
        self.step = int(tensors["step"])
        self.scale = tensors["scale"].to(self.device)
        self.silent_rows = tensors["silent_rows"].to(self.device)

    def finished_sae(self) -> SAE:
        """Returns the SAE with the input scale folded in: it reads and writes raw activations."""
        config: SAEConfig = replace(self.config.sae, normalize_activations="none")
        sae = SAE(config)
        W_enc, W_dec, b_enc, b_dec = (value.cpu() for value in self.parameters)
        scale = self.scale.cpu()
        with torch.no_grad():
            sae.W_enc.copy_(W_enc * scale)
            sae.W_dec.copy_(W_dec / scale)
            sae.b_enc.copy_(b_enc)
            sae.b_dec.copy_(b_dec / scale)
        return sae


def rate(config: TrainConfig, step: int) -> float:
    """Returns the share of the peak learning rate at `step`: linear warm-up, plateau, linear decay to zero."""
    warmup, decay = config.warmup_frac * config.steps, config.decay_frac * config.steps
    up = (step + 1) / warmup if warmup >= 1 else 1.0
    down = (config.steps - step) / decay if decay >= 1 else 1.0
    return min(1.0, up, down)
