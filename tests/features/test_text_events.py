"""The events in the order of the text are those of the table, and a dictionary without them tells the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from features import Dictionary
from features.active_documents import active_in
from features.text_events import BLOCK_TOKENS, NAME, TextEvents, TextEventsWriter, TokenEvents, tokenwise


def drawn(n_tokens: int, n_features: int, seed: int = 0) -> TokenEvents:
    """Events of a text, some of whose tokens have none; values of both signs, features beyond two bytes."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, n_tokens) * (rng.random(n_tokens) < 0.8)
    features = [np.sort(rng.choice(n_features, count, replace=False)) for count in counts.tolist()]
    values = rng.normal(size=int(counts.sum())).astype(np.float32)
    return TokenEvents(counts, np.concatenate([np.zeros(0, np.int64), *features]).astype(np.int32), values)


def chunk(events: TokenEvents, first: int, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as the index spills them: ordered by feature."""
    order = np.argsort(events.features, kind="stable")
    bits = events.activations.view(np.uint32).astype(np.uint64)
    packed = (events.tokens + first).astype(np.uint64) << np.uint64(32) | bits
    return np.bincount(events.features, minlength=n_features).astype(np.int32), packed[order]


def part(events: TokenEvents, first: int, stop: int) -> TokenEvents:
    ends = np.append(0, np.cumsum(events.counts))
    inside = slice(int(ends[first]), int(ends[stop]))
    return TokenEvents(events.counts[first:stop], events.features[inside], events.activations[inside])


@pytest.mark.parametrize("n_tokens", [1, BLOCK_TOKENS - 1, BLOCK_TOKENS, 3 * BLOCK_TOKENS, 3 * BLOCK_TOKENS + 7, 1000])
def test_chunks_of_any_length_are_found_token_by_token(tmp_path: Path, n_tokens: int) -> None:
    wanted = drawn(n_tokens, 200_000)
    with TextEventsWriter(tmp_path, n_tokens) as writer:
        for first, stop in ((0, n_tokens // 3), (n_tokens // 3, n_tokens)):
            begin = writer.taken  # a chunk ends with its last event: what lies behind has none
            held = part(wanted, begin, stop)
            writer.take(tokenwise(*chunk(held, begin, 200_000), begin))
            assert first <= writer.taken <= stop
    found = TextEvents(tmp_path / NAME)
    assert (found.n_tokens, found.n_events) == (n_tokens, wanted.features.size)
    for column, expected in zip(found.between(0, n_tokens), wanted, strict=True):
        np.testing.assert_array_equal(column, expected)
    every = [np.concatenate(columns) for columns in zip(*found.all(), strict=True)]
    np.testing.assert_array_equal(every[2], wanted.activations)
    some = np.flatnonzero(np.random.default_rng(1).random(n_tokens) < 0.3)
    taken = found.at(some)
    pieces = [part(wanted, token, token + 1) for token in some.tolist()]
    for column, expected in zip(taken, zip(*pieces, strict=True), strict=False):
        np.testing.assert_array_equal(column, np.concatenate(expected))
    assert found.at(some[:0]).features.size == 0


def test_what_raises_while_it_is_written_leaves_no_file(tmp_path: Path) -> None:
    def write() -> None:
        with TextEventsWriter(tmp_path, 10) as writer:
            writer.take(drawn(4, 50))
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert not (tmp_path / NAME).exists()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"text_events ends with .*ing else', expected b'GBTEXTE1': build the dict"):
        TextEvents(tmp_path / NAME)


@pytest.fixture
def earlier(dictionary: Dictionary, tmp_path: Path) -> Iterator[Dictionary]:
    """A copy as an earlier version wrote it."""
    folder = tmp_path / "copy"
    shutil.copytree(dictionary.path, folder)
    (folder / dictionary.store.build.name / NAME).unlink()
    facts = json.loads((folder / "dictionary.json").read_text())
    del facts["files"][NAME]
    (folder / "dictionary.json").write_text(json.dumps(facts))
    opened = Dictionary.open(folder)
    yield opened
    opened.close()


def test_the_index_writes_them_as_the_table_has_them(dictionary: Dictionary) -> None:
    held = dictionary.text.events
    assert held is not None
    rows = dictionary.sql(
        "select t.row, e.feature, e.activation from events e join (select document, position, "
        "row_number() over (order by document, position) - 1 as row from tokens) t using (document, position) "
        "order by t.row, e.feature"
    )
    found = held.between(0, dictionary.text.n_tokens)
    for column, name in ((found.tokens, "row"), (found.features, "feature"), (found.activations, "activation")):
        np.testing.assert_array_equal(column, rows[name].to_numpy())


def test_a_dictionary_of_an_earlier_version_tells_the_same_of_documents_and_phrases(
    dictionary: Dictionary, earlier: Dictionary
) -> None:
    assert earlier.text.events is None
    for document in (0, 3, 5):
        for by in ("activation", "surprise"):
            assert asdict(active_in(earlier, document, by=by)) == asdict(active_in(dictionary, document, by=by))
    for query in ("import", dictionary.text.joined.text[40:52], dictionary.text.joined.text[-9:]):
        found, before = (opened.search(query, limit=50, kind="text") for opened in (dictionary, earlier))
        assert found
        assert [(hit.feature, hit.reason) for hit in found] == [(hit.feature, hit.reason) for hit in before]
        assert [hit.score for hit in found] == pytest.approx([hit.score for hit in before])
