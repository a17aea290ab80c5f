"""The fused passes of penalised ReLU latents equal autograd on the formulas, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.architectures import Architecture, Moment, architecture_of
from sae.config import SAEConfig
from sae.kernels.dispatch import default_backend
from sae.kernels.shrink import CASES, Penalty, shrink

PENALTIES = [Penalty("l1"), Penalty("lp", 0.5), Penalty("lp", 0.93), Penalty("tanh", 4.0)]


def setting(case: dict[str, Any], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns pre-activations, norms and a gradient for the values."""
    torch.manual_seed(0)
    pre = torch.randn(case["n"], case["d_sae"], dtype=torch.float64) + case.get("shift", 0.0)
    norms, grad = torch.rand(case["d_sae"]) + 0.5, torch.randn_like(pre)
    if case.get("at_zero"):
        pre[2, 3] = 0.0
    if case.get("silent_norm"):
        norms[4] = 0.0
    pre, norms, grad = (tensor.to(device, dtype) for tensor in (pre, norms, grad))
    return pre.requires_grad_(), norms.requires_grad_(), grad


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_charges_and_gradients_are_those_of_autograd(
    name: str, penalty: Penalty, backend: Any, dtype: torch.dtype, device: str
) -> None:
    pre, norms, grad = setting(CASES[name], dtype, device)
    found = shrink(pre, norms, penalty, backend=backend)
    gradients = torch.autograd.grad((found.values * grad).sum() + 0.3 * found.charged, (pre, norms))

    values = pre.relu()
    written = values * norms
    charged = penalty.charge(written).sum()
    expected = torch.autograd.grad((values * grad).sum() + 0.3 * charged, (pre, norms))

    assert torch.equal(found.values, values)
    assert not found.written.requires_grad
    # sums over rows in another order, and powers as exponentials of logarithms
    close = 2e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(found.charged, charged, rtol=close, atol=close)
    torch.testing.assert_close(found.written, written.sum().detach(), rtol=close, atol=close)
    for ours, theirs, field in zip(gradients, expected, ("pre", "norms"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close, msg=field)


def test_the_sums_do_not_depend_on_the_run(device: str) -> None:
    pre, norms, grad = setting(CASES["several slabs of rows"], torch.float32, device)
    runs: list[tuple[Tensor, Tensor]] = []
    for _ in range(2):
        found = shrink(pre, norms, Penalty("lp", 0.5), backend="triton")
        slope = torch.autograd.grad((found.values * grad).sum() + found.charged, norms)[0]
        runs.append((found.charged, slope))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


KINDS: dict[str, dict[str, Any]] = {
    "l1": dict(architecture="standard"),
    "lp": dict(architecture="standard", penalty="lp"),
    "tanh": dict(architecture="standard", penalty="tanh"),
    "falling power": dict(architecture="p_anneal"),
    "several sites": dict(architecture="crosscoder", activation="relu", n_sites=2),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_penalised_loss_has_the_gradients_of_the_plain_one(kind: str, backend: Any, device: str) -> None:
    config = SAEConfig(d_in=6, d_sae=20, sparsity_coefficient=0.3, **KINDS[kind])
    architecture = architecture_of(config)
    generator = torch.Generator().manual_seed(0)
    parameters = {name: value.to(device) for name, value in architecture.initial(generator).items()}
    x = torch.randn(11, config.d_in * config.n_sites, generator=generator).to(device)
    moment = Moment(7, 10)
    with default_backend("reference"):
        plain = {name: value.double() for name, value in parameters.items()}  # kernels take no float64
        expected = Architecture.step(architecture, plain, x.double(), x.double(), moment)
    with default_backend(backend):
        found = Architecture.step(architecture, parameters, x, x, moment)
    torch.testing.assert_close(found.loss.double(), expected.loss, rtol=1e-5, atol=1e-6)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name].double(), gradient, rtol=1e-4, atol=1e-5, msg=name)
