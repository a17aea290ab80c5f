"""The hand-written step has the loss and the gradients of the dense reference, in every corner."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import selection, sparse
from sae.selection import select, strongest_latents
from sae.step import Parameters, reference_loss, sparse_step


def parameters(d_in: int, d_sae: int, b_enc: float = 0.1, seed: int = 0) -> Parameters:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Parameters(draw(d_sae, d_in), draw(d_sae, d_in), b_enc * draw(d_sae), 0.3 * draw(d_in))


CASES = {
    "plain": dict(n=33, d_in=12, d_sae=50, k=5),
    "batch of one": dict(n=2, d_in=7, d_sae=11, k=3),
    "odd widths": dict(n=17, d_in=13, d_sae=37, k=6),
    "every latent": dict(n=9, d_in=6, d_sae=8, k=8),
    "one latent a row": dict(n=21, d_in=5, d_sae=19, k=1),
    "fewer than k positive": dict(n=25, d_in=10, d_sae=30, k=20, shift=-4.0),
    "none positive": dict(n=8, d_in=4, d_sae=9, k=3, shift=-100.0),
    "one strong latent repeated": dict(n=40, d_in=6, d_sae=12, k=2, strong=True),
    "few dead": dict(n=30, d_in=8, d_sae=40, k=4, dead=3, auxk_k=5),
    "many dead": dict(n=30, d_in=8, d_sae=40, k=4, dead=25, auxk_k=5),
    "dead without a positive value": dict(n=12, d_in=8, d_sae=20, k=4, dead=6, auxk_k=5, dead_shift=-100.0),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_autograd_in_float64(name: str) -> None:
    case = CASES[name]
    weights = parameters(case["d_in"], case["d_sae"])
    weights.b_enc.add_(case.get("shift", 0.0))
    if case.get("strong"):
        weights.b_enc[3] += 50.0
    dead = None
    if "dead" in case:
        dead = torch.zeros(case["d_sae"], dtype=torch.bool)
        dead[torch.randperm(case["d_sae"])[: case["dead"]]] = True
        weights.b_enc[dead] += case.get("dead_shift", 0.0)
    x = torch.randn(case["n"], case["d_in"], dtype=torch.float64)
    options = dict(dead=dead, auxk_k=case.get("auxk_k", 0), auxk_alpha=1 / 32 if dead is not None else 0.0)

    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        result = sparse_step(weights, x, case["k"], **options)
    finally:
        torch.use_deterministic_algorithms(False)

    leaves = Parameters(*(value.clone().requires_grad_() for value in weights))
    loss = reference_loss(leaves, x, case["k"], **options)
    loss.backward()
    torch.testing.assert_close(result.loss, loss.detach(), rtol=1e-12, atol=1e-12)
    for field, leaf in zip(Parameters._fields, leaves, strict=True):
        torch.testing.assert_close(getattr(result.gradients, field), leaf.grad, rtol=1e-9, atol=1e-11, msg=field)


def test_ties_are_broken_alike_in_step_and_reference() -> None:
    weights = parameters(6, 10, b_enc=0.0)
    weights.W_enc[5:] = weights.W_enc[:5]  # every pre-activation occurs twice
    x = torch.randn(14, 6, dtype=torch.float64)
    result = sparse_step(weights, x, 3)
    leaves = Parameters(*(value.clone().requires_grad_() for value in weights))
    loss = reference_loss(leaves, x, 3)
    loss.backward()
    torch.testing.assert_close(result.loss, loss.detach())
    torch.testing.assert_close(result.gradients.W_enc, leaves.W_enc.grad)


def test_statistics_count_what_is_active() -> None:
    weights = parameters(8, 30)
    weights.b_enc.sub_(3.0)
    x = torch.randn(50, 8, dtype=torch.float64)
    result = sparse_step(weights, x, 6)
    dense = torch.relu((x - weights.b_dec) @ weights.W_enc.T + weights.b_enc)
    kept = dense * (dense >= dense.topk(6).values[:, -1:])
    assert result.l0.item() == pytest.approx((kept > 0).sum(1).double().mean().item())
    assert torch.equal(result.fired, (kept > 0).any(0))
    assert result.variance.item() == pytest.approx((x - x.mean(0)).pow(2).sum().item())


def test_constant_rows_give_a_finite_loss() -> None:
    result = sparse_step(parameters(4, 9), torch.ones(6, 4, dtype=torch.float64), 2)
    assert torch.isfinite(result.loss)


def test_decode_equals_the_dense_product_with_repeated_indices() -> None:
    values, indices = torch.randn(9, 4), torch.randint(0, 5, (9, 4))
    W = torch.randn(5, 7)
    dense = torch.zeros(9, 5).scatter_add(1, indices, values)
    torch.testing.assert_close(sparse.decode(values, indices, W), dense @ W)


def test_latent_layout_reduces_like_a_dense_product() -> None:
    values, indices = torch.randn(11, 3, dtype=torch.float64), torch.randint(0, 6, (11, 3))
    dense = torch.randn(11, 5, dtype=torch.float64)
    codes = torch.zeros(11, 6, dtype=torch.float64).scatter_add(1, indices, values)
    layout = sparse.LatentLayout(indices, 6)
    torch.testing.assert_close(layout.reduce(values, dense), codes.T @ dense)
    torch.testing.assert_close(layout.reduce_values(values), codes.sum(0))


def test_select_keeps_the_largest_and_clips_at_zero() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, -5.0]])
    values, indices = select(pre, 3)
    assert dict(zip(indices[0].tolist(), values[0].tolist(), strict=True)) == {0: 3.0, 2: 2.0, 1: 0.0}


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_selection_in_chunks_equals_selection_at_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.CHUNK_BYTES, "cpu", 1)  # the smallest chunk: 64 rows
    centred, W, b = torch.randn(n, 7), torch.randn(30, 7), torch.randn(30)
    values, indices = strongest_latents(centred, W, b, 5)
    expected = select(centred @ W.T + b, 5)
    dense, wanted = (torch.zeros(n, 30).scatter(1, i, v) for v, i in ((values, indices), expected))
    torch.testing.assert_close(dense, wanted)


SCREENED = {
    "plain": dict(),
    "chosen by the smallest margins": dict(spread=1e-3),
    "fewer than k positive": dict(shift=-3.0),
    "large bias": dict(bias=30.0),
    "repeated latents": dict(repeat=True),
}


@pytest.mark.parametrize("name", SCREENED)
def test_the_screen_chooses_what_float32_chooses(name: str) -> None:
    case = SCREENED[name]
    n, d_in, d_sae, k = 150, 24, 2048, 20
    centred, W = torch.randn(n, d_in), torch.randn(d_sae, d_in)
    if "spread" in case:
        W = W[:1] + case["spread"] * W  # all latents nearly alike: bf16 cannot tell them apart
    if case.get("repeat"):
        W[d_sae // 2 :] = W[: d_sae // 2]
    b = case.get("bias", 0.3) * torch.randn(d_sae) + case.get("shift", 0.0)
    values, indices = strongest_latents(centred, W, b, k, screen=True)
    pre = (centred.double() @ W.double().T + b.double()).relu()
    assert (indices.sort(1).values.diff(dim=1) > 0).all(), "a latent was chosen twice"
    torch.testing.assert_close(values.double(), pre.gather(1, indices), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(values.sort(1).values.double(), pre.topk(k).values.sort(1).values, rtol=1e-5, atol=1e-4)


def test_the_screen_settles_most_rows_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    again: list[int] = []
    whole = selection.strongest_latents

    def counting(centred: Tensor, *rest: object, **options: object) -> selection.Selection:
        again.append(len(centred))
        return whole(centred, *rest, **options)

    monkeypatch.setattr(selection, "strongest_latents", counting)
    centred = torch.randn(500, 64)
    W = torch.nn.functional.normalize(torch.randn(4096, 64), dim=1)
    selection._screened(centred, W, torch.zeros(4096), 16, 32)
    assert sum(again) < 50
