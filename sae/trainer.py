"""Trains SAEs on a stream of rows, one or many in one pass, exactly resumable.

Enters: `TrainConfig`s and rows (any iterable of Float[n, d_in], any n; or of several sites at once). Leaves: for each
SAE a run folder with the SAE in the SAELens layout, `metrics.jsonl`, `config.yaml`, `provenance.json`, and `state/`,
from which a killed run goes on.

1. Cut the rows into batches of `batch_rows`; refuse non-finite ones (`sae.rows`).
2. Each batch is one step of every SAE (`sae.learner`).
3. Every `checkpoint_every_steps`: one atomic file for each SAE with weights, moments and counters; then one with the
   position in the rows and, where the rows offer `state()` / `restore()`, their own state. A kill between two of these
   files leaves SAEs ahead of the rows: they let the batches pass that they have had. A resumed run ends with the bits
   of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Float
from torch import Tensor

from activations.processes import ALONE, Processes, current
from activations.progress import progress
from sae.config import TrainConfig
from sae.formats import write_json, write_tensors
from sae.learner import Objective, TrainMetrics
from sae.model import SAE
from sae.parallel import learner_of
from sae.provenance import provenance
from sae.rows import Batches, on_device
from sae.trackers import Trackers

STATE_FILE, ROWS_FILE = "state.safetensors", "rows.safetensors"
RUN_FREE_FIELDS = {"out", "device", "divide", "checkpoint_every_steps", "log_every_steps", "trackers"}


@dataclass(frozen=True)
class TrainResult:
    """A finished run: the SAE, its last training metrics, and the folder the SAE stands in."""

    sae: SAE
    metrics: TrainMetrics
    path: Path


@dataclass(frozen=True)
class Training:
    """One SAE among several that train in one pass."""

    config: TrainConfig
    sites: tuple[str, ...]
    """Sites that it reads; several stand side by side in a crosscoder's rows."""
    target_sites: tuple[str, ...] = ()
    """Sites that a transcoder writes."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Saved with the SAE; `site` and `name` say where in the run folder it goes."""
    objective: Objective | None = None
    """Another aim than reconstruction (`sae.end_to_end`)."""


def train(
    config: TrainConfig,
    rows: Iterable[Float[Tensor, "_ ..."] | tuple[Tensor, Tensor]],
    resume: bool = False,
    *,
    metadata: dict[str, Any] | None = None,
) -> TrainResult:
    """Trains the SAE of `config` on `rows`: Float[n, d_in], pairs of what is read and what is written for transcoders,
    Float[n, n_sites, d_in] for crosscoders and cross-layer transcoders.

    `resume=True` goes on from the last checkpoint (rows must be the same from their start: those consumed are skipped,
    or `rows.restore` is called where it exists), starts afresh where nothing is saved, and returns the result of a
    finished run. `metadata` is saved with the SAE; `metadata["site"]` names its site.

    Raises:
        ValueError: rows end early, are non-finite or of another width; the saved run has another config.
        FileExistsError: `config.out` holds a run and `resume` is false.
    """
    targets = ("targets",) if config.sae.predicts_target else ()
    training = Training(config, ("rows",), targets, dict(metadata or {}))
    named = _NamedRows(rows, config)
    return train_together([training], named, Path(config.out) / "state", resume)[0]


def train_together(
    trainings: Sequence[Training], rows: Iterable[Mapping[str, Tensor]], state_dir: str | Path, resume: bool = False
) -> list[TrainResult]:
    """Trains several SAEs in one pass over `rows`, which come by site; each keeps its own run folder and metrics.

    `state_dir` takes the place in the rows. `resume` as in `train`; SAEs that are finished are not trained again.

    Raises:
        ValueError: as in `train`; or the SAEs differ in batch_rows, total_rows or checkpoint_every_steps.
        FileExistsError: a run folder holds a run and `resume` is false.
    """
    if not trainings:
        raise ValueError("train_together got no SAE, expected at least one: name some")
    for name in ("batch_rows", "total_rows", "checkpoint_every_steps"):
        values = sorted({getattr(training.config, name) for training in trainings})
        if len(values) > 1:
            raise ValueError(
                f"SAEs of one pass have {name}={values[0]} and {values[1]}, expected one: train them in two passes"
            )
    processes = current()
    runs = [_Run(training, processes) for training in trainings]
    for run in runs:
        if run.has_content() and not resume:
            raise FileExistsError(
                f"{run.out} holds a run already, expected an empty folder: pass resume=True (--resume) to go on, "
                "or choose another out"
            )
    results = {place: run.finished_result() if resume else None for place, run in enumerate(runs)}
    waiting = [run for place, run in enumerate(runs) if results[place] is None]
    if waiting:
        _Pass(waiting, rows, Path(state_dir)).execute()
    return [results[place] or run.result() for place, run in enumerate(runs)]


class _NamedRows:
    """Rows of one SAE under the names that a pass reads them by."""

    def __init__(self, rows: Iterable[Any], config: TrainConfig) -> None:
        self._rows, self._sae = rows, config.sae
        if hasattr(rows, "state") and hasattr(rows, "restore"):
            self.state, self.restore = rows.state, rows.restore  # pyright: ignore[reportAttributeAccessIssue]
        self.mixing: Mapping[str, Any] = getattr(rows, "mixing", {})

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for piece in self._rows:
            if not self._sae.predicts_target:
                yield {"rows": self._flat(piece, self._sae.d_in)}
                continue
            if not isinstance(piece, tuple | list) or len(piece) != 2:
                raise ValueError(
                    f"architecture `{self._sae.architecture}` got rows that are no pairs, expected (x, y): give what "
                    "it reads and what it is to write"
                )
            x, y = piece
            yield {"rows": self._flat(x, self._sae.d_in), "targets": self._flat(y, self._sae.output_width)}

    def _flat(self, piece: Tensor, width: int) -> Tensor:
        sites = self._sae.n_sites
        if sites == 1:
            return piece
        if piece.ndim != 3 or tuple(piece.shape[1:]) != (sites, width):
            raise ValueError(
                f"rows of shape {tuple(piece.shape)} came, expected [n, n_sites={sites}, {width}]: stack the sites"
            )
        return piece.flatten(1)


class _Pass:
    """One pass over the rows for several runs in lockstep."""

    def __init__(self, runs: Sequence[_Run], rows: Iterable[Mapping[str, Tensor]], state_dir: Path) -> None:
        self.runs = runs
        self.config = runs[0].config
        self.rows_path = state_dir / ROWS_FILE
        widths: dict[str, int | None] = {}
        for run in runs:
            for site, width in run.widths().items():
                if widths.setdefault(site, width) != width:
                    raise ValueError(
                        f"{site} is read with d_in={widths[site]} and d_in={width}, expected one width: correct one"
                    )
        self.batches = Batches(rows, self.config.batch_rows, widths, self.config.total_rows)

    def execute(self) -> None:
        for run in self.runs:
            run.begin(self.batches.mixing)
        self._restore_rows()
        with ExitStack() as stack:
            stack.callback(self.batches.close)
            for run in self.runs:
                stack.enter_context(run.logging())
            self._loop()
        for run in self.runs:
            run.finish()

    def _restore_rows(self) -> None:
        if self.rows_path.exists():
            self.batches.restore(_read_state(self.rows_path)[0])
        behind = [run for run in self.runs if run.learner.step < self._step]
        if behind:
            raise ValueError(
                f"{behind[0].state_path} stands at step {behind[0].learner.step}, expected {self._step} or later as "
                f"{self.rows_path} says: restore it, or delete both to start afresh"
            )

    @property
    def _step(self) -> int:
        return self.batches.consumed // self.config.batch_rows

    def _loop(self) -> None:
        config, began, first = self.config, time.time(), self._step
        mixed = self.batches.mixing.get("mixed_rows")
        title = f"train (rows mixed among {mixed:,})" if mixed else "train"
        with progress(title, config.steps * config.batch_rows, "rows", first * config.batch_rows) as advance:
            while self._step < config.steps:
                batch = on_device(next(self.batches), self.runs[0].learner.device)
                at_checkpoint = self._step % config.checkpoint_every_steps == 0 and self._step < config.steps
                for run in self.runs:
                    if run.learner.step < self._step:
                        run.take(batch, time.time() - began, at_checkpoint)
                advance(config.batch_rows, self._note())
                if at_checkpoint:
                    self._save()

    def _note(self) -> str:
        known = [run.metrics for run in self.runs if run.metrics is not None]
        if not known:
            return ""
        explained = sorted(metrics.explained_variance for metrics in known)
        if len(self.runs) == 1:
            return f"EV {explained[0]:.3f} dead {known[0].dead_frac:.1%}"
        return f"{len(self.runs)} SAEs EV {explained[0]:.3f}…{explained[-1]:.3f}"

    def _save(self) -> None:
        for run in self.runs:
            run.save()
        # last, so that the rows are never ahead of an SAE
        if self.runs[0].processes.is_first:
            self.rows_path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(self.rows_path, self.batches.state())


class _Run:
    """One SAE's files and its learner."""

    def __init__(self, training: Training, processes: Processes = ALONE) -> None:
        self.training, self.config, self.processes = training, training.config, processes
        self.metadata = dict(training.metadata)
        self.out = Path(self.config.out)
        self.state_path = self.out / "state" / STATE_FILE
        self.metrics_path = self.out / "metrics.jsonl"
        self.config_path = self.out / "config.yaml"
        site = str(self.metadata.get("site") or "rows")
        self.sae_path = self.out / "sae" / site / str(self.metadata.get("name") or self.config.sae.architecture)
        self.metrics: TrainMetrics | None = None
        self._result: TrainResult | None = None
        self._log: TextIO | None = None
        self._first_step = 0

    def has_content(self) -> bool:
        return self.config_path.exists() or self.state_path.exists() or (self.sae_path / "cfg.json").exists()

    def widths(self) -> dict[str, int | None]:
        """Returns the width of every site's rows; None where an objective reads them in its own way."""
        sae = self.config.sae
        if self.training.objective is not None:
            return dict.fromkeys(self.training.sites)
        joined = sae.n_sites if len(self.training.sites) == 1 else 1
        widths: dict[str, int | None] = dict.fromkeys(self.training.sites, sae.d_in * joined)
        return widths | dict.fromkeys(self.training.target_sites, sae.output_width * joined)

    def finished_result(self) -> TrainResult | None:
        """Returns the result of a finished run of this config, or None where there is none."""
        if not (self.sae_path / "cfg.json").exists():
            return None
        sae = SAE.load(self.sae_path)
        self._check_same_config(sae.metadata.get("train_config"), self.sae_path)
        return TrainResult(sae, self._last_metrics(), self.sae_path)

    def result(self) -> TrainResult:
        assert self._result is not None
        return self._result

    def _last_metrics(self) -> TrainMetrics:
        return TrainMetrics(**json.loads(self.metrics_path.read_text(encoding="utf-8").splitlines()[-1]))

    def _check_same_config(self, saved: Any, where: Path) -> None:
        mine = comparable(self.config)
        if saved is None:
            raise ValueError(f"{where} does not say how it was trained, expected this run's config: choose another out")
        for key, value in mine.items():
            if saved.get(key) != value:
                raise ValueError(
                    f"{where} was trained with {key}={saved.get(key)!r}, this config says {value!r}: "
                    "choose another out, or restore the setting"
                )

    def begin(self, mixing: Mapping[str, Any]) -> None:
        """Writes what describes the run, and makes the learner stand where its last checkpoint does."""
        self.processes.on_first(lambda: self._describe(mixing))
        training = self.training
        self.learner = learner_of(
            self.processes,
            self.config,
            torch.device(_device(self.config.device)),
            training.sites,
            training.target_sites,
            training.objective,
        )
        if self.state_path.exists():
            tensors, described = _read_state(self.state_path)
            self._check_same_config(json.loads(described["config"]), self.state_path)
            self.learner.restore(tensors)
        self._first_step = self.learner.step
        self.processes.on_first(lambda: self._drop_later_metrics(self.learner.step))
        if self.learner.step == self.config.steps:
            self.metrics = self._last_metrics()

    def _describe(self, mixing: Mapping[str, Any]) -> None:
        from configs import dump

        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(dump(self.config), encoding="utf-8")
        facts = provenance(self.config.seed, self.metadata) | ({"rows": dict(mixing)} if mixing else {})
        write_json(self.out / "provenance.json", facts)

    def logging(self) -> ExitStack:
        """Opens the log and the trackers for the length of the pass, in the first process."""
        stack = ExitStack()
        if not self.processes.is_first:
            return stack
        # a tracker may be missing: nothing is open yet then
        self._trackers = stack.enter_context(Trackers(self.config, self.out, self.sae_path.name))
        self._log = stack.enter_context(self.metrics_path.open("a", encoding="utf-8"))
        return stack

    def take(self, batch: Mapping[str, Tensor], time_s: float, at_checkpoint: bool) -> None:
        """Trains on one batch and logs where a window of steps closes."""
        config, learner = self.config, self.learner
        learner.take(batch)
        # a window also closes at each checkpoint and at the end, so that no unfinished sum needs saving
        if learner.step % config.log_every_steps == 0 or learner.step == config.steps or at_checkpoint:
            done = (learner.step - self._first_step) * config.batch_rows
            self.metrics = learner.read_metrics(time_s, done)
            if self._log is None:
                return
            self._log.write(self.metrics.to_json() + "\n")
            self._log.flush()
            self._trackers.log(self.metrics)

    def save(self) -> None:
        described = {"config": json.dumps(comparable(self.config))}
        tensors = self.learner.state()
        if self.processes.is_first:
            write_tensors(self.state_path, tensors, described)

    def finish(self) -> None:
        """Saves the finished SAE."""
        assert self.metrics is not None
        sae = self.learner.finished_sae()
        described = {"training_architecture": self.config.sae.architecture, "train_config": comparable(self.config)}
        sae.metadata.update({**self.metadata, **described})
        self.processes.on_first(lambda: sae.save(self.sae_path))
        self._result = TrainResult(sae, self.metrics, self.sae_path)

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


def _read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole state ({error}): delete it to start afresh") from error


def comparable(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that decide what is learned: those a resumed run must share."""
    return {key: value for key, value in asdict(config).items() if key not in RUN_FREE_FIELDS}


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
