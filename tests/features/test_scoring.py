"""Scores of explanations: figures are what they say, windows come from documents apart, rules are judged by both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from planted_events import plant

from features import Dictionary
from features.explain import METHOD, ExplainConfig, explain
from features.rule_scorers import best_threshold
from features.rules import TEST, Rule
from features.score_run import FREQUENT, RANDOM, RULE_SCORERS, VERSION, Means, score_rules
from features.scoring import accuracy, auc, balanced_accuracy, document_weights, f1, measure, simulation
from features.scoring_samples import (
    ACTIVE,
    HARD,
    SILENT,
    FeatureWindows,
    ScoreConfig,
    ScoringText,
    displayed,
    fuzz_marks,
    stratified,
)

CONFIG = ScoreConfig(window_tokens=8, actives=12, silent=12, simulated=4, quantiles=4)
rng = np.random.default_rng(0)


def ones(n: int) -> np.ndarray:
    return np.ones((1, n))


def test_a_perfect_answer_scores_one_and_a_constant_one_a_half() -> None:
    truth = np.array([True, True, False, False, False])
    assert balanced_accuracy(truth, truth, ones(5)) == 1
    assert f1(truth, truth, ones(5)) == 1
    assert auc(truth.astype(float), truth, ones(5)) == 1
    for said in (np.zeros(5, dtype=bool), np.ones(5, dtype=bool)):
        assert balanced_accuracy(said, truth, ones(5)) == 0.5
        assert auc(said.astype(float), truth, ones(5)) == 0.5
    assert balanced_accuracy(~truth, truth, ones(5)) == 0
    assert auc(-truth.astype(float), truth, ones(5)) == 0


def test_the_auc_counts_pairs_and_ties_by_halves() -> None:
    score, truth = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    pairs = score[truth][:, None] - score[~truth][None]
    assert auc(score, truth, ones(40)) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)


def test_a_weight_of_two_is_a_window_counted_twice() -> None:
    score, truth = rng.normal(size=12).round(1), np.arange(12) % 3 == 0
    weights = rng.integers(1, 4, 12)
    twice = np.repeat(np.arange(12), weights)
    for figure, answer in ((auc, score), (balanced_accuracy, score > 0), (f1, score > 0), (accuracy, score > 0)):
        both = figure(answer, truth, np.stack([weights, np.ones(12)]).astype(float))
        assert both[0] == pytest.approx(figure(answer[twice], truth[twice], ones(twice.size)))
        assert both[1] == pytest.approx(figure(answer, truth, ones(12)))


def test_the_interval_resamples_documents_and_failures_are_counted_and_left_out() -> None:
    truth = np.tile([True, False], 30)
    documents = np.repeat(np.arange(6), 10)
    said = np.where(documents < 3, truth, ~truth)
    weights = document_weights(6, seed=1)
    assert np.all(weights.sum(1) == 6)
    found = measure(balanced_accuracy, said, truth, documents, weights)
    assert found is not None
    assert found.value == 0.5
    # three documents right and three wrong: far wider than sixty windows by themselves would be
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 1 / 6
    assert found.high >= 5 / 6
    failed = documents >= 3
    right = measure(balanced_accuracy, said, truth, documents, weights, failed)
    assert right is not None
    assert (right.value, right.n, right.failures) == (1.0, 30, 30)
    single = measure(balanced_accuracy, said, truth, np.zeros(60, dtype=int), document_weights(1, 0))
    assert single is not None
    assert (single.low, single.high) == (None, None)
    assert measure(balanced_accuracy, said, truth, documents, weights, np.ones(60, dtype=bool)) is None


def test_simulation_is_pearson_over_all_tokens_and_explained_second_moment() -> None:
    truth = np.abs(rng.normal(size=(6, 8)))
    predicted = truth + rng.normal(size=(6, 8))
    documents = np.arange(6)
    weights = document_weights(6, 0)
    pearson, explained = simulation(predicted, truth, documents, weights)
    assert pearson.value == pytest.approx(np.corrcoef(predicted.ravel(), truth.ravel())[0, 1])
    assert explained.value == pytest.approx(1 - ((predicted - truth) ** 2).mean() / (truth**2).mean())
    assert pearson.low is not None
    assert pearson.high is not None
    assert pearson.low < pearson.value < pearson.high
    perfect, whole = simulation(truth, truth, documents, weights)
    assert (perfect.value, whole.value) == (pytest.approx(1), pytest.approx(1))
    scaled, shrunk = simulation(3 * truth, truth, documents, weights)
    assert scaled.value == pytest.approx(1)
    assert shrunk.value == pytest.approx(-3)
    constant, _ = simulation(np.full((6, 8), 0.7), truth, documents, weights)
    assert constant.value == 0


def test_features_of_one_document_do_not_pull_means_out_of_their_intervals() -> None:
    documents = np.arange(40) % 20
    weights = document_weights(20, 0)
    means = Means(0, "now")
    for feature in range(30):
        truth = np.zeros((40, 4))
        truth[documents == feature % 20] = np.abs(np.random.default_rng(feature).normal(size=(2, 4)))
        for name, found in zip(("a", "b"), simulation(truth, truth, documents, weights), strict=True):
            means.add(feature, "rule", name, found)
    for mean in means.results():
        assert mean.mean == pytest.approx(1)
        assert mean.low == pytest.approx(1)


def test_thresholds_divide_what_can_be_divided() -> None:
    score, truth = np.array([0.0, 0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True, True])
    assert best_threshold(score, truth) == pytest.approx(0.15)
    assert best_threshold(np.zeros(4), np.array([True, False, True, False])) > 0
    for _ in range(20):
        score, truth = rng.integers(0, 5, 30).astype(float), rng.random(30) < 0.5
        cut = best_threshold(score, truth)
        tried = [balanced_accuracy(score >= t, truth, ones(30)) for t in np.arange(0.5, 4)]
        assert balanced_accuracy(score >= cut, truth, ones(30)) == pytest.approx(max(tried))


def test_active_windows_are_drawn_evenly_from_their_order_of_strength() -> None:
    ranked = np.arange(100, 200)
    drawn, parts = stratified(ranked, 20, 10, np.random.default_rng(0))
    assert np.bincount(parts).tolist() == [2] * 10
    assert np.array_equal((drawn - 100) // 10, parts)
    everything, parts = stratified(ranked[:7], 20, 10, np.random.default_rng(0))
    assert everything.tolist() == ranked[:7].tolist()
    assert np.unique(drawn).size == 20


def test_displayed_activations_are_tenths_of_the_maximum_rounded_up() -> None:
    assert displayed(np.array([0.0, 0.01, 1.0, 1.01, 9.99, 10.0]), 10.0).tolist() == [0, 1, 1, 2, 10, 10]


@pytest.fixture
def planted(copied: Path) -> Any:
    opened = plant(copied, "token in ('x', '1')")
    explain(opened, ExplainConfig(min_events=3))
    yield opened
    opened.close()


def test_no_document_gives_windows_to_both_sides_and_rules_saw_none_of_the_test(planted: Dictionary) -> None:
    from features.explain import _Sample

    text = ScoringText(planted, CONFIG, division_seed=0)
    owner = np.searchsorted(planted.text.documents.first_token, np.arange(planted.text.n_tokens), side="right") - 1
    train, test = (set(owner[p.ordinals[p.windows]].ravel().tolist()) for p in (text.train, text.test))
    assert train
    assert test
    assert not train & test
    sample = _Sample(planted, ExplainConfig(seed=0))
    tested = set(owner[sample.ordinals[sample.splits == TEST]].tolist())
    assert test == tested
    for part in (text.train, text.test):
        rows = owner[part.ordinals[part.windows]]
        assert np.all(rows == rows[:, :1]), "a window lies in one document"
        assert np.array_equal(np.array(part.rows)[part.documents], rows[:, 0])
        assert planted.text.column("is_indexed")[part.ordinals[part.windows]].all()


def test_silent_windows_are_silent_and_active_ones_hold_the_events(planted: Dictionary) -> None:
    text = ScoringText(planted, CONFIG, division_seed=0)
    kinds_seen = set()
    for feature in range(0, 92, 5):
        events = planted.sql(f"select document, position, activation from events where feature = {feature}")
        truth = np.zeros(planted.text.n_tokens)
        where = planted.text.ordinals(events["document"].to_numpy(), events["position"].to_numpy())
        truth[where] = np.abs(events["activation"].to_numpy())
        for part in (text.train, text.test):
            drawn = text.draw(feature, part)
            assert np.allclose(drawn.activations, truth[part.ordinals[part.windows[drawn.windows]]])
            assert np.array_equal(drawn.activations.any(1), drawn.kinds == ACTIVE)
            for kind in (ACTIVE, SILENT, HARD):
                windows = drawn.windows[drawn.kinds == kind]
                assert np.unique(windows).size == windows.size
                assert windows.size <= 12
                kinds_seen.add((kind, windows.size > 0))
            again = text.draw(feature, part)
            assert np.array_equal(again.windows, drawn.windows)
        simulated = text.simulated(feature)
        assert np.allclose(simulated.activations, truth[text.test.ordinals[text.test.windows[simulated.windows]]])
    assert {(ACTIVE, True), (SILENT, True), (HARD, True)} <= kinds_seen


def test_a_hard_window_is_one_in_which_a_similar_feature_is_active(planted: Dictionary) -> None:
    text = ScoringText(planted, CONFIG, division_seed=0)
    drawn = text.draw(20)
    actives = drawn.windows[drawn.kinds == ACTIVE]
    close = planted.sql("select neighbour from neighbours where feature = 20")["neighbour"].to_pylist()
    like = {*close, *text.test.together(20, actives).tolist()}
    assert 20 not in like
    for window in drawn.windows[drawn.kinds == HARD].tolist():
        assert any(window in text.test.active(other)[0] for other in like)


def test_marks_of_fuzzing_are_strong_tokens_or_as_many_wrong_ones_at_changing_places() -> None:
    activations = np.zeros((40, 8))
    activations[:10, 2] = 1.0
    activations[:10, 5] = 0.31
    activations[:10, 6] = 0.29
    kinds = np.repeat([ACTIVE, SILENT], [10, 30])
    drawn = FeatureWindows(0, np.arange(40), kinds, np.zeros(40, dtype=int), activations, np.zeros(40, dtype=int))
    windows, marks, which = fuzz_marks(drawn, np.random.default_rng(0))
    assert np.bincount(which).tolist() == [10, 30, 10]
    assert all(np.flatnonzero(row).tolist() == [2, 5] for row in marks[which == 0])
    assert np.all(marks.sum(1) == 2)
    assert not (marks[which == 2] & (windows.activations[which == 2] > 0)).any()
    assert marks[which == 1].any(0).all(), "wrong marks stand everywhere, not at one fixed place"


def test_rules_are_scored_beside_baselines_and_the_table_holds_every_figure(planted: Dictionary) -> None:
    before = planted.sql("select count(*) as n from scores")["n"][0].as_py()
    report = score_rules(planted, RULE_SCORERS, CONFIG)
    assert report.scored > 10
    rows = planted.sql(f"select * from scores where feature = 7 and method = '{METHOD}'").to_pylist()
    found = {row["scorer"]: row for row in rows}
    for name in ("detection", "detection_auc", "detection_f1", "detection_hard", "fuzzing", "fuzzing_inactive"):
        assert found[name]["score"] == 1.0, name
        assert found[name]["failures"] == 0
        assert found[name]["version"] == VERSION
        assert found[name]["n"] > 5
    assert found["simulation"]["score"] > 0.8
    assert found["auc"]["n"] is None, "the token statistics' own score stays"
    means = {(mean.method, mean.scorer): mean for mean in report.means}
    rule, chance, frequent = (means[method, "detection"] for method in (METHOD, RANDOM, FREQUENT))
    assert rule.features == chance.features == frequent.features == report.scored
    assert abs(chance.mean - 0.5) < 0.1
    values = planted.sql(f"select score from scores where method = '{METHOD}' and scorer = 'detection'")["score"]
    assert rule.mean == pytest.approx(np.mean(values.to_pylist()))
    assert json.loads(report.to_json())["means"] == report.rows()
    # doing it again replaces, and does the same
    again = score_rules(planted, RULE_SCORERS, CONFIG)
    assert again.means == report.means
    total = planted.sql("select count(*) as n from scores")["n"][0].as_py()
    assert total == before + sum(mean.features for mean in report.means)


def test_scores_of_an_earlier_version_are_kept_when_columns_are_added(copied: Path) -> None:
    import duckdb

    with duckdb.connect(str(copied / "labels.duckdb")) as connection:
        connection.execute(
            "create table scores (feature integer, method text, scorer text, score double, created text)"
        )
        connection.execute("insert into scores values (3, 'old', 'auc', 0.75, 'then')")
    opened = Dictionary.open(copied)
    assert opened.sql("select score, low, version from scores").to_pylist() == [
        {"score": 0.75, "low": None, "version": None}
    ]
    from features import labels, schema

    table: pa.Table = pa.Table.from_pylist(
        [{"feature": 4, "method": "new", "scorer": "auc", "score": 0.5, "low": 0.25, "version": 1}],
        schema=schema.TABLES["scores"].arrow_schema(),
    )
    labels.write_scores(opened.store, table, "new", ["auc"])
    assert opened.sql("select low from scores order by feature")["low"].to_pylist() == [None, 0.25]
    opened.close()


def test_what_cannot_be_scored_is_refused_in_one_line(copied: Path) -> None:
    opened = Dictionary.open(copied)
    with pytest.raises(ValueError, match="scorer 'guess' is unknown, expected one of detection, fuzzing, simulation"):
        score_rules(opened, ["guess"])
    with pytest.raises(ValueError, match="has no rules, expected some: run `glassbox explain` first"):
        score_rules(opened, ["detection"])
    with pytest.raises(ValueError, match=r"no document .* has 4000 indexed tokens .* lower score.window_tokens"):
        ScoringText(opened, ScoreConfig(window_tokens=4000), 0)
    with pytest.raises(ValueError, match=r"score.actives=0, expected at least 1"):
        ScoreConfig(actives=0)
    opened.close()


def test_the_command_explains_scores_and_prints_the_means(copied: Path, capsys: Any) -> None:
    from ui import cli

    arguments = ["explain", str(copied), "--score", "detection", "score.window_tokens=8", "score.features=20"]
    assert cli.run([*arguments, "explain.min_events=3"]) == 0
    shown = capsys.readouterr().out
    assert "random rule" in shown
    assert "most frequent token" in shown
    assert cli.run(["explain", str(copied), "score.features=20"]) == 1
    assert "expected --score" in capsys.readouterr().err
    assert Rule.from_json(Dictionary.open(copied).feature(7).explanations[0].rule or "").seed == 0
