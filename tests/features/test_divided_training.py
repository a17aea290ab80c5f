"""`glassbox train` in two processes: from a store, straight from the model and through it; many SAEs in one pass."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SAES = """[
    {sites: [resid_post.2, resid_post.4], d_sae: 128, k: 8},
    {sites: [resid_post.2], name: jump, architecture: jumprelu, d_sae: 128},
    {sites: [resid_post.2, resid_post.4], architecture: crosscoder, activation: batchtopk, d_sae: 128, k: 8,
     divide: latents},
    {sites: [resid_post.2], name: through, objective: kl, reconstruction_weight: 1.0, d_sae: 128, k: 8},
]"""
SETTINGS = [
    "model.device=cpu",
    "model.dtype=float32",  # through a model in bf16, rounding grows to percents within thirty steps
    "data.total_tokens=16000",
    "data.context_tokens=64",
    "data.exclude_outlier_norms=1.5",
    "train.device=cpu",
    "train.batch_rows=512",
    "train.epochs=1",
    "train.checkpoint_every_steps=7",
    "harvest.dtype=float32",
    "harvest.shard_rows=4096",
    "harvest.buffer_rows=8192",
    f"saes={SAES}",
]


@pytest.mark.slow
@pytest.mark.parametrize("store", ["true", "false"])
def test_two_processes_train_every_kind_as_one_does(tmp_path: Path, store: str) -> None:
    for name, more in (("one", []), ("two", ["--processes", "2"])):
        command = [sys.executable, "-m", "ui.cli", "train", "demo", f"out={tmp_path / name}", *SETTINGS, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [*command, f"harvest.store={store}"],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("SAE: ") == 5
    finished = sorted((tmp_path / "one" / "sae").rglob("sae_weights.safetensors"))
    assert len(finished) == 5
    for path in finished:
        expected, got = load_file(path), load_file(tmp_path / "two" / path.relative_to(tmp_path / "one"))
        for tensor, value in expected.items():
            # the model's passes over half a batch round otherwise too
            difference = (got[tensor] - value).norm() / value.norm().clamp(min=1e-6)
            assert difference < 1e-3, f"{path.parent.name} {tensor} differs by {difference:.1e}"
