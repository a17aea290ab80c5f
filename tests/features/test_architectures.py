"""Dictionaries of every architecture: what the index counts is what a direct pass finds, and steering writes where the
SAE does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activations.buckets import capture_tokens
from features import Dictionary, IndexConfig, Steering, build_index
from features.wiring import residual_directions, write_directions
from sae import SAE, SAEConfig
from sae.architectures import tensor_shapes

D, LATENTS = 32, 40
WIRED: dict[str, dict[str, Any]] = {
    "transcoder": {"sites": ["mlp_in.1"], "target_sites": ["mlp_out.1"]},
    "skip_transcoder": {"sites": ["mlp_in.1"], "target_sites": ["mlp_out.1"]},
    "crosscoder": {"sites": ["resid_post.0", "resid_post.1"]},
    "clt": {"sites": ["mlp_in.0", "mlp_in.1"], "target_sites": ["mlp_out.0", "mlp_out.1"]},
}
COUNTED = ("topk", "abstopk", "matching_pursuit")
# of the names that are trained p_anneal ends as standard, batchtopk and matryoshka_batchtopk as jumprelu
SINGLE = ("standard", "gated", "jumprelu", *COUNTED)


def random_sae(lm: Any, architecture: str, **changes: Any) -> SAE:
    k = {"k": 4} if architecture in (*COUNTED, *WIRED) else {}
    sites = WIRED.get(architecture, {"sites": ["resid_post.1"]})
    config = SAEConfig(
        d_in=D,
        d_sae=LATENTS,
        architecture=architecture,
        n_sites=len(sites["sites"]) if architecture in ("crosscoder", "clt") else 1,
        normalize_activations="none",
        **{**k, **changes},
    )
    generator = torch.Generator().manual_seed(len(architecture))
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in tensor_shapes(config).items()}
    tensors["W_dec"] = torch.nn.functional.normalize(tensors["W_dec"], dim=1)
    if architecture == "matching_pursuit":
        tensors["W_enc"] = tensors["W_dec"].clone()
    if architecture == "clt":
        tensors["W_dec"][LATENTS // 2 :, :D] = 0
    for name in ("b_dec", "threshold", "b_gate", "b_mag", "r_mag"):
        if name in tensors:
            tensors[name] = tensors[name].abs() * 0.3
    where = {"site": sites["sites"][0], "model_name": lm.name, "model_weight_hash": lm.weight_hash()}
    return SAE.from_tensors(config, tensors, where | sites)


def brute_force(sae: SAE, lm: Any, rows: Any, batch_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense codes at every counted token, with document and position, in batches that round as the index's do."""
    real = rows.documents >= 0
    counted = real & ~np.isin(rows.tokens, list(lm.special_ids))
    dense = []
    for first in range(0, len(rows.tokens), batch_rows):
        some = slice(first, first + batch_rows)
        captured = capture_tokens(lm, rows.tokens[some], real[some], counted[some], sae.sites)
        x = torch.stack([captured[site] for site in sae.sites], 1)
        with torch.no_grad():
            dense.append(sae.encode(x if len(sae.sites) > 1 else x[:, 0]).to_dense().numpy())
    return np.concatenate(dense), rows.documents[counted], rows.positions[counted]


def strongest_windows(
    values: np.ndarray, documents: np.ndarray, positions: np.ndarray, config: IndexConfig
) -> list[tuple[int, int, float]]:
    """A feature's strongest windows, one token at a time: (document, position, activation), at most so many of each
    document; the earlier of equals."""
    peaks: dict[tuple[int, int], int] = {}
    for token in np.flatnonzero(values).tolist():
        window = int(documents[token]), int(positions[token]) // config.window_tokens
        if abs(values[token]) > abs(values[peaks.setdefault(window, token)]):
            peaks[window] = token
    found: list[tuple[int, int, float]] = []
    for token in sorted(peaks.values(), key=lambda token: (-abs(values[token]), token)):
        document = int(documents[token])
        if len(found) < config.examples and sum(d == document for d, _, _ in found) < config.per_document:
            found.append((document, int(positions[token]), float(values[token])))
    return found


@pytest.mark.parametrize("architecture", [*SINGLE, *WIRED])
def test_the_index_counts_what_a_direct_pass_finds(
    architecture: str, tiny_lm: Any, rows: Any, config: IndexConfig, tmp_path: Path
) -> None:
    sae = random_sae(tiny_lm, architecture)
    opened = build_index(sae, tiny_lm, rows, tmp_path / "dictionary", config)
    dense, documents, positions = brute_force(sae, tiny_lm, rows, config.batch_tokens // rows.tokens.shape[1])
    size = np.abs(dense)
    features = opened.sql("select * from features order by feature").to_pydict()
    counts = (dense != 0).sum(0)
    np.testing.assert_array_equal(features["count"], counts)
    np.testing.assert_array_equal(np.float32(features["max_activation"]), size.max(0))
    np.testing.assert_allclose(features["mean_activation"], size.sum(0) / np.maximum(counts, 1), rtol=1e-5)
    assert opened.info["n_events"] == counts.sum() > 100
    if architecture == "abstopk":
        assert opened.sql("select min(activation) as low from events")["low"][0].as_py() < 0
    for feature in np.flatnonzero(counts).tolist():
        record = opened.feature(feature, before=0, after=0)
        stored = [(e.document, e.position, e.activation) for e in record.examples if e.stratum == 0]
        assert stored == strongest_windows(dense[:, feature], documents, positions, config)
        # the lowest kept bin also holds what is smaller; np.histogram closes its last bin, the table none
        edges = np.float32([0.0, *record.histogram.edges[1:-1], np.inf])
        found = np.histogram(size[size[:, feature] > 0, feature], edges)[0]
        np.testing.assert_array_equal(record.histogram.counts, found)
    logits = opened.sql("select count(*) as n from logits")["n"][0].as_py()
    assert logits == LATENTS * 2 * config.logits
    active = opened.active_on("import self\nvalue")
    first = [abs(value) for _, value in active.per_token[1]]
    assert first == sorted(first, reverse=True)
    assert opened.feature(active.ranked[0].feature).histogram.counts
    opened.close()


def test_logits_are_those_of_what_a_feature_writes(tiny_lm: Any) -> None:
    clt = random_sae(tiny_lm, "clt")
    blocks = clt.W_dec.detach().view(LATENTS, 2, D)
    written = residual_directions(clt)
    assert written is not None
    assert torch.allclose(written, blocks.sum(1))
    assert not bool(blocks[LATENTS // 2 :, 0].any())
    crosscoder = random_sae(tiny_lm, "crosscoder")
    blocks = crosscoder.W_dec.detach().view(LATENTS, 2, D)
    longest = blocks.norm(dim=2).argmax(1)
    by_site = write_directions(crosscoder, range(LATENTS))
    for place, site in enumerate(crosscoder.sites):
        assert torch.allclose(by_site[site], blocks[:, place] * (longest == place)[:, None])
    compared = random_sae(tiny_lm, "crosscoder")
    compared.metadata["sites"] = ["resid_post.1", "compare:resid_post.1"]
    assert list(write_directions(compared, [3])) == ["resid_post.1"]
    assert torch.allclose(write_directions(compared, [3])["resid_post.1"][0], blocks[3, 0])
    neurons = random_sae(tiny_lm, "topk")
    neurons.metadata["sites"] = ["mlp_act.1"]
    assert residual_directions(neurons) is None


@pytest.fixture
def transcoder(tiny_lm: Any, rows: Any, config: IndexConfig, tmp_path: Path) -> Any:
    opened = build_index(random_sae(tiny_lm, "transcoder"), tiny_lm, rows, tmp_path / "transcoder", config)
    yield opened
    opened.close()


@pytest.mark.parametrize("mode", ["add", "clamp", "ablate"])
def test_a_transcoders_features_are_read_at_one_site_and_written_at_the_other(
    transcoder: Dictionary, tiny_lm: Any, mode: Any
) -> None:
    sae = transcoder.sae
    batch = tiny_lm.tokenize("import self")
    clean = tiny_lm.capture(batch.tokens, batch.mask, ["mlp_in.1", "mlp_out.1", "mlp_in.2"])
    with torch.no_grad():
        codes = sae.encode(clean["mlp_in.1"][0]).to_dense()
    feature = int(codes.max(0).values.argmax())
    steering = Steering(transcoder, {feature: 0.5}, mode=mode)
    with tiny_lm.intervene(steering.interventions):
        moved = tiny_lm.capture(batch.tokens, batch.mask, ["mlp_in.1", "mlp_out.1", "mlp_in.2"])
    maximum = float(transcoder.max_activations[feature])
    present = codes[:, feature]
    amount = {
        "add": torch.full_like(present, 0.5 * maximum),
        "clamp": 0.5 * maximum - present,
        "ablate": -0.5 * present,
    }
    expected = clean["mlp_out.1"][0] + amount[mode][:, None] * sae.W_dec[feature].detach()
    assert torch.equal(moved["mlp_in.1"], clean["mlp_in.1"])
    assert torch.allclose(moved["mlp_out.1"][0], expected, atol=1e-5)
    assert not torch.allclose(moved["mlp_in.2"], clean["mlp_in.2"])
    assert steering.generate("import", max_new_tokens=4) is not None
    assert steering.compare("import", max_new_tokens=3).relative_norm > 0
    with pytest.raises(ValueError, match=r"reads mlp_in.1 and writes mlp_out.1, expected one site"):
        steering.edit(clean["mlp_in.1"])


@pytest.mark.parametrize("architecture", ["crosscoder", "clt"])
def test_dictionaries_over_several_sites_are_steered_by_addition_alone(
    architecture: str, tiny_lm: Any, rows: Any, config: IndexConfig, tmp_path: Path
) -> None:
    sae = random_sae(tiny_lm, architecture)
    opened = build_index(sae, tiny_lm, rows, tmp_path / "dictionary", config)
    feature = int(opened.max_activations.argmax())
    for mode in ("clamp", "ablate"):
        with pytest.raises(ValueError, match=rf"a {architecture} reads 2 sites for it, some of them later: use mode"):
            Steering(opened, {feature: 1.0}, mode=mode)
    steering = Steering(opened, {feature: 2.0})
    batch = tiny_lm.tokenize("import self")
    sites = sae.target_sites
    clean = tiny_lm.capture(batch.tokens, batch.mask, sites)
    seen: dict[str, Tensor] = {}
    with tiny_lm.intervene(steering.interventions):
        seen = tiny_lm.capture(batch.tokens, batch.mask, sites)
    first = sites[0]
    wanted = 2 * float(opened.max_activations[feature]) * write_directions(sae, [feature])[first][0]
    assert torch.allclose(seen[first] - clean[first], wanted.expand_as(clean[first]), atol=1e-4)
    assert steering.compare("import", max_new_tokens=3).relative_norm > 0
    opened.close()


def test_rows_that_an_sae_rescales_are_steered_in_their_own_scale(
    tiny_lm: Any, rows: Any, config: IndexConfig, tmp_path: Path
) -> None:
    sae = random_sae(tiny_lm, "topk")
    scaled = SAEConfig(d_in=D, d_sae=LATENTS, k=4, architecture="topk", normalize_activations="layer_norm")
    sae = SAE.from_tensors(scaled, {name: value.detach() for name, value in sae.tensors.items()}, sae.metadata)
    opened = build_index(sae, tiny_lm, rows, tmp_path / "dictionary", config)
    batch = tiny_lm.tokenize("import self")
    x = tiny_lm.capture(batch.tokens, batch.mask, ["resid_post.1"])["resid_post.1"]
    flat = x.flatten(0, 1)
    with torch.no_grad():
        codes = sae.encode(flat)
        feature = int(codes.to_dense().max(0).values.argmax())
        ablated = Steering(opened, {feature: 1.0}, mode="ablate").edit(x).flatten(0, 1)
        dense = codes.to_dense()
        without = dense.clone()
        without[:, feature] = 0
        assert codes.scale is not None
        expected = flat - (dense - without) @ sae.W_dec * codes.scale[:, None]
    assert torch.allclose(ablated, expected, atol=1e-4)
    opened.close()


def test_an_sae_of_unknown_origin_is_indexed_with_the_model_at_hand(
    tiny_lm: Any, rows: Any, config: IndexConfig, tmp_path: Path
) -> None:
    sae = random_sae(tiny_lm, "jumprelu")
    sae.metadata = {"site": "resid_post.1"}
    opened = build_index(sae, tiny_lm, rows, tmp_path / "dictionary", config, data={"source": "text"})
    assert opened.info["model"]["weight_hash"] == tiny_lm.weight_hash()
    assert opened.info["data"] == {"source": "text"}
    opened.close()
