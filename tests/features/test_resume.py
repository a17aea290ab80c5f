"""`glassbox train`, killed and resumed, ends with the same bits: from a store and straight from the model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SETTINGS = [
    "data.total_tokens=40000",
    "data.context_tokens=64",
    "saes.0.d_sae=512",
    "saes.0.k=8",
    "train.batch_rows=256",
    "train.epochs=5",
    "train.checkpoint_every_steps=7",
    "train.log_every_steps=5",
    "harvest.shard_rows=4096",
    "harvest.buffer_rows=8192",
]


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ui.cli", "train", "demo", "--resume", f"out={out}", *SETTINGS, *more]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)


def written(path: Path) -> int:
    """Returns when a file was last written, 0 before it exists."""
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("store", ["true", "false"])
def test_training_killed_at_any_moment_ends_with_the_same_bits(tmp_path: Path, store: str) -> None:
    mode = f"harvest.store={store}"
    assert start(tmp_path / "whole", mode).wait(timeout=600) == 0
    generator = torch.Generator().manual_seed(int(store == "true"))
    begun = tmp_path / "cut" / "config.yaml"
    checkpoint = tmp_path / "cut" / "state" / "resid_post.2" / "topk" / "state" / "state.safetensors"
    kills = 0
    # the first kill falls into loading or harvesting, each later one after a checkpoint of its own process
    for awaited in (begun, checkpoint, checkpoint, checkpoint):
        before = written(awaited)
        process = start(tmp_path / "cut", mode)
        while process.poll() is None and written(awaited) == before:
            time.sleep(0.002)
        time.sleep(0.1 * float(torch.rand((), generator=generator)))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert start(tmp_path / "cut", mode).wait(timeout=600) == 0
    assert kills >= 2, "the run was over before it could be killed twice"
    weights = [
        (tmp_path / name / "sae" / "resid_post.2" / "topk" / "sae_weights.safetensors").read_bytes()
        for name in ("whole", "cut")
    ]
    assert weights[0] == weights[1]
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]
