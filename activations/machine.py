"""What this machine has: cores, memory, accelerators, and how fast it multiplies matrices.

Leaves: a `Machine`, which `glassbox doctor` prints. The rates are short measurements (well under a second each), good
to a factor of two: enough to say what will be fast here and what will not be possible.
"""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import Any

MATMUL_SIZE = 1024
MEASURE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine, seen from this process."""

    system: str
    """Operating system and architecture."""
    cores: int
    """CPU cores that this process may use."""
    memory_gb: float | None
    """Main memory, where the system tells."""
    free_memory_gb: float | None
    """Main memory that is free or can be freed, where the system tells."""
    float32_gflops: float
    """Measured matrix products on the CPU in float32."""
    bfloat16_gflops: float
    """Measured matrix products on the CPU in bfloat16."""
    gpus: tuple[str, ...]
    """Names and memory of the CUDA devices."""
    triton: str
    """What Triton kernels do here."""

    def tokens_per_s(self, parameters: float) -> float:
        """Estimates how fast the CPU reads with such a model: 2 FLOPs a parameter, at half the measured rate."""
        return 0.5e9 * max(self.float32_gflops, self.bfloat16_gflops) / (2 * parameters)

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record per fact."""
        return [{"fact": name.replace("_", " "), "value": value} for name, value in asdict(self).items()]

    def to_json(self) -> str:
        """Returns the facts as JSON."""
        return json.dumps(asdict(self))


def machine() -> Machine:
    """Looks at this machine and measures its matrix products for about half a second."""
    import torch

    total, free = _memory_gb()
    gpus = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gpus.append(f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=total,
        free_memory_gb=free,
        float32_gflops=_gflops("float32"),
        bfloat16_gflops=_gflops("bfloat16"),
        gpus=tuple(gpus),
        triton=_triton(bool(gpus)),
    )


def _gflops(dtype: str) -> float:
    import torch

    left = torch.ones(MATMUL_SIZE, MATMUL_SIZE, dtype=getattr(torch, dtype))
    out = torch.empty_like(left)
    torch.mm(left, left, out=out)
    runs, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < MEASURE_S:
        torch.mm(left, left, out=out)
        runs += 1
    return round(2 * MATMUL_SIZE**3 * runs / elapsed / 1e9, 1)


def _memory_gb() -> tuple[float | None, float | None]:
    facts: dict[str, float] = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, value = line.partition(":")
                facts[name] = float(value.split()[0]) / 2**20
    except OSError:
        if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return None, None
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1), None
    return round(facts["MemTotal"], 1), round(facts.get("MemAvailable", facts["MemFree"]), 1)


def _triton(has_gpu: bool) -> str:
    import importlib.util

    if importlib.util.find_spec("triton") is None:
        return "not installed: plain torch kernels are used"
    return "compiled kernels" if has_gpu else "installed; without a GPU the plain torch kernels are used"
