"""What only a GPU can show: bf16, no waiting for the device, replay of a captured step, large offsets.

TRITON_INTERPRET=0 pytest -m gpu tests/sae/kernels
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from sae import density
from sae.architectures import Architecture
from sae.config import SAEConfig, TrainConfig
from sae.fused import FusedTraining
from sae.kernels.above_select import above_select
from sae.kernels.cases import random_codes
from sae.kernels.decode_loss import DecodeLoss, decode_loss
from sae.kernels.latent_adam import MOVED, Adam, Moments
from sae.kernels.latent_order import latent_order
from sae.kernels.latent_reduce import LatentSums, latent_reduce
from sae.kernels.step import fused_step, fused_update
from sae.kernels.topk_select import threshold_select, topk_select
from sae.learner import Learner
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, StepResult, sparse_step

pytestmark = pytest.mark.gpu
N, D, D_SAE, K = 512, 768, 6144, 32
BF16_CLOSE = 2e-2
"""Results are rounded to eight bits once; the largest of a few hundred thousand may be one step off."""


@pytest.fixture(scope="module", autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if os.environ.get("TRITON_INTERPRET") != "0":
        pytest.fail("kernels would be interpreted, expected compiled ones: set TRITON_INTERPRET=0")


def random_weights() -> dict[str, Tensor]:
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D, device="cuda"), dim=1)
    W_enc, zeros = W_dec.clone(), torch.zeros
    return {"W_enc": W_enc, "W_dec": W_dec, "b_enc": zeros(D_SAE, device="cuda"), "b_dec": zeros(D, device="cuda")}


def chosen(parameters: dict[str, Tensor], x: Tensor) -> RaggedCodes:
    return RaggedCodes.of(*topk_select((x - parameters["b_dec"]) @ parameters["W_enc"].T, K))


@pytest.mark.parametrize("groups", [1, 4])
def test_decoding_in_bf16_is_decoding_of_the_same_numbers_in_float32(groups: int) -> None:
    codes = random_codes(N * groups, D_SAE, K, dtype=torch.bfloat16, device="cuda")
    W_dec, b_dec, target = (torch.randn(*shape, device="cuda").bfloat16() for shape in ((D_SAE, D), (D,), (N, D)))
    weights, scale = torch.rand(groups, device="cuda"), torch.tensor(-0.1, device="cuda")
    found = decode_loss(codes, W_dec, b_dec, target, scale, weights, backend="triton")
    wide = codes._replace(values=codes.values.float())
    expected = decode_loss(wide, W_dec.float(), b_dec.float(), target.float(), scale, weights, backend="reference")
    for field in DecodeLoss._fields:
        ours, theirs = getattr(found, field).float(), getattr(expected, field)
        assert bool(((ours - theirs).abs().max() <= BF16_CLOSE * theirs.abs().max()).item()), field


def test_sums_of_bf16_rows_are_sums_in_float32() -> None:
    codes = random_codes(N, D_SAE, K, frequent=5, dtype=torch.bfloat16, device="cuda")
    dvalues, gradient, centred = (
        torch.randn(*shape, device="cuda").bfloat16() for shape in ((len(codes.values),), (N, D), (N, D))
    )
    order = latent_order(codes, D_SAE)
    found = latent_reduce(order, codes.values, dvalues, gradient, centred, backend="triton")
    expected = latent_reduce(order, codes.values, dvalues, gradient, centred, backend="reference")
    for field in LatentSums._fields:
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=1e-4, atol=1e-4, msg=field)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_selection_at_full_width_is_that_of_a_stable_sort(dtype: torch.dtype) -> None:
    pre = torch.randn(64, 65536, device="cuda").to(dtype)  # bf16 has many ties
    found, expected = (topk_select(pre, 64, backend=backend) for backend in ("triton", "reference"))
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)
    ours, theirs = (threshold_select(pre, 64 * 64, backend=backend).codes for backend in ("triton", "reference"))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_offsets_beyond_32_bits_are_read() -> None:
    d, d_sae = 4096, 600_000  # of W_dec, 2.4e9 elements
    W_dec = torch.zeros(d_sae, d, dtype=torch.bfloat16, device="cuda")
    W_dec[-1] = 1
    codes = RaggedCodes.of(torch.ones(1, 1, device="cuda"), torch.full((1, 1), d_sae - 1, device="cuda"))
    zeros = torch.zeros(1, d, device="cuda")
    found = decode_loss(codes, W_dec, zeros[0], zeros, torch.tensor(1.0, device="cuda"), backend="triton")
    assert bool((found.error == -1).all())
    assert found.dvalues.item() == -d


def test_a_full_size_step_equals_the_sparse_step() -> None:
    parameters, x = random_weights(), torch.randn(N, D, device="cuda")
    codes, dead = chosen(parameters, x), torch.rand(D_SAE, device="cuda") < 0.2
    options: dict[str, Any] = {"widths": (1024, D_SAE), "auxiliary": Auxiliary(dead, 64, 0.03)}
    found = fused_step(parameters, x, x, codes, **options, backend="triton")
    through = sparse_step(parameters, x, x, codes, **options)
    for name, gradient in found.gradients.items():
        torch.testing.assert_close(through.gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    held = {name: value.cpu() for name, value in parameters.items()}
    options["auxiliary"] = Auxiliary(dead.cpu(), 64, 0.03)
    expected = sparse_step(held, x.cpu(), x.cpu(), RaggedCodes(*(part.cpu() for part in codes)), **options)
    torch.testing.assert_close(found.loss.cpu(), expected.loss, rtol=1e-5, atol=0)
    for name, gradient in expected.gradients.items():
        close = 1e-4 * gradient.abs().max().item()
        torch.testing.assert_close(found.gradients[name].cpu(), gradient, rtol=1e-3, atol=close, msg=name)


def update(parameters: dict[str, Tensor], moments: dict[str, Moments], x: Tensor, dead: Tensor, step: Tensor) -> Tensor:
    """Takes one step with every part of it; returns the loss."""
    low = {name: parameters[name].bfloat16() for name in ("W_enc", "W_dec")}
    lr = torch.full((), 1e-3, device="cuda")
    result = fused_update(
        parameters,
        moments,
        lr,
        step,
        Adam(),
        x,
        x,
        chosen(parameters, x),
        copies=low,
        widths=(1024, D_SAE),
        auxiliary=Auxiliary(dead, 64, 0.03, 2048),
    )
    return result.loss


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_a_step_waits_for_nothing_and_can_be_replayed() -> None:
    torch.use_deterministic_algorithms(False)  # filling memory is not part of a step
    parameters, x = random_weights(), torch.randn(N, D, device="cuda")
    plain = {name: value.clone() for name, value in parameters.items()}
    dead, step = torch.rand(D_SAE, device="cuda") < 0.2, torch.ones((), dtype=torch.int64, device="cuda")
    moments, held = ({name: Moments.zeros(parameters[name]) for name in MOVED} for _ in range(2))
    update(plain, held, x, dead, step)  # compiles, and copies what is kept on the device
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            update(plain, held, x, dead, step + 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = update(parameters, moments, x, dead, step)
    graph.replay()
    step.fill_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert bool(torch.isfinite(loss))
    for name in MOVED:
        assert torch.equal(parameters[name], plain[name]), name


RUNS: dict[str, dict[str, Any]] = {
    "topk": dict(architecture="topk", k_start=2 * K),
    "batchtopk": dict(architecture="batchtopk"),
    "matryoshka": dict(nesting_start=0.2),
    "abstopk": dict(architecture="abstopk"),
    "skip transcoder": dict(architecture="skip_transcoder", d_out=512),
}
TRAINED: dict[str, dict[str, Any]] = {
    "float32": dict(),
    "bf16": dict(compute_dtype="bfloat16"),
    "fp8": dict(compute_dtype="fp8"),
    "bf16 moments": dict(moments="bfloat16"),
    "8-bit moments": dict(moments="int8"),
}


def learner(sae: dict[str, Any], train: dict[str, Any], device: str = "cuda", steps: int = 30) -> Learner:
    config = TrainConfig(
        sae=SAEConfig(**{"d_in": 256, "d_sae": 2048, "k": K, **sae}),
        batch_rows=N,
        total_rows=N * steps,
        auxk_after_tokens=4 * N,
        lr=1e-3,
        out="unused",
        **train,
    )
    targets = ("targets",) if config.sae.predicts_target else ()
    return Learner(config, torch.device(device), ("rows",), targets)


def batches(given: Learner, steps: int = 30) -> list[dict[str, Tensor]]:
    """Returns batches of sparse sums, on the learner's device."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1024, 256, generator=generator)
    made = []
    for _ in range(steps):
        active = torch.rand(N, 1024, generator=generator)
        x = torch.where(active < 0.01, 100 * active, 0) @ features
        made.append({"rows": x.to(given.device), "targets": x[:, : given.config.sae.output_width].to(given.device)})
    return made


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_of_captured_steps_ends_near_that_of_the_cpu(kind: str) -> None:
    torch.use_deterministic_algorithms(False)
    ours, theirs = learner(RUNS[kind], {}), learner(RUNS[kind], {}, "cpu")
    assert isinstance(ours.optimizer, FusedTraining)
    for one, other in zip(batches(ours), batches(theirs), strict=True):
        ours.take(one)
        theirs.take(other)
    found, expected = ours.read_metrics(1.0, 1), theirs.read_metrics(1.0, 1)
    assert found.loss == pytest.approx(expected.loss, rel=2e-2)
    assert found.l0 == pytest.approx(expected.l0, rel=1e-2)


@pytest.mark.parametrize("setting", TRAINED)
def test_fewer_bits_learn_nearly_as_well(setting: str) -> None:
    torch.use_deterministic_algorithms(False)
    losses = []
    for train in ({}, TRAINED[setting]):
        given = learner({"architecture": "topk"}, train, steps=100)
        for batch in batches(given, 100):
            given.take(batch)
        losses.append(given.read_metrics(1.0, 1).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_a_captured_run_repeats_to_the_bit_and_resumes() -> None:
    torch.use_deterministic_algorithms(False)
    first, second = (learner(RUNS["matryoshka"], {}) for _ in range(2))
    feed = batches(first)
    for batch in feed[:17]:
        first.take(batch)
    second.restore(first.state())
    for batch in feed[17:]:
        first.take(batch)
        second.take(batch)
    for name, value in first.parameters.items():
        assert torch.equal(second.parameters[name], value), name


@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_a_thresholded_run_goes_over_to_the_sparse_step_and_learns_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(density, "EVERY_STEPS", 8)
    dense, steps = Architecture.step, list[int]()

    def noted(self: Architecture, parameters: Any, x: Tensor, y: Tensor, moment: Any) -> StepResult:
        steps.append(moment.step)
        return dense(self, parameters, x, y, moment)

    monkeypatch.setattr(Architecture, "step", noted)
    losses = []
    for share in (-1.0, 0.5):
        monkeypatch.setattr(density, "SPARSE_SHARE", share)
        steps.clear()
        given = learner({"architecture": kind, "k": None, "target_l0": float(K)}, {})
        for batch in batches(given):
            given.take(batch)
        assert steps == list(range(8 if share > 0 else 30))
        losses.append(given.read_metrics(1.0, 1).loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("kind", ["standard", "jumprelu"])
def test_a_thresholded_step_waits_for_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(density, "SPARSE_SHARE", 0.5)
    given = learner({"architecture": kind, "k": None, "target_l0": float(K)}, {})
    feed = batches(given)
    for batch in feed[:20]:  # the seventeenth is the first sparse one
        given.take(batch)
    x, moment = feed[20]["rows"] * given.scale_in, given._moment()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:  # the answer whether entries fitted is waited for by an event, when all work has been handed over
        result = given.architecture.step(given.parameters, x, x, moment)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(torch.isfinite(result.loss))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_entries_above_floors_at_full_width_are_those_of_plain_torch(dtype: torch.dtype) -> None:
    pre, floor = torch.randn(64, 65536, device="cuda").to(dtype), (2 + torch.rand(65536, device="cuda")).to(dtype)
    count = int((pre > floor).sum())
    for capacity in (count, count // 2, 2 * count):
        ours, theirs = (above_select(pre, floor, capacity, backend=backend) for backend in ("triton", "reference"))
        assert torch.equal(ours.count, theirs.count)
        assert all(torch.equal(a, b) for a, b in zip(ours.codes, theirs.codes, strict=True))


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka"])
def test_a_learners_step_waits_for_nothing(kind: str) -> None:
    torch.use_deterministic_algorithms(False)
    given = learner(RUNS[kind], {"compute_dtype": "bfloat16"})
    feed = batches(given)
    seen: set[object] = set()
    for batch in feed:
        optimizer = given.optimizer
        assert isinstance(optimizer, FusedTraining)
        architecture: Any = given.architecture
        moment = given._moment()
        key = (architecture.k(moment), tuple(architecture.group_weights(moment, batch["rows"])[0]), moment.room)
        # the first step of a kind compiles, the second captures: from the third on nothing may wait
        is_settled = list(seen).count(key) and (key, "captured") in seen
        torch.cuda.set_sync_debug_mode("error" if is_settled else "default")
        try:
            given.take(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.add((key, "captured") if key in seen else key)
