"""The compiled loops of the index give what plain Python gives, ties and edges included."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from features import event_loops
from features.events import EventRange
from features.examples import choose_examples, uniform
from features.token_facts import MOST_IDS, pack_facts

NOTHING = np.zeros(60, dtype=np.int64)


def events(
    n_features: int = 7,
    n_tokens: int = 60,
    seed: int = 0,
    windows: np.ndarray = NOTHING,
    tokens: np.ndarray = NOTHING,
    places: np.ndarray = NOTHING,
) -> EventRange:
    """Some features never active, one at every token, activations of few values and both signs."""
    generator = np.random.default_rng(seed)
    active = generator.random((n_features, n_tokens)) < 0.4
    active[2], active[4] = False, True
    features, ordinals = np.nonzero(active)
    activations = generator.choice(np.array([-2, -1, -0.5, 0.5, 1, 2], dtype=np.float32), features.size)
    counts = active.sum(1)
    facts = pack_facts(windows, tokens, places, np.arange(n_tokens) % 3 == 0)[ordinals]
    return EventRange(0, n_features, counts, ordinals.astype(np.int32), activations, facts)


def of_feature(found: EventRange, feature: int) -> list[tuple[int, float]]:
    mine = found.features == feature
    return list(zip(found.ordinals[mine].tolist(), found.activations[mine].tolist(), strict=True))


@pytest.mark.parametrize("n_features", [6, 2000])
def test_events_are_gathered_by_feature_in_their_own_order(n_features: int) -> None:
    generator = np.random.default_rng(1)
    features = generator.integers(0, n_features - 1, 400)
    events = np.arange(400)
    counts = np.bincount(features, minlength=n_features)
    event_loops.gather_by_feature(features, events, counts, np.empty(400, np.uint16), np.empty(400, np.int64))
    np.testing.assert_array_equal(events, np.argsort(features, kind="stable"))


def test_codes_are_taken_without_padding_and_zeros() -> None:
    indices = np.array([[3, -1, 0], [2, 3, -1], [-1, -1, -1]])
    values = np.array([[1.5, 0, -0.0], [-2, 0.5, 0], [0, 0, 0]], dtype=np.float32)
    features, taken = np.full(6, -9, np.int32), np.zeros(6, np.uint64)
    counts = np.zeros(4, np.int64)
    place = np.array([4, 7, 8], np.int32)
    assert event_loops.take_codes(indices, values.view(np.int32), place, 2, features, taken, counts) == 5
    assert features.tolist() == [-9, -9, 3, 2, 3, -9]
    assert (taken >> np.uint64(32)).tolist() == [0, 0, 4, 7, 7, 0]
    assert taken.astype(np.uint32).view(np.float32).tolist() == [0, 0, 1.5, -2, 0.5, 0]
    assert counts.tolist() == [0, 0, 1, 2]


def test_merged_events_carry_the_facts_of_their_tokens() -> None:
    facts = np.arange(100, 200, dtype=np.uint64)
    chunks = [([2, 0, 1], [(3, -1.5), (9, 2), (4, 0.5)]), ([1, 1, 0], [(50, 7), (60, 8)])]
    counts = np.array([3, 1, 1])
    place = np.array([0, 3, 4])
    ordinals, bits, found = np.empty(5, np.int32), np.empty(5, np.uint32), np.empty(5, np.uint64)
    for part, events in chunks:
        packed = [ordinal << 32 | int(np.float32(value).view(np.uint32)) for ordinal, value in events]
        event_loops.merge_chunk(np.array(part), place, np.array(packed, np.uint64), facts, ordinals, bits, found)
    assert place.tolist() == (np.cumsum(counts)).tolist()
    assert ordinals.tolist() == [3, 9, 50, 60, 4]
    assert bits.view(np.float32).tolist() == [-1.5, 2, 7, 8, 0.5]
    assert found.tolist() == [103, 109, 150, 160, 104]


def test_facts_keep_the_largest_numbers_apart_and_refuse_larger_ids() -> None:
    windows, tokens = np.array([0, 2**31 - 1]), np.array([MOST_IDS - 1, 0])
    packed = pack_facts(windows, tokens, np.array([511, 0]), np.array([False, True]))
    assert (packed >> np.uint64(event_loops.WINDOW_SHIFT)).tolist() == windows.tolist()
    assert (packed >> np.uint64(event_loops.TOKEN_SHIFT) & np.uint64(MOST_IDS - 1)).tolist() == tokens.tolist()
    assert (packed >> np.uint64(event_loops.PLACE_SHIFT) & np.uint64(511)).tolist() == [511, 0]
    assert (packed & np.uint64(1)).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"token id 8,388,608, expected ids below 8,388,608: index with another"):
        pack_facts(windows, tokens + 1, windows * 0, windows > 0)


def test_statistics_are_those_of_numpy() -> None:
    place = np.arange(60)
    found = events(windows=place // 3)
    mean, deviation, largest = (np.empty(7, np.float32) for _ in range(3))
    seen, histogram = np.empty(7, np.int32), np.zeros((7, 9), np.int64)
    first_bin = int(np.float32(0.5).view(np.int32)) >> event_loops.HISTOGRAM_SHIFT
    event_loops.statistics(
        found.starts, found.counts, found.activations, found.activations.view(np.int32), found.facts, first_bin,
        (np.arange(20) // 4).astype(np.int32), mean, deviation, largest.view(np.int32), seen, histogram,
    )  # fmt: skip
    for feature in range(7):
        sizes = np.abs([value for _, value in of_feature(found, feature)])
        assert mean[feature] == pytest.approx(sizes.mean() if sizes.size else 0)
        assert deviation[feature] == pytest.approx(sizes.std() if sizes.size else 0)
        assert largest[feature] == sizes.max(initial=0)
        assert seen[feature] == len({ordinal // 12 for ordinal, _ in of_feature(found, feature)})
        octaves = [int((sizes == size).sum()) for size in (0.5, 1, 2)]
        assert histogram[feature, [0, 4, 8]].tolist() == octaves
        assert histogram[feature].sum() == sizes.size


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_strongest_tokens_of_a_feature_come_first_and_equal_ones_by_token(limit: int) -> None:
    tokens = np.random.default_rng(4).integers(0, 9, 60).astype(np.int32)
    found = events(seed=3, tokens=tokens)
    most = int(np.minimum(found.counts, limit).sum())
    token, times, shares = np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.float32)
    rows = event_loops.strongest_tokens(
        found.starts, found.counts, found.activations, found.facts, 9, limit, token, times, shares
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
    place = np.arange(60, dtype=np.int32)
    found = events(seed=5, windows=place // 23 * 8 + place % 23 // 3)
    documents, positions = (found.ordinals // 23).astype(np.int32), (found.ordinals % 23).astype(np.int32)
    chosen = choose_examples(
        found, place // 23, n_documents=3, top=top, per_document=per_document, strata=strata, stratum_examples=2, seed=9
    )
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


@pytest.mark.parametrize("spread", [0.0, 1e-3, 1.0, 15.0])
@pytest.mark.parametrize("n", [5, 64, 1000, 20_000])
def test_windows_of_any_strengths_stand_in_order(n: int, spread: float) -> None:
    """Equal and nearly equal ones, and such that are spread over more octaves than there are bins."""
    generator = np.random.default_rng(n)
    values = np.exp(generator.normal(0, spread, n)).astype(np.float32) * generator.choice([-1, 1], n)
    values[:3] = values[0]
    values = values.astype(np.float32)
    facts = pack_facts(np.arange(n), np.zeros(n, int), np.zeros(n, int), np.zeros(n, bool))
    found = EventRange(0, 1, np.array([n]), np.arange(n, dtype=np.int32), values, facts)
    chosen = choose_examples(
        found, np.arange(n, dtype=np.int32), n_documents=n, top=n, per_document=1, strata=0, stratum_examples=0, seed=0
    )
    np.testing.assert_array_equal(chosen.events, np.lexsort((np.arange(n), -np.abs(values))))


def test_what_is_shown_around_examples_is_marked_and_nothing_else() -> None:
    found = events(seed=6)
    documents, positions = (found.ordinals // 23).astype(np.int32), (found.ordinals % 23).astype(np.int32)
    shown = np.sort(np.random.default_rng(2).choice(found.features.size, 9, replace=False))
    counts = np.bincount(found.features[shown], minlength=7)
    mark = np.zeros(found.features.size, np.bool_)
    place = np.arange(60)
    event_loops.mark_shown(
        found.starts, found.counts, found.ordinals, place // 23, place % 23, counts, shown, 4, 2, mark
    )
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
