"""What every benchmark shares: interleaved timing, and a record of device, versions and commit beside the figures."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Times each candidate `repeats` times in turn, so that a change in the machine's speed meets all; seconds."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name, run in candidates.items():
            synchronize()
            began = time.perf_counter()
            run()
            synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - began)
    return times


def synchronize() -> None:
    """Waits for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(times: list[float]) -> dict[str, float]:
    """Returns median, minimum and maximum in milliseconds."""
    return {
        "median_ms": round(1e3 * statistics.median(times), 3),
        "min_ms": round(1e3 * min(times), 3),
        "max_ms": round(1e3 * max(times), 3),
    }


def environment() -> dict[str, Any]:
    """Returns device, versions and commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


def finish(name: str, figures: dict[str, Any], write: bool) -> None:
    """Prints the figures as JSON and, when asked, keeps them under `benchmarks/results/`."""
    record = {"benchmark": name, **environment(), **figures}
    text = json.dumps(record, indent=2)
    print(text)
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}_{'gpu' if torch.cuda.is_available() else 'cpu'}.json").write_text(text + "\n")
