"""`glassbox train`, killed and resumed, ends with the same bits: from a store and straight from the model, one SAE or
many in one pass."""

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
    "train.batch_rows=256",
    "train.epochs=5",
    "train.checkpoint_every_steps=7",
    "train.log_every_steps=5",
    "harvest.shard_rows=4096",
    "harvest.buffer_rows=8192",
]
ONE = ["saes=[{sites: [resid_post.2], name: one, d_sae: 512, k: 8}]"]
# four kinds at three sites in one pass, with rows of outlying norm left out, and one more that trains through the model
SEVERAL_SAES = """[
    {sites: [resid_post.2, resid_post.4], d_sae: 128, k: 8},
    {sites: [resid_post.2], architecture: jumprelu, d_sae: 128},
    {sites: [mlp_in.1], architecture: transcoder, d_sae: 128, k: 8},
    {sites: [resid_post.2, resid_post.4], architecture: crosscoder, activation: batchtopk, d_sae: 128, k: 8},
    {sites: [resid_post.2], name: through, objective: kl, d_sae: 128, k: 8},
]"""
SEVERAL = [f"saes={SEVERAL_SAES}", "data.exclude_outlier_norms=1.5", "train.epochs=1", "data.total_tokens=16000"]


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ui.cli", "train", "demo", "--resume", f"out={out}", *SETTINGS, *more]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)


def last_written(folder: Path) -> int:
    """Returns when a pass over the rows was last checkpointed, 0 before the first time."""
    return max((path.stat().st_mtime_ns for path in folder.glob("state/pass_*/rows.safetensors")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["true", "false"])
@pytest.mark.parametrize("saes", [ONE, SEVERAL], ids=["one", "several"])
def test_training_killed_at_any_moment_ends_with_the_same_bits(tmp_path: Path, store: str, saes: list[str]) -> None:
    options = [f"harvest.store={store}", *saes]
    assert start(tmp_path / "whole", *options).wait(timeout=600) == 0
    generator = torch.Generator().manual_seed(int(store == "true"))
    cut = tmp_path / "cut"
    kills = 0
    # the first kill falls into loading or harvesting, each later one after a checkpoint of its own process
    for awaits_checkpoint in (False, True, True, True):
        before = last_written(cut)
        process = start(cut, *options)
        while process.poll() is None:
            if last_written(cut) > before if awaits_checkpoint else (cut / "config.yaml").exists():
                break
            time.sleep(0.002)
        time.sleep(0.1 * float(torch.rand((), generator=generator)))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert start(cut, *options).wait(timeout=600) == 0
    assert kills >= 2, "the run was over before it could be killed twice"
    finished = sorted((tmp_path / "whole" / "sae").rglob("sae_weights.safetensors"))
    assert len(finished) == (1 if saes is ONE else 6)
    for path in finished:
        assert (cut / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path
    metrics = [(folder / "metrics.jsonl").read_text().count("\n") for folder in (tmp_path / "whole", cut)]
    assert metrics[0] == metrics[1]
