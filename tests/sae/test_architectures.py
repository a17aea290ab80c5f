"""Every architecture: its formula, its gradients, its training, and what it becomes when it is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from planted_saes import TRUE, config, late, settings, shaped
from torch import Tensor

from sae import SAE, SAEConfig, evaluate, train
from sae.architectures import Architecture, Moment, architecture_of, tensor_shapes
from sae.architectures.architecture import geometric_median
from sae.architectures.clt import decoder_mask
from sae.architectures.crosscoder import model_difference, norm_shares
from sae.architectures.jumprelu import Jump, Step
from sae.architectures.transcoder import linear_map
from sae.config import ARCHITECTURES, SINGLE_SITE


def random_pass(architecture: Architecture, n: int = 12) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    sae = architecture.config
    initial = architecture.initial(torch.Generator().manual_seed(0))
    parameters = {name: value.double() + 0.1 * torch.randn(value.shape).double() for name, value in initial.items()}
    x = torch.randn(n, sae.d_in * sae.n_sites, dtype=torch.float64)
    y = torch.randn(n, sae.output_width * sae.n_sites, dtype=torch.float64) if sae.predicts_target else x
    return parameters, x, y


@pytest.mark.parametrize("name", SINGLE_SITE)
def test_every_single_site_architecture_recovers_planted_features(name: str, tmp_path: Path) -> None:
    widths = dict(matryoshka_widths=[64, 96]) if name == "matryoshka_batchtopk" else {}
    sae = settings(name, **widths)
    penalised = sae.l0_goal is not None
    result = train(config(tmp_path, sae, total_rows=256 * 600, lr=1e-2), shaped(sae, 256 * 600))
    learned = torch.nn.functional.normalize(result.sae.W_dec.detach(), dim=1)
    cosine = TRUE @ learned.T
    best = (cosine.abs() if name == "abstopk" else cosine).max(1).values
    assert (best > 0.9).float().mean() > 0.6, f"{(best > 0.9).float().mean():.0%} of the true features were found"
    held_out = evaluate(result.sae, planted.rows(5000, TRUE, seed=9))
    assert held_out.explained_variance > (0.3 if penalised else 0.8)  # penalties shrink
    if penalised:
        assert held_out.l0 == pytest.approx(sae.l0_goal, rel=0.1), "the penalty's weight is steered to the L0 asked for"
    assert result.sae.metadata["training_architecture"] == name


@pytest.mark.parametrize("name", ["transcoder", "skip_transcoder", "crosscoder", "clt"])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu"])
def test_wired_architectures_learn_what_they_are_to_write(name: str, activation: str, tmp_path: Path) -> None:
    sparsity: dict[str, Any] = dict(k=8) if "topk" in activation else dict(k=None, target_l0=8)
    sae = settings(name, activation=activation, **sparsity)
    result = train(config(tmp_path, sae, total_rows=256 * 150, lr=1e-2), shaped(sae))
    held_out = evaluate(result.sae, shaped(sae, 4000, seed=9))
    assert held_out.explained_variance > 0.3
    again = SAE.load(result.path)
    x = next(iter(shaped(sae, 50, seed=3)))
    x = x[0] if sae.predicts_target else x
    torch.testing.assert_close(again(x), result.sae(x))
    assert again(x).shape == ((50, 2, 32) if sae.n_sites == 2 else (50, 32))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_finished_sae_is_the_last_training_pass_in_raw_units(name: str, tmp_path: Path) -> None:
    """Folding scales and thresholds changes nothing: codes of the finished SAE give training's own reconstruction."""
    from sae.learner import Learner

    sae = settings(name)
    learner = Learner(config(tmp_path, sae), torch.device("cpu"), target_sites=("targets",))
    pieces = list(shaped(sae, 256 * 30))
    for start in range(0, len(pieces) - 2, 2):
        together = pieces[start : start + 2]
        if sae.predicts_target:
            x, y = (torch.cat([piece[side] for piece in together]).flatten(1) for side in (0, 1))
        else:
            x = y = torch.cat(together).flatten(1)
        learner.take({"rows": x, "targets": y})
    with torch.no_grad():
        if "threshold" in learner.architecture.buffers:
            # one batch's own threshold is not the running one
            learner.architecture.activate(
                learner.parameters,
                learner.architecture.dense_pre_activations(
                    learner.parameters, learner.architecture.centre(learner.parameters, x * learner.scale_in)
                ),
                Moment(29, 30),
            )
            kept = learner.architecture.noted["kept"]
            learner.architecture.buffers["threshold"] = kept * (1 - 1e-6)
        expected = learner.architecture.forward(learner.parameters, x * learner.scale_in, Moment(29, 30)).x_hat
        finished = learner.finished_sae()
        rows = x if sae.n_sites == 1 else x.unflatten(1, (2, 32))
        got = finished(rows).flatten(1)
    torch.testing.assert_close(got * learner.scale_out, expected, rtol=1e-4, atol=1e-3)
    assert finished.config.normalize_activations == "none"
    assert {n: tuple(t.shape) for n, t in finished.tensors.items()} == tensor_shapes(finished.config)


@pytest.mark.parametrize("name", ["standard", "gated", "topk", "jumprelu", "abstopk", "matching_pursuit"])
def test_encoding_is_the_same_with_and_without_gradients(name: str) -> None:
    sae = SAE(settings(name))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec, dim=1))
    x = torch.randn(20, 32)
    with_gradients = sae.encode(x)
    with torch.no_grad():
        without = sae.encode(x)
    torch.testing.assert_close(with_gradients.to_dense().detach(), without.to_dense())
    assert ((without.values != 0) == without.active).all()
    sae(x).sum().backward()
    assert sae.W_dec.grad is not None


# Gradients


def test_jumprelu_thresholds_get_the_rectangles_pseudo_gradient() -> None:
    z = torch.tensor([[0.90, 1.04, 1.2], [1.01, 0.99, 0.5]], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    (Jump.apply(z, threshold, 0.1, False) * weight).sum().backward()  # pyright: ignore[reportOperatorIssue]
    assert z.grad is not None
    assert threshold.grad is not None
    assert z.grad.tolist() == [[0, 2, 3], [4, 0, 0]]
    torch.testing.assert_close(threshold.grad, torch.tensor([-40.0, -70.0, 0.0], dtype=torch.float64))
    threshold.grad = None
    (Step.apply(z, threshold, 0.1) * weight).sum().backward()  # pyright: ignore[reportOperatorIssue]
    torch.testing.assert_close(threshold.grad, torch.tensor([-40.0, -70.0, 0.0], dtype=torch.float64))


def test_with_the_tanh_penalty_the_pseudo_gradient_reaches_pre_activations_too() -> None:
    z = torch.tensor([[0.98]], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    Jump.apply(z, threshold, 0.1, True).sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert z.grad is not None
    assert z.grad.item() == pytest.approx(10.0)


def test_the_rectangle_estimates_the_derivative_of_the_expected_loss() -> None:
    """Over smoothly distributed pre-activations the pseudo-gradient is the true slope of E[z H(z − θ)]."""
    torch.manual_seed(0)
    z = torch.randn(400_000, 1, dtype=torch.float64)
    threshold = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    Jump.apply(z, threshold, 0.1, False).mean().backward()  # pyright: ignore[reportAttributeAccessIssue]
    slope = -0.7 * torch.exp(torch.tensor(-0.245)) / (2 * torch.pi) ** 0.5
    assert threshold.grad is not None
    assert threshold.grad.item() == pytest.approx(slope.item(), rel=0.03)


@pytest.mark.parametrize("name", ["standard", "gated"])
def test_smooth_losses_have_the_gradient_of_finite_differences(name: str) -> None:
    architecture = architecture_of(settings(name, sparsity_coefficient=0.5, target_l0=None))
    parameters, x, y = random_pass(architecture)
    moment = Moment(7, 10)
    result = architecture.step(parameters, x, y, moment)
    held = {"r_mag", "b_gate"}  # what gated's frozen copy holds still is no derivative of the loss
    for field in parameters.keys() - held - ({"W_dec", "b_dec", "W_enc"} if name == "gated" else set()):
        direction = torch.randn_like(parameters[field])
        step = 1e-6
        moved = [
            architecture.loss({**parameters, field: parameters[field] + sign * step * direction}, x, y, moment)[0]
            for sign in (1, -1)
        ]
        slope = (moved[0] - moved[1]) / (2 * step)
        assert slope.item() == pytest.approx((result.gradients[field] * direction).sum().item(), rel=1e-4, abs=1e-6)


def test_gated_holds_the_decoder_still_in_its_auxiliary_term() -> None:
    architecture = architecture_of(settings("gated", sparsity_coefficient=1e-9, target_l0=None))
    parameters, x, y = random_pass(architecture)
    parameters["b_mag"] -= 100  # nothing is written: only the auxiliary term is left
    gradients = architecture.step(parameters, x, y, Moment(9, 10)).gradients
    assert gradients["W_dec"].abs().max() == 0
    assert gradients["W_enc"].abs().max() > 0


# Formulas


def test_the_steps_estimated_gradient_is_as_exact_as_its_input() -> None:
    z = torch.tensor([[0.98, 1.5]], dtype=torch.float64)
    threshold = torch.ones(2, dtype=torch.float64, requires_grad=True)
    Step.apply(z, threshold, 0.1).sum().backward()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert threshold.grad is not None
    torch.testing.assert_close(threshold.grad, torch.tensor([-10.0, 0.0], dtype=torch.float64), rtol=1e-15, atol=0)


def test_p_anneal_keeps_the_penaltys_value_while_its_shape_turns() -> None:
    architecture = architecture_of(settings("p_anneal", sparsity_coefficient=0.5, target_l0=None))
    parameters, x, _ = random_pass(architecture)
    penalties = [architecture.forward(parameters, x, Moment(step, 100)).penalty.item() for step in (20, 60, 99)]
    assert penalties == pytest.approx([penalties[0]] * 3)
    exponents = [architecture.exponent(Moment(step, 100)) for step in (0, 10, 55, 100)]  # pyright: ignore
    assert exponents == pytest.approx([1.0, 1.0, 0.6, 0.2])


def test_matryoshka_prefixes_reconstruct_on_their_own(tmp_path: Path) -> None:
    sae = settings("matryoshka_batchtopk", matryoshka_widths=[24, 96])
    result = train(config(tmp_path, sae), shaped(sae)).sae
    x = next(iter(planted.rows(200, TRUE, seed=5)))
    dense = result.encode(x).to_dense()
    plain = train(config(tmp_path / "plain", settings("batchtopk")), shaped(sae)).sae

    def error_of_first(sae: SAE, width: int) -> float:
        dense = sae.encode(x).to_dense()
        return float((x - dense[:, :width] @ sae.W_dec[:width] - sae.b_dec).pow(2).sum().detach())

    assert dense.shape[1] == 96
    assert error_of_first(result, 24) < 0.8 * error_of_first(plain, 24)


@pytest.mark.parametrize("step", [3, 4, 9])
def test_late_nesting_has_the_gradient_of_its_reference(step: int) -> None:
    architecture = architecture_of(late())
    parameters, x, y = random_pass(architecture)
    architecture.buffers["rank"] = torch.randperm(96)
    moment = Moment(step, 10)
    result = architecture.step(parameters, x, y, moment)
    expected = Architecture.step(architecture, parameters, x, y, moment)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-12, atol=1e-12)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(result.gradients[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


def test_late_nesting_is_batchtopk_at_first_and_ends_with_the_strongest_latents_first(tmp_path: Path) -> None:
    architecture = architecture_of(late())
    x = torch.zeros(1)
    shares = [architecture.group_weights(Moment(step, 100), x)[1] for step in (39, 40, 45, 50, 99)]  # pyright: ignore
    assert shares[0] is None
    assert [round(float(share[0]), 3) for share in shares[1:]] == [0.0, 0.167, 0.333, 0.333]
    assert all(float(share.sum()) == pytest.approx(1) for share in shares[1:])
    result = train(config(tmp_path, late(k_start=15)), shaped(late()))
    dense = torch.cat([result.sae.encode(rows).to_dense() for rows in planted.rows(4000, TRUE, seed=9)])
    energy = dense.detach().pow(2).sum(0)
    assert energy[:24].mean() > 1.5 * energy[24:].mean()


def test_the_default_recipe_nests_late_and_lets_k_fall() -> None:
    architecture = architecture_of(SAEConfig(d_in=8, d_sae=64, k=5))
    assert type(architecture).__name__ == "Matryoshka"
    x = torch.zeros(1)
    ks = [architecture.k(Moment(step, 100)) for step in (0, 25, 50, 99)]  # pyright: ignore[reportAttributeAccessIssue]
    assert ks == [10, 8, 5, 5]
    widths = [architecture.group_weights(Moment(step, 100), x)[0] for step in (24, 25)]  # pyright: ignore
    assert widths == [[64], [2, 4, 8, 16, 32, 64]]


def test_published_matryoshka_nests_from_the_first_step_in_the_latents_own_order() -> None:
    sae = SAEConfig(d_in=8, d_sae=64, k=5, nesting_start=0, k_start=5, matryoshka_widths=[16, 64])
    architecture = architecture_of(sae)
    first, last = (architecture.group_weights(Moment(step, 100), torch.zeros(1)) for step in (0, 99))  # pyright: ignore
    assert first[0] == last[0] == [16, 64]
    assert first[1].tolist() == last[1].tolist() == [0.5, 0.5]
    assert architecture.ranks() is None  # pyright: ignore[reportAttributeAccessIssue]


def test_matching_pursuit_explains_orthogonal_atoms_exactly() -> None:
    sae = SAE(SAEConfig(architecture="matching_pursuit", d_in=8, d_sae=8))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(8))
    x = torch.tensor([[0.0, 3, 0, 0, 1, 0, 0, 0.5]])
    codes = sae.encode(x)
    assert int(codes.active.sum()) == 3
    torch.testing.assert_close(sae.decode(codes), x)


def test_batchtopk_is_finished_as_jumprelu_with_about_the_same_l0(tmp_path: Path) -> None:
    sae = settings("batchtopk", k=4)
    result = train(config(tmp_path, sae), shaped(sae))
    assert result.sae.config.architecture == "jumprelu"
    assert result.sae.tensors["threshold"].unique().numel() == 1
    assert evaluate(result.sae, planted.rows(5000, TRUE, seed=9)).l0 == pytest.approx(4, rel=0.1)


def test_k_falls_from_its_start_to_its_end() -> None:
    architecture = architecture_of(settings("topk", k_start=25, sparsity_warmup_frac=0.5))
    ks = [architecture.k(Moment(step, 100)) for step in (0, 25, 50, 99)]  # pyright: ignore[reportAttributeAccessIssue]
    assert ks == [25, 15, 5, 5]


@pytest.mark.parametrize("penalty", ["l1", "lp", "tanh"])
def test_a_fixed_coefficient_is_warmed_up_and_then_kept(penalty: Any) -> None:
    architecture = architecture_of(
        settings("standard", penalty=penalty, sparsity_coefficient=2.0, target_l0=None, sparsity_warmup_frac=0.5)
    )
    weights = [float(architecture.coefficient(Moment(step, 100))) for step in (0, 24, 49, 99)]
    assert weights == pytest.approx([0.04, 1.0, 2.0, 2.0])
    parameters, x, y = random_pass(architecture)
    assert torch.isfinite(architecture.step(parameters, x, y, Moment(9, 10)).loss)


def test_a_cross_layer_transcoder_writes_no_earlier_site(tmp_path: Path) -> None:
    sae = settings("clt")
    result = train(config(tmp_path, sae, total_rows=256 * 60), shaped(sae)).sae
    mask = decoder_mask(result.config)
    assert mask[:48].min() == 1
    assert mask[48:, :32].max() == 0
    assert (result.W_dec.detach() * (1 - mask)).abs().max() == 0
    x = torch.randn(10, 2, 32)
    changed = x.clone()
    changed[:, 1] += 1
    codes, later = result.encode(x).to_dense(), result.encode(changed).to_dense()
    assert not torch.equal(codes, later)
    only_second = result.encode(torch.stack([x[:, 0], changed[:, 1]], 1)).to_dense()
    torch.testing.assert_close(only_second, later)


def test_crosscoder_tells_shared_from_exclusive_latents(tmp_path: Path) -> None:
    first, second, both = TRUE[:20], TRUE[20:40], TRUE[40:60]

    def rows() -> Any:
        generator = torch.Generator().manual_seed(1)
        for _ in range(300):
            a, b, c = ((torch.rand(256, 20, generator=generator) < 0.06).float() for _ in range(3))
            yield torch.stack([a @ first + c @ both, b @ second + c @ both], 1)

    sae = settings("crosscoder", d_sae=64, k=4)
    result = train(config(tmp_path, sae, total_rows=256 * 300), rows())
    difference = model_difference(result.sae)
    assert difference.exclusive_first >= 12
    assert difference.exclusive_second >= 12
    assert difference.shared >= 12
    assert difference.shared_cosine > 0.7
    torch.testing.assert_close(norm_shares(result.sae).sum(1), torch.ones(64))
    with pytest.raises(ValueError, match="expected 2"):
        model_difference(SAE(settings("crosscoder", n_sites=3)))


def test_a_skip_transcoder_starts_from_the_best_linear_map() -> None:
    x = torch.randn(500, 6)
    W = torch.randn(4, 6)
    assert (linear_map(x, x @ W.T + 3) - W).abs().max() < 0.1


def test_the_geometric_median_ignores_an_outlier() -> None:
    rows = torch.cat([torch.randn(99, 3), torch.full((1, 3), 1e4)])
    assert geometric_median(rows).norm() < 1
    assert rows.mean(0).norm() > 50


@pytest.mark.parametrize("normalization", ["layer_norm", "constant_norm_rescale"])
def test_rowwise_normalisation_is_undone_when_decoding(normalization: Any, tmp_path: Path) -> None:
    sae = settings("topk", normalize_activations=normalization, k=8)
    result = train(config(tmp_path, sae), shaped(sae)).sae
    x = next(iter(planted.rows(100, TRUE, seed=5)))
    torch.testing.assert_close(result(10 * x), 10 * result(x), rtol=1e-3, atol=1e-3)
    codes = result.encode(x)
    assert codes.scale is not None
    assert evaluate(result, planted.rows(2000, TRUE, seed=7)).explained_variance > 0.8


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(architecture="standard", k=4), "does not read k=4"),
        (dict(architecture="topk", k=4, target_l0=3), "does not read target_l0=3"),
        (dict(architecture="topk", k=4, activation="relu"), "does not read activation"),
        (dict(architecture="batchtopk"), "needs k"),
        (dict(architecture="jumprelu", penalty="l1"), "no penalty `l1`, expected one of step, tanh"),
        (dict(architecture="crosscoder", k=4), "n_sites=1: name two"),
        (dict(architecture="topk", k=4, n_sites=2), "reads one site"),
        (dict(architecture="clt", k=4, n_sites=3), "do not divide"),
        (dict(architecture="topk", k=4, d_out=9), "leave d_out out"),
        (dict(architecture="matryoshka_batchtopk", k=4, matryoshka_widths=[8, 4]), "must ascend"),
        (
            dict(architecture="crosscoder", k=4, n_sites=2, normalize_activations="layer_norm"),
            "single rows of one site",
        ),
        (dict(architecture="standard", target_l0=-1.0), "must be positive"),
        (dict(architecture="nonsense"), "not available"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAEConfig(d_in=8, d_sae=32, **changes)
