"""Conditions over events: counts, windows and chance are those of loops over all tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

from features import Dictionary
from features.conditions import Condition, Term


def dense(dictionary: Dictionary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes [tokens, features] as shares of each maximum, and the document and position of each token."""
    tokens = dictionary.sql("select document, position from tokens order by document, position")
    documents, positions = tokens["document"].to_numpy(), tokens["position"].to_numpy()
    row = {pair: i for i, pair in enumerate(zip(documents.tolist(), positions.tolist(), strict=True))}
    sizes = np.zeros((len(row), dictionary.n_features))
    for event in dictionary.sql("select * from events").to_pylist():
        sizes[row[event["document"], event["position"]], event["feature"]] = abs(event["activation"])
    return sizes / np.maximum(sizes.max(0), 1e-30), documents, positions


def busy(dictionary: Dictionary) -> list[int]:
    return [row["feature"] for row in dictionary.features(order="density", limit=12).features]


@pytest.mark.parametrize("limit", [5, 1000])
def test_documents_where_a_and_not_b(dictionary: Dictionary, limit: int) -> None:
    sizes, documents, _ = dense(dictionary)
    features = [row["feature"] for row in dictionary.features(order="rare", limit=60, live_only=True).features]
    checked = 0
    for a, b, c in zip(features[::3], features[1::3], busy(dictionary) * 2, strict=False):
        answer = dictionary.find(f"{c} & {a}>0.25 & !{b}", limit)
        holds = {}
        for document in np.unique(documents).tolist():
            inside = sizes[documents == document]
            parts = [inside[:, c].max() > 0, inside[:, a].max() > 0.25, not inside[:, b].max() > 0]
            holds[document] = parts, min(inside[:, c].max(), inside[:, a].max())
        met = {d: strength for d, (parts, strength) in holds.items() if all(parts)}
        rates = np.mean([parts for parts, _ in holds.values()], axis=0)
        assert (answer.counted, answer.found, answer.of) == ("documents", len(met), len(holds))
        assert answer.expected == pytest.approx(len(holds) * rates.prod())
        assert [t["holds"] for t in answer.terms] == pytest.approx(rates)
        assert len(answer.places) == min(limit, len(met))
        strengths = [place.strength for place in answer.places]
        assert strengths == sorted(strengths, reverse=True)
        for place in answer.places:
            assert place.strength == pytest.approx(met[place.document], rel=1e-5)
            assert [feature for feature, _, _ in place.events] == [c, a]
        checked += len(met)
    assert checked


@pytest.mark.parametrize(
    ("window", "low", "high"), [("3", -3, 3), ("0", 0, 0), ("4 after", 1, 4), ("2 before", -2, -1)]
)
def test_events_near_each_other(dictionary: Dictionary, window: str, low: int, high: int) -> None:
    sizes, documents, positions = dense(dictionary)
    a, b, c = busy(dictionary)[3:6]
    answer = dictionary.find(f"{a}>0.1 & {b}>20% & !{c} within {window}", 10_000)
    met, near = {}, np.zeros((len(sizes), 2), dtype=bool)
    for i in range(len(sizes)):
        inside = [j for j in range(i + low, i + high + 1) if 0 <= j < len(sizes) and documents[j] == documents[i]]
        around = sizes[inside]
        near[i] = (around[:, b] > 0.2).any(), (around[:, c] > 0).any()
        if sizes[i, a] > 0.1 and near[i, 0] and not near[i, 1]:
            met[int(documents[i]), int(positions[i])] = min(sizes[i, a], around[:, b].max())
    n = int((sizes[:, a] > 0.1).sum())
    assert (answer.found, answer.of) == (len(met), n)
    assert met
    assert answer.expected == pytest.approx(n * near[:, 0].mean() * (1 - near[:, 1].mean()))
    assert answer.lift == pytest.approx(len(met) / answer.expected)
    assert {(p.document, p.position): pytest.approx(p.strength, rel=1e-5) for p in answer.places} == met
    for place in answer.places:
        (first, at, value), (second, beside, _) = place.events
        assert (first, at, second) == (a, place.position, b)
        assert low <= beside - at <= high
        token = (documents == place.document) & (positions == at)
        assert value == pytest.approx(dictionary.max_activations[a] * sizes[token, a][0])
    assert json.loads(answer.to_json())["condition"] == f"{a}>0.1 & {b}>0.2 & !{c} within {window}"


def test_conditions_are_read_and_written_alike() -> None:
    text = "12 & 40>0.5 & !7 within 5 after"
    assert str(Condition.parse(text)) == text
    assert Condition.parse(" 12&40 > 50% & ! 7  within 5 after") == Condition.parse(text)
    assert Condition.parse("3") == Condition((Term(3),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the condition has '', expected a feature's number"),
        ("12 and 40", "the condition has '12 and 40', expected"),
        ("1 & 'x'; drop table events", "expected a feature's number"),
        ("<script>", "expected a feature's number"),
        ("!4", "asks for no active feature"),
        ("4>1", "a share outside 0 to 1"),
        ("!4 & 5 within 3", "looks around its first feature"),
        ("4 within 3", "looks around its first feature"),
        ("4 & 5 within 0 after", "has an empty window"),
        ("4 & 96", "feature 96 does not exist, expected 0 to 95"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(dictionary: Dictionary, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dictionary.find(text)


def test_a_dead_feature_is_never_met_and_expects_nothing(dictionary: Dictionary) -> None:
    answer = dictionary.find("95 & 1 within 2")
    assert (answer.found, answer.of, answer.lift, answer.places) == (0, 0, None, [])
    assert dictionary.find("95").found == 0
