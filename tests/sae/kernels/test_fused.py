"""A learner whose steps are fused ends where the plain one does, whatever the schedules do meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sae import fused
from sae.config import SAEConfig, TrainConfig
from sae.kernels.dispatch import default_backend
from sae.learner import Learner

ROWS, WIDTH, LATENTS, STEPS = 6, 4, 16, 6
KINDS: dict[str, dict[str, Any]] = {
    "topk": dict(architecture="topk", k_start=6),
    "batchtopk": dict(architecture="batchtopk"),
    "matryoshka": dict(),
    "matryoshka from the start": dict(nesting_start=0, matryoshka_widths=[5, 16]),
    "abstopk": dict(architecture="abstopk"),
    "skip transcoder": dict(architecture="skip_transcoder", d_out=3),
    "crosscoder": dict(architecture="crosscoder", activation="batchtopk", n_sites=2),
    "free decoder norms": dict(architecture="topk", normalize_decoder=False),
    "no auxiliary loss": dict(architecture="topk", auxk_alpha=0.0),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "average": dict(ema_decay=0.9),
    "resampling": dict(resample_fracs=[0.5], dead_after_tokens=2 * ROWS),
}


def configured(sae: dict[str, Any], **train: Any) -> TrainConfig:
    config = SAEConfig(**{"d_in": WIDTH, "d_sae": LATENTS, "k": 3, "auxk_k": 4, **sae})
    settings: dict[str, Any] = {"auxk_after_tokens": 2 * ROWS, "lr": 3e-3, **train}
    return TrainConfig(sae=config, batch_rows=ROWS, total_rows=ROWS * STEPS, out="unused", **settings)


def batches(config: TrainConfig) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sae = config.sae
    for _ in range(config.steps):
        rows = torch.randn(ROWS, sae.d_in * sae.n_sites, generator=generator)
        yield {"rows": rows, "targets": rows[:, : sae.output_width] ** 2}


def trained(config: TrainConfig, backend: Any, device: str) -> Learner:
    """Returns a learner after the whole run; `backend` None is the plain path."""
    targets = ("targets",) if config.sae.predicts_target else ()
    if backend is None:
        learner = Learner(config, torch.device("cpu"), ("rows",), targets)
        for batch in batches(config):
            learner.take(batch)
        return learner
    with default_backend(backend):
        learner = Learner(config, torch.device(device), ("rows",), targets)
        assert isinstance(learner.optimizer, fused.FusedTraining)
        for batch in batches(config):
            learner.take(batch)
    return learner


def assert_alike(found: Learner, expected: Learner, close: float) -> None:
    for name, value in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name].cpu(), value, rtol=0, atol=close, msg=name)
    for name, value in expected.architecture.buffers.items():
        torch.testing.assert_close(found.architecture.buffers[name].cpu(), value, rtol=1e-3, atol=1e-5, msg=name)
    assert torch.equal(found.silent_rows.cpu(), expected.silent_rows)
    ours, theirs = (learner.read_metrics(1.0, 1) for learner in (found, expected))
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert (ours.l0, ours.dead_frac) == (theirs.l0, theirs.dead_frac)
    assert ours.explained_variance == pytest.approx(theirs.explained_variance, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(kind, "reference") for kind in KINDS]
    + [pytest.param(kind, "triton", marks=pytest.mark.slow) for kind in ("topk", "matryoshka", "skip transcoder")],
)
def test_a_fused_run_ends_where_the_plain_one_does(kind: str, backend: str, device: str) -> None:
    config = configured(KINDS[kind])
    # Adam divides small gradients by their own size: their rounding shows as a share of the rate
    assert_alike(trained(config, backend, device), trained(config, None, "cpu"), close=0.1 * config.peak_lr)


@pytest.mark.parametrize("setting", SETTINGS)
def test_averages_and_resampling_keep_up(setting: str, device: str) -> None:
    config = configured({}, **SETTINGS[setting])
    found, expected = trained(config, "reference", device), trained(config, None, "cpu")
    assert_alike(found, expected, close=0.1 * config.peak_lr)
    for name, value in (expected.average or {}).items():
        torch.testing.assert_close((found.average or {})[name].cpu(), value, rtol=0, atol=0.1 * config.peak_lr)


def test_dead_latents_are_revived_in_these_runs(device: str) -> None:
    config = configured({"architecture": "topk", "k": 1}, auxk_after_tokens=3 * ROWS)
    rooms = []
    with default_backend("reference"):
        learner = Learner(config, torch.device(device))
        for batch in batches(config):
            learner.take(batch)
            dead = int((learner.silent_rows >= config.auxk_after_rows).sum())
            rooms.append((learner._moment().room, dead))
    assert all(room is not None and room >= dead for room, dead in rooms)
    assert any(dead for _, dead in rooms)


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
def test_a_fused_run_is_resumed_to_the_same_weights(moments: Any, device: str) -> None:
    config = configured({}, moments=moments)
    whole = trained(config, "reference", device) if moments == "float32" else None
    with default_backend("reference"):
        first = Learner(config, torch.device(device))
        feed = batches(config)
        for _ in range(5):
            first.take(next(feed))
        state = first.state()
        assert all(value.device.type == "cpu" for value in state.values())
        second = Learner(config, torch.device(device))
        second.restore(state)
        torch.manual_seed(3)
        rest = list(feed)
        for batch in rest:
            second.take(batch)
        torch.manual_seed(3)
        for batch in rest:
            first.take(batch)
    for name, value in first.parameters.items():
        assert torch.equal(second.parameters[name], value), name
        assert whole is None or torch.equal(whole.parameters[name], value), name


def test_a_checkpoint_of_the_plain_path_is_taken_up_by_the_fused_one(device: str) -> None:
    config = configured({"architecture": "topk"})
    plain, feed = Learner(config, torch.device("cpu")), batches(config)
    for _ in range(4):
        plain.take(next(feed))
    plain.read_metrics(1.0, 1)
    with default_backend("reference"):
        other = Learner(config, torch.device(device))
        other.restore(plain.state())
        for batch in feed:
            other.take(batch)
            plain.take(batch)
    assert_alike(other, plain, close=0.1 * config.peak_lr)


@pytest.mark.parametrize(("moments", "share"), [("bfloat16", 0.05), ("int8", 0.1)])
def test_moments_of_fewer_bits_learn_as_well(moments: Any, share: float, device: str) -> None:
    losses = []
    for kind in ("float32", moments):
        config = replace(configured({"architecture": "topk"}, moments=kind), total_rows=ROWS * 60)
        losses.append(trained(config, "reference", device).read_metrics(1.0, 1).loss)
    assert losses[1] == pytest.approx(losses[0], rel=share)


def test_products_in_bf16_learn_as_well(device: str) -> None:
    losses = []
    for kind in ("float32", "bfloat16"):
        config = replace(configured({"architecture": "topk"}, compute_dtype=kind), total_rows=ROWS * 60)
        losses.append(trained(config, "reference", device).read_metrics(1.0, 1).loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_what_only_the_fused_step_has_is_refused_elsewhere() -> None:
    config = configured({"architecture": "topk"}, moments="int8")
    with pytest.raises(
        ValueError, match=r"moments=int8 belongs to the fused step .*\(no kernels run on cpu\): set moments=float32"
    ):
        Learner(config, torch.device("cpu"))
    with default_backend("reference"):
        clipped = replace(config, clip_norm=1.0)
        with pytest.raises(ValueError, match=r"clip_norm=1.0 needs stored gradients\): set moments=float32"):
            Learner(clipped, torch.device("cpu"))
        with pytest.raises(ValueError, match=r"architecture `standard` has another step"):
            Learner(configured({"architecture": "standard", "k": None}, compute_dtype="bfloat16"), torch.device("cpu"))
        with pytest.raises(ValueError, match=r"compute_dtype=fp8 does not run here \(d_in=4 .* of 16\): set compute"):
            Learner(configured({"architecture": "topk"}, compute_dtype="fp8"), torch.device("cpu"))


@pytest.mark.parametrize(
    "sae", [dict(architecture="jumprelu"), dict(architecture="jumprelu", penalty="tanh")], ids=["step", "tanh"]
)
def test_dense_steps_revive_the_dead_that_are_listed(sae: dict[str, Any], device: str) -> None:
    config = configured({**sae, "k": None, "target_l0": 1.0}, auxk_after_tokens=1)
    expected = trained(config, None, "cpu")
    assert bool((expected.silent_rows > 0).any())  # those are dead here
    with default_backend("reference"):
        found = Learner(config, torch.device(device))
        for batch in batches(config):
            found.take(batch)
    assert_alike(found, expected, close=0.1 * config.peak_lr)
