"""Evaluation figures equal their definitions over the whole set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import planted
import pytest
import torch
from torch import Tensor

from sae import SAE, Metrics, SAEConfig, evaluate
from sae.evaluation import evaluate_together, redundancy
from sae.standard_errors import RatioSums

TRUE = planted.directions()


def random_sae(d_in: int = 32, d_sae: int = 80, k: int = 5) -> SAE:
    sae = SAE(SAEConfig(architecture="topk", d_in=d_in, d_sae=d_sae, k=k))
    for value in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
        torch.nn.init.normal_(value, std=0.3)
    return sae


def test_figures_equal_their_definitions() -> None:
    sae, x = random_sae(), torch.cat(list(planted.rows(3000, TRUE))) * 3 + 20
    metrics = evaluate(sae, x.split(700))
    with torch.no_grad():
        codes = sae.encode(x)
        x_hat = sae.decode(codes)
    x, x_hat = x.double(), x_hat.double()
    ev = 1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert metrics.explained_variance == pytest.approx(ev.item(), rel=1e-6)
    assert metrics.mse == pytest.approx((x - x_hat).pow(2).mean().item(), rel=1e-5)
    assert metrics.cosine == pytest.approx(torch.cosine_similarity(x, x_hat).mean().item(), rel=1e-5)
    dense = codes.to_dense() > 0
    assert metrics.l0 == pytest.approx(dense.sum(1).double().mean().item())
    assert metrics.dead_frac == pytest.approx((~dense.any(0)).double().mean().item())
    assert metrics.dense_frac == pytest.approx((dense.double().mean(0) > 0.1).double().mean().item())
    assert metrics.density == pytest.approx(dense.double().mean(0).tolist())


def test_explained_variance_does_not_depend_on_how_rows_are_cut() -> None:
    sae, x = random_sae(), torch.cat(list(planted.rows(1000, TRUE))) + 1000
    values = [evaluate(sae, x.split(size)).explained_variance for size in (1, 37, 1000)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_the_mean_as_reconstruction_explains_nothing() -> None:
    x = torch.cat(list(planted.rows(500, TRUE)))
    sae = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=4, k=1))
    sae.b_dec.data = x.mean(0)
    assert evaluate(sae, [x]).explained_variance == pytest.approx(0.0, abs=1e-5)


class LinearLM:
    """A stand-in language model: layers that add to a stream, each a site, then a linear head."""

    special_ids = frozenset({0})

    def __init__(self, sites: Sequence[str] = ("resid_post.0",)) -> None:
        self.embed, self.head = torch.randn(20, 32), torch.randn(32, 20)
        self.layers = {site: torch.eye(32) if i == 0 else torch.randn(32, 32) / 6 for i, site in enumerate(sites)}
        self.edits: dict[str, Callable[[Tensor], Tensor]] = {}
        self.runs = 0

    def run(self, tokens: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        x, at = self.embed[tokens], {}
        for site, layer in self.layers.items():
            x = torch.tanh(x @ layer) if len(self.layers) > 1 else x
            x = edits[site](x) if site in edits else x
            at[site] = x
        return x @ self.head, at

    def logits(self, tokens: Tensor) -> Tensor:
        self.runs += 1
        return self.run(tokens, self.edits)[0]

    @contextmanager
    def intervene(self, edits: dict) -> Iterator[None]:
        self.edits = edits
        yield
        self.edits = {}


def losses(logits: Tensor, clean: Tensor, tokens: Tensor) -> tuple[float, float]:
    """Cross-entropy and divergence from the clean logits, by their definitions."""
    ce = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    log_p, log_q = (at[:, :-1].log_softmax(-1) for at in (clean, logits))
    return ce.item(), (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()


def matches(metrics: Metrics, lm: LinearLM, tokens: Tensor, edits: dict, sites: Sequence[str]) -> None:
    """Asserts that all downstream figures are those of the logits with `edits` at work."""
    clean = lm.run(tokens, {})[0]
    with torch.no_grad():
        replaced = lm.run(tokens, edits)[0]
    ablated = lm.run(tokens, dict.fromkeys(sites, torch.zeros_like))[0]
    (ce, _), (ce_sae, kl), (ce_zero, kl_zero) = (losses(at, clean, tokens) for at in (clean, replaced, ablated))
    assert (metrics.ce_clean, metrics.ce_sae, metrics.ce_zero) == pytest.approx((ce, ce_sae, ce_zero), rel=1e-5)
    assert metrics.ce_recovered == pytest.approx((ce_zero - ce_sae) / (ce_zero - ce), rel=1e-4)
    assert (metrics.kl, metrics.kl_zero) == pytest.approx((kl, kl_zero), rel=1e-4)
    assert metrics.kl_score == pytest.approx(1 - kl / kl_zero, rel=1e-4)
    assert metrics.n_tokens == tokens[:, 1:].numel()


def kept(tokens: Tensor, written: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The edit that writes everywhere but at special tokens."""
    return lambda x: torch.where((tokens == 0)[..., None], x, written(x))


def test_downstream_figures_equal_their_definitions_and_special_tokens_stay() -> None:
    lm, sae = LinearLM(), random_sae()
    sae.metadata["site"] = "resid_post.0"
    tokens = torch.randint(0, 20, (6, 9))
    metrics = evaluate(sae, [lm.embed[1:]], lm=lm, tokens=tokens.split(4))
    edit = kept(tokens, lambda x: sae(x.reshape(-1, 32)).view(x.shape))
    matches(metrics, lm, tokens, {"resid_post.0": edit}, ["resid_post.0"])
    with torch.no_grad():
        fires = sae.encode(lm.embed[tokens].view(-1, 32)).to_dense().view(6, 9, -1) > 0
    fires &= (tokens != 0)[..., None]
    per_latent = fires.sum((0, 1)) / fires.any(1).sum(0)
    assert metrics.consistent_activation == pytest.approx(per_latent[per_latent.isfinite()].mean().item())


def randomized(config: SAEConfig, **metadata: Any) -> SAE:
    sae = SAE(config, metadata)
    for name, value in sae.named_parameters():
        torch.nn.init.normal_(value, std=0.3 if name != "threshold" else 0.05)
    return sae


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
def test_a_transcoder_reads_its_source_and_writes_its_target(architecture: str) -> None:
    lm = LinearLM(["resid_mid.0", "mlp_out.0", "resid_post.0"])
    sae = randomized(
        SAEConfig(d_in=32, d_sae=80, k=5, architecture=architecture),
        sites=["resid_mid.0"],
        target_sites=["mlp_out.0"],
    )
    tokens = torch.randint(0, 20, (6, 9))
    _, at = lm.run(tokens, {})
    x, y = (at[site].view(-1, 32) for site in ("resid_mid.0", "mlp_out.0"))
    metrics = evaluate(sae, [(x, y)], lm=lm, tokens=[tokens])
    with torch.no_grad():
        y_hat = sae(x)
    ev = 1 - (y - y_hat).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert metrics.explained_variance == pytest.approx(ev.item(), rel=1e-4)
    edit = kept(tokens, lambda value: y_hat.view(value.shape))
    matches(metrics, lm, tokens, {"mlp_out.0": edit}, ["mlp_out.0"])
    together = evaluate_together({"a": sae}, [{site: value.view(-1, 32) for site, value in at.items()}])
    assert together["a"].explained_variance == pytest.approx(metrics.explained_variance)
    with pytest.raises(ValueError, match=r"got rows for architecture `\w+`, expected pairs"):
        evaluate(sae, [x])


def test_a_crosscoder_writes_what_it_read_in_the_untouched_run_at_all_sites_and_at_each() -> None:
    sites = ["resid_post.0", "resid_post.1", "resid_post.2"]
    lm = LinearLM(sites)
    config = SAEConfig(d_in=32, d_sae=60, architecture="crosscoder", n_sites=3, activation="relu")
    sae = randomized(config, sites=sites)
    tokens = torch.randint(0, 20, (6, 9))
    _, at = lm.run(tokens, {})
    x = torch.stack([at[site].view(-1, 32) for site in sites], 1)
    metrics = evaluate(sae, x.split(20), lm=lm, tokens=[tokens])
    with torch.no_grad():
        x_hat = sae(x)

    def edit(place: int) -> Callable[[Tensor], Tensor]:
        return kept(tokens, lambda value: x_hat[:, place].view(value.shape))

    matches(metrics, lm, tokens, {site: edit(place) for place, site in enumerate(sites)}, sites)
    errors, squares = (x - x_hat).pow(2).sum((0, 2)), (x - x.mean(0)).pow(2).sum((0, 2))
    assert metrics.explained_variance == pytest.approx(float(1 - errors.sum() / squares.sum()), rel=1e-4)
    assert metrics.explained_variance_by_site == pytest.approx((1 - errors / squares).tolist(), rel=1e-3)
    for place, site in enumerate(sites):
        clean = lm.run(tokens, {})[0]
        ce, ce_sae, ce_zero = (
            losses(lm.run(tokens, edits)[0], clean, tokens)[0]
            for edits in ({}, {site: edit(place)}, {site: torch.zeros_like})
        )
        assert metrics.ce_recovered_by_site[place] == pytest.approx((ce_zero - ce_sae) / (ce_zero - ce), rel=1e-3)


def test_a_cross_layer_transcoder_computes_with_what_it_has_written() -> None:
    sources, targets = ["resid_mid.0", "resid_mid.1"], ["mlp_out.0", "mlp_out.1"]
    lm = LinearLM(["resid_mid.0", "mlp_out.0", "resid_mid.1", "mlp_out.1"])
    config = SAEConfig(d_in=32, d_sae=60, architecture="clt", n_sites=2, activation="relu")
    sae = randomized(config, sites=sources, target_sites=targets)
    sae.W_dec.data[30:, :32] = 0  # latents of the second site write nothing at the first
    tokens = torch.randint(0, 20, (6, 9))
    _, at = lm.run(tokens, {})
    x, y = (torch.stack([at[site].view(-1, 32) for site in named], 1) for named in (sources, targets))
    metrics = evaluate(sae, [(x, y)], lm=lm, tokens=[tokens])
    with torch.no_grad():
        first = sae(x)[:, 0]
        edits = {"mlp_out.0": kept(tokens, lambda value: first.view(value.shape))}
        x = torch.stack([lm.run(tokens, edits)[1][site].view(-1, 32) for site in sources], 1)
        second = sae(x)[:, 1]
        edits["mlp_out.1"] = kept(tokens, lambda value: second.view(value.shape))
    matches(metrics, lm, tokens, edits, targets)


def test_several_saes_share_the_untouched_and_the_ablated_run() -> None:
    lm = LinearLM()
    saes = {
        name: randomized(SAEConfig(architecture="topk", d_in=32, d_sae=80, k=k), site="resid_post.0")
        for name, k in (("a", 2), ("b", 9))
    }
    x = torch.randn(900, 32)
    tokens = torch.randint(1, 20, (6, 9))
    together = evaluate_together(saes, [{"resid_post.0": part} for part in x.split(200)], lm=lm, tokens=tokens.split(2))
    assert lm.runs == 3 * (2 + len(saes))
    for name, sae in saes.items():
        alone = evaluate(sae, x.split(200), lm=lm, tokens=tokens.split(2))
        assert together[name].rows() == alone.rows()
    with pytest.raises(ValueError, match=r"rows hold mlp_out\.3, the SAE needs resid_post\.0 too"):
        evaluate_together(saes, [{"mlp_out.3": x}])


def every_architecture() -> list[SAEConfig]:
    shape: dict[str, Any] = {"d_in": 32, "d_sae": 80}
    return [
        *(SAEConfig(**shape, architecture=name, k=5) for name in ("topk", "abstopk", "matching_pursuit")),
        *(SAEConfig(**shape, architecture=name) for name in ("standard", "gated", "jumprelu")),
        SAEConfig(architecture="topk", **shape, k=5, normalize_activations="layer_norm"),
        SAEConfig(architecture="topk", **shape, k=5, normalize_activations="constant_norm_rescale"),
    ]


@pytest.mark.parametrize("config", every_architecture(), ids=lambda config: config.architecture)
def test_figures_of_latents_equal_their_definitions_for_every_architecture(config: SAEConfig) -> None:
    sae, x = randomized(config), torch.randn(600, 32) * 2 + 1
    metrics = evaluate(sae, x.split(170))
    with torch.no_grad():
        codes = sae.encode(x)
        dense, x_hat = codes.to_dense().double(), sae(x).double()
    x = x.double()
    assert metrics.explained_variance == pytest.approx(
        float(1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()), abs=1e-5
    )
    assert metrics.fvu == pytest.approx(1 - metrics.explained_variance)
    assert metrics.relative_bias == pytest.approx(float(x_hat.pow(2).sum() / (x * x_hat).sum()), rel=1e-4)
    assert metrics.l0 == pytest.approx(float((dense != 0).sum(1).double().mean()))
    assert metrics.l1 == pytest.approx(float(dense.abs().sum(1).mean()), rel=1e-5)
    active = dense[dense != 0].abs()
    assert metrics.activation_mean == pytest.approx(float(active.mean()), rel=1e-5)
    assert metrics.activation_std == pytest.approx(float(active.std(correction=0)), rel=1e-4)
    assert metrics.activation_max == pytest.approx(float(active.max()), rel=1e-5)
    assert metrics.negative_frac == pytest.approx(float((dense < 0).sum() / (dense != 0).sum()))
    assert metrics.common_frac == pytest.approx(float(((dense != 0).double().mean(0) > 0.01).double().mean()))
    assert sum(metrics.density_histogram) == int((dense != 0).any(0).sum())
    scale = torch.ones(len(x)) if codes.scale is None else codes.scale
    written = dense * scale.double()[:, None]
    for latent in (dense != 0).sum(0).topk(3).indices.tolist():
        # least squares of what everything else leaves over, on what the latent writes
        writes = written[:, latent, None] * sae.W_dec[latent].detach().double()
        left = x - x_hat + writes
        factor = float((left * writes).sum() / writes.pow(2).sum())
        assert metrics.rescale[latent] == pytest.approx(factor, rel=1e-3, abs=1e-4)


def test_a_latent_that_writes_half_of_what_it_should_is_told_to_double() -> None:
    sae = SAE(SAEConfig(architecture="topk", d_in=8, d_sae=8, k=8))
    sae.W_enc.data, sae.W_dec.data = torch.eye(8), torch.eye(8)
    sae.W_enc.data[3] *= 0.5
    metrics = evaluate(sae, [torch.rand(500, 8) + 0.1])
    assert metrics.rescale == pytest.approx([2.0 if latent == 3 else 1.0 for latent in range(8)], abs=1e-4)
    points = (metrics.rescale_q10, metrics.rescale_median, metrics.rescale_q90)
    assert points == pytest.approx((1.0, 1.0, 2.0), abs=1e-4)


def test_redundancy_finds_the_twin_of_a_direction() -> None:
    sae = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=20, k=2))
    sae.W_dec.data = torch.eye(32)[:20] * torch.arange(1, 21)[:, None]
    sae.W_enc.data = torch.eye(32)[:20]
    sae.W_dec.data[7] = sae.W_dec.data[2] * 5
    metrics = evaluate(sae, [torch.randn(50, 32)])
    assert metrics.decoder_max_cosine == pytest.approx(2 / 20, abs=1e-6)
    assert metrics.duplicate_frac == pytest.approx(2 / 20)
    assert metrics.decoder_max_cosine_q99 == pytest.approx(1.0)
    assert metrics.encoder_decoder_cosine == pytest.approx(19 / 20, abs=1e-6)
    assert metrics.redundancy_histogram[0] == 18
    assert metrics.redundancy_histogram[-1] == 2


def test_opposite_directions_are_twins_only_where_values_may_be_negative() -> None:
    for architecture, twins in (("topk", 0.0), ("abstopk", 1.0)):
        sae = SAE(SAEConfig(d_in=4, d_sae=2, k=1, architecture=architecture))
        sae.W_dec.data = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
        assert redundancy(sae)["duplicate_frac"] == twins


def test_standard_errors_cover_the_spread_of_independent_repeats() -> None:
    sae = random_sae()
    repeats = [evaluate(sae, (torch.randn(480, 32) + 1).split(20)) for _ in range(40)]
    spread = torch.tensor([each.explained_variance for each in repeats]).std().item()
    said = sum(each.explained_variance_se or 0 for each in repeats) / len(repeats)
    assert said == pytest.approx(spread, rel=0.4)  # the spread of 40 repeats is itself known to 11 %
    assert evaluate(sae, [torch.randn(64, 32)]).explained_variance_se is None


def test_the_error_of_a_ratio_with_equal_denominators_is_that_of_a_mean() -> None:
    values = torch.randn(7).double()
    error = RatioSums().ratio_error(values, torch.full((7,), 3.0, dtype=torch.float64))
    assert error == pytest.approx(float((values / 3).std()) / 7**0.5)


def test_groups_of_pieces_merge_and_lose_nothing() -> None:
    sums = RatioSums()
    for number in range(1000):
        sums.add(torch.tensor([float(number), 1.0]))
    groups = sums.groups()
    assert len(groups) <= 64
    assert groups.sum(0).tolist() == [999 * 500, 1000]
    assert (groups[:-1, 1] == groups[0, 1]).all()
    assert groups[:, 0].diff().min() > 0  # contiguous, in order


def test_no_rows_and_half_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="got no rows"):
        evaluate(random_sae(), [])
    with pytest.raises(ValueError, match="only one of lm and tokens"):
        evaluate(random_sae(), [torch.randn(5, 32)], lm=LinearLM())
    with pytest.raises(ValueError, match="got no tokens"):
        evaluate(
            randomized(SAEConfig(architecture="topk", d_in=32, d_sae=9, k=2), site="a"),
            [torch.randn(5, 32)],
            lm=LinearLM(),
            tokens=[],
        )


def test_records_leave_out_what_was_not_measured() -> None:
    metrics = evaluate(random_sae(), [torch.randn(50, 32)])
    names = [record["metric"] for record in metrics.rows()]
    assert "explained_variance" in names
    assert not {"kl", "density", "rescale"} & set(names)
    kept = json.loads(metrics.to_json())
    assert sum(kept["redundancy_histogram"]) == 80
    assert Metrics(**kept).rows() == metrics.rows()
