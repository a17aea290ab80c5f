"""Where features are active in the context, and at which ends of the text: as counted one token at a time."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from features import Dictionary
from features.token_places import BOUNDARIES, position_bins


def test_bins_are_powers_of_two() -> None:
    positions = np.array([0, 1, 2, 3, 4, 7, 8, 1023, 1024, 2**30])
    assert position_bins(positions).tolist() == [0, 1, 2, 2, 3, 3, 4, 10, 11, 31]


@pytest.fixture(scope="module")
def indexed(rows: Any, tiny_lm: Any) -> list[tuple[int, int, int, int]]:
    """(document, position, row, column) of each counted token, in the order of the text."""
    return [
        (int(rows.documents[row, column]), int(rows.positions[row, column]), row, column)
        for row in range(len(rows.tokens))
        for column in range(rows.tokens.shape[1])
        if rows.documents[row, column] >= 0 and int(rows.tokens[row, column]) not in tiny_lm.special_ids
    ]


def events_of(dictionary: Dictionary) -> dict[int, dict[tuple[int, int], float]]:
    found: dict[int, dict[tuple[int, int], float]] = defaultdict(dict)
    for row in dictionary.sql("from events").to_pylist():
        found[row["feature"]][row["document"], row["position"]] = row["activation"]
    return found


def test_profiles_equal_counts_of_one_token_at_a_time(dictionary: Dictionary, indexed: list) -> None:
    events = events_of(dictionary)
    tokens: dict[int, int] = defaultdict(int)
    for *_, column in indexed:
        tokens[column.bit_length()] += 1
    stored = defaultdict(list)
    for row in dictionary.sql("from position_profiles").to_pylist():
        stored[row["feature"]].append(row)
    assert set(stored) == set(events)
    for feature, mine in events.items():
        count: dict[int, int] = defaultdict(int)
        mass: dict[int, float] = defaultdict(float)
        for document, position, _, column in indexed:
            value = mine.get((document, position), 0.0)
            count[column.bit_length()] += value != 0
            mass[column.bit_length()] += abs(value)
        assert [row["bin"] for row in stored[feature]] == sorted(tokens)
        for row in stored[feature]:
            number = row["bin"]
            assert (row["low"], row["high"]) == ((2**number) // 2, 2**number)
            assert (row["tokens"], row["count"]) == (tokens[number], count[number])
            assert row["density"] == pytest.approx(count[number] / tokens[number])
            assert row["mean_activation"] == pytest.approx(mass[number] / tokens[number], rel=1e-5)
    first = dictionary.feature(next(iter(events))).positions
    assert [entry.count for entry in first] == [row["count"] for row in stored[next(iter(events))]]


def test_boundaries_equal_counts_of_one_token_at_a_time(dictionary: Dictionary, indexed: list) -> None:
    by_document, by_row = defaultdict(list), defaultdict(list)
    for document, position, row, _ in indexed:
        by_document[document].append((document, position))
        by_row[row].append((document, position))
    groups = (by_document.values(), by_row.values())
    at = {
        place: {group[-1 if place.endswith("last") else 0] for group in groups[place.startswith("context")]}
        for place in BOUNDARIES
    }
    assert len({frozenset(keys) for keys in at.values()}) == 4, "the four differ on this text"
    stored = defaultdict(dict)
    for row in dictionary.sql("from boundaries").to_pylist():
        stored[row["feature"]][row["place"]] = row
    events = events_of(dictionary)
    assert set(stored) == set(events)
    for feature, mine in events.items():
        for place in BOUNDARIES:
            row = stored[feature][place]
            assert row["count"] == len(at[place] & mine.keys())
            assert row["share"] == pytest.approx(row["count"] / len(mine))
            assert row["base_share"] == pytest.approx(len(at[place]) / len(indexed))
    assert [entry.place for entry in dictionary.feature(next(iter(events))).boundaries] == list(BOUNDARIES)
