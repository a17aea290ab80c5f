"""An indexed document's features are told from its stored events, without any model."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from features import Dictionary
from features.active_documents import active_in, find_documents


@pytest.fixture
def modelless(dictionary: Dictionary) -> Dictionary:
    return Dictionary.open(dictionary.path, model="/nowhere/such/model")


def test_a_document_needs_no_model_and_says_what_the_index_holds(modelless: Dictionary) -> None:
    found = active_in(modelless, 3, top=400)
    events = modelless.sql("select position, feature, activation from events where document = 3").to_pylist()
    assert events
    expected = {(e["position"], e["feature"]): pytest.approx(e["activation"]) for e in events}
    assert {(c.token, f): c.activation for f in found.features for c in found.cells(f)} == expected
    assert found.tokens == modelless.text.window(3, 0, 0, 10_000).tokens
    assert found.part is not None
    assert (found.part.name, found.part.first_position) == ("folder/file_3.py", 0)
    assert found.part.document_positions == (0, len(found.tokens))
    assert found.special == [0]
    maxima = modelless.max_activations
    totals = {f: sum(abs(c.activation) / maxima[f] for c in found.cells(f)) for f in found.features}
    assert {entry.feature: entry.total for entry in found.ranked} == pytest.approx(totals)
    surprising = active_in(modelless, 3, by="surprise")
    assert [e.total for e in surprising.ranked] == sorted((e.total for e in surprising.ranked), reverse=True)
    assert json.loads(found.to_json())["part"]["document"] == 3


def test_a_part_of_a_document_stands_around_the_position_and_inside_the_document(modelless: Dictionary) -> None:
    whole = active_in(modelless, 5)
    length = len(whole.tokens)
    for at in (0, 7, length - 1):
        part = active_in(modelless, 5, at, n_tokens=9)
        assert part.part is not None
        first = part.part.first_position
        assert first <= at < first + 9 <= length
        assert part.tokens == whole.tokens[first : first + 9]
        assert part.per_token == whole.per_token[first : first + 9]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"document": 999}, "no document 999.*find one by its name"),
        ({"document": -1}, "no document -1"),
        ({"document": 2, "at": 10_000}, "has no position 10000, expected 0 to"),
        ({"document": 2, "by": "effect"}, "measure 'effect' is unknown, expected one of activation, surprise"),
        ({"document": 2, "n_tokens": 0}, "n_tokens=0, expected at least 1"),
    ],
)
def test_what_does_not_exist_is_refused(dictionary: Dictionary, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        active_in(dictionary, **asked)


def test_documents_are_found_by_words_of_their_names_and_by_number(dictionary: Dictionary) -> None:
    names = [hit.name for hit in find_documents(dictionary, "FILE_1 folder")]
    assert names == [f"folder/file_{n}.py" for n in (1, 10, 11, 12, 13)]
    assert find_documents(dictionary, "4")[0].document == 4
    assert [hit.document for hit in find_documents(dictionary, "4")] == [4]
    assert len(find_documents(dictionary, limit=3)) == 3
    assert find_documents(dictionary, "'; drop table documents; --") == []
    assert find_documents(dictionary, "99999999999999999999") == []
    assert np.diff([hit.document for hit in find_documents(dictionary)]).min() == 1
