"""Embedding endpoints: vectors in the order of the texts, and what is none counts as a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_endpoint import Fake, serving

from features.embedders import TEXTS_AT_ONCE, EndpointEmbedder, LocalEmbedder, embedder_for

FAST: dict[str, Any] = {"requests_per_minute": 1e6, "attempts": 2, "first_wait_s": 0.01}


def vectors(*rows: list[Any]) -> tuple[int, bytes]:
    data = [{"index": index, "embedding": row} for index, row in enumerate(rows)]
    return 200, json.dumps({"data": data[::-1], "usage": {"prompt_tokens": 7}}).encode()


def test_vectors_come_back_in_order_at_unit_length_and_are_kept(tmp_path: Path) -> None:
    with serving() as url:
        embedder = EndpointEmbedder(url=url, model="e", cache=tmp_path, **FAST)
        Fake.script = [(429, b""), vectors([3.0, 4.0], [0.0, 2.0])]
        found = embedder.embed(["<script>;drop table", "\ud800"])
        assert np.allclose(found, [[0.6, 0.8], [0.0, 1.0]])
        assert Fake.seen[-1] == {"model": "e", "input": ["<script>;drop table", "?"]}
        assert embedder.cost.prompt_tokens == 7
        again = EndpointEmbedder(url=url, model="e", cache=tmp_path, **FAST)
        assert np.array_equal(again.embed(["<script>;drop table", "\ud800"]), found)
        assert (again.cost.requests, again.cost.cached) == (0, 1)


def test_answers_that_are_no_vectors_are_failures(tmp_path: Path) -> None:
    wrong = [
        vectors([1.0, 0.0]),
        vectors([1.0, 0.0], [0.0, 0.0]),
        vectors([1.0, 0.0], [1.0]),
        vectors([1.0, 0.0], ["x", 1.0]),
        (200, b'{"data": []}'),
        (200, b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}'),
        (500, b""),
    ]
    with serving() as url:
        for answer in wrong:
            embedder = EndpointEmbedder(url=url, model="e", cache=tmp_path, **FAST | {"attempts": 1})
            Fake.script = [answer]
            assert np.isnan(embedder.embed(["a", "b"])).all()
            assert embedder.cost.failures == 2
        embedder = EndpointEmbedder(url=url, model="e", cache=tmp_path, **FAST)
        Fake.script = [vectors(*[[1.0, 0.0]] * TEXTS_AT_ONCE), vectors([1.0, 0.0, 0.0])]
        found = embedder.embed([str(n) for n in range(TEXTS_AT_ONCE + 1)])
        # an answer of another width is none
        assert np.isfinite(found[:-1]).all()
        assert np.isnan(found[-1]).all()


def test_an_embedder_is_local_or_an_endpoint_here(tmp_path: Path) -> None:
    assert isinstance(embedder_for("embedded", device="cpu"), LocalEmbedder)
    assert isinstance(embedder_for("http://localhost:1/v1", "e", tmp_path), EndpointEmbedder)
    with pytest.raises(ValueError, match="without a model or a folder"):
        embedder_for("http://localhost:1/v1")
    with pytest.raises(ValueError, match="text would leave the machine"):
        embedder_for("https://api.example.com/v1", "e", tmp_path)
