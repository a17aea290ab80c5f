"""Sums over each latent's codes equal plain and dense ones, whatever the codes are split into."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae.kernels.cases import random_codes
from sae.kernels.dispatch import rows_of
from sae.kernels.latent_order import latent_order
from sae.kernels.latent_reduce import CASES, LatentSums, latent_reduce
from sae.sparse import RaggedCodes


def setting(
    case: dict[str, Any], dtype: torch.dtype, device: str
) -> tuple[RaggedCodes, tuple[Any, ...], dict[str, Any]]:
    """Returns the codes, and the arguments of `latent_reduce` by place and by name."""
    case = dict(case)
    n, d_out, d_in, groups = case.pop("n"), case.pop("d_out"), case.pop("d_in"), case.pop("groups", 1)
    options = {"groups": groups} | ({"segment": case.pop("segment")} if "segment" in case else {})
    rows = n * groups
    codes = random_codes(rows, dtype=dtype, device=device, **case)
    dvalues = torch.randn(len(codes.values)).to(device, dtype)
    gradient, centred = torch.randn(rows, d_out).to(device, dtype), torch.randn(n, d_in).to(device, dtype)
    order = latent_order(codes, case["d_sae"])
    return codes, (order, codes.values, dvalues, gradient, centred), options


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_kernel_equals_the_reference(name: str, dtype: torch.dtype, device: str) -> None:
    _, arguments, options = setting(CASES[name], dtype, device)
    found = latent_reduce(*arguments, **options, backend="triton")
    expected = latent_reduce(*arguments, **options, backend="reference")
    # sums of a few dozen terms in another order
    close = 1e-5 if dtype == torch.float32 else 1e-12
    for field in LatentSums._fields:
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=close, atol=close, msg=field)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_equals_dense_products(name: str, device: str) -> None:
    codes, arguments, options = setting(CASES[name], torch.float64, device)
    order, values, dvalues, gradient, centred = arguments
    found = latent_reduce(*arguments, **options, backend="reference")
    d_sae, count = len(order.starts) - 1, int(codes.starts[-1])
    rows, latents = rows_of(codes.starts, len(values))[:count], codes.indices[:count]
    heard = values[:count] != 0
    dense = values.new_zeros(d_sae, len(gradient))
    slopes = dense.index_put((latents, rows), dvalues[:count] * heard)
    active = dense.index_put((latents, rows), values[:count])
    inputs = centred.repeat_interleave(options["groups"], dim=0)
    torch.testing.assert_close(found.W_dec, active @ gradient)
    torch.testing.assert_close(found.W_enc, slopes @ inputs)
    torch.testing.assert_close(found.b_enc, slopes.sum(1))
    assert torch.equal(found.fired, (active != 0).sum(1).int())


def test_sums_do_not_depend_on_the_run(device: str) -> None:
    _, arguments, options = setting(CASES["one latent of every row"], torch.float32, device)
    first, second = (latent_reduce(*arguments, **options, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_order_is_stable_and_leaves_out_what_is_silent() -> None:
    values = torch.tensor([1.0, 2.0, 0.0, 3.0, 4.0, 5.0])
    codes = RaggedCodes(torch.tensor([0, 2, 2, 5]), torch.tensor([3, 1, 1, 3, 0, 2]), values)
    order = latent_order(codes, 5)
    assert order.starts.tolist() == [0, 1, 2, 2, 4, 4]
    assert order.places[:4].tolist() == [4, 1, 0, 3]
    assert order.rows[:4].tolist() == [2, 0, 0, 2]


def test_what_does_not_fit_is_refused() -> None:
    _, arguments, _ = setting(CASES["plain"], torch.float32, "cpu")
    order, values, dvalues, gradient, centred = arguments
    with pytest.raises(ValueError, match=r"latent_reduce got gradient of shape \(8, 16\), expected \(9, 16\): pass"):
        latent_reduce(order, values, dvalues, gradient[:8], centred)
    with pytest.raises(ValueError, match=r"latent_reduce got segment=0, expected at least 1: leave it"):
        latent_reduce(*arguments, segment=0)
