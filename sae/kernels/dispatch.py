"""Which implementation an operation runs with, and the checks at its door."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]
"""`auto` takes the kernels for tensors on a GPU where Triton is installed, else the reference."""

MAX_WIDTH = 1 << 14
"""Columns of a dense row that one program holds in registers."""


_chosen: list[Backend] = []


@contextmanager
def default_backend(backend: Backend) -> Iterator[None]:
    """Makes `auto` mean `backend` for a while: tests drive whole training steps through the kernels, interpreted."""
    _chosen.append(backend)
    try:
        yield
    finally:
        _chosen.pop()


def uses_triton(backend: Backend, tensor: Tensor) -> bool:
    """Says whether the kernels run; raises `ValueError` where they are asked for and cannot."""
    if backend == "auto" and _chosen:
        backend = _chosen[-1]
    if backend == "reference":
        return False
    interpreted = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
    if backend == "auto":
        return tensor.is_cuda and not interpreted and _has_triton()
    if not (tensor.is_cuda or interpreted):
        raise ValueError(
            f"a kernel was asked for on {tensor.device}, expected a CUDA device or TRITON_INTERPRET=1: "
            "move the tensors or set backend='reference'"
        )
    return True


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def is_fused(x: Tensor, y: Tensor) -> bool:
    """Says whether a training step on rows `x` that writes `y` is made of the kernels: not in float64, not for rows
    wider than a program holds, and not where they fail their trial; `sae.sparse` takes those.
    """
    if x.dtype == torch.float64 or max(x.shape[1], y.shape[1]) > MAX_WIDTH:
        return False
    if _chosen:
        return True
    if not uses_triton("auto", x):
        return False
    from sae.kernels.trial import kernels_hold

    return kernels_hold(str(x.device))


def check_shapes(op: str, expected: dict[str, tuple[Tensor, Sequence[int]]]) -> None:
    """Raises `ValueError` for a tensor whose shape, layout or device is not that of the others."""
    device = next(iter(expected.values()))[0].device
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{op} got {name} of shape {tuple(tensor.shape)}, expected {tuple(shape)}: pass tensors of one batch"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"{op} got {name} with strides {tensor.stride()}, expected contiguous memory: call .contiguous()"
            )
        if tensor.device != device:
            raise ValueError(f"{op} got {name} on {tensor.device}, expected {device}: move it there")


def check_width(op: str, width: int) -> None:
    """Raises `ValueError` for rows that do not fit one program."""
    if not 0 < width <= MAX_WIDTH:
        raise ValueError(f"{op} got rows of {width} columns, expected 1 to {MAX_WIDTH}: set backend='reference'")


def rows_of(starts: Int[Tensor, " rows_and_1"], capacity: int) -> Int[Tensor, " capacity"]:
    """Returns the row of every code; places beyond the last code get the number of rows. Waits for nothing."""
    places = torch.arange(capacity, device=starts.device)
    return torch.searchsorted(starts, places, right=True) - 1
