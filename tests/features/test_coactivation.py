"""Pairs of features on the same tokens are counted as a dense matrix counts them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from features import Dictionary, coactivation
from features.coactivation import Coactivations, sample_size, sample_tokens
from features.events import EventRange


def ranges(counter: Coactivations, active: np.ndarray, sizes: tuple[int, ...]) -> list[EventRange]:
    """The events of a boolean matrix [features, tokens] in ranges of so many features, for a counter of pairs."""
    found, first = [], 0
    for size in sizes:
        features, ordinals = np.nonzero(active[first : first + size])
        found.append(
            EventRange(
                first,
                first + size,
                active[first : first + size].sum(1),
                ordinals.astype(np.int32),
                np.ones(features.size, dtype=np.float32),
                counter.is_sampled[ordinals].astype(np.uint64),
            )
        )
        first += size
    assert first == len(active)
    return found


def table(counter: Coactivations, k: int) -> pa.Table:
    with ThreadPoolExecutor(2) as pool:
        return counter.table(k, pool)


def naive(active: np.ndarray, k: int) -> list[tuple[int, int, int, float, int, float]]:
    """Rows of the table from a dense matrix of the counted tokens, all pairs by all pairs."""
    both = active.astype(np.int64) @ active.T.astype(np.int64)
    n, found = active.shape[1], []
    for feature in range(len(active)):
        own = both[feature, feature]
        others = [b for b in range(len(active)) if b != feature and both[feature, b]]
        jaccard = {b: both[feature, b] / (own + both[b, b] - both[feature, b]) for b in others}
        for rank, b in enumerate(sorted(others, key=lambda b: (-jaccard[b], b))[:k]):
            pmi = math.log2(both[feature, b] * n / (own * both[b, b]))
            found.append((feature, rank, b, jaccard[b], int(both[feature, b]), pmi))
    return found


def planted(n_features: int = 30, n_tokens: int = 400, seed: int = 0) -> np.ndarray:
    """Features of all densities, one dead, one always active, two always together."""
    generator = np.random.default_rng(seed)
    active = generator.random((n_features, n_tokens)) < generator.random((n_features, 1)) ** 3
    active[3], active[-2] = False, True
    active[0] = active[1]
    return active


def test_pairs_equal_those_of_a_dense_matrix() -> None:
    active = planted()
    counter = Coactivations(np.ones(400, dtype=bool), 30, int(active.sum()), 400, 0)
    for events in reversed(ranges(counter, active, (11, 1, 18))):
        counter.take(events)
    rows = table(counter, 4).to_pylist()
    wanted = naive(active, 4)
    assert [(r["feature"], r["rank"], r["neighbour"], r["count"]) for r in rows] == [
        (feature, rank, other, count) for feature, rank, other, _, count, _ in wanted
    ]
    np.testing.assert_array_equal([r["jaccard"] for r in rows], np.float32([row[3] for row in wanted]))
    np.testing.assert_allclose([r["pmi"] for r in rows], [row[5] for row in wanted], rtol=1e-6, atol=1e-7)
    twins = next(r for r in rows if r["feature"] == 0)
    assert (twins["neighbour"], twins["jaccard"]) == (1, 1.0)


@pytest.mark.parametrize("n_features", [700, 9000])
def test_pairs_of_many_features_equal_those_of_a_dense_matrix(n_features: int) -> None:
    """Enough for several blocks and parts."""
    generator = np.random.default_rng(6)
    few = planted(700, 300, seed=5)
    few[generator.choice(700, 300, replace=False)] &= generator.random((300, 300)) < 0.03
    active = np.zeros((n_features, 300), dtype=bool)
    places = np.sort(generator.choice(n_features, 700, replace=False))
    active[places] = few
    counter = Coactivations(np.ones(300, dtype=bool), n_features, int(active.sum()), 300, 0)
    for events in ranges(counter, active, (n_features,)):
        counter.take(events)
    rows = table(counter, 5).to_pydict()
    wanted = naive(few, 5)
    assert rows["feature"] == [int(places[row[0]]) for row in wanted]
    assert rows["neighbour"] == [int(places[row[2]]) for row in wanted]
    assert rows["count"] == [row[4] for row in wanted]


def test_a_sample_holds_one_token_of_each_equal_part_and_counts_only_these() -> None:
    active = planted(seed=1)
    indexed = np.random.default_rng(2).random(400) < 0.9
    active &= indexed
    chosen = sample_tokens(indexed, 60, 7)
    places = np.searchsorted(np.flatnonzero(indexed), chosen)
    edges = int(indexed.sum()) * np.arange(61) // 60
    assert (edges[:-1] <= places).all()
    assert (places < edges[1:]).all()
    assert indexed[chosen].all()
    assert len(set((places - edges[:-1]).tolist())) > 2, "not always the same place of a part"
    counter = Coactivations(indexed, 30, int(active.sum()), 60, 7)
    for events in ranges(counter, active, (30,)):
        counter.take(events)
    rows = table(counter, 5).to_pylist()
    wanted = naive(active[:, chosen], 5)
    assert [(r["feature"], r["neighbour"], r["count"]) for r in rows] == [(w[0], w[2], w[4]) for w in wanted]
    np.testing.assert_allclose([r["pmi"] for r in rows], [w[5] for w in wanted], rtol=1e-6, atol=1e-7)


def test_a_sample_as_large_as_the_text_is_the_text_and_many_active_latents_make_it_smaller() -> None:
    indexed = np.array([True, False, True, True])
    assert sample_tokens(indexed, 3, 5).tolist() == [0, 2, 3]
    assert sample_size(1000, 32_000, 2000) == 1000
    assert sample_size(10**7, 32 * 10**7, 200_000) == 200_000
    dense = sample_size(10**6, 2000 * 10**6, 10**6)
    assert dense * 2000**2 <= coactivation.MOST_PAIRS
    assert dense >= 900


def test_many_features_are_numbered_in_full() -> None:
    few, apart = planted(5, 50, seed=4), 17_000
    counts = np.zeros(4 * apart + 1, dtype=np.int64)
    counts[::apart] = few.sum(1)
    counter = Coactivations(np.ones(50, dtype=bool), counts.size, int(few.sum()), 50, 0)
    found = ranges(counter, few, (5,))[0]
    spread = EventRange(0, counts.size, counts, found.ordinals, found.activations, found.facts)
    counter.take(spread)
    rows = table(counter, 3).to_pylist()
    wanted = [(w[0] * apart, w[2] * apart, w[4]) for w in naive(few, 3)]
    assert [(r["feature"], r["neighbour"], r["count"]) for r in rows] == wanted
    assert rows


def test_features_without_company_have_no_rows() -> None:
    active = np.eye(3, dtype=bool)
    counter = Coactivations(np.ones(3, dtype=bool), 3, 3, 10, 0)
    for events in ranges(counter, active, (3,)):
        counter.take(events)
    assert table(counter, 2).num_rows == 0
    assert table(Coactivations(np.ones(3, dtype=bool), 3, 0, 10, 0), 2).num_rows == 0


def test_the_dictionarys_pairs_are_those_of_its_events(dictionary: Dictionary) -> None:
    events = dictionary.sql(
        "select e.feature, d.first_token + e.position as token from events e join documents d using (document)"
    ).to_pydict()
    active = np.zeros((dictionary.n_features, dictionary.info["n_tokens"]), dtype=bool)
    active[events["feature"], events["token"]] = True
    indexed = dictionary.sql("select is_indexed from tokens order by document, position")["is_indexed"].to_numpy()
    assert dictionary.info["coactivation_tokens"] == int(indexed.sum()), "few tokens are counted one and all"
    wanted = naive(active[:, indexed], 10)
    assert len(wanted) > 500
    for feature in (0, 17, 60, 95):
        mine = [row for row in wanted if row[0] == feature]
        found = dictionary.feature(feature).coactivations
        assert [(c.feature, c.count) for c in found] == [(row[2], row[4]) for row in mine]
        assert [c.jaccard for c in found] == pytest.approx([row[3] for row in mine], rel=1e-6)
        assert [c.pmi for c in found] == pytest.approx([row[5] for row in mine], rel=1e-5, abs=1e-6)
