"""The fused passes of gated latents equal autograd on the formulas, forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.architectures import Moment, architecture_of
from sae.config import SAEConfig
from sae.kernels.dispatch import default_backend
from sae.kernels.gate import CASES, Gates, gate


def setting(case: dict[str, Any], dtype: torch.dtype, device: str) -> tuple[list[Tensor], Tensor, tuple[Tensor, ...]]:
    """Returns what gets gradients, norms, and gradients for values and gates."""
    torch.manual_seed(0)
    product = torch.randn(case["n"], case["d_sae"], dtype=torch.float64)
    b_gate, r_mag, b_mag, norms = 0.3 * torch.randn(4, case["d_sae"], dtype=torch.float64)
    b_gate, b_mag = b_gate + case.get("gate", 0.0), b_mag + case.get("magnitude", 0.0)
    if case.get("at_zero"):
        product[2, 3] = b_gate[3] = 0.0
        product[1, 4] = b_mag[4] = 0.0
        b_gate[4] = 1.0
    grads = torch.randn_like(product), torch.randn_like(product)
    leaves = [value.to(device, dtype).requires_grad_() for value in (product, b_gate, r_mag, b_mag)]
    return leaves, norms.abs().to(device, dtype), tuple(value.to(device, dtype) for value in grads)


def weighed(made: Gates, grads: tuple[Tensor, ...]) -> Tensor:
    return (made.values * grads[0]).sum() + (made.opened * grads[1]).sum() + 0.3 * made.charged


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_gates_and_gradients_are_those_of_autograd(
    name: str, backend: Any, dtype: torch.dtype, device: str
) -> None:
    leaves, norms, grads = setting(CASES[name], dtype, device)
    product, b_gate, r_mag, b_mag = leaves
    found = gate(product, b_gate, r_mag, b_mag, norms, backend=backend)
    gradients = torch.autograd.grad(weighed(found, grads), leaves)

    opened = (product + b_gate).relu()
    values = torch.where(product + b_gate > 0, (product * r_mag.exp() + b_mag).relu(), 0)
    charged = (opened * norms).sum()
    plain = Gates(values, opened, charged)
    expected = torch.autograd.grad(weighed(plain, grads), leaves)

    # sums over rows in another order
    close = 2e-5 if dtype == torch.float32 else 1e-12
    for ours, theirs, field in zip(found, plain, Gates._fields, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close, msg=field)
    for ours, theirs, field in zip(gradients, expected, ("product", "b_gate", "r_mag", "b_mag"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close, msg=field)


def test_the_sums_do_not_depend_on_the_run(device: str) -> None:
    leaves, norms, grads = setting(CASES["several slabs of rows"], torch.float32, device)
    product, b_gate, r_mag, b_mag = leaves
    made = [gate(product, b_gate, r_mag, b_mag, norms, backend="triton") for _ in range(2)]
    runs = [torch.autograd.grad(weighed(one, grads), leaves) for one in made]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_gated_loss_has_the_gradients_of_the_plain_one(backend: Any, device: str) -> None:
    architecture = architecture_of(SAEConfig(architecture="gated", d_in=6, d_sae=20, sparsity_coefficient=0.3))
    generator = torch.Generator().manual_seed(0)
    parameters = {name: value.to(device) for name, value in architecture.initial(generator).items()}
    for name in ("b_gate", "r_mag", "b_mag", "b_dec"):
        parameters[name] += 0.2 * torch.randn(parameters[name].shape, generator=generator).to(device)
    x = torch.randn(11, 6, generator=generator).to(device)
    plain = {name: value.double() for name, value in parameters.items()}  # kernels take no float64
    expected = architecture.step(plain, x.double(), x.double(), Moment(7, 10))
    with default_backend(backend):
        found = architecture.step(parameters, x, x, Moment(7, 10))
    torch.testing.assert_close(found.loss.double(), expected.loss, rtol=1e-5, atol=1e-6)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[name].double(), gradient, rtol=1e-4, atol=1e-5, msg=name)
