"""The kernels compile for GPUs that are not there, in every dtype, for every launch that the operations make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = [
    "_decode_loss",
    "sum_segments",
    "_latent_reduce",
    "_latent_adam",
    "_topk_rows",
    "_digit_counts",
    "_edge_counts",
    "_write_rows",
    "_count_above",
    "_write_above",
    "_forward",
    "_backward",
    "_shrink",
    "_shrink_backward",
    "_gate",
    "_gate_backward",
]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "architecture"), [("768", "90"), ("1", "80")])
def test_every_kernel_compiles(width: str, architecture: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(HERE.parents[2])}
    command = [sys.executable, str(HERE / "compiling.py"), width, architecture]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(KERNELS)
