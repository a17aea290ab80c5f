"""Probes find what is planted, reach nothing on shuffled labels, are saved whole; LEACE is what its theorem says."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from activations import LanguageModel
from activations.intervals import area_interval, bootstrap_interval, share_interval
from activations.logistic import Probe, accuracy, auc, fit
from activations.probes import (
    ProbeReport,
    fit_eraser,
    fit_probe,
    load_probe,
    principal_directions,
    split_examples,
    text_rows,
    train_probes,
)
from activations.probes.fitting import KINDS
from activations.state_cache import StateCache

CONTROLLED = 'quote " <script> {x} \x00 \u202e'


def planted(n: int = 400, width: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows whose class lies along one direction of two columns."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2 == 0
    direction = torch.zeros(width, dtype=torch.float64)
    direction[[3, 7]] = torch.tensor([0.8, -0.6], dtype=torch.float64)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    return x + torch.where(y, 3.0, -3.0)[:, None] * direction, y, direction


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_a_planted_direction_and_none_reads_shuffled_labels(kind: str) -> None:
    x, y, direction = planted()
    found = fit_probe(kind, x[:200], y[:200], x[200:300], y[200:300])
    assert auc(found.probe.scores(x[300:]), y[300:]) > 0.99
    if isinstance(found.probe, Probe):
        assert float(found.probe.weight @ direction / found.probe.weight.norm()) > 0.8
    blind = []
    for seed in range(3 if kind == "nonlinear" else 12):
        drawn = y[torch.randperm(400, generator=torch.Generator().manual_seed(seed))]
        # the slow kind goes without the choice of its penalty
        chosen = 10.0 if kind == "nonlinear" else None
        probe = fit_probe(kind, x[:200], drawn[:200], x[200:300], drawn[200:300], chosen=chosen).probe
        blind.append(accuracy(probe.scores(x[300:]), y[300:]))
    # a direction through well separated classes is right about most or wrong about most: only the mean tells
    assert abs(sum(blind) / len(blind) - 0.5) < 0.25
    if kind == "k_sparse":
        assert set(found.columns[:2]) == {3, 7}
        assert fit_probe(kind, x[:200], y[:200], x[200:300], y[200:300], k=1).columns in {(3,), (7,)}


def test_only_a_curved_probe_reads_what_no_line_divides() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=generator, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1]) > 0
    curved = fit_probe("nonlinear", x[:400], y[:400], x[400:500], y[400:500]).probe
    straight = fit_probe("logistic", x[:400], y[:400], x[400:500], y[400:500]).probe
    assert accuracy(curved.scores(x[500:]), y[500:]) > 0.9
    assert accuracy(straight.scores(x[500:]), y[500:]) < 0.65


def test_the_strength_is_chosen_where_the_probe_was_not_fitted() -> None:
    x, y, _ = planted(n=60, width=200, seed=3)
    y = y[torch.randperm(60, generator=torch.Generator().manual_seed(2))]
    # labels of noise: the strongest penalty loses least on rows that were not fitted
    assert fit_probe("logistic", x[:40], y[:40], x[40:], y[40:]).setting == "strength 1000"


def test_principal_directions_are_those_of_the_covariance() -> None:
    x = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.1], dtype=torch.float64)
    directions, shares = principal_directions(x, 3)
    covariance = torch.cov(x.T, correction=0)
    for direction, share in zip(directions, shares, strict=True):
        value = direction @ covariance @ direction
        assert torch.allclose(covariance @ direction, value * direction, atol=1e-10)
        assert float(share) == pytest.approx(float(value / covariance.trace()))


def _bound_rows(classes: int = 3) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    names = [f"c{number % classes}" for number in range(300)]
    means = 4 * torch.randn(classes, 20, generator=generator, dtype=torch.float64)
    mixing = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    x = torch.randn(300, 20, generator=generator, dtype=torch.float64) @ mixing
    return x + torch.stack([means[int(name[1:])] for name in names]), names


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_leace_leaves_no_linear_probe_more_than_the_base_rate(classes: int) -> None:
    x, labels = _bound_rows(classes)
    eraser = fit_eraser(x, labels)
    erased = eraser(x)
    assert eraser.rank == classes - 1
    for name in sorted(set(labels)):
        y = torch.tensor([each == name for each in labels])
        torch.testing.assert_close(erased[y].mean(0), erased[~y].mean(0), rtol=0, atol=1e-9)
        assert accuracy(fit(x, y).scores(x), y) > 0.9
        probe = fit(erased, y, strength=1e-6)
        share = float(y.double().mean())
        assert accuracy(probe.scores(erased), y) == pytest.approx(max(share, 1 - share), abs=1e-9)
        # the best it can do is say the same of every row
        assert float(probe.scores(erased).std()) < 1e-4


def test_leace_is_idempotent_keeps_the_mean_and_changes_least() -> None:
    x, labels = _bound_rows(3)
    eraser = fit_eraser(x, labels)
    once = eraser(x)
    torch.testing.assert_close(eraser(once), once, rtol=0, atol=1e-9)
    torch.testing.assert_close(once.mean(0), x.mean(0), rtol=0, atol=1e-9)
    # other maps that make the classes' means equal change more, in any norm
    z = torch.tensor([[each == name for name in ("c0", "c1", "c2")] for each in labels], dtype=torch.float64)
    cross = (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)
    basis = torch.linalg.svd(cross, full_matrices=False)[0][:, :2]
    projected = x - (x - x.mean(0)) @ basis @ basis.T
    torch.testing.assert_close(
        (projected - x.mean(0)).T @ (z - z.mean(0)), torch.zeros(20, 3).double(), atol=1e-6, rtol=0
    )
    generator = torch.Generator().manual_seed(5)
    for norm in (torch.eye(20).double(), torch.randn(20, 20, generator=generator).double()):
        least = ((once - x) @ norm).square().sum()
        assert least < ((projected - x) @ norm).square().sum()


def test_leace_works_where_rows_span_less_than_their_width() -> None:
    x, labels = _bound_rows(2)
    flat = torch.cat([x, x[:, :5], torch.ones(len(x), 3).double()], dim=1)
    erased = fit_eraser(flat, labels)(flat)
    y = torch.tensor([each == "c0" for each in labels])
    torch.testing.assert_close(erased[y].mean(0), erased[~y].mean(0), rtol=0, atol=1e-8)
    assert torch.equal(erased[:, -3:], torch.ones(len(x), 3).double())


def test_splits_divide_every_label_and_part_no_group() -> None:
    labels = [("a", "b", "b")[number % 3] for number in range(90)]
    groups = [number // 3 for number in range(90)]
    split = split_examples(labels, groups=groups, seed=1)
    sides = [set(side.tolist()) for side in (split.train, split.validation, split.test)]
    assert set.union(*sides) == set(range(90))
    assert sum(map(len, sides)) == 90
    for one in range(3):
        for other in range(one):
            assert not {groups[n] for n in sides[one]} & {groups[n] for n in sides[other]}
    alone = split_examples(labels, seed=2)
    for side in (alone.train, alone.validation, alone.test):
        assert {labels[number] for number in side.tolist()} == {"a", "b"}
    with pytest.raises(ValueError, match="too few groups to be on all three sides"):
        split_examples(["a"] * 40 + ["b"] * 5, groups=[*range(10)] * 4 + [*range(5)], shares=(0.8, 0.1, 0.1))
    with pytest.raises(ValueError, match="label 'z' has 1 separate examples, expected at least 5"):
        split_examples([*labels, "z"])


def test_intervals_are_those_of_the_books() -> None:
    # Wilson's interval for 8 of 10, as tables give it
    assert share_interval(8, 10) == pytest.approx((0.8, 0.4901625, 0.9433178), abs=1e-6)
    assert share_interval(0, 5).low == 0.0
    perfect = area_interval(1.0, 20, 20)
    assert 0.8 < perfect.low < 0.95
    assert perfect.high == 1.0
    # at its lower bound the area stands 1.96 standard errors (Hanley and McNeil) below what was seen
    area = area_interval(0.75, 30, 50)
    spread = 1 + 39 * ((1 - area.low) / (2 - area.low) + area.low / (1 + area.low))
    assert 0.75 - area.low == pytest.approx(1.959964 * (area.low * (1 - area.low) * spread / 1500) ** 0.5, rel=1e-6)
    assert area.low < 0.75 < area.high < 1
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap_interval(400, lambda chosen: float(values[chosen].mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    together = bootstrap_interval(400, lambda chosen: float(values[chosen].mean()), groups=[0] * 400)
    assert np.isnan(together.low)


def _texts(n: int = 80, seed: int = 0) -> tuple[list[str], list[str]]:
    drawn = random.Random(seed)
    texts, labels = [], []
    for number in range(n):
        label = ("few", "many")[number % 2]
        letters = drawn.choices("abcdefgh" if label == "few" else "stuvwxyz", k=10)
        texts.append("".join(letters))
        labels.append(label)
    return texts, labels


@pytest.fixture(scope="module")
def report(tiny_lm: LanguageModel) -> ProbeReport:
    return train_probes(tiny_lm, *_texts(), kinds=("logistic", "mean_difference"), name="letters")


def test_the_report_has_every_site_and_its_controls(tiny_lm: LanguageModel, report: ProbeReport) -> None:
    assert report.sites == ("resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2")
    assert len(report.scores) == 8
    for score in report.scores:
        assert score.label == "many"
        assert score.accuracy_low <= score.accuracy <= score.accuracy_high
        assert score.base_rate == 0.5
    first = report.scores[0]
    assert first.auc > 0.99
    assert first.accuracy > first.random_accuracy
    assert abs(first.shuffled_auc - 0.5) < 0.5
    assert [site for site, _ in report.curve("logistic")] == list(report.sites)
    told = json.loads(report.to_json())
    assert len(told["scores"]) == 8
    assert "probes" not in told


def test_a_probe_is_saved_whole_and_scores_the_same(
    tiny_lm: LanguageModel, report: ProbeReport, tmp_path: Path
) -> None:
    probe = report.best()
    back = load_probe(probe.save(tmp_path / "probe"))
    texts, labels = _texts(seed=7)
    scores = probe.score_texts(tiny_lm, texts)
    assert torch.equal(back.score_texts(tiny_lm, texts), scores)
    assert accuracy(scores, torch.tensor([label == "many" for label in labels])) > 0.9
    assert (back.site, back.label, back.kind, back.spread) == (probe.site, probe.label, probe.kind, probe.spread)
    curved = train_probes(tiny_lm, *_texts(30), sites=["mlp_act.1"], kinds=("nonlinear",)).best()
    again = load_probe(curved.save(tmp_path / "curved"))
    assert torch.equal(again.score_texts(tiny_lm, texts), curved.score_texts(tiny_lm, texts))
    with pytest.raises(ValueError, match="a nonlinear probe has no direction, expected one that is linear"):
        again.direction


def test_half_written_and_foreign_probes_are_refused(report: ProbeReport, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no probe"):
        load_probe(tmp_path)
    folder = report.best().save(tmp_path / "probe")
    whole = (folder / "probe.json").read_text()
    (folder / "probe.json").unlink()
    with pytest.raises(ValueError, match="holds weights without probe.json, expected both"):
        load_probe(folder)
    (folder / "probe.json").write_text(whole[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        load_probe(folder)
    (folder / "probe.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="is not a probe's"):
        load_probe(folder)
    (folder / "probe.json").write_text(whole.replace('"version": 1', '"version": 9'))
    with pytest.raises(ValueError, match="has version 9, expected 1"):
        load_probe(folder)
    (folder / "probe.json").write_text(whole)
    with (folder / "probe.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(ValueError, match="does not belong to the weights beside it"):
        load_probe(folder)


def test_a_probe_refuses_another_model(embedded_lm: LanguageModel, report: ProbeReport) -> None:
    with pytest.raises(ValueError, match="its directions mean nothing there"):
        report.best().score_texts(embedded_lm, ["a text"])


def test_unusable_input_is_told_in_one_line(tiny_lm: LanguageModel) -> None:
    texts, labels = _texts()
    with pytest.raises(ValueError, match="got 79 labels for 80 texts"):
        train_probes(tiny_lm, texts, labels[1:])
    with pytest.raises(ValueError, match="expected at least two: a probe tells classes apart"):
        train_probes(tiny_lm, texts, ["a"] * 80)
    with pytest.raises(ValueError, match="probe 'svm' is unknown"):
        train_probes(tiny_lm, texts, labels, kinds=("svm",))
    with pytest.raises(ValueError, match="text 1 \\(''\\) has no tokens"):
        text_rows(tiny_lm, ["a", ""], ["resid_pre.0"])
    with pytest.raises(ValueError, match="pooling='sum' is unknown"):
        text_rows(tiny_lm, ["a"], ["resid_pre.0"], pooling="sum")


def test_rows_are_means_last_tokens_and_maxima_without_padding(tiny_lm: LanguageModel) -> None:
    texts = ["abc", CONTROLLED, "de"]
    site = "head_out.1"
    alone = [tiny_lm.capture(tiny_lm.tokenize(text).tokens, None, [site])[site].flatten(2)[0] for text in texts]
    for pooling, read in (("mean", lambda x: x.mean(0)), ("last", lambda x: x[-1]), ("max", lambda x: x.amax(0))):
        found = text_rows(tiny_lm, texts, [site], pooling=pooling)[site]
        special = [[int(token) in tiny_lm.special_ids for token in tiny_lm.tokenize(text).tokens[0]] for text in texts]
        kept = [rows[~torch.tensor(mask)] for rows, mask in zip(alone, special, strict=True)]
        torch.testing.assert_close(found, torch.stack([read(rows) for rows in kept]), rtol=1e-5, atol=1e-6)


def test_a_cache_saves_passes_keeps_models_apart_and_forgets_old_weights(tiny_lm: LanguageModel) -> None:
    import copy

    cache = StateCache(max_bytes=1 << 16)
    first = text_rows(tiny_lm, ["abc", "def"], ["resid_post.1"], cache=cache)["resid_post.1"]
    assert (cache.hits, cache.misses) == (0, 2)
    first[0] = 0  # what is handed out is the caller's
    again = text_rows(tiny_lm, ["def", "abc"], ["resid_post.1"], cache=cache)["resid_post.1"]
    assert (cache.hits, cache.misses) == (2, 2)
    assert float(again[1].abs().sum()) > 0
    twin = LanguageModel(copy.deepcopy(tiny_lm.model), tiny_lm.tokenizer)
    text_rows(twin, ["abc"], ["resid_post.1"], cache=cache)
    assert cache.misses == 3
    before = text_rows(twin, ["abc"], ["resid_post.1"], cache=cache)["resid_post.1"]
    assert cache.hits == 3
    with torch.no_grad():
        next(iter(twin.model.parameters())).mul_(2.0)
    changed = text_rows(twin, ["abc"], ["resid_post.1"], cache=cache)["resid_post.1"]
    assert not torch.allclose(before, changed)
    with twin.intervene({"resid_pre.0": lambda x: 0 * x}):
        zeroed = text_rows(twin, ["abc"], ["resid_post.1"], cache=cache)["resid_post.1"]
    assert not torch.allclose(zeroed, changed)
    assert torch.equal(text_rows(twin, ["abc"], ["resid_post.1"], cache=cache)["resid_post.1"], changed)


def test_a_cache_never_holds_more_than_its_bound(tiny_lm: LanguageModel) -> None:
    one = 32 * 4
    cache = StateCache(max_bytes=3 * one)
    for text in ("a", "b", "c", "d", "e"):
        text_rows(tiny_lm, [text], ["resid_post.1"], cache=cache)
        assert cache.bytes <= 3 * one
    assert len(cache) == 3
    text_rows(tiny_lm, ["e"], ["resid_post.1"], cache=cache)
    assert cache.hits == 1
    tiny = StateCache(max_bytes=1)
    text_rows(tiny_lm, ["a"], ["resid_post.1"], cache=tiny)
    assert len(tiny) == 0
    with pytest.raises(ValueError, match="max_bytes=0, expected at least 1"):
        StateCache(max_bytes=0)
