"""What the first batch sets: the encoder's length, and the strengths and weight of a penalty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae import SAE, SAEConfig, TrainConfig
from sae.architectures import Architecture, Moment, architecture_of
from sae.learner import Learner

GOAL = 6.0
KINDS: list[dict[str, Any]] = [
    dict(architecture="standard"),
    dict(architecture="standard", penalty="lp"),
    dict(architecture="p_anneal"),
    dict(architecture="gated"),
    dict(architecture="jumprelu"),
    dict(architecture="jumprelu", penalty="tanh"),
    dict(architecture="topk", k=6, target_l0=None),
    dict(architecture="abstopk", k=6, target_l0=None),
    dict(architecture="batchtopk", k=6, target_l0=None),
    dict(architecture="matryoshka_batchtopk", k=6, k_start=6, target_l0=None),
    dict(architecture="crosscoder", k=6, n_sites=2, target_l0=None),
    dict(architecture="crosscoder", activation="relu", n_sites=2),
    dict(architecture="crosscoder", activation="jumprelu", n_sites=2),
]


def calibrated(**settings: Any) -> tuple[Architecture, dict[str, Tensor], Tensor]:
    config = SAEConfig(**{**dict(d_in=16, d_sae=128, target_l0=GOAL), **settings})
    architecture = architecture_of(config)
    parameters = architecture.initial(torch.Generator().manual_seed(0))
    x = torch.randn(500, 16 * config.n_sites, generator=torch.Generator().manual_seed(1)) + 0.5
    architecture.calibrate(parameters, x, x)
    return architecture, parameters, x


@pytest.mark.parametrize(
    "settings", KINDS, ids=lambda each: "-".join(str(value) for value in each.values() if isinstance(value, str))
)
def test_the_first_pass_meets_its_l0_and_explains_as_much_as_its_length_allows(settings: dict[str, Any]) -> None:
    architecture, parameters, x = calibrated(**settings)
    first = architecture.forward(parameters, x, Moment(0, 100))
    assert (first.activations != 0).sum(1).double().mean() == pytest.approx(GOAL, rel=0.01)
    written, wanted = first.x_hat - parameters["b_dec"], x - parameters["b_dec"]
    along, length = float((written * wanted).sum()), float(written.pow(2).sum())
    assert along / length == pytest.approx(1, rel=1e-4), "another length would explain more"


def test_without_an_l0_to_meet_only_the_length_is_set() -> None:
    architecture, parameters, _ = calibrated(architecture="standard", target_l0=None, sparsity_coefficient=0.5)
    assert not parameters["b_enc"].any()
    full = architecture.initial(torch.Generator().manual_seed(0))["W_enc"]
    ratio = parameters["W_enc"] / full
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))
    assert 0.1 < float(ratio[0, 0]) < 0.5, "128 latents in 16 dimensions write everything several times over"


@pytest.mark.parametrize(
    ("settings", "charged"),
    [
        (dict(architecture="standard"), lambda a: a),
        (dict(architecture="gated"), lambda a: a),
        (dict(architecture="jumprelu"), lambda a: 1.0),
        (dict(architecture="jumprelu", penalty="tanh"), lambda a: 8 * torch.tanh(4 * a)),
    ],
    ids=["standard", "gated", "step", "tanh"],
)
def test_among_orthogonal_latents_the_first_weight_charges_what_a_latent_explains(
    settings: dict[str, Any], charged: Any
) -> None:
    config = SAEConfig(d_in=32, d_sae=32, target_l0=4.0, decoder_bias_init="zeros", **settings)
    architecture = architecture_of(config)
    parameters = architecture.initial(torch.Generator().manual_seed(0))
    parameters["W_enc"], parameters["W_dec"] = torch.eye(32), torch.eye(32)
    x = torch.randn(400, 32, generator=torch.Generator().manual_seed(1)).relu()
    architecture.calibrate(parameters, x, x)
    level = x.flatten().topk(4 * 400).values[-1]
    weight = architecture.buffers["log_coefficient"].exp()
    assert float(weight * charged(level)) == pytest.approx(float(level**2), rel=1e-4)


def test_a_weight_that_is_given_is_where_the_run_starts() -> None:
    architecture, *_ = calibrated(architecture="jumprelu", sparsity_coefficient=0.25)
    assert float(architecture.buffers["log_coefficient"].exp()) == pytest.approx(0.25)


def test_training_on_starts_with_a_weight_that_fits_the_thresholds_it_found(tmp_path: Path) -> None:
    tensors = {"W_enc": torch.eye(8), "W_dec": torch.eye(8), "b_enc": torch.zeros(8), "b_dec": torch.zeros(8)}
    given = SAE.from_tensors(
        SAEConfig(d_in=8, d_sae=8, architecture="jumprelu"), {**tensors, "threshold": torch.ones(8)}
    )
    rows = torch.randn(256, 8, generator=torch.Generator().manual_seed(0)).relu()
    given.save(tmp_path / "given")
    l0 = float((rows > 1.0).sum(1).double().mean())
    sae = SAEConfig(
        d_in=8, d_sae=8, architecture="jumprelu", target_l0=l0, normalize_activations="none", sparsity_warmup_frac=0.0
    )
    config = TrainConfig(
        sae=sae, total_rows=2560, batch_rows=256, device="cpu", out=str(tmp_path), init_from=str(tmp_path / "given")
    )
    learner = Learner(config, torch.device("cpu"))
    learner.take({"rows": rows})
    assert float(learner.architecture.buffers["log_coefficient"].exp()) == pytest.approx(1.0, rel=0.1)
