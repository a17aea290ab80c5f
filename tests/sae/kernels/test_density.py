"""Thresholded kinds on a GPU: the sparse step is the dense one, taken by density, and never on cut-off entries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from sae import density
from sae.architectures import Architecture, Moment, architecture_of
from sae.config import SAEConfig, TrainConfig
from sae.density import Density, Late
from sae.kernels.dispatch import default_backend
from sae.kernels.latent_reduce import latent_sums
from sae.learner import Learner
from sae.shares import rows_divided
from sae.sparse import RaggedCodes

LATENTS = 60
KINDS: dict[str, dict[str, Any]] = {
    "l1": dict(architecture="standard"),
    "lp": dict(architecture="standard", penalty="lp"),
    "tanh": dict(architecture="standard", penalty="tanh"),
    "falling power": dict(architecture="p_anneal"),
    "crosscoder": dict(architecture="crosscoder", activation="relu", n_sites=2),
    "skip transcoder": dict(architecture="skip_transcoder", activation="relu", d_out=5),
    "jumprelu": dict(architecture="jumprelu", bandwidth=0.5),
    "jumprelu crosscoder": dict(architecture="crosscoder", activation="jumprelu", n_sites=2, bandwidth=1.0),
}


def setting(
    kind: str, shift: float, dtype: torch.dtype, device: str
) -> tuple[Architecture, dict[str, Tensor], Tensor, Tensor, Moment]:
    """Returns an architecture with weights, rows, what is to be written, and a moment with dead latents."""
    torch.manual_seed(0)
    config = SAEConfig(d_in=8, d_sae=LATENTS, sparsity_coefficient=0.3, auxk_k=5, **KINDS[kind])
    architecture = architecture_of(config)
    architecture.to(torch.device(device))
    parameters = {
        name: torch.randn(value.shape, dtype=torch.float64).to(device, dtype)
        for name, value in architecture.initial(torch.Generator().manual_seed(0)).items()
    }
    parameters["b_enc"] = 0.1 * parameters["b_enc"] + shift
    parameters["W_dec"][7] = 0  # its norm has no slope
    if "log_threshold" in parameters:
        parameters["log_threshold"] = (1.1 + torch.rand(LATENTS)).log().to(device, dtype) / 4
    x = torch.randn(31, config.d_in * config.n_sites, dtype=torch.float64).to(device, dtype)
    y = torch.randn(31, config.output_width, dtype=torch.float64).to(device, dtype) if config.predicts_target else x
    known = Density()
    known.send(torch.tensor(31 * LATENTS // 2, device=device))
    return architecture, parameters, x, y, Moment(16, 40, torch.arange(LATENTS, device=device) < 9, 16, known)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Holds, for every dense step, that it was one."""
    dense, noted = Architecture.step, list[bool]()

    def step(self: Architecture, *given: Any) -> Any:
        noted.append(True)
        return dense(self, *given)

    monkeypatch.setattr(Architecture, "step", step)
    return noted


def assert_same(found: Any, expected: Any, close: float) -> None:
    torch.testing.assert_close(found.loss, expected.loss, rtol=close, atol=close)
    assert found.gradients.keys() == expected.gradients.keys()
    for field, gradient in expected.gradients.items():
        size = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found.gradients[field], gradient, rtol=close, atol=close * size, msg=field)
    for figure in ("squared_error", "variance", "l0"):
        torch.testing.assert_close(
            getattr(found, figure), getattr(expected, figure), rtol=close, atol=close, msg=figure
        )
    assert torch.equal(found.fired, expected.fired)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [-3.0, 0.0, -100.0], ids=["few", "half", "none"])
def test_the_sparse_step_equals_autograd_in_float64(
    kind: str, shift: float, monkeypatch: pytest.MonkeyPatch, taken: list[bool]
) -> None:
    monkeypatch.setattr(density, "SPARSE_SHARE", 1.0)
    monkeypatch.setattr(density, "SURPLUS", 2.0)
    for module in ("sae.architectures.standard", "sae.architectures.jumprelu", "sae.jump_step"):
        monkeypatch.setattr(f"{module}.is_fused", lambda x, y: True)  # the references take float64 too
    given = setting(kind, shift, torch.float64, "cpu")
    with default_backend("reference"):
        found = given[0].step(*given[1:])
        assert not taken
        monkeypatch.undo()
        expected = Architecture.step(*given)
    # the dense reference of JumpReLU rounds the bandwidth to float32 on its way
    assert_same(found, expected, 1e-6 if "jump" in kind else 1e-10)


@pytest.mark.parametrize("kind", ["falling power", "tanh", "jumprelu"])
def test_the_kernels_give_what_the_dense_step_gives(
    kind: str, monkeypatch: pytest.MonkeyPatch, taken: list[bool], device: str
) -> None:
    monkeypatch.setattr(density, "SPARSE_SHARE", 1.0)
    architecture, parameters, x, y, _ = setting(kind, -3.0, torch.float32, device)
    # interpreted kernels are slow: few rows, and what revives dead latents has tests of its own
    known = Density()
    known.send(torch.tensor(2 * LATENTS, device=device))
    given = architecture, parameters, x[:4], y[:4], Moment(16, 40, density=known)
    with default_backend("triton"):
        found = given[0].step(*given[1:])
        assert not taken
    with default_backend("reference"):
        expected = Architecture.step(*given)
    assert_same(found, expected, 1e-4)


def test_terms_are_summed_by_latent(device: str) -> None:
    codes = RaggedCodes.of(torch.ones(4, 2, device=device), torch.tensor([[0, 3], [3, 1], [3, 0], [1, 3]]).to(device))
    terms = torch.tensor([1.0, 2, 4, 8, 0, 16, -3, 32], device=device)
    for backend in ("reference", "triton"):
        sums = latent_sums(codes, terms, 5, backend=backend)  # pyright: ignore[reportArgumentType]
        assert sums.tolist() == [17, 5, 0, 38, 0]


@pytest.mark.parametrize("kind", ["l1", "jumprelu"])
def test_entries_that_do_not_fit_bring_the_dense_step_back(
    kind: str, monkeypatch: pytest.MonkeyPatch, taken: list[bool], device: str
) -> None:
    monkeypatch.setattr(density, "SPARSE_SHARE", 1.0)
    monkeypatch.setattr(density, "LEAST_ROOM", 1)
    architecture, parameters, x, y, moment = setting(kind, 0.0, torch.float32, device)
    known = Density()
    known.send(torch.tensor(3, device=device))
    moment = moment._replace(density=known)
    with default_backend("reference"):
        expected = Architecture.step(architecture, parameters, x, y, moment)
        taken.clear()
        found = architecture.step(parameters, x, y, moment)
        assert_same(found, expected, 0.0)
        assert taken == [True]
        # what does not fit once is not tried again before the next count, which is the right one
        assert known.expected(17) == -1
        architecture.step(parameters, x, y, moment._replace(step=17))
        assert len(taken) == 2
        assert known.expected(32) > 3
        architecture.step(parameters, x, y, moment._replace(step=32))
        assert len(taken) == 2


def test_a_threshold_too_near_zero_is_left_to_the_dense_step(
    monkeypatch: pytest.MonkeyPatch, taken: list[bool], device: str
) -> None:
    monkeypatch.setattr(density, "SPARSE_SHARE", 0.9)
    monkeypatch.setattr(density, "LEAST_ROOM", 1 << 20)  # room for every entry
    architecture, parameters, x, y, moment = setting("jumprelu", -3.0, torch.float32, device)
    with default_backend("reference"):
        architecture.step(parameters, x, y, moment)
        assert not taken
        parameters["log_threshold"][3] = -10.0
        architecture.step(parameters, x, y, moment._replace(step=32))
    assert taken == [True]
    assert moment.density is not None
    assert moment.density.expected(48) == 31 * LATENTS + 1


def test_a_number_is_sent_as_it_was(device: str) -> None:
    value, late = torch.tensor(5, device=device), Late()
    assert not late.is_sent
    late.send(value)
    value += 1
    assert late.read() == 5


ROWS, WIDTH, STEPS = 6, 4, 24


def configured(**changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"d_in": WIDTH, "d_sae": 400, "target_l0": 20.0, "auxk_k": 4, **changes}
    train: dict[str, Any] = {"auxk_after_tokens": 5 * ROWS, "lr": 3e-3, "out": "unused"}
    return TrainConfig(sae=SAEConfig(**settings), batch_rows=ROWS, total_rows=ROWS * STEPS, **train)


def batches() -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield {"rows": torch.randn(ROWS, WIDTH, generator=generator)}


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_a_run_changes_over_at_a_fixed_step_and_learns_the_same(
    architecture: Any, monkeypatch: pytest.MonkeyPatch, taken: list[bool], device: str
) -> None:
    config, runs = configured(architecture=architecture), []
    for share in (-1.0, 0.2):
        monkeypatch.setattr(density, "SPARSE_SHARE", share)
        monkeypatch.setattr(density, "EVERY_STEPS", 8)
        taken.clear()
        with default_backend("reference"):
            learner, dense = Learner(config, torch.device(device)), list[int]()
            for batch in batches():
                before = len(taken)
                learner.take(batch)
                dense.append(len(taken) - before)
        assert dense == [1] * STEPS if share < 0 else [1] * 8 + [0] * (STEPS - 8)
        assert float(learner.architecture.buffers["l0"]) > 1
        runs.append(learner)
    for name, value in runs[0].parameters.items():
        # Adam divides small gradients by their own size: their rounding shows as a share of the rate
        torch.testing.assert_close(runs[1].parameters[name], value, rtol=0, atol=0.1 * config.peak_lr, msg=name)
    assert torch.equal(runs[0].silent_rows, runs[1].silent_rows)


@pytest.mark.parametrize("killed_after", [3, 8, 13])
def test_a_resumed_run_changes_over_at_the_same_step(
    killed_after: int, monkeypatch: pytest.MonkeyPatch, taken: list[bool], device: str
) -> None:
    monkeypatch.setattr(density, "SPARSE_SHARE", 0.2)
    monkeypatch.setattr(density, "EVERY_STEPS", 8)
    config = configured(architecture="standard")
    with default_backend("reference"):
        whole, halves = Learner(config, torch.device(device)), Learner(config, torch.device(device))
        for step, batch in enumerate(batches()):
            if step == killed_after:
                state = halves.state()
                assert state["density"].device.type == "cpu"
                halves = Learner(config, torch.device(device))
                halves.restore(state)
            before = len(taken)
            whole.take(batch)
            middle = len(taken)
            halves.take(batch)
            assert len(taken) - middle == middle - before, step
    for name, value in whole.parameters.items():
        assert torch.equal(halves.parameters[name], value), name


class Pair:
    """One of two threads that share a batch."""

    world = 2

    def __init__(self, rank: int, given: list[tuple[Tensor, ...]], barrier: threading.Barrier) -> None:
        self.rank, self._given, self._barrier = rank, given, barrier

    def sum(self, *tensors: Tensor) -> None:
        self._given[self.rank] = tuple(tensor.clone() for tensor in tensors)
        self._barrier.wait(timeout=60)
        ours, theirs = self._given
        for tensor, one, other in zip(tensors, ours, theirs, strict=True):
            tensor.copy_(one + other)
        self._barrier.wait(timeout=60)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        raise NotImplementedError


@pytest.mark.parametrize("kind", ["falling power", "jumprelu"])
@pytest.mark.parametrize("fits_both", [True, False], ids=["room for both", "room for one alone"])
def test_those_who_share_a_batch_decide_alike(
    kind: str, fits_both: bool, monkeypatch: pytest.MonkeyPatch, taken: list[bool], device: str
) -> None:
    monkeypatch.setattr(density, "SPARSE_SHARE", 1.0)
    monkeypatch.setattr(density, "LEAST_ROOM", 1)
    architecture, parameters, x, _, _ = setting(kind, -8.0, torch.float32, device)
    x = x[:12] * (1 + 9 * (torch.arange(12, device=device) >= 6))[:, None]
    floor = architecture.thresholds(parameters) - 0.25 if kind == "jumprelu" else 0.0  # pyright: ignore
    above = architecture.dense_pre_activations(parameters, architecture.centre(parameters, x)) > floor
    few, many = above[:6].sum(), above[6:].sum()
    assert many > 3 * few > 0
    given, barrier = [(), ()], threading.Barrier(2)

    def part(rank: int) -> tuple[Any, Tensor]:
        known = Density()
        known.send(2 * (many if fits_both else few))
        rows = x[6 * rank : 6 * rank + 6].contiguous()
        with rows_divided(Pair(rank, given, barrier), 12):
            return architecture.step(parameters, rows, rows, Moment(16, 40, density=known)), known.state()

    with default_backend("reference"), ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(part, (0, 1)))
        assert len(taken) == (0 if fits_both else 2)
        whole = Architecture.step(architecture, parameters, x, x, Moment(16, 40))
    (first, state), (second, other_state) = parts
    assert torch.equal(state, other_state)
    assert state.tolist() == [2 * int(many) if fits_both else -1, int(few + many)]
    torch.testing.assert_close(first.loss + second.loss, whole.loss, rtol=1e-4, atol=1e-4)
    for field, gradient in whole.gradients.items():
        close = 1e-4 * max(1.0, float(gradient.abs().max()))
        total = first.gradients[field] + second.gradients[field]
        torch.testing.assert_close(total, gradient, rtol=1e-4, atol=close, msg=field)
