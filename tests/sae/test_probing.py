"""Probes find what is planted, controls stay where they must, and pooled codes are the means of single ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from activations.logistic import accuracy, auc, f1, fit
from sae import SAE, SAEConfig
from sae.labelled_text import SHIPPED, LabelledText, labelled_text, read_labelled
from sae.pooling import Pooled, pool_texts
from sae.probing import probe_saes, sparse_probing


def identity_sae(d: int) -> SAE:
    """Latent i is coordinate i, its positive part."""
    sae = SAE(SAEConfig(architecture="topk", d_in=d, d_sae=d, k=d))
    sae.W_enc.data, sae.W_dec.data = torch.eye(d), torch.eye(d)
    return sae


def pooled_rows(x: Tensor) -> Pooled:
    """Texts of one token each, seen by the SAE whose latents are coordinates."""
    texts, latents = (x > 0).nonzero(as_tuple=True)
    return Pooled(x, texts, latents, x[texts, latents], x.shape[1])


def test_the_fit_is_the_minimum_of_its_loss() -> None:
    x, y = torch.randn(80, 4).double() * torch.tensor([1.0, 5, 0.1, 2]) + 3, torch.rand(80) < 0.3
    for balanced in (False, True):
        probe = fit(x, y, balanced=balanced, strength=2.0)
        scale = x.std(0, correction=0)
        w = (probe.weight * scale).clone().requires_grad_()
        bias = torch.tensor(probe.bias + float(x.mean(0) @ probe.weight), dtype=torch.float64, requires_grad=True)
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            (x - x.mean(0)) / scale @ w + bias, y.double(), reduction="none"
        )
        if balanced:
            each = each * torch.where(y, 80 / (2 * y.sum()), 80 / (2 * (~y).sum()))
        (each.sum() + w.square().sum()).backward()
        assert w.grad is not None
        assert bias.grad is not None
        assert w.grad.abs().max() < 1e-4
        assert bias.grad.abs() < 1e-4


def test_a_constant_column_has_no_weight_and_one_class_is_refused() -> None:
    x = torch.cat([torch.full((20, 1), 7.1), torch.arange(20.0)[:, None]], 1)
    assert fit(x, x[:, 1] > 9).weight[0] == 0
    with pytest.raises(ValueError, match="0 positive rows of 20"):
        fit(x, torch.zeros(20, dtype=torch.bool))


def test_scores_of_scores_equal_their_definitions() -> None:
    y = torch.tensor([True, True, True, False, False])
    scores = torch.tensor([0.9, 0.2, -0.5, 0.2, -0.7])
    assert accuracy(scores, y) == pytest.approx(3 / 5)
    assert f1(scores, y) == pytest.approx(2 * 2 / (3 + 3))
    # pairs of yes and no: 0.9 wins twice; 0.2 ties and wins; -0.5 loses and wins
    assert auc(scores, y) == pytest.approx((2 + 1.5 + 1) / 6)


def planted(n: int = 240, d: int = 40, informative: int = 7, seed: int = 0) -> tuple[Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    labels = ["yes" if each else "no" for each in torch.rand(n, generator=generator) < 0.5]
    x[:, informative] = torch.tensor([2.0 if label == "yes" else 0.0 for label in labels]) + 0.01 * x[:, informative]
    x[:, 3] += 9  # loud on every text, so that it tells nothing
    return x, labels


def test_the_planted_latent_is_chosen_and_controls_stay_near_a_half() -> None:
    x, labels = planted()
    report = sparse_probing(pooled_rows(x), labels)
    assert [score.k for score in report.scores] == [1, 2, 5]
    assert {score.latents[0] for score in report.scores} == {7}
    assert all(score.accuracy == score.auc == 1 for score in report.scores)
    assert report.scores[0].coordinates_accuracy == 1
    assert report.scores[0].dense_accuracy > 0.95
    # 118 test texts: a fair coin's accuracy has standard deviation 0.05
    assert abs(report.scores[0].shuffled_accuracy - 0.5) < 0.2
    assert abs(report.scores[0].random_accuracy - 0.5) < 0.2
    assert [row["k"] for row in report.rows()] == [1, 2, 5]
    assert json.loads(json.dumps(report.to_json()))["mean"][0]["accuracy"] == 1


def test_nothing_is_found_where_nothing_is() -> None:
    x = torch.randn(400, 40)
    labels = ["a" if each else "b" for each in torch.rand(400) < 0.5]
    for row in sparse_probing(pooled_rows(x), labels).rows():
        assert abs(row["accuracy"] - 0.5) < 0.15
        assert abs(row["dense_accuracy"] - 0.5) < 0.15


def test_latents_are_chosen_on_the_training_half_alone() -> None:
    x, labels = planted(n=60)
    report = sparse_probing(pooled_rows(x), labels, ks=(1,))
    assert report.scores[0].n_test == 2 * (min(labels.count("yes"), labels.count("no")) // 2)
    with pytest.raises(ValueError, match="expected at least 8"):
        sparse_probing(pooled_rows(x), ["yes"] * 3 + ["no"] * 57)
    with pytest.raises(ValueError, match="59 labels for 60 texts"):
        sparse_probing(pooled_rows(x), labels[1:])
    with pytest.raises(ValueError, match="k=41"):
        sparse_probing(pooled_rows(x), labels, ks=(41,))


def test_every_label_of_several_is_a_task_of_its_own() -> None:
    labels = [str(number % 3) for number in range(90)]
    x = torch.nn.functional.one_hot(torch.tensor([int(label) for label in labels]), 10).float()
    report = sparse_probing(pooled_rows(x), labels, ks=(1,))
    assert [(score.label, score.latents, score.accuracy) for score in report.scores] == [
        ("0", (0,), 1.0),
        ("1", (1,), 1.0),
        ("2", (2,), 1.0),
    ]


def test_pooled_codes_are_the_means_over_a_texts_own_tokens(tiny_lm: Any) -> None:
    sae = SAE(
        SAEConfig(architecture="topk", d_in=32, d_sae=48, k=4), {"site": "resid_post.1", "data": {"prepend_bos": True}}
    )
    for value in sae.parameters():
        torch.nn.init.normal_(value, std=0.3)
    other = identity_sae(32)
    other.metadata |= sae.metadata
    texts = ["short", "a much longer text than the first", "ab" * 200]
    pooled = pool_texts(tiny_lm, {"a": sae, "b": other}, texts, context_tokens=20, batch_texts=2)
    for number, text in enumerate(texts):
        ids = [tiny_lm.tokenizer.bos_token_id, *tiny_lm.encode([text])[0]][:20]
        x = tiny_lm.activations(torch.tensor([ids]), ["resid_post.1"])["resid_post.1"][0, 1:]
        assert torch.allclose(pooled["a"].x[number], x.mean(0), atol=1e-5)
        with torch.no_grad():
            dense = sae.encode(x).to_dense().mean(0)
        assert torch.allclose(pooled["a"].columns(torch.arange(48))[number], dense, atol=1e-5)
        assert torch.allclose(pooled["b"].columns(torch.arange(32))[number], x.clamp(min=0).mean(0), atol=1e-5)
    chosen = torch.tensor([True, False, True])
    assert torch.allclose(pooled["a"].mean(chosen).float(), pooled["a"].columns(torch.arange(48))[chosen].mean(0))
    assert torch.equal(pooled["a"][chosen].columns(torch.arange(48)), pooled["a"].columns(torch.arange(48))[chosen])


@pytest.mark.parametrize("normalization", ["none", "layer_norm"])
def test_taking_latents_out_of_means_equals_taking_them_out_of_every_token(tiny_lm: Any, normalization: Any) -> None:
    config = SAEConfig(architecture="topk", d_in=32, d_sae=48, k=4, normalize_activations=normalization)
    sae = SAE(config, {"site": "resid_post.1"})
    for value in sae.parameters():
        torch.nn.init.normal_(value, std=0.3)
    pooled = pool_texts(tiny_lm, {"a": sae}, ["some text of tokens"])["a"]
    x = tiny_lm.activations(["some text of tokens"], ["resid_post.1"])["resid_post.1"][0]
    latents = torch.unique(pooled.latents)[:5]
    with torch.no_grad():
        codes = sae.encode(x)
        rest = torch.where(torch.isin(codes.indices, latents), 0.0, codes.values)
        without = x - sae.decode(codes) + sae.decode(type(codes)(rest, codes.indices, 48, codes.scale, codes.shift))
    assert torch.allclose(pooled.without(latents, sae.W_dec.detach())[0], without.mean(0), atol=1e-4)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sets_are_balanced_and_can_be_probed(name: str, tiny_lm: Any) -> None:
    labelled = labelled_text(name)
    assert 60 <= len(labelled.texts) <= 100
    assert len(set(labelled.texts)) == len(labelled.texts)
    counts = {label: list(labelled.labels).count(label) for label in labelled.classes}
    assert len(set(counts.values())) == 1
    sae = identity_sae(32)
    sae.metadata["site"] = "resid_post.1"
    report = probe_saes(tiny_lm, {"a": sae}, labelled, ks=(1,))["a"]
    assert len(report.scores) == (1 if len(counts) == 2 else len(counts))
    assert all(0 <= score.accuracy <= 1 for score in report.scores)


def test_code_and_prose_are_told_apart_by_the_embedded_models_activations(embedded_lm: Any) -> None:
    sae = identity_sae(embedded_lm.d_model)
    sae.metadata["site"] = "resid_post.2"
    (score,) = probe_saes(embedded_lm, {"a": sae}, labelled_text("forms"), ks=(5,))["a"].scores
    assert score.dense_accuracy > 0.9
    assert score.accuracy > 0.7
    assert score.shuffled_accuracy < 0.75


def test_a_file_of_ones_own_is_read_whatever_usual_names_its_fields_have(tmp_path: Path) -> None:
    records = [{"sentence": "good, truly", "class": 1}, {"sentence": "bad", "class": 0}, {"sentence": " ", "class": 0}]
    lines = "\n".join(json.dumps(record) for record in records)
    (tmp_path / "set.jsonl").write_text(lines)
    (tmp_path / "set.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "set.csv").write_text('sentence,class\n"good, truly",1\nbad,0\n')
    for file in ("set.jsonl", "set.jsonl.gz", "set.csv"):
        assert labelled_text(str(tmp_path / file)) == LabelledText("set", ["good, truly", "bad"], ["1", "0"])
    (tmp_path / "odd.jsonl").write_text('{"words": "a", "class": 1}\n')
    with pytest.raises(ValueError, match="has the fields words, class and no text"):
        read_labelled(tmp_path / "odd.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-12])
    with pytest.raises(ValueError, match="is damaged"):
        read_labelled(tmp_path / "cut.jsonl.gz")
    (tmp_path / "set.txt").write_text("a")
    with pytest.raises(ValueError, match=r"no \.jsonl or \.csv"):
        read_labelled(tmp_path / "set.txt")
    with pytest.raises(ValueError, match="expected one of topics, forms, sentiment, subjects or a file"):
        labelled_text("no such set")
    with pytest.raises(ValueError, match="holds the label '1' alone"):
        LabelledText("one", ["a", "b"], ["1", "1"])


def test_long_texts_are_cut_into_lines_on_request(real: Path) -> None:
    declarations = read_labelled(real / "labelled" / "language" / "udhr.jsonl", by_line=True)
    assert len(declarations.classes) == 28
    assert min(list(declarations.labels).count(label) for label in declarations.classes) >= 30
    assert not any("\n" in text for text in declarations.texts)


@pytest.mark.parametrize(
    ("file", "classes"),
    [
        ("sentiment/sentence_polarity.jsonl.gz", ["neg", "pos"]),
        ("sentiment/subjectivity.jsonl.gz", ["objective", "subjective"]),
        ("toxicity/tdavidson_labeled_data.csv.gz", ["0", "1", "2"]),
        ("toxicity/hatecheck_cases.csv", ["hateful", "non-hateful"]),
        ("toxicity/toxigen_demonstrations.jsonl", ["hate", "neutral"]),
        ("pos_ud_ewt/en_ewt-other-docs.jsonl.gz", None),
    ],
)
def test_real_labelled_sets_are_read_as_they_are(real: Path, file: str, classes: list[str] | None) -> None:
    labelled = read_labelled(real / "labelled" / file)
    assert len(labelled.texts) > 500
    assert classes is None or labelled.classes == classes
    sample = labelled.sample(30)
    assert max(list(sample.labels).count(label) for label in sample.classes) == 30
    assert sample == labelled.sample(30)
