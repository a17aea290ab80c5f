"""The fused step is the sparse step, and the fused update is that step followed by Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.kernels.cases import random_codes
from sae.kernels.latent_adam import MOVED, Adam, Moments
from sae.kernels.revive import listed, revive
from sae.kernels.step import CASES, fused_step, fused_update
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, StepResult, sparse_step


def setting(case: dict[str, Any], device: str) -> tuple[dict[str, Tensor], tuple[Any, ...], dict[str, Any]]:
    """Returns weights, rows with their codes, and the arguments by name."""
    case = dict(case)
    n, d, d_sae = case.pop("n"), case.pop("d"), case["d_sae"]
    d_out, is_ranked, capacity = case.pop("d_out", d), case.pop("is_ranked", False), case.pop("capacity", None)
    has_skip = case.pop("has_skip", False)
    options: dict[str, Any] = {"is_signed": case.get("is_signed", False), "subtracts_b_dec": not has_skip}
    if "widths" in case:
        options["widths"] = case.pop("widths")
    if "weights" in case:
        options["weights"] = torch.tensor(case.pop("weights"), device=device)
    if is_ranked:
        options["ranks"] = torch.randperm(d_sae).to(device)
    if "dead" in case:
        dead = torch.zeros(d_sae, dtype=torch.bool)
        dead[torch.randperm(d_sae)[: case.pop("dead")]] = True
        options["auxiliary"] = Auxiliary(dead.to(device), case.pop("k"), 0.4, capacity)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_out), dim=1)
    parameters = {
        "W_enc": torch.randn(d_sae, d),
        "W_dec": W_dec,
        "b_enc": torch.randn(d_sae),
        "b_dec": torch.randn(d_out),
    }
    if has_skip:
        parameters["W_skip"] = torch.randn(d_out, d)
    parameters = {name: tensor.to(device) for name, tensor in parameters.items()}
    x = torch.randn(n, d).to(device)
    y = torch.randn(n, d_out).to(device) if has_skip else x
    return parameters, (x, y, random_codes(n, device=device, **case)), options


def sparse(parameters: dict[str, Tensor], rows: tuple[Any, ...], options: dict[str, Any]) -> StepResult:
    """Returns the sparse step's result, taken on the CPU with codes cut to those there are, on the rows' device."""
    x, y, codes = rows
    count = int(codes.starts[-1])
    cut = RaggedCodes(codes.starts.cpu(), codes.indices[:count].cpu(), codes.values[:count].cpu())
    options = {name: value.cpu() if torch.is_tensor(value) else value for name, value in options.items()}
    if "auxiliary" in options:
        options["auxiliary"] = options["auxiliary"]._replace(dead=options["auxiliary"].dead.cpu())
    result = sparse_step({name: value.cpu() for name, value in parameters.items()}, x.cpu(), y.cpu(), cut, **options)
    gradients = {name: value.to(x.device) for name, value in result.gradients.items()}
    return StepResult(gradients, *(value.to(x.device) for value in result[1:]))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_fused_step_is_the_sparse_step(name: str, backend: Any, device: str) -> None:
    parameters, rows, options = setting(CASES[name], device)
    found = fused_step(parameters, *rows, **options, backend=backend)
    expected = sparse(parameters, rows, options)
    assert found.gradients.keys() == expected.gradients.keys()
    for field, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[field], gradient, rtol=1e-5, atol=1e-6, msg=field)
    for field in ("loss", "squared_error", "variance", "l0"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-5, atol=1e-6, msg=field)
    assert torch.equal(found.fired, expected.fired)


@pytest.mark.parametrize("name", ["nested by rank, weighted", "few dead", "none dead", "signed with dead"])
def test_the_sparse_step_hands_over_all_it_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, rows, options = setting(CASES[name], "cpu")
    expected = sparse_step(parameters, *rows, **options)
    calls: list[Auxiliary | None] = []

    def noted(*arguments: Any, auxiliary: Auxiliary | None, **given: Any) -> StepResult:
        calls.append(auxiliary)
        return fused_step(*arguments, auxiliary=auxiliary, **given)

    monkeypatch.setattr("sae.step.is_fused", lambda x, y: True)
    monkeypatch.setattr("sae.kernels.step.fused_step", noted)
    found = sparse_step(parameters, *rows, **options)
    assert calls == [options.get("auxiliary")]
    torch.testing.assert_close(found.loss, expected.loss)
    for field, gradient in expected.gradients.items():
        torch.testing.assert_close(found.gradients[field], gradient, rtol=1e-5, atol=1e-6, msg=field)


@pytest.mark.parametrize("name", ["spare places", "nested with dead", "other output with a skip"])
def test_the_fused_update_is_the_step_and_then_adam(name: str, device: str) -> None:
    parameters, rows, options = setting(CASES[name], device)
    theirs = {field: tensor.clone() for field, tensor in parameters.items()}
    moments = {field: Moments.zeros(parameters[field]) for field in MOVED}
    optimizer = torch.optim.Adam([theirs[field] for field in MOVED], lr=0.01)
    for step in (1, 2):
        expected = sparse(theirs, rows, options)
        slope = expected.gradients["W_dec"]
        slope -= (slope * theirs["W_dec"]).sum(1, keepdim=True) * theirs["W_dec"]
        for field in MOVED:
            theirs[field].grad = expected.gradients[field]
        optimizer.step()
        theirs["W_dec"].div_(theirs["W_dec"].norm(dim=1, keepdim=True))
        time = torch.tensor(0.01, device=device), torch.tensor(step, device=device)
        found = fused_update(parameters, moments, *time, Adam(), *rows, **options, backend="triton")
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
        for field, gradient in found.gradients.items():
            torch.testing.assert_close(gradient, expected.gradients[field], rtol=1e-4, atol=1e-5, msg=field)
        assert found.gradients.keys() | set(MOVED) == expected.gradients.keys()
        for field in MOVED:
            # Adam's first step divides a gradient by its own size: rounding of small ones shows as a share of lr
            torch.testing.assert_close(parameters[field], theirs[field], rtol=0, atol=1e-4, msg=field)


def test_dead_latents_take_turns_where_there_is_little_room(device: str) -> None:
    dead = torch.tensor([False, True, False, True, True], device=device)
    latents, is_used = listed(dead, 2)
    assert latents.tolist() == [1, 3]
    assert is_used.tolist() == [True, True]
    latents, is_used = listed(dead, 2, torch.tensor(1, device=device))
    assert latents[is_used].tolist() == [3, 4]
    latents, is_used = listed(dead, 2, 2)
    assert latents[is_used].tolist() == [4, 1]
    latents, is_used = listed(dead, 5)
    assert latents[is_used].tolist() == [1, 3, 4]
    parameters, (x, _, _), _ = setting(CASES["plain"], device)
    everything = Auxiliary(torch.ones(24, dtype=torch.bool, device=device), 3, 0.4, 4)
    revival = revive(parameters, x, x, everything, backend="triton")
    assert revival.gradients.slots.tolist() == [0, 1, 2, 3] + [-1] * 20
    with pytest.raises(ValueError, match=r"revive got capacity=25, expected 1 to 24: leave it at its default"):
        revive(parameters, x, x, everything._replace(capacity=25))


def test_a_capacity_of_none_leaves_the_auxiliary_loss_out(device: str) -> None:
    parameters, rows, options = setting(CASES["few dead"], device)
    options["auxiliary"] = options["auxiliary"]._replace(capacity=0)
    found = fused_step(parameters, *rows, **options, backend="triton")
    del options["auxiliary"]
    assert torch.equal(found.loss, fused_step(parameters, *rows, **options, backend="triton").loss)


def test_products_in_bf16_come_close(device: str) -> None:
    """Runs the references: the interpreter does not know bf16."""
    parameters, rows, options = setting(CASES["nested with dead"], device)
    expected = fused_step(parameters, *rows, **options, backend="reference")
    theirs = {field: tensor.clone() for field, tensor in parameters.items()}
    moments = {field: Moments.zeros(parameters[field]) for field in MOVED}
    copies = {field: parameters[field].bfloat16() for field in ("W_enc", "W_dec")}
    time = torch.tensor(0.01, device=device), torch.tensor(1, device=device)
    backend = "triton" if device == "cuda" else "reference"
    found = fused_update(parameters, moments, *time, Adam(), *rows, copies=copies, **options, backend=backend)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-2, atol=0)
    slope = expected.gradients["W_enc"]
    # Adam's first moment after one step is a tenth of the gradient
    close = 3e-2 * slope.abs().max().item()
    torch.testing.assert_close(10 * moments["W_enc"].mean, slope, rtol=0, atol=close)
    assert not torch.equal(theirs["W_enc"], parameters["W_enc"])
    assert torch.equal(copies["W_enc"], parameters["W_enc"].bfloat16())
