"""The compiled loops of the index give what plain Python gives, ties and edges included."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from features import event_loops
from features.events import EventRange
from features.examples import uniform


def events(n_features: int = 7, n_tokens: int = 60, seed: int = 0) -> EventRange:
    """Some features never active, one at every token, activations of few values and both signs."""
    generator = np.random.default_rng(seed)
    active = generator.random((n_features, n_tokens)) < 0.4
    active[2], active[4] = False, True
    features, ordinals = np.nonzero(active)
    activations = generator.choice(np.array([-2, -1, -0.5, 0.5, 1, 2], dtype=np.float32), features.size)
    counts = active.sum(1)
    return EventRange(0, n_features, counts, features.astype(np.int32), ordinals.astype(np.int64), activations)


def of_feature(found: EventRange, feature: int) -> list[tuple[int, float]]:
    mine = found.features == feature
    return list(zip(found.ordinals[mine].tolist(), found.activations[mine].tolist(), strict=True))


def test_events_are_gathered_by_feature_in_their_own_order() -> None:
    generator = np.random.default_rng(1)
    features = generator.integers(0, 5, 200)
    ordinals, activations = np.arange(200), generator.random(200, dtype=np.float32)
    by_feature, values = np.empty_like(ordinals), np.empty_like(activations)
    counts = np.bincount(features, minlength=6)
    event_loops.gather_by_feature(features, ordinals, activations, counts, by_feature, values)
    order = np.argsort(features, kind="stable")
    np.testing.assert_array_equal(by_feature, order)
    np.testing.assert_array_equal(values, activations[order])


def test_statistics_are_those_of_numpy() -> None:
    found = events()
    documents = (found.ordinals // 11).astype(np.int32)
    mean, deviation, largest = (np.empty(7, np.float32) for _ in range(3))
    seen = np.empty(7, np.int32)
    event_loops.statistics(found.starts, found.counts, documents, found.activations, mean, deviation, largest, seen)
    for feature in range(7):
        sizes = np.abs([value for _, value in of_feature(found, feature)])
        assert mean[feature] == pytest.approx(sizes.mean() if sizes.size else 0)
        assert deviation[feature] == pytest.approx(sizes.std() if sizes.size else 0)
        assert largest[feature] == sizes.max(initial=0)
        assert seen[feature] == len({ordinal // 11 for ordinal, _ in of_feature(found, feature)})


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_strongest_tokens_of_a_feature_come_first_and_equal_ones_by_token(limit: int) -> None:
    found = events(seed=3)
    tokens = np.random.default_rng(4).integers(0, 9, 60).astype(np.int32)
    most = int(np.minimum(found.counts, limit).sum())
    token, times, shares = np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.float32)
    rows = event_loops.strongest_tokens(
        found.starts, found.counts, found.ordinals, found.activations, tokens, 9, limit, token, times, shares
    )
    first = 0
    for feature in range(7):
        mass: dict[int, float] = defaultdict(float)
        count: dict[int, int] = defaultdict(int)
        for ordinal, value in of_feature(found, feature):
            mass[int(tokens[ordinal])] += abs(value)
            count[int(tokens[ordinal])] += 1
        total = sum(mass.values())
        wanted = sorted(((-np.float32(m / total), t) for t, m in mass.items()))[:limit]
        got = slice(first, first + int(rows[feature]))
        assert token[got].tolist() == [t for _, t in wanted]
        assert times[got].tolist() == [count[t] for _, t in wanted]
        np.testing.assert_array_equal(shares[got], [-share for share, _ in wanted])
        first = got.stop


def test_the_first_strongest_event_of_each_window_is_its_peak() -> None:
    found = events(seed=5)
    windows = np.arange(60) // 7
    peaks = np.empty(found.features.size, np.int64)
    n = event_loops.window_peaks(found.starts, found.counts, found.ordinals, found.activations, windows, peaks)
    wanted: dict[tuple[int, int], int] = {}
    for event, (feature, ordinal) in enumerate(zip(found.features, found.ordinals, strict=True)):
        best = wanted.setdefault((int(feature), int(ordinal) // 7), event)
        if abs(found.activations[event]) > abs(found.activations[best]):
            wanted[int(feature), int(ordinal) // 7] = event
    assert peaks[:n].tolist() == sorted(wanted.values())


def test_no_more_than_so_many_of_a_document_are_marked() -> None:
    features = np.array([0, 0, 0, 0, 1, 1, 1], dtype=np.int32)
    documents = np.array([5, 5, 5, 2, 5, 5, 1], dtype=np.int32)
    mark = np.zeros(7, dtype=bool)
    event_loops.mark_strongest(features, documents, 6, 3, 2, mark)
    assert mark.tolist() == [True, True, False, True, True, True, True]


def test_draws_are_uniform_and_a_features_own() -> None:
    drawn = uniform(3, np.arange(4000), 5)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 50, "19 degrees of freedom"
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.08
    np.testing.assert_array_equal(uniform(3, np.array([7]), 5)[0], drawn[7])
    assert not np.array_equal(uniform(4, np.array([7]), 5)[0], drawn[7])
