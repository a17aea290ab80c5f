"""The fused step moves weights as torch.optim.Adam does with stored gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sae.kernels.cases import random_codes
from sae.kernels.latent_adam import CASES, MOVED, Adam, Added, Moments, latent_adam, randomly_rounded
from sae.kernels.latent_order import LatentOrder, latent_order
from sae.kernels.latent_reduce import latent_reduce

LR = 0.02


def weights(case: dict[str, Any], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Returns random weights with unit decoder rows."""
    W_dec = torch.nn.functional.normalize(torch.randn(case["d_sae"], case["d_out"], dtype=torch.float64), dim=1)
    drawn = {"W_dec": W_dec, "W_enc": torch.randn(case["d_sae"], case["d_in"]), "b_enc": torch.randn(case["d_sae"])}
    return {name: tensor.to(device, dtype) for name, tensor in drawn.items()}


def batch(
    case: dict[str, Any], seed: int, dtype: torch.dtype, device: str
) -> tuple[tuple[LatentOrder, Tensor, Tensor, Tensor, Tensor], dict[str, Any]]:
    """Returns one step's codes and dense rows, and the arguments by name."""
    case = dict(case)
    n, d_out, d_in, groups = case.pop("n"), case.pop("d_out"), case.pop("d_in"), case.pop("groups", 1)
    options = {"groups": groups} | ({"segment": case.pop("segment")} if "segment" in case else {})
    rows, dead = n * groups, case.pop("dead", 0)
    codes = random_codes(rows, dtype=dtype, device=device, seed=seed, **case)
    dvalues = torch.randn(len(codes.values)).to(device, dtype)
    gradient, centred = torch.randn(rows, d_out).to(device, dtype), torch.randn(n, d_in).to(device, dtype)
    if dead:
        slots = torch.full((case["d_sae"],), -1, dtype=torch.int32)
        slots[torch.randperm(case["d_sae"])[: dead - 1]] = torch.arange(dead - 1, dtype=torch.int32)  # one place unused
        sums = (torch.randn(dead, *shape, dtype=dtype) for shape in ((d_out,), (d_in,), ()))
        options["added"] = Added(*(part.to(device) for part in (slots, *sums)))
    return (latent_order(codes, case["d_sae"]), codes.values, dvalues, gradient, centred), options


def on(device: str, step: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(LR, device=device, dtype=torch.float64), torch.tensor(step, device=device)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", torch.float64), ("triton", torch.float32)], ids=["reference", "kernel"]
)
def test_three_steps_equal_those_of_torch(name: str, backend: Any, dtype: torch.dtype, device: str) -> None:
    case = dict(CASES[name])
    is_unit = case.pop("is_unit", True)
    ours = weights(case, dtype, device)
    theirs = {name: tensor.clone() for name, tensor in ours.items()}
    moments = {name: Moments.zeros(tensor) for name, tensor in ours.items()}
    optimizer = torch.optim.Adam(list(theirs.values()), lr=LR, betas=(0.9, 0.99), eps=1e-6)
    for step in range(3):
        arguments, options = batch(case, step, dtype, device)
        added = options.pop("added", None)
        sums = latent_reduce(*arguments, **options, backend="reference")
        if added is not None:
            sums = added.join(sums)
            options["added"] = added
        expected_centre = sums.b_enc @ theirs["W_enc"]
        for field in MOVED:
            theirs[field].grad = getattr(sums, field)
        if is_unit:
            along = (sums.W_dec * theirs["W_dec"]).sum(1, keepdim=True)
            sums.W_dec.sub_(along * theirs["W_dec"])
        optimizer.step()
        if is_unit:
            theirs["W_dec"].div_(theirs["W_dec"].norm(dim=1, keepdim=True))
        adam = Adam(0.9, 0.99, 1e-6, is_unit)
        found = latent_adam(*arguments, ours, moments, *on(device, step + 1), adam, **options, backend=backend)
        # a first step divides a gradient by itself: its rounding is that of the sum, relative to the largest term
        close = 2e-5 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(found.centre, expected_centre, rtol=close, atol=close)
        assert torch.equal(found.fired, sums.fired)
        for field in MOVED:
            torch.testing.assert_close(ours[field], theirs[field], rtol=close, atol=close, msg=field)
            state = optimizer.state[theirs[field]]
            for moment, key in zip(moments[field][:2], ("exp_avg", "exp_avg_sq"), strict=True):
                torch.testing.assert_close(moment, state[key], rtol=close, atol=close, msg=f"{field} {key}")


def test_copies_are_the_moved_weights_rounded(device: str) -> None:
    case = CASES["odd widths"]
    parameters = weights(case, torch.float32, device)
    copies = {name: torch.empty_like(parameters[name], dtype=torch.bfloat16) for name in ("W_dec", "W_enc")}
    moments = {name: Moments.zeros(tensor) for name, tensor in parameters.items()}
    arguments, options = batch(case, 0, torch.float32, device)
    latent_adam(*arguments, parameters, moments, *on(device, 1), Adam(), copies=copies, **options, backend="triton")
    for name, copy in copies.items():
        if device == "cuda":
            assert torch.equal(copy, parameters[name].bfloat16())
        # the interpreter cuts bf16 off instead of rounding it
        torch.testing.assert_close(copy.float(), parameters[name], rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_moments_of_sixteen_bits_decay_on_average(backend: Any, device: str) -> None:
    case = dict(n=2, d_out=1024, d_in=1024, d_sae=2, most=0)
    parameters = weights(case, torch.float32, device)
    moments = {name: Moments.zeros(tensor, torch.bfloat16) for name, tensor in parameters.items()}
    for pair in moments.values():
        pair.write(torch.ones_like(pair.mean, dtype=torch.float32), torch.ones_like(pair.mean, dtype=torch.float32))
    arguments, options = batch(case, 0, torch.float32, device)
    for step in range(8):
        latent_adam(*arguments, parameters, moments, *on(device, step + 1), Adam(), **options, backend=backend)
    # 0.999 is nearest to 1 in bf16: rounding to nearest would leave 1, at random the mean falls as it should
    for field in ("W_dec", "W_enc"):
        assert moments[field].square.float().mean().item() == pytest.approx(0.999**8, abs=5e-4)
        assert moments[field].mean.float().mean().item() == pytest.approx(0.9**8, rel=2e-3)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_moments_of_eight_bits_follow_those_of_float32(backend: Any, device: str) -> None:
    case = dict(n=16, d_out=256, d_in=256, d_sae=4, most=3, frequent=1)
    ours = weights(case, torch.float32, device)
    theirs = {name: tensor.clone() for name, tensor in ours.items()}
    small = {name: Moments.zeros(tensor, torch.int8 if tensor.ndim == 2 else None) for name, tensor in ours.items()}
    full = {name: Moments.zeros(tensor) for name, tensor in theirs.items()}
    for step in range(8):
        arguments, options = batch(case, step, torch.float32, device)
        latent_adam(*arguments, ours, small, *on(device, step + 1), Adam(), **options, backend=backend)
        latent_adam(*arguments, theirs, full, *on(device, step + 1), Adam(), **options, backend="reference")
    for field in ("W_dec", "W_enc"):
        found, expected = small[field].read(torch.float32), full[field]
        for ours_of, theirs_of in zip(found, expected[:2], strict=True):
            error = (ours_of - theirs_of)[1]
            assert error.norm() < 0.05 * theirs_of[1].norm()
            assert abs(error.mean().item()) < 0.01 * theirs_of[1].abs().mean().item()  # rounded at random: no bias
        moved = (ours[field] - theirs[field])[1].abs().mean().item()
        assert moved < 0.05 * 8 * LR
        assert int(small[field].square[1].min()) >= 1


def test_a_row_of_nothing_has_moments_of_nothing(device: str) -> None:
    moments = Moments.zeros(torch.zeros(3, 5, device=device), torch.int8)
    moments.write(torch.zeros(3, 5, device=device), torch.zeros(3, 5, device=device))
    assert all(bool((part == 0).all()) for part in moments.read(torch.float32))


def test_random_rounding_is_right_on_average_and_keeps_what_fits() -> None:
    values = torch.full((20_000,), 1 + 2.0**-9)
    assert randomly_rounded(values).float().mean().item() == pytest.approx(1 + 2.0**-9, abs=1e-4)
    fits = torch.randn(100).bfloat16()
    assert torch.equal(randomly_rounded(fits.float()), fits)


def test_moments_of_two_dtypes_are_refused() -> None:
    case = CASES["plain"]
    parameters = weights(case, torch.float32, "cpu")
    moments = {name: Moments.zeros(tensor) for name, tensor in parameters.items()}
    moments["W_enc"] = Moments.zeros(parameters["W_enc"], torch.bfloat16)
    arguments, options = batch(case, 0, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"got moments of torch.bfloat16 and torch.float32, expected one dtype: make"):
        latent_adam(*arguments, parameters, moments, *on("cpu", 1), Adam(), **options)


def test_moments_of_another_shape_are_refused() -> None:
    case = CASES["plain"]
    parameters = weights(case, torch.float32, "cpu")
    moments = {name: Moments.zeros(tensor) for name, tensor in parameters.items()}
    moments["W_enc"] = moments["W_dec"]
    arguments, options = batch(case, 0, torch.float32, "cpu")
    with pytest.raises(
        ValueError, match=r"latent_adam for W_enc got mean of shape \(12, 16\), expected \(12, 8\): pass"
    ):
        latent_adam(*arguments, parameters, moments, *on("cpu", 1), Adam(), **options)
