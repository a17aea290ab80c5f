"""What a reader needs to repeat a run: versions, commit, data and seed."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch


def provenance(seed: int, metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns what a reader needs to repeat a run: versions, commit, data and seed."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("glassbox-sae", "transformers", "safetensors", "duckdb"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    return {
        "versions": versions,
        "commit": _commit(),
        "platform": platform.platform(),
        "seed": seed,
        "metadata": metadata,
    }


def _commit() -> str | None:
    """Returns the commit that this file is tracked at; None where there is no git, or the file is an installed copy."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__)

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=False)

    # an environment may lie inside somebody else's repository, whose commit says nothing about this code
    is_tracked = git("ls-files", "--error-unmatch", here.name).returncode == 0
    return git("rev-parse", "HEAD").stdout.strip() or None if is_tracked else None
