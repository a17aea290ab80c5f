"""The map stands beside the labels, is made once, and shows groups of directions as clusters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from features import Dictionary, feature_map, verification
from features.store import Store


def in_a_row(directions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stands in for the layout: places by number, two clusters and some in none."""
    number = np.arange(len(directions), dtype=np.float32)
    return np.stack([number + seed, -number], 1), np.where(number < 5, 1, np.where(number < 40, 0, -1)).astype(np.int32)


@pytest.fixture
def opened(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Dictionary:
    monkeypatch.setattr(feature_map, "lay_out", in_a_row)
    return Dictionary.open(copied)


def test_a_map_is_made_once_of_live_features_and_stands_in_sql(
    opened: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened.map(seed=3)
    live = opened.sql("select feature from features where not is_dead order by feature")["feature"].to_pylist()
    assert made.features == live
    assert made.x[:2] == [3, 4]
    assert [(c.cluster, c.features) for c in made.clusters] == [(0, 35), (1, 5)]
    assert [row["cluster"] for row in made.rows()] == [0, 1]
    assert json.loads(made.to_json())["y"] == made.y
    rows = opened.sql("select feature, x, y, cluster, seed from feature_map order by feature").to_pydict()
    assert (rows["feature"], rows["x"], rows["cluster"]) == (made.features, made.x, made.cluster)
    assert set(rows["seed"]) == {3}
    monkeypatch.setattr(feature_map, "lay_out", None)
    assert opened.map() == made, "the stored one, without its libraries"
    with pytest.raises(TypeError):
        opened.map(again=True)
    assert verification.verify(opened.path).ok
    opened.close()


def test_clusters_are_told_by_the_tokens_that_they_hold_more_of(opened: Dictionary) -> None:
    made = opened.map()
    shares = opened.sql("select feature, token, mass from feature_tokens join vocabulary using (token_id)").to_pylist()
    for cluster in made.clusters:
        members = {f for f, number in zip(made.features, made.cluster, strict=True) if number == cluster.cluster}
        more: dict[str, float] = {}
        for row in shares:
            more[row["token"]] = more.get(row["token"], 0.0) - row["mass"] / len(made.features)
            if row["feature"] in members:
                more[row["token"]] += row["mass"] / len(members)
        assert cluster.tokens == sorted(more, key=lambda token: -more[token])[:3]
    opened.close()


def test_a_map_of_other_features_is_made_anew(opened: Dictionary) -> None:
    opened.map()
    Store(opened.path).write_labels("feature_map", opened.sql("from feature_map limit 0"), "feature = 0")
    assert len(opened.sql("from feature_map")) + 1 == opened.info["n_live"]
    assert opened.map(seed=9).x[0] == 9
    opened.close()


def test_the_extra_is_named_where_it_is_missing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    opened = Dictionary.open(copied)
    with pytest.raises(ImportError, match=r"needs umap-learn, which cannot .*: install .* 'glassbox-sae\[map\]'"):
        opened.map()
    monkeypatch.setattr(feature_map, "FEWEST", 1000)
    with pytest.raises(ValueError, match="has 88 live features, expected at least 1000 for a map"):
        opened.map()
    opened.close()


def test_clusters_are_numbered_from_the_largest() -> None:
    assert feature_map.by_size(np.array([4, -1, 2, 2, 0, 0, 4, 4])).tolist() == [0, -1, 1, 1, 2, 2, 0, 0]
    assert feature_map.by_size(np.array([-1, -1])).tolist() == [-1, -1]


@pytest.mark.slow
def test_groups_of_directions_lie_apart_and_no_cluster_mixes_them_the_same_again_by_seed() -> None:
    pytest.importorskip("umap", reason="the extra `map` is not installed")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(4, 32))
    group = np.arange(200) % 4
    directions = (centres[group] + 0.15 * generator.normal(size=(200, 32))).astype(np.float32)
    place, cluster = feature_map.lay_out(directions, 0)
    again, _ = feature_map.lay_out(directions, 0)
    np.testing.assert_array_equal(place, again)
    assert place.shape == (200, 2)
    other, _ = feature_map.lay_out(directions, 1)
    assert not np.array_equal(place, other)
    centre = np.stack([place[group == number].mean(0) for number in range(4)])
    radius = np.linalg.norm(place - centre[group], axis=1).max()
    apart = np.linalg.norm(centre[:, None] - centre, axis=2)[np.triu_indices(4, 1)]
    assert apart.min() > 3 * radius
    names = np.unique(cluster[cluster >= 0])
    assert len(names) >= 4
    for name in names:
        assert len(np.unique(group[cluster == name])) == 1
    assert (cluster >= 0).mean() > 0.5
