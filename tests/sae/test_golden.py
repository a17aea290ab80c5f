"""The loss curve of a small run is what it was: a refactor that changes the arithmetic is seen.

Re-record with `python tests/sae/test_golden.py`, in a commit of its own that says why.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import planted
import pytest

from sae import SAEConfig, TrainConfig, train

GOLDEN = Path(__file__).with_name("golden.json")


def loss_curve(out: Path) -> list[float]:
    config = TrainConfig(
        sae=SAEConfig(architecture="topk", d_in=32, d_sae=128, k=6, auxk_alpha=1 / 32),
        total_rows=256 * 60,
        batch_rows=256,
        lr=2e-3,
        dead_after_tokens=256 * 5,
        log_every_steps=1,
        out=str(out),
        device="cpu",
    )
    train(config, planted.rows(256 * 60, planted.directions()))
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_curve_is_the_recorded_one(tmp_path: Path) -> None:
    # processors differ in the order of float32 sums; on one machine the curve is equal to the bit
    assert loss_curve(tmp_path) == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(loss_curve(Path(folder))) + "\n")
