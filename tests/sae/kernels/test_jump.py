"""JumpReLU's fused passes equal those of the architecture, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.architectures.jumprelu import Jump, Step
from sae.kernels.jump import CASES, jump


def setting(case: dict[str, Any], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns pre-activations, thresholds and a gradient for the values."""
    pre = torch.randn(case["n"], case["d_sae"], dtype=torch.float64) + case.get("shift", 0.0)
    threshold, grad = torch.rand(case["d_sae"]) + 0.05, torch.randn_like(pre)
    pre, threshold, grad = (tensor.to(device, dtype) for tensor in (pre, threshold, grad))
    return pre.requires_grad_(), threshold.requires_grad_(), grad


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("both", [False, True], ids=["step", "tanh"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_are_the_architectures(
    name: str, both: bool, backend: Any, dtype: torch.dtype, device: str
) -> None:
    case = CASES[name]
    pre, threshold, grad = setting(case, dtype, device)
    values, count = jump(pre, threshold, case["bandwidth"], both=both, backend=backend)
    found = torch.autograd.grad((values * grad).sum() + 0.3 * count, (pre, threshold))

    read = pre if both else pre.relu()
    expected_values: Tensor = Jump.apply(read, threshold, case["bandwidth"], both)  # pyright: ignore
    expected_count = Step.apply(read, threshold, case["bandwidth"]).sum()  # pyright: ignore
    expected = torch.autograd.grad((expected_values * grad).sum() + 0.3 * expected_count, (pre, threshold))

    assert torch.equal(values, expected_values)
    assert torch.equal(count, expected_count)
    # sums over rows in another order; the architecture divides by the bandwidth in float32, exactly for these
    close = 2e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs, field in zip(found, expected, ("pre", "threshold"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close, msg=field)


def test_the_thresholds_gradient_does_not_depend_on_the_run(device: str) -> None:
    case = CASES["several slabs of rows"]
    pre, threshold, grad = setting(case, torch.float32, device)
    first, second = (
        torch.autograd.grad((jump(pre, threshold, 0.5, backend="triton")[0] * grad).sum(), threshold)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_bandwidth_of_nothing_is_refused() -> None:
    pre, threshold, _ = setting(CASES["plain"], torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"jump got bandwidth=0.0, expected more than 0: set sae.bandwidth"):
        jump(pre, threshold, 0.0)
