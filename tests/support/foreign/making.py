"""What a foreign SAE is, and how its files are written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, K, N = 12, 40, 5, 64


@dataclass
class Foreign:
    """A written SAE: where it is, rows to put through it, what its own project makes of them, what must be known."""

    path: Path
    x: Tensor
    expected: Tensor
    architecture: str
    site: str | None = None
    known: dict[str, Any] = field(default_factory=dict)
    """Metadata that must have been understood."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `SAE.load`."""


def rand(*shape: int, scale: float = 0.5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator) * scale


def rows(*shape: int) -> Tensor:
    return rand(*(shape or (N, D)), scale=3.0, seed=7) + 0.5


def top(pre: Tensor, k: int = K) -> Tensor:
    best = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())


def jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return pre.relu() * (pre > threshold)


def json_file(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def tensor_file(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def torch_file(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
