"""Trackers are handed what `metrics.jsonl` holds, and none is opened unless it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sae import SAEConfig, TrainConfig, train


class Recorder:
    """A tracker as accelerate has them, which keeps what it is given."""

    requires_logging_directory = True
    made: list[Recorder] = []

    def __init__(self, run_name: str, logging_dir: Path) -> None:
        self.run_name, self.logging_dir = run_name, logging_dir
        self.calls: list[Any] = []
        Recorder.made.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


def config(out: Path, *trackers: str) -> TrainConfig:
    sae = SAEConfig(architecture="topk", d_in=8, d_sae=16, k=2)
    return TrainConfig(
        sae=sae, batch_rows=32, total_rows=32 * 12, log_every_steps=4, device="cpu", out=str(out), trackers=[*trackers]
    )


def test_every_line_of_the_log_reaches_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate.tracking
    import accelerate.utils

    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    monkeypatch.setattr(accelerate.utils, "is_tensorboard_available", lambda: True)
    train(config(tmp_path, "tensorboard"), [torch.randn(32 * 12, 8)])
    (tracker,) = Recorder.made
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert tracker.calls[0] == "start"
    assert tracker.calls[-1] == "finish"
    assert [{"step": step, **values} for step, values in tracker.calls[1:-1]] == lines
    assert tracker.logging_dir == tmp_path
    assert tracker.config["sae.k"] == 2
    assert all(isinstance(value, int | float | str | bool) for value in tracker.config.values())


def test_a_tracker_that_is_unknown_or_absent_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate.utils

    rows = [torch.randn(32 * 12, 8)]
    with pytest.raises(ValueError, match="tracker `tensorbord` is unknown, expected one of tensorboard"):
        train(config(tmp_path / "a", "tensorbord"), rows)
    monkeypatch.setattr(accelerate.utils, "is_wandb_available", lambda: False)
    with pytest.raises(ImportError, match="tracker `wandb` is not installed, expected its package: pip install wandb"):
        train(config(tmp_path / "b", "wandb"), rows)
    assert not (tmp_path / "b" / "metrics.jsonl").exists() or not (tmp_path / "b" / "metrics.jsonl").read_text()
