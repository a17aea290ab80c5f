"""The hand-written steps have the loss and the gradients of the dense reference, in every corner.

Every test runs twice: with the loops that numba compiles, and with torch's sparse products.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae import SAEConfig, ragged_step, selection, sparse, step
from sae.architectures import Architecture, Moment, architecture_of, jumprelu
from sae.compiled import is_compiled
from sae.row_pass import row_pass
from sae.selection import latents_above, select, strongest_latents, strongest_of_batch
from sae.sparse import RaggedCodes

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=33, d_in=12, d_sae=50, k=5),
    "batch of two": dict(n=2, d_in=7, d_sae=11, k=3),
    "odd widths": dict(n=17, d_in=13, d_sae=37, k=6),
    "every latent": dict(n=9, d_in=6, d_sae=8, k=8),
    "one latent a row": dict(n=21, d_in=5, d_sae=19, k=1),
    "fewer than k positive": dict(n=25, d_in=10, d_sae=30, k=20, shift=-4.0),
    "none positive": dict(n=8, d_in=4, d_sae=9, k=3, shift=-100.0),
    "one strong latent repeated": dict(n=40, d_in=6, d_sae=12, k=2, strong=True),
    "few dead": dict(n=30, d_in=8, d_sae=40, k=4, dead=3, auxk_k=5),
    "many dead": dict(n=30, d_in=8, d_sae=40, k=4, dead=25, auxk_k=5),
    "dead without a positive value": dict(n=12, d_in=8, d_sae=20, k=4, dead=6, auxk_k=5, dead_shift=-100.0),
    "b_dec only written": dict(n=14, d_in=8, d_sae=20, k=4, dead=6, auxk_k=5, apply_b_dec_to_input=False),
}
KINDS: dict[str, dict[str, Any]] = {
    "topk": dict(),
    "batchtopk": dict(),
    "matryoshka_batchtopk": dict(),
    "abstopk": dict(),
    "transcoder": dict(d_out=9),
    "skip_transcoder": dict(d_out=9, activation="batchtopk"),
    "crosscoder": dict(n_sites=3),
}


@pytest.fixture(params=["loops", "products"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GLASSBOX_COMPILED", "1" if request.param == "loops" else "0")
    assert is_compiled(torch.zeros(1)) == (request.param == "loops")
    return request.param


def setting(kind: str, case: dict[str, Any]) -> tuple[Architecture, dict[str, Tensor], Tensor, Tensor, Moment]:
    """Returns an architecture, random float64 weights, rows, targets and a moment."""
    torch.manual_seed(0)
    names = ("k", "d_in", "d_sae", "auxk_k", "apply_b_dec_to_input")
    config = SAEConfig(architecture=kind, **KINDS[kind], **{name: case[name] for name in names if name in case})
    architecture = architecture_of(config)
    parameters = {
        name: torch.randn(value.shape, dtype=torch.float64)
        for name, value in architecture.initial(torch.Generator().manual_seed(0)).items()
    }
    parameters["b_enc"] = 0.1 * parameters["b_enc"] + case.get("shift", 0.0)
    if case.get("strong"):
        parameters["b_enc"][3] += 50.0
    dead = None
    if "dead" in case:
        dead = torch.zeros(case["d_sae"], dtype=torch.bool)
        dead[torch.randperm(case["d_sae"])[: case["dead"]]] = True
        parameters["b_enc"][dead] += case.get("dead_shift", 0.0)
    x = torch.randn(case["n"], config.d_in * config.n_sites, dtype=torch.float64)
    y = torch.randn(case["n"], config.output_width, dtype=torch.float64) if config.predicts_target else x
    return architecture, parameters, x, y, Moment(5, 10, dead)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_autograd_in_float64(name: str, kind: str) -> None:
    architecture, parameters, x, y, moment = setting(kind, CASES[name])
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        result = architecture.step(parameters, x, y, moment)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = Architecture.step(architecture, parameters, x, y, moment)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-12, atol=1e-12)
    assert result.gradients.keys() == expected.gradients.keys()
    for field, gradient in expected.gradients.items():
        torch.testing.assert_close(result.gradients[field], gradient, rtol=1e-9, atol=1e-11, msg=field)
    for statistic in ("squared_error", "variance", "l0"):
        torch.testing.assert_close(getattr(result, statistic), getattr(expected, statistic), msg=statistic)
    assert torch.equal(result.fired, expected.fired)


@pytest.mark.parametrize("kind", ["topk", "matryoshka_batchtopk", "abstopk"])
@pytest.mark.parametrize("name", ["few dead", "many dead", "dead without a positive value"])
def test_many_dead_latents_are_revived_by_sparse_products(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "DENSE_DEAD_LATENTS", 0)
    test_loss_and_gradients_equal_autograd_in_float64(name, kind)


def test_of_latents_that_tie_one_is_taken() -> None:
    architecture, parameters, x, y, moment = setting("topk", CASES["plain"])
    for name in ("W_enc", "W_dec", "b_enc"):  # every latent occurs twice
        parameters[name][25:] = parameters[name][:25]
    result = architecture.step(parameters, x, y, moment)
    expected = Architecture.step(architecture, parameters, x, y, moment)
    torch.testing.assert_close(result.loss, expected.loss)
    assert result.l0 == expected.l0
    for name in ("W_enc", "W_dec", "b_enc"):
        of_both, wanted = (
            gradients[:25] + gradients[25:] for gradients in (result.gradients[name], expected.gradients[name])
        )
        torch.testing.assert_close(of_both, wanted)


def test_statistics_count_what_is_active() -> None:
    architecture, parameters, x, y, moment = setting("topk", dict(n=50, d_in=8, d_sae=30, k=6, shift=-3.0))
    result = architecture.step(parameters, x, y, moment)
    dense = torch.relu((x - parameters["b_dec"]) @ parameters["W_enc"].T + parameters["b_enc"])
    kept = dense * (dense >= dense.topk(6).values[:, -1:])
    assert result.l0.item() == pytest.approx((kept > 0).sum(1).double().mean().item())
    assert torch.equal(result.fired, (kept > 0).any(0))
    assert result.variance.item() == pytest.approx((x - x.mean(0)).pow(2).sum().item())


def test_constant_rows_give_a_finite_loss() -> None:
    architecture, parameters, x, _, moment = setting("topk", CASES["plain"])
    ones = torch.ones_like(x)
    assert torch.isfinite(architecture.step(parameters, ones, ones, moment).loss)


def test_decode_equals_the_dense_product_with_repeated_indices() -> None:
    values, indices = torch.randn(9, 4), torch.randint(0, 5, (9, 4))
    W = torch.randn(5, 7)
    dense = torch.zeros(9, 5).scatter_add(1, indices, values)
    torch.testing.assert_close(sparse.decode(RaggedCodes.of(values, indices), W), dense @ W)


def test_ragged_codes_decode_row_by_row() -> None:
    rows, indices = torch.tensor([0, 0, 2, 2, 2, 5]), torch.tensor([1, 3, 0, 2, 4, 3])
    values, W = torch.randn(6), torch.randn(5, 7)
    codes = RaggedCodes.of_rows(rows, 7, indices, values)
    dense = torch.zeros(7, 5).index_put((rows, indices), values)
    torch.testing.assert_close(sparse.decode(codes, W), dense @ W)
    assert torch.equal(codes.rows(), rows)


def test_latent_layout_reduces_like_a_dense_product() -> None:
    values, indices = torch.randn(11, 3, dtype=torch.float64), torch.randint(0, 6, (11, 3))
    dense = torch.randn(11, 5, dtype=torch.float64)
    codes = torch.zeros(11, 6, dtype=torch.float64).scatter_add(1, indices, values)
    ragged = RaggedCodes.of(values, indices)
    layout = sparse.LatentLayout(ragged, 6)
    torch.testing.assert_close(layout.reduce(ragged.values, dense), codes.T @ dense)
    torch.testing.assert_close(layout.reduce_values(ragged.values), codes.sum(0))


def test_select_keeps_the_largest_and_clips_at_zero() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, -5.0]])
    values, indices = select(pre, 3)
    assert dict(zip(indices[0].tolist(), values[0].tolist(), strict=True)) == {0: 3.0, 2: 2.0, 1: 0.0}


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_selection_in_chunks_equals_selection_at_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setattr(selection, "CHUNK_MIN_ROWS", 64)
    centred, W, b = torch.randn(n, 7), torch.randn(30, 7), torch.randn(30)
    values, indices = strongest_latents(centred, W, b, 5)
    expected = select(centred @ W.T + b, 5)
    dense, wanted = (torch.zeros(n, 30).scatter(1, i, v) for v, i in ((values, indices), expected))
    torch.testing.assert_close(dense, wanted)


@pytest.mark.parametrize("shift", [0.0, -1.0, -20.0])
@pytest.mark.parametrize("n", [1, 64, 65, 700])
def test_the_strongest_of_a_batch_are_the_largest_of_all(n: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.CHUNK_BYTES, "cpu", 1)
    monkeypatch.setattr(selection, "CHUNK_MIN_ROWS", 64)
    torch.manual_seed(n)
    centred, W, b = torch.randn(n, 7), torch.randn(30, 7), torch.randn(30) + shift
    centred[: n // 2] *= 10  # rows differ: the sampled ones mislead
    codes = strongest_of_batch(centred, W, b, 5 * n)
    pre = (centred @ W.T + b).flatten()
    expected = pre.topk(5 * n).values
    expected = expected[expected > 0]
    torch.testing.assert_close(codes.values.sort(descending=True).values, expected)
    torch.testing.assert_close(pre.view(n, 30)[codes.rows(), codes.indices], codes.values)


def test_ties_at_the_edge_of_a_batch_leave_exactly_as_many_as_asked_for() -> None:
    centred, W = torch.ones(10, 4), torch.ones(6, 4)  # all sixty pre-activations are equal
    assert len(strongest_of_batch(centred, W, torch.zeros(6), 20).values) == 20


@pytest.mark.parametrize("guess", [0.0, 1.0, 3.0, 1e6])
def test_the_guess_does_not_change_what_is_chosen(guess: float) -> None:
    centred, W, b = torch.randn(90, 7), torch.randn(30, 7), torch.randn(30)
    found, expected = (strongest_of_batch(centred, W, b, 400, guess=each) for each in (torch.tensor(guess), None))
    for codes in (found, expected):
        order = (codes.rows() * 30 + codes.indices).argsort()
        codes.indices.copy_(codes.indices[order])
        codes.values.copy_(codes.values[order])
    assert torch.equal(found.starts, expected.starts)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)


def test_the_loops_give_the_same_bits_on_any_number_of_threads(implementation: str) -> None:
    if implementation == "products":
        pytest.skip("torch's sparse products promise no such thing")
    _, parameters, x, y, _ = setting("matryoshka_batchtopk", dict(n=150, d_in=9, d_sae=96, k=4))
    given, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            codes = RaggedCodes.of(*select(x @ parameters["W_enc"].T, 4))
            given.append(row_pass(codes, parameters["W_dec"], y, x, torch.ones(1, dtype=x.dtype)))
    finally:
        torch.set_num_threads(threads)
    for other in given[1:]:
        assert torch.equal(other.errors, given[0].errors)
        assert all(torch.equal(value, given[0].latents[name]) for name, value in other.latents.items())


def test_where_numba_can_keep_nothing_products_take_over_and_say_so() -> None:
    program = """
import numba.core.caching as caching, torch, warnings
caching.CacheImpl._locator_classes = []
from sae.compiled import is_compiled
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert not is_compiled(torch.zeros(1))
assert "set NUMBA_CACHE_DIR" in str(caught[-1].message), caught
"""
    root = Path(step.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "GLASSBOX_COMPILED": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_weight_that_is_not_a_number_shows_in_the_loss() -> None:
    architecture, parameters, x, y, moment = setting("topk", CASES["plain"])
    parameters["b_dec"][0] = torch.nan  # no pre-activation compares with anything
    assert architecture.step(parameters, x, y, moment).loss.isnan()


def test_latents_above_a_threshold_are_strictly_above() -> None:
    codes = latents_above(torch.eye(3), torch.eye(3), torch.zeros(3), torch.tensor([1.0, 0.5, 2.0]))
    assert (codes.rows().tolist(), codes.indices.tolist()) == ([1], [1])


SCREENED = {
    "plain": dict(),
    "chosen by the smallest margins": dict(spread=1e-3),
    "fewer than k positive": dict(shift=-3.0),
    "large bias": dict(bias=30.0),
    "repeated latents": dict(repeat=True),
}


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("level", [-0.5, 0.0, 2.0, 40.0])
def test_the_screen_finds_what_exceeds_a_threshold_in_float32(level: float, each: bool) -> None:
    torch.manual_seed(0)
    centred, W, b = torch.randn(150, 24), torch.randn(2048, 24), 0.3 * torch.randn(2048)
    centred[::7] *= 100
    threshold = level + 0.3 * torch.rand(2048) if each else torch.tensor(level)
    codes, plain = (latents_above(centred, W, b, threshold, screen=screen) for screen in (True, False))
    dense, expected = (
        torch.zeros(150, 2048).index_put((found.rows(), found.indices), found.values) for found in (codes, plain)
    )
    # the two sum in another order: rows of norm 500 differ by some 1e-4, which may carry an entry over the threshold
    differing = (dense == 0) != (expected == 0)
    margin = (dense + expected - threshold).abs()[differing]
    assert bool((margin < 1e-3).all())
    torch.testing.assert_close(dense[~differing], expected[~differing], rtol=1e-4, atol=1e-3)


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


JUMPS: dict[str, dict[str, Any]] = {
    "plain": dict(n=33, d_in=12, d_sae=200),
    "odd widths": dict(n=17, d_in=13, d_sae=37),
    "few dead": dict(n=30, d_in=8, d_sae=140, dead=3, auxk_k=5),
    "many dead": dict(n=30, d_in=8, d_sae=140, dead=50, auxk_k=5),
    "none active": dict(n=9, d_in=6, d_sae=40, shift=-100.0),
    "wide rectangle": dict(n=20, d_in=8, d_sae=120, bandwidth=2.0),
}


@pytest.mark.parametrize("name", JUMPS)
def test_the_sparse_step_of_jumprelu_equals_autograd_in_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"bandwidth": 0.5, **JUMPS[name]}
    monkeypatch.setattr(ragged_step, "SPARSE_SHARE", 1.0)
    torch.manual_seed(0)
    config = SAEConfig(
        architecture="jumprelu", sparsity_coefficient=0.3, **{n: case[n] for n in ("d_in", "d_sae", "bandwidth")},
        auxk_k=case.get("auxk_k"),
    )  # fmt: skip
    architecture = architecture_of(config)
    parameters = {n: v.double() for n, v in architecture.initial(torch.Generator().manual_seed(0)).items()}
    parameters["b_enc"] += 0.1 * torch.randn(case["d_sae"], dtype=torch.float64) + case.get("shift", 0.0)
    parameters["b_dec"] += torch.randn(case["d_in"], dtype=torch.float64)
    parameters["log_threshold"] = (1.1 + torch.rand(case["d_sae"], dtype=torch.float64)).log() / 4
    dead = None
    if "dead" in case:
        dead = torch.arange(case["d_sae"]) < case["dead"]
    x, moment = torch.randn(case["n"], case["d_in"], dtype=torch.float64), Moment(5, 10, dead)
    assert architecture._entries(parameters, x, architecture.thresholds(parameters)) is not None  # pyright: ignore
    result = architecture.step(parameters, x, x, moment)
    expected = Architecture.step(architecture, parameters, x, x, moment)
    # the dense reference rounds the bandwidth to float32 on its way
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-9, atol=1e-11)
    assert result.gradients.keys() == expected.gradients.keys()
    for field, gradient in expected.gradients.items():
        torch.testing.assert_close(result.gradients[field], gradient, rtol=1e-6, atol=1e-9, msg=field)
    for statistic in ("squared_error", "variance", "l0"):
        torch.testing.assert_close(getattr(result, statistic), getattr(expected, statistic), msg=statistic)
    assert torch.equal(result.fired, expected.fired)


def test_jumprelu_takes_the_sparse_step_where_few_entries_take_part() -> None:
    config = SAEConfig(architecture="jumprelu", d_in=6, d_sae=800, bandwidth=0.1)
    architecture = architecture_of(config)
    parameters = architecture.initial(torch.Generator().manual_seed(0))
    x = torch.randn(20, 6)
    for level, is_sparse in ((3.5, True), (0.5, False), (0.04, False)):
        parameters["log_threshold"].fill_(math.log(level) / jumprelu.THRESHOLD_SPEED)
        entries = architecture._entries(parameters, x, architecture.thresholds(parameters))  # pyright: ignore
        assert (entries is not None) == is_sparse, level
    parameters["log_threshold"].fill_(math.log(3.5) / jumprelu.THRESHOLD_SPEED)
    architecture.buffers["l0"].fill_(100.0)
    assert architecture._entries(parameters, x, architecture.thresholds(parameters)) is None  # pyright: ignore


SHRUNK: dict[str, dict[str, Any]] = {
    "l1": dict(architecture="standard"),
    "lp": dict(architecture="standard", penalty="lp"),
    "tanh": dict(architecture="standard", penalty="tanh"),
    "falling power": dict(architecture="p_anneal"),
    "several sites": dict(architecture="crosscoder", activation="relu", n_sites=2),
    "skip transcoder": dict(architecture="skip_transcoder", activation="relu", d_out=5),
}


@pytest.mark.parametrize("kind", SHRUNK)
@pytest.mark.parametrize("shift", [-3.0, 0.0, -100.0], ids=["few", "half", "none"])
def test_the_sparse_step_of_penalised_latents_equals_autograd_in_float64(
    kind: str, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ragged_step, "SPARSE_SHARE", 1.0)
    torch.manual_seed(0)
    config = SAEConfig(d_in=8, d_sae=60, sparsity_coefficient=0.3, auxk_k=5, **SHRUNK[kind])
    architecture = architecture_of(config)
    parameters = {
        name: torch.randn(value.shape, dtype=torch.float64)
        for name, value in architecture.initial(torch.Generator().manual_seed(0)).items()
    }
    parameters["b_enc"] = 0.1 * parameters["b_enc"] + shift
    parameters["W_dec"][7] = 0  # its norm has no slope
    x = torch.randn(31, config.d_in * config.n_sites, dtype=torch.float64)
    y = torch.randn(31, config.output_width, dtype=torch.float64) if config.predicts_target else x
    moment = Moment(7, 10, torch.arange(60) < 9)
    with monkeypatch.context() as held:
        held.setattr(Architecture, "step", None)  # the dense one
        result = architecture.step(parameters, x, y, moment)
    expected = Architecture.step(architecture, parameters, x, y, moment)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-11, atol=1e-11)
    assert result.gradients.keys() == expected.gradients.keys()
    for field, gradient in expected.gradients.items():
        torch.testing.assert_close(result.gradients[field], gradient, rtol=1e-9, atol=1e-10, msg=field)
    for statistic in ("squared_error", "variance", "l0"):
        torch.testing.assert_close(getattr(result, statistic), getattr(expected, statistic), msg=statistic)
    assert torch.equal(result.fired, expected.fired)


@pytest.mark.parametrize("follows", [True, False], ids=["an L0", "no L0"])
def test_penalised_latents_take_the_sparse_step_where_few_are_active(
    follows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {} if follows else {"sparsity_coefficient": 0.3}
    architecture = architecture_of(SAEConfig(architecture="standard", d_in=6, d_sae=800, **given))
    parameters, x = architecture.initial(torch.Generator().manual_seed(0)), torch.randn(20, 6)
    dense, taken = Architecture.step, list[float]()

    def noted(self: Architecture, parameters: Any, x: Tensor, y: Tensor, moment: Moment) -> step.StepResult:
        taken.append(-float(parameters["b_enc"][0]))
        return dense(self, parameters, x, y, moment)

    monkeypatch.setattr(Architecture, "step", noted)
    for level in (3.5, 0.5):
        parameters["b_enc"].fill_(-level)
        architecture.step(parameters, x, x, Moment(5, 10))
    assert taken == [0.5]
    if follows:
        architecture.buffers["l0"].fill_(100.0)
        parameters["b_enc"].fill_(-3.5)
        architecture.step(parameters, x, x, Moment(5, 10))
        assert taken == [0.5, 3.5]
