"""Entries above the floor of their latent are chosen as plain torch chooses them, and counted where they do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.kernels.above_select import CASES, above_select, row_counts


def setting(case: dict[str, Any], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Returns pre-activations and floors."""
    torch.manual_seed(0)
    pre, floor = torch.randn(case["n"], case["d_sae"]) + case.get("shift", 0.0), 0.3 * torch.randn(case["d_sae"])
    if case.get("at_floor"):
        pre[2], floor[1] = floor, 0.0
        pre[:, 1] = 0.0
    if case.get("has_nan"):
        pre[1, 3], floor[5] = torch.nan, torch.nan
    return pre.to(device, dtype), floor.to(device, dtype)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_what_exceeds_its_floor_is_chosen_row_by_row(name: str, dtype: torch.dtype, backend: Any, device: str) -> None:
    pre, floor = setting(CASES[name], dtype, device)
    capacity = CASES[name]["capacity"]
    codes, count = above_select(pre, floor, capacity, backend=backend)
    every = [
        (row, latent, float(pre[row, latent]))
        for row in range(len(pre))
        for latent in range(len(floor))
        if float(pre[row, latent]) > float(floor[latent])
    ]
    kept = every[:capacity]
    assert int(count) == len(every)
    assert torch.equal(row_counts(pre, floor, backend=backend).cpu(), (pre > floor).sum(1).cpu())
    assert codes.starts[[0, -1]].tolist() == [0, len(kept)]
    for row in range(len(pre)):
        own = slice(int(codes.starts[row]), int(codes.starts[row + 1]))
        found = list(zip(codes.indices[own].tolist(), codes.values[own].tolist(), strict=True))
        assert found == [(latent, value) for at, latent, value in kept if at == row]
    assert len(codes.values) == len(codes.indices) == capacity
    assert not bool((codes.values[len(kept) :] != 0).any() | (codes.indices[len(kept) :] != 0).any())


def test_what_does_not_fit_is_refused(device: str) -> None:
    pre, floor = torch.randn(3, 5, device=device), torch.zeros(5, device=device)
    with pytest.raises(ValueError, match=r"above_select got capacity=16 for 15 values, expected 1 to 15: lower it"):
        above_select(pre, floor, 16)
    with pytest.raises(
        ValueError, match=r"above_select got pre with strides \(1, 5\), expected contiguous memory: call"
    ):
        above_select(pre.T, floor[:3], 5)
