"""Decoding with its loss and gradients equals the plain computation and automatic differentiation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.kernels.cases import random_codes
from sae.kernels.decode_loss import CASES, DecodeLoss, decode_loss
from sae.sparse import RaggedCodes


def setting(case: dict[str, Any], dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    """Returns the arguments of `decode_loss`."""
    case = dict(case)
    n, d, groups = case.pop("n"), case.pop("d"), case.pop("groups", 1)
    case.pop("has_silent", None)
    codes = random_codes(n * groups, dtype=dtype, device=device, **case)
    W_dec, b_dec, target = torch.randn(case["d_sae"], d), torch.randn(d), torch.randn(n, d)
    weights = torch.rand(groups) + 0.1 if groups > 1 else None
    dense = (W_dec, b_dec, target, torch.tensor(-0.37), weights)
    return codes, *(None if tensor is None else tensor.to(device, dtype) for tensor in dense)


def by_autograd(
    codes: RaggedCodes, W_dec: Any, b_dec: Any, target: Any, scale: Any, weights: Tensor | None, has_silent: bool
) -> tuple[Tensor, Tensor]:
    """Returns the loss −scale/2 · Σ w ‖e‖² and its gradient with respect to the values, all by dense products."""
    n, groups = len(target), 1 if weights is None else len(weights)
    count = int(codes.starts[-1])
    values = codes.values[:count].detach().clone().requires_grad_()
    live = RaggedCodes(codes.starts, codes.indices[:count], values)
    dense = values.new_zeros(n * groups, len(W_dec)).index_put((live.rows(), live.indices), values, accumulate=True)
    errors = (target - b_dec)[:, None] - (dense @ W_dec).view(n, groups, -1).cumsum(1)
    shares = torch.ones(1).to(W_dec) if weights is None else weights
    loss = -scale / 2 * (shares * errors.pow(2).sum((0, 2))).sum()
    (gradient,) = torch.autograd.grad(loss, values)
    return loss.detach(), torch.where((codes.values[:count] > 0) | has_silent, gradient, 0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_kernel_equals_the_reference(name: str, dtype: torch.dtype, device: str) -> None:
    arguments = setting(CASES[name], dtype, device)
    how = {kind: CASES[name].get(kind, False) for kind in ("is_signed", "has_silent")}
    found = decode_loss(*arguments, **how, backend="triton")
    expected = decode_loss(*arguments, **how, backend="reference")
    # sums of a few dozen terms in another order
    close = 1e-5 if dtype == torch.float32 else 1e-12
    for field in DecodeLoss._fields:
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=close, atol=close, msg=field)


@pytest.mark.parametrize("name", [name for name in CASES if "negative" not in name])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_gradients_equal_automatic_differentiation(name: str, backend: Any, device: str) -> None:
    arguments = setting(CASES[name], torch.float64, device)
    codes, weights = arguments[0], arguments[-1]
    has_silent = CASES[name].get("has_silent", False)
    found = decode_loss(*arguments, has_silent=has_silent, backend=backend)
    loss, gradient = by_autograd(
        RaggedCodes(*(part.cpu() for part in codes)),
        *(None if tensor is None else tensor.cpu() for tensor in arguments[1:]),
        has_silent=has_silent,
    )
    count = len(gradient)
    torch.testing.assert_close(found.dvalues[:count].cpu(), gradient)
    assert bool((found.dvalues[count:] == 0).all())
    assert len(found.dvalues) == len(codes.indices)
    shares = torch.ones(1).to(found.squared_error) if weights is None else weights
    torch.testing.assert_close((0.37 / 2 * (found.squared_error * shares).sum()).cpu(), loss)


def test_negative_codes_get_gradients_only_where_values_are_signed(device: str) -> None:
    arguments = setting(CASES["negative values"], torch.float32, device)
    negative = arguments[0].values < 0
    assert bool(negative.any())
    for is_signed in (False, True):
        dvalues = decode_loss(*arguments, is_signed=is_signed, backend="triton").dvalues
        assert bool((dvalues[negative] != 0).all()) == is_signed


def test_codes_of_another_batch_are_refused() -> None:
    codes, W_dec, b_dec, target, scale, weights = setting(CASES["plain"], torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"decode_loss got codes.starts of shape \(6,\), expected \(4,\): pass"):
        decode_loss(codes, W_dec, b_dec, target[:3], scale, weights)


def test_rows_too_wide_for_a_program_are_refused(device: str) -> None:
    wide = torch.zeros(1, 20_000, device=device)
    codes = random_codes(1, 4, 2, device=device)
    with pytest.raises(ValueError, match=r"decode_loss got rows of 20000 columns, expected 1 to 16384: set backend"):
        decode_loss(codes, wide.expand(4, -1).contiguous(), wide[0], wide, torch.tensor(1.0), backend="triton")
