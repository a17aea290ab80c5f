"""The product and the choice on a GPU are those of the dense computation, chunk by chunk and in every dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.kernels import encode
from sae.kernels.encode import CASES, FP8, fp8_trouble, product, strongest, strongest_of_batch
from sae.kernels.topk_select import threshold_select, topk_select


def setting(case: dict[str, Any], device: str) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((case["n"], case["d"]), (case["d_sae"], case["d"]), (case["d_sae"],))
    x, W, b = (torch.randn(*shape).to(device) for shape in shapes)
    return x, W, b


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_signed", [False, True], ids=["positive", "signed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rows_codes_are_those_of_the_whole_product(
    name: str, is_signed: bool, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHUNK_BYTES", 1)  # as many chunks as there can be
    case = CASES[name]
    x, W, b = setting(case, device)
    W = W.to(dtype)
    backend = "triton" if device == "cuda" else "reference"
    found = strongest(x, W, b, case["k"], is_signed=is_signed, backend=backend)
    expected = topk_select(product(x, W, b), case["k"], is_signed=is_signed, backend="reference")
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values, expected.values.float(), rtol=2.0**-7, atol=1e-5)
    if dtype == torch.float32:
        assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("name", ["plain", "odd widths"])
def test_the_interpreted_kernels_choose_as_the_references_do(name: str, device: str) -> None:
    case = CASES[name]
    x, W, b = setting(case, device)
    for choose, count in ((strongest, case["k"]), (strongest_of_batch, case["n"] * case["k"])):
        found, expected = (choose(x, W, b, count, backend=backend) for backend in ("triton", "reference"))
        assert torch.equal(found[1], expected[1])


def test_a_batchs_codes_are_those_of_the_whole_product(device: str) -> None:
    x, W, b = setting(CASES["plain"], device)
    found = strongest_of_batch(x, W.bfloat16(), b, 20, backend="reference")
    expected = threshold_select(product(x, W.bfloat16(), b), 20, backend="reference")
    assert found.codes.values.dtype == torch.float32
    assert torch.equal(found.codes.indices, expected.codes.indices)


def test_fp8_is_refused_where_it_does_not_run() -> None:
    assert fp8_trouble(torch.device("cpu"), 32, 64) == "the device is cpu"
    assert "multiples of 16" in fp8_trouble(torch.device("cpu"), 24, 64)


@pytest.mark.gpu
def test_products_in_fp8_come_close() -> None:
    if not torch.cuda.is_available() or fp8_trouble(torch.device("cuda"), 64, 256):
        pytest.skip("no GPU with fp8 products")
    x = torch.randn(100, 64, device="cuda")
    W = torch.nn.functional.normalize(torch.randn(256, 64, device="cuda"), dim=1)
    b = torch.randn(256, device="cuda")
    found = product(x, (W * encode.FP8_SCALE).to(FP8), b).float()
    expected = x @ W.T + b
    # three bits of mantissa: each factor is off by a sixteenth at most, sums of 64 by less
    assert float((found - expected).norm() / expected.norm()) < 0.05
