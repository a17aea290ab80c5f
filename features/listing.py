"""The list of features: which of them meet conditions, in what order, with the text that each is shown by.

Enters: an opened store. Leaves: pages of rows.

The columns of the table features are read once, the texts that are shown once after each change of the labels
database, so that a page of a list, and a text for each of some features, cost no query: a filter over 131,072 features
is a few passes over arrays.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import as_array
from features.records import FeatureList
from features.store import Store

DENSE = 0.1
"""Share of tokens from which on a feature counts as very dense: it seldom stands for one thing."""
DEAD = "dead: never active in the indexed text"
ORDERS = ("density", "rare", "max_activation", "mean_activation", "feature", "score", "random")
SHOWN = ("live", "dead", "dense", "all")
FACTS = ("density", "mean_activation", "max_activation", "count", "is_dead")


@dataclass(frozen=True, kw_only=True)
class FeatureFilter:
    """Conditions on features; those that are not given are met by all."""

    show: str = "all"
    """live, dead, dense (active on a share of `DENSE` of the tokens or more) or all."""
    words: str = ""
    """Stands in the text that is shown, in any case."""
    least_density: float | None = None
    """Smallest density, 0 to 1."""
    most_density: float | None = None
    """Largest density, 0 to 1."""
    has_label: bool = False
    """A person has named it."""
    least_score: float | None = None
    """Smallest score of the explanation that is shown."""
    on_list: str | None = None
    """Name of a list that it is on."""
    cluster: int | None = None
    """Cluster of the map that it is in (`Dictionary.map`)."""

    def __post_init__(self) -> None:
        if self.show not in SHOWN:
            raise ValueError(f"show {self.show!r} is unknown, expected one of {', '.join(SHOWN)}: choose one of these")


class _Told(NamedTuple):
    """The text shown for each feature: a person's newest label, otherwise the best explanation."""

    stamp: tuple[int, ...]
    texts: pa.Array
    """One for each feature, empty where there is none."""
    scores: np.ndarray
    """float64: of the explanations, NaN for labels and where there is none."""
    is_label: np.ndarray
    lists: pa.Table
    clusters: pa.Table


class Listing:
    """Lists the features of one dictionary; safe to use from several threads."""

    def __init__(self, store: Store, n_features: int) -> None:
        self._store = store
        self._n = n_features
        self._lock = threading.Lock()
        self._told: _Told | None = None

    @cached_property
    def facts(self) -> dict[str, np.ndarray]:
        """The columns of the table features that lists show, by feature."""
        found = self._store.query(f"select {', '.join(FACTS)} from features order by feature")
        return {name: as_array(found[name]) for name in FACTS}

    @cached_property
    def live(self) -> np.ndarray:
        """int64: the live features, rising."""
        return np.flatnonzero(~self.facts["is_dead"])

    def beside(self, feature: int) -> tuple[int, int]:
        """The live features before and after one, round the ends; itself where there is no other."""
        live = self.live
        if not live.size:
            return feature, feature
        before = np.searchsorted(live, feature) - 1
        after = np.searchsorted(live, feature, side="right") % live.size
        return int(live[before]), int(live[after])

    def texts(self, features: Iterable[int]) -> dict[int, str]:
        """The text shown for each of these features that has one."""
        wanted = list(features)
        if not wanted:
            return {}
        found = self._shown().texts.take(pa.array(wanted, pa.int64())).to_pylist()
        return {feature: text for feature, text in zip(wanted, found, strict=True) if text}

    def page(
        self,
        order: str | None,
        only: FeatureFilter | None = None,
        limit: int = 50,
        offset: int = 0,
        among: Sequence[int] | None = None,
    ) -> FeatureList:
        """A page of the features that meet the conditions; of those `among` alone where some are given.

        `order` is one of `ORDERS`; None keeps the order of `among`.

        Raises:
            ValueError: an unknown order, or a negative limit or offset.
        """
        if order is not None and order not in ORDERS:
            raise ValueError(f"order {order!r} is unknown, expected one of {', '.join(ORDERS)}: choose one of these")
        if limit < 0 or offset < 0:
            raise ValueError(f"limit={limit} and offset={offset}: expected 0 or more; raise them")
        told = self._shown()
        fits = self._fits(told, only or FeatureFilter())
        if among is None:
            chosen = np.flatnonzero(fits)
        else:
            chosen = np.asarray(among, dtype=np.int64)
            chosen = chosen[fits[chosen]]
        if order is not None:
            chosen = chosen[np.lexsort((chosen, self._key(told, order)[chosen]))]
        rows = self._rows(told, chosen[offset : offset + limit])
        return FeatureList(int(chosen.size), rows)

    def _key(self, told: _Told, order: str) -> np.ndarray:
        facts = self.facts
        if order == "random":
            return np.random.default_rng(0).permutation(self._n)
        if order == "score":
            return np.where(np.isnan(told.scores), np.inf, -told.scores)
        if order == "rare":
            return facts["density"]
        return np.arange(self._n) if order == "feature" else -facts[order]

    def _fits(self, told: _Told, only: FeatureFilter) -> np.ndarray:
        density, is_dead = self.facts["density"], self.facts["is_dead"].astype(bool)
        fits = {
            "live": ~is_dead,
            "dead": is_dead,
            "dense": density >= DENSE,
            "all": np.ones(self._n, dtype=bool),
        }[only.show].copy()
        if only.least_density is not None:
            fits &= density >= only.least_density
        if only.most_density is not None:
            fits &= density <= only.most_density
        if only.has_label:
            fits &= told.is_label
        if only.least_score is not None:
            fits &= told.scores >= only.least_score  # what has no score meets none
        if only.words:
            held = pc.match_substring(told.texts, only.words, ignore_case=True)  # pyright: ignore[reportAttributeAccessIssue]
            fits &= held.to_numpy(zero_copy_only=False)
        if only.on_list is not None:
            fits &= self._marked(told.lists, "list", only.on_list)
        if only.cluster is not None:
            fits &= self._marked(told.clusters, "cluster", only.cluster)
        return fits

    def _marked(self, table: pa.Table, column: str, value: object) -> np.ndarray:
        marked = np.zeros(self._n, dtype=bool)
        mask = pc.equal(table[column], pa.scalar(value, table[column].type))  # pyright: ignore[reportAttributeAccessIssue]
        marked[as_array(table.filter(mask)["feature"])] = True
        return marked

    def _rows(self, told: _Told, chosen: np.ndarray) -> list[dict[str, Any]]:
        columns = {name: column[chosen].tolist() for name, column in self.facts.items()}
        texts = told.texts.take(pa.array(chosen, pa.int64())).to_pylist()
        rows = []
        for place, feature in enumerate(chosen.tolist()):
            facts = {name: column[place] for name, column in columns.items()}
            score = float(told.scores[feature])
            says = texts[place] or (DEAD if facts["is_dead"] else "")
            score = None if np.isnan(score) else score
            is_label = bool(told.is_label[feature])
            rows.append({"feature": feature, **facts, "explanation": says, "score": score, "is_label": is_label})
        return rows

    def _shown(self) -> _Told:
        with self._lock:
            stamp = self._store.labels_stamp()
            if self._told is None or self._told.stamp != stamp:
                people = self._store.people_at(stamp)
                self._told = _told(stamp, people, self._n)
            return self._told


def _told(stamp: tuple[int, ...], people: dict[str, pa.Table], n_features: int) -> _Told:
    written, labels = people["explanations"], people["labels"]
    scores = written["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    owner = as_array(written["feature"])
    # later assignments win: the best explanation comes last, a missing score counts least
    order = np.lexsort((-np.arange(owner.size), np.where(np.isnan(scores), -np.inf, scores)))
    row = np.full(n_features, -1, dtype=np.int64)
    row[owner[order]] = order
    shown = np.full(n_features, np.nan)
    shown[owner[order]] = scores[order]
    is_label = np.zeros(n_features, dtype=bool)
    named = as_array(labels["feature"])
    oldest_first = np.argsort(np.array(labels["created"].to_pylist(), dtype=str), kind="stable")
    row[named[oldest_first]] = owner.size + oldest_first
    shown[named], is_label[named] = np.nan, True
    texts = pa.chunked_array([*written["text"].chunks, *labels["text"].chunks, pa.array([""])])
    row[row < 0] = len(texts) - 1
    taken = texts.take(pa.array(row)).combine_chunks()
    return _Told(stamp, taken, shown, is_label, people["lists"], people["feature_map"])
