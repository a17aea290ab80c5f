"""What is chosen is what a stable sort chooses: values, indices and ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.kernels.topk_select import CASES, threshold_select, topk_select


def setting(case: dict[str, Any], device: str) -> Tensor:
    """Returns pre-activations."""
    pre = torch.randn(case["n"], case["d_sae"]) + case.get("shift", 0.0)
    if "spread" in case:
        pre *= 10 ** (torch.rand_like(pre) * case["spread"] - case["spread"] / 2)
    if "ties" in case:
        pre = torch.randint(1, case["ties"] + 1, pre.shape).float()
    return pre.to(device)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_signed", [False, True], ids=["positive", "signed"])
def test_each_rows_largest_are_chosen(name: str, is_signed: bool, device: str) -> None:
    case = CASES[name]
    pre = setting(case, device)
    found = topk_select(pre, case["k"], is_signed=is_signed, backend="triton")
    expected = topk_select(pre, case["k"], is_signed=is_signed, backend="reference")
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("name", CASES)
def test_the_batchs_largest_are_chosen(name: str, device: str) -> None:
    case = CASES[name]
    pre, count = setting(case, device), case["n"] * case["k"]
    found = threshold_select(pre, count, backend="triton")
    expected = threshold_select(pre, count, backend="reference")
    for field in ("starts", "indices", "values"):
        assert torch.equal(getattr(found.codes, field), getattr(expected.codes, field)), field
    assert torch.equal(found.smallest, expected.smallest)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_values_are_those_of_topk(backend: Any, device: str) -> None:
    pre = setting(CASES["odd width"], device)
    chosen = topk_select(pre, 6, backend=backend)
    assert torch.equal(chosen.values.sort(dim=1, descending=True).values, pre.topk(6, dim=1).values.relu())
    assert torch.equal(chosen.values, pre.gather(1, chosen.indices))
    assert bool((chosen.indices.diff(dim=1) > 0).all())
    codes = threshold_select(pre, 30, backend=backend).codes
    assert torch.equal(codes.values.sort(descending=True).values, pre.flatten().topk(30).values)
    assert torch.equal(codes.values, pre[codes.rows(), codes.indices])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_what_is_not_positive_is_never_chosen(backend: Any, device: str) -> None:
    pre = torch.tensor([[-1.0, 0.0, torch.nan, 2.0, -torch.inf], [-1.0, -2.0, 0.0, -0.0, -3.0]], device=device)
    pre[0, 2] = -5.0 if backend == "reference" else torch.nan  # a sort puts NaN first
    chosen = topk_select(pre, 2, backend=backend)
    assert chosen.values.tolist() == [[2, 0], [0, 0]]
    assert chosen.indices.tolist() == [[3, 0], [0, 0]]
    codes, smallest = threshold_select(pre, 3, backend=backend)
    assert codes.starts.tolist() == [0, 1, 1]
    assert codes.values.tolist() == [2, 0, 0]
    assert smallest.item() == 2
    assert threshold_select(pre[1:], 3, backend=backend).smallest.item() == torch.inf


def test_what_does_not_fit_is_refused(device: str) -> None:
    pre = torch.randn(3, 5, device=device)
    with pytest.raises(ValueError, match=r"topk_select got k=6 for 5 values, expected 1 to 5: lower k"):
        topk_select(pre, 6)
    with pytest.raises(ValueError, match=r"threshold_select got k=0 for 15 values, expected 1 to 15: lower k"):
        threshold_select(pre, 0)
    with pytest.raises(ValueError, match=r"topk_select got strides \(1, 5\), expected contiguous memory: call"):
        topk_select(pre.T, 2)
    with pytest.raises(ValueError, match=r"topk_select got torch.float64, expected at most 32 bits: cast it or set"):
        topk_select(pre.double(), 2, backend="triton")
