"""Kernels run compiled where there is a GPU, else interpreted on the CPU; it must be settled before they are imported.

On a GPU every test runs compiled, those of bf16 too: TRITON_INTERPRET=0 pytest -m "gpu or not gpu" tests/sae/kernels
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU
if torch.cuda.is_available() and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "0"


if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def device() -> str:
    """Where the kernels run."""
    return "cuda" if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") == "0" else "cpu"


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, so that an entry that no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
