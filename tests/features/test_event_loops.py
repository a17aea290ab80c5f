"""The compiled loops of the index give what plain Python gives, ties and edges included."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from features import event_loops
from features.events import EventRange
from features.examples import choose_examples, uniform


def events(n_features: int = 7, n_tokens: int = 60, seed: int = 0) -> EventRange:
    """Some features never active, one at every token, activations of few values and both signs."""
    generator = np.random.default_rng(seed)
    active = generator.random((n_features, n_tokens)) < 0.4
    active[2], active[4] = False, True
    features, ordinals = np.nonzero(active)
    activations = generator.choice(np.array([-2, -1, -0.5, 0.5, 1, 2], dtype=np.float32), features.size)
    counts = active.sum(1)
    return EventRange(0, n_features, counts, features.astype(np.int32), ordinals.astype(np.int32), activations)


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


def test_codes_are_taken_without_padding_and_zeros() -> None:
    indices = np.array([[3, -1, 0], [2, 3, -1], [-1, -1, -1]])
    values = np.array([[1.5, 0, 0], [-2, 0.5, 0], [0, 0, 0]], dtype=np.float32)
    features, ordinals, activations = np.full(6, -9, np.int32), np.full(6, -9, np.int32), np.zeros(6, np.float32)
    counts = np.zeros(4, np.int64)
    place = np.array([4, 7, 8], np.int32)
    assert event_loops.take_codes(indices, values, place, 2, features, ordinals, activations, counts) == 5
    assert features.tolist() == [-9, -9, 3, 2, 3, -9]
    assert ordinals.tolist() == [-9, -9, 4, 7, 7, -9]
    assert activations.tolist() == [0, 0, 1.5, -2, 0.5, 0]
    assert counts.tolist() == [0, 0, 1, 2]


def test_statistics_are_those_of_numpy() -> None:
    found = events()
    place = np.arange(60)
    facts = np.stack([place // 11, place % 11, place * 7, place // 3], axis=1).astype(np.int32)
    mean, deviation, largest = (np.empty(7, np.float32) for _ in range(3))
    documents, positions, tokens, windows = (np.empty(found.features.size, np.int32) for _ in range(4))
    seen, histogram = np.empty(7, np.int32), np.zeros((7, 9), np.int64)
    first_bin = int(np.float32(0.5).view(np.int32)) >> event_loops.HISTOGRAM_SHIFT
    event_loops.statistics(
        found.starts, found.counts, found.ordinals, found.activations, found.activations.view(np.int32), facts,
        first_bin, documents, positions, tokens, windows, mean, deviation, largest, seen, histogram,
    )  # fmt: skip
    np.testing.assert_array_equal(np.stack([documents, positions, tokens, windows], 1), facts[found.ordinals])
    for feature in range(7):
        sizes = np.abs([value for _, value in of_feature(found, feature)])
        assert mean[feature] == pytest.approx(sizes.mean() if sizes.size else 0)
        assert deviation[feature] == pytest.approx(sizes.std() if sizes.size else 0)
        assert largest[feature] == sizes.max(initial=0)
        assert seen[feature] == len({ordinal // 11 for ordinal, _ in of_feature(found, feature)})
        octaves = [int((sizes == size).sum()) for size in (0.5, 1, 2)]
        assert histogram[feature, [0, 4, 8]].tolist() == octaves
        assert histogram[feature].sum() == sizes.size


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_strongest_tokens_of_a_feature_come_first_and_equal_ones_by_token(limit: int) -> None:
    found = events(seed=3)
    tokens = np.random.default_rng(4).integers(0, 9, 60).astype(np.int32)
    most = int(np.minimum(found.counts, limit).sum())
    token, times, shares = np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.float32)
    rows = event_loops.strongest_tokens(
        found.starts, found.counts, found.activations, tokens[found.ordinals], 9, limit, token, times, shares
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


def peaks_of(found: EventRange, documents: np.ndarray, positions: np.ndarray, window_tokens: int) -> dict[int, list]:
    """{feature: events}: the first strongest event of each window, strongest first, in plain Python."""
    wanted: dict[tuple[int, int, int], int] = {}
    for event, (feature, document, position) in enumerate(zip(found.features, documents, positions, strict=True)):
        best = wanted.setdefault((int(feature), int(document), int(position) // window_tokens), event)
        if abs(found.activations[event]) > abs(found.activations[best]):
            wanted[int(feature), int(document), int(position) // window_tokens] = event
    ranked = defaultdict(list)
    for event in sorted(wanted.values(), key=lambda e: (-abs(found.activations[e]), e)):
        ranked[int(found.features[event])].append(event)
    return ranked


@pytest.mark.parametrize("strata", [0, 3])
@pytest.mark.parametrize(("top", "per_document"), [(4, 2), (1, 1), (50, 50)])
def test_examples_are_those_that_plain_python_chooses(top: int, per_document: int, strata: int) -> None:
    found = events(seed=5)
    documents, positions = (found.ordinals // 23).astype(np.int32), (found.ordinals % 23).astype(np.int32)
    chosen = choose_examples(
        found, documents, documents * 8 + positions // 3, n_documents=3, top=top, per_document=per_document,
        strata=strata, stratum_examples=2, seed=9,
    )  # fmt: skip
    ranked = peaks_of(found, documents, positions, 3)
    wanted: list[tuple[int, int, int, int]] = []
    for feature in range(7):
        taken: dict[int, int] = defaultdict(int)
        others = []
        for event in ranked[feature]:
            document = int(documents[event])
            if sum(taken.values()) < top and taken[document] < per_document:
                wanted.append((feature, 0, sum(taken.values()), event))
                taken[document] += 1
            else:
                others.append(event)
        for stratum in range(strata):
            part = others[len(others) * stratum // strata : len(others) * (stratum + 1) // strata]
            start = float(uniform(9, np.array([feature]), strata)[0, stratum])
            places = sorted({min(int(len(part) * (j + start) / 2), len(part) - 1) for j in range(2)} if part else [])
            wanted += [(feature, stratum + 1, rank, part[place]) for rank, place in enumerate(places)]
    assert len(wanted) > 5
    features = np.repeat(np.arange(7), chosen.counts)
    got = zip(features, chosen.strata, chosen.ranks, chosen.events, strict=True)
    assert [tuple(int(value) for value in row) for row in got] == wanted


def test_what_is_shown_around_examples_is_marked_and_nothing_else() -> None:
    found = events(seed=6)
    documents, positions = (found.ordinals // 23).astype(np.int32), (found.ordinals % 23).astype(np.int32)
    shown = np.sort(np.random.default_rng(2).choice(found.features.size, 9, replace=False))
    counts = np.bincount(found.features[shown], minlength=7)
    mark = np.zeros(found.features.size, np.bool_)
    event_loops.mark_shown(found.starts, found.counts, documents, positions, counts, shown, 4, 2, mark)
    for event in range(found.features.size):
        near = [
            found.features[event] == found.features[s]
            and documents[event] == documents[s]
            and -4 <= positions[event] - positions[s] <= 2
            for s in shown
        ]
        assert mark[event] == any(near)
    assert 9 < mark.sum() < mark.size


def test_draws_are_uniform_and_a_features_own() -> None:
    drawn = uniform(3, np.arange(4000), 5)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 50, "19 degrees of freedom"
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.08
    np.testing.assert_array_equal(uniform(3, np.array([7]), 5)[0], drawn[7])
    assert not np.array_equal(uniform(4, np.array([7]), 5)[0], drawn[7])
