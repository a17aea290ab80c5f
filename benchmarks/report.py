"""What every benchmark shares: interleaved timing, and lines of figures with device, versions and commit."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
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
        "triton": version("triton") if find_spec("triton") else None,
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
    }


class Records:
    """Figures of one benchmark, a line each, printed and (with `write`) kept as soon as they are known.

    They go to `benchmarks/results/<name>_cpu.jsonl` (or _gpu), in place of those of the last run.
    """

    def __init__(self, name: str, write: bool) -> None:
        self._shared = {"benchmark": name, **environment()}
        self._path = RESULTS / f"{name}_{'gpu' if torch.cuda.is_available() else 'cpu'}.jsonl" if write else None
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            self._path.write_text("", encoding="utf-8")

    def add(self, kind: str, **figures: Any) -> None:
        """Prints and keeps one line."""
        line = json.dumps({**self._shared, "kind": kind, **figures})
        print(json.dumps({"kind": kind, **figures}), flush=True)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def finish(name: str, figures: dict[str, Any], write: bool) -> None:
    """Prints the figures and, when asked, keeps them as one line."""
    Records(name, write).add("case", **figures)
