"""What `glassbox doctor` tells: Python and packages, where the import names come from, the machine, material at hand.

Nothing is changed and no network is used; what cannot be found is said, not raised.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

HOME = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = [
    "glassbox-sae",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "triton",
    "duckdb",
    "pyarrow",
    "numpy",
    "safetensors",
    "jaxtyping",
    "pydantic",
    "pyyaml",
    "gradio",
    "plotly",
    "matplotlib",
    "typer",
    "rich",
]
SIZES = {"5 M parameters": 5e6, "100 M": 1e8, "1 B": 1e9}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing found, and whether it is as it should be."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""
    """What to do about it, where something is missing."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything the doctor looked at, by topic."""

    topics: dict[str, list[Fact]] = field(default_factory=dict)
    shadowed: bool = False
    """True when an import name leads to somebody else's code."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record per fact."""
        return [
            {"topic": topic, "name": fact.name, "value": fact.value, "ok": fact.ok, "advice": fact.advice}
            for topic, facts in self.topics.items()
            for fact in facts
        ]

    def to_json(self) -> str:
        """Returns the facts as JSON."""
        return json.dumps({"shadowed": self.shadowed, "facts": self.rows()}, indent=2)


def diagnose() -> Diagnosis:
    """Looks at everything; takes a few seconds, most of them for loading torch."""
    imports = _imports()
    topics = {"Imports": imports, "Packages": _packages()}
    shadowed = not all(fact.ok for fact in imports)
    if not shadowed:
        topics["Machine"] = _machine()
        topics["Material"] = _material()
    return Diagnosis(topics=topics, shadowed=shadowed)


def _imports() -> list[Fact]:
    facts = []
    for name, origin in _import_guard().origins().items():
        expected = HOME / name / "__init__.py"
        ok = origin is not None and Path(origin).resolve() == expected
        advice = "" if ok else f"shadows {expected}: rename it, or run from a folder without it"
        facts.append(Fact(name=name, value=origin or "not found", ok=ok, advice=advice))
    return facts


def _import_guard() -> ModuleType:
    """Loads the guard by its path, since `configs` itself may be the one that is shadowed."""
    spec = importlib.util.spec_from_file_location("glassbox_import_guard", HOME / "configs" / "import_guard.py")
    if spec is None or spec.loader is None:
        raise ImportError(
            f"no import guard in {HOME / 'configs'}, expected import_guard.py: install glassbox-sae again"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _packages() -> list[Fact]:
    facts = [Fact(name="python", value=f"{platform.python_version()} ({sys.executable})")]
    for name in DISTRIBUTIONS:
        try:
            facts.append(Fact(name=name, value=importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            if name == "triton" and sys.platform != "linux":
                continue
            facts.append(Fact(name=name, value="not installed", ok=False, advice="run `make setup`"))
    return facts


def _machine() -> list[Fact]:
    from activations.machine import machine

    found = machine()
    memory = "unknown" if found.memory_gb is None else f"{found.memory_gb:.1f} GB"
    if found.free_memory_gb is not None:
        memory += f", {found.free_memory_gb:.1f} GB free"
    rates = f"float32 {found.float32_gflops:,.0f}, bfloat16 {found.bfloat16_gflops:,.0f} GFLOP/s"
    faster = found.bfloat16_gflops > found.float32_gflops
    speeds = ", ".join(f"{found.tokens_per_s(size):,.0f} at {name}" for name, size in SIZES.items())
    facts = [
        Fact(name="system", value=found.system),
        Fact(name="cores", value=str(found.cores)),
        Fact(name="memory", value=memory),
        Fact(name="matrix products", value=rates, advice="" if faster else "keep dtype float32 here"),
        Fact(name="gpu", value="; ".join(found.gpus) or "none"),
        Fact(name="triton kernels", value=found.triton),
    ]
    if not found.gpus:
        advice = "estimates; models beyond some 100 M parameters want a GPU"
        facts.append(Fact(name="tokens/s", value=speeds, advice=advice))
    return facts


def _material() -> list[Fact]:
    embedded = HOME / "activations" / "embedded" / "model.safetensors"
    facts = [
        Fact(name="embedded model", value=f"{embedded.parent} ({embedded.stat().st_size / 1e6:.0f} MB)")
        if embedded.is_file()
        else Fact(
            name="embedded model",
            value="missing",
            ok=False,
            advice="install the package again, or train it: `glassbox pretrain embedded_lm`",
        )
    ]
    real = os.environ.get("GLASSBOX_REAL")
    if not real:
        facts.append(Fact(name="real material", value="none", advice="optional, for tests: set GLASSBOX_REAL"))
    elif Path(real).is_dir():
        facts.append(Fact(name="real material", value=real))
    else:
        facts.append(Fact(name="real material", value=f"{real} is no folder", ok=False, advice="mend GLASSBOX_REAL"))
    chromium = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    advice = "" if chromium else "optional, for the browser's tests"
    facts.append(Fact(name="chromium", value=chromium or "none", advice=advice))
    offline = os.environ.get("HF_HUB_OFFLINE", "")
    facts.append(Fact(name="HF_HUB_OFFLINE", value=offline or "not set"))
    return facts
