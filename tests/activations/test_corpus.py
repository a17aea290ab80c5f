"""Documents from every kind of source, and the rows of tokens they become."""

from __future__ import annotations

import csv
import gzip
import json
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import tokenizer as character_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from activations import DataConfig, Document, LanguageModel, TokenRows, documents, pack_documents, token_rows
from activations.corpus import in_split, standard_library
from activations.tokens import iter_token_rows

TEXTS = {"a": "first text", "b": "second\ntext, longer", "c": "third 日本", "d": "fourth"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same four texts in every format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "plain" / "deep").mkdir(parents=True)
    (tmp_path / "packed").mkdir()
    for name, text in TEXTS.items():
        place = tmp_path / "plain" / ("deep" if name == "d" else "")
        (place / f"{name}.txt").write_text(text)
        (tmp_path / "packed" / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "plain" / "empty.txt").write_text("")
    (tmp_path / "plain" / "picture.png").write_bytes(b"\x89PNG\xff")
    lines = "".join(json.dumps({"text": text, "id": name}) + "\n" for name, text in TEXTS.items())
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text", "id"], *([text, name] for name, text in TEXTS.items())])
    table = pa.table({"text": list(TEXTS.values()), "id": list(TEXTS)})
    pq.write_table(table, tmp_path / "rows.parquet")
    return tmp_path


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("source", ["plain", "packed"])
def test_folders_of_files_give_one_document_per_file_named_by_its_path(folder: Path, source: str) -> None:
    found = {document.name: document.text for document in documents(DataConfig(source=str(folder / source)), "all")}
    ending = ".txt" if source == "plain" else ".txt.gz"
    deep = "deep/" if source == "plain" else ""
    assert found == {f"{deep if name == 'd' else ''}{name}{ending}": text for name, text in TEXTS.items()}


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("source", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_files_of_rows_give_one_document_per_row(folder: Path, source: str) -> None:
    config = DataConfig(source=str(folder / source))
    assert list(documents(config, "all")) == [
        Document(f"{source}:{number}", text) for number, text in enumerate(TEXTS.values())
    ]
    named = DataConfig(source=str(folder / source), name_column="id")
    assert {document.name: document.text for document in documents(named, "all")} == TEXTS


def test_a_single_text_file_is_one_document(folder: Path) -> None:
    path = folder / "plain" / "b.txt"
    assert list(documents(DataConfig(source=str(path)), "all")) == [Document("b.txt", TEXTS["b"])]


def test_splits_divide_documents_by_name_and_leave_none_out(folder: Path) -> None:
    path = folder / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(300)))
    config = DataConfig(source=str(path), heldout_percent=20)
    parts = [list(documents(config, split)) for split in ("train", "heldout", "all")]
    assert sorted(document.name for document in parts[0] + parts[1]) == sorted(document.name for document in parts[2])
    assert all(in_split(document.name, "heldout", 20) for document in parts[1])
    assert 30 <= len(parts[1]) <= 90


def test_the_embedded_corpus_is_the_standard_library_in_scrambled_order() -> None:
    first = [document.name for document, _ in zip(documents(DataConfig(), "train"), range(50), strict=False)]
    assert first == [document.name for document, _ in zip(documents(DataConfig(), "train"), range(50), strict=False)]
    assert first != sorted(first)
    assert set(first) <= {document.name for document in standard_library("train")}


def test_bad_sources_are_refused_in_one_line(folder: Path) -> None:
    def read(**settings: Any) -> list[Document]:
        return list(documents(DataConfig(**settings), "all"))

    with pytest.raises(FileNotFoundError, match=r"no data at './nowhere', expected `embedded`, a file"):
        read(source="./nowhere")
    with pytest.raises(FileNotFoundError, match=r"data 'no-such/data' cannot be opened .*expected `embedded`"):
        read(source="no-such/data")
    with pytest.raises(ValueError, match=r"picture.png is no text file that can be read, expected .txt"):
        read(source=str(folder / "plain" / "picture.png"))
    with pytest.raises(ValueError, match=r"has no column 'txt' \(nearest: 'text'\), expected one of text, id"):
        read(source=str(folder / "rows.jsonl"), text_column="txt")
    (folder / "numbers.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(ValueError, match=r"row 0: column 'text' holds int, expected text"):
        read(source=str(folder / "numbers.jsonl"))
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"broken.jsonl cannot be read at row") as caught:
        read(source=str(folder / "broken.jsonl"))
    assert "\n" not in str(caught.value)
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt cannot be read .*, expected UTF-8 text"):
        read(source=str(folder / "latin.txt"))


def test_an_empty_corpus_is_refused(tmp_path: Path, tiny_lm: LanguageModel) -> None:
    (tmp_path / "blank.txt").write_text("  \n")
    with pytest.raises(ValueError, match=r"data source .* has no documents with text in split 'all', expected some"):
        list(documents(DataConfig(source=str(tmp_path)), "all"))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"no documents with text in split '(train|heldout)' \(heldout_percent=8\)"):
        [list(documents(DataConfig(source=str(tmp_path / "a.jsonl")), split)) for split in ("train", "heldout")]
    with pytest.raises(ValueError, match="the documents hold no tokens"):
        pack_documents([], tiny_lm, 8)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="context_tokens=1, expected 2 or more"):
        DataConfig(context_tokens=1)
    with pytest.raises(ValueError, match="heldout_percent=100, expected 0 to 99"):
        DataConfig(heldout_percent=100)
    with pytest.raises(ValueError, match="total_tokens=0, expected 1 or more"):
        DataConfig(total_tokens=0)


# Packing

characters = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(characters, min_size=1, max_size=12), context=st.integers(2, 17), chunk=st.integers(1, 3))
def test_unpacking_gives_exactly_the_tokenised_documents(
    tiny_lm: LanguageModel, texts: list[str], context: int, chunk: int
) -> None:
    corpus = [Document(f"document {number}", text) for number, text in enumerate(texts)]
    ids = tiny_lm.encode(texts)
    rows = pack_documents(corpus, tiny_lm, context)
    assert [name for name, _ in rows.unpacked()] == [document.name for document in corpus]
    assert [tokens.tolist() for _, tokens in rows.unpacked()] == ids
    assert rows.n_tokens == sum(map(len, ids))
    assert rows.tokens.size - rows.n_tokens < context
    starts = np.flatnonzero(rows.positions.ravel() == 0)
    assert len(starts) == len(texts)
    chunks = list(iter_token_rows(corpus, tiny_lm, context, chunk_rows=chunk))
    assert all(len(part) == chunk for part in chunks[:-1])
    joined = TokenRows(
        *(np.concatenate([getattr(part, name) for part in chunks]) for name in ("tokens", "documents", "positions")),
        names=chunks[-1].names,
    )
    assert joined.fingerprint() == rows.fingerprint()


@settings(deadline=None, max_examples=30)
@given(texts=st.lists(characters, min_size=1, max_size=6), total=st.integers(1, 100))
def test_a_limit_on_tokens_is_met_exactly(tiny_lm: LanguageModel, texts: list[str], total: int) -> None:
    corpus = [Document(str(number), text) for number, text in enumerate(texts)]
    rows = pack_documents(corpus, tiny_lm, 8, total_tokens=total)
    whole = [token for ids in tiny_lm.encode(texts) for token in ids]
    assert [token for _, tokens in rows.unpacked() for token in tokens] == whole[:total]


def test_bos_stands_once_before_each_document_when_asked_for(tiny_lm: LanguageModel) -> None:
    corpus = [Document("a", "abc"), Document("b", "xy")]
    rows = pack_documents(corpus, tiny_lm, 4, prepend_bos=True)
    assert [tokens.tolist()[0] for _, tokens in rows.unpacked()] == [1, 1]
    assert rows.n_tokens == 7
    # one place is padding, two are BOS
    assert rows.trained_mask(tiny_lm.special_ids).sum() == 5
    assert rows.mask().sum() == 7


def test_a_tokenizer_without_bos_is_named(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = character_tokenizer()
    tokenizer.bos_token = None
    monkeypatch.setattr(tiny_lm, "tokenizer", tokenizer)
    with pytest.raises(ValueError, match="prepend_bos is set, but the tokenizer of .* has no BOS token"):
        pack_documents([Document("a", "abc")], tiny_lm, 4, prepend_bos=True)


def test_long_documents_are_packed_without_warning(
    tiny_lm: LanguageModel,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiny_lm.tokenizer, "model_max_length", 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = pack_documents([Document("long", "x" * 5000)], tiny_lm, 64)
    assert rows.n_tokens == 5000
    assert not caplog.records
    assert "maximum" not in capfd.readouterr().err


def test_rows_longer_than_the_model_takes_are_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(
        ValueError, match=r"context_tokens=512 is more than .* takes \(256\): lower data.context_tokens"
    ):
        pack_documents([Document("a", "abc")], tiny_lm, 512)


def test_batches_are_views_of_the_rows(tiny_lm: LanguageModel) -> None:
    rows = pack_documents([Document("a", "x" * 100)], tiny_lm, 16)
    parts = list(rows.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert all(np.shares_memory(part.tokens, rows.tokens) for part in parts)
    assert parts[0].torch_mask() is None
    assert parts[-1].torch_mask() is not None
    assert rows.torch_tokens().shape == (7, 16)


def test_token_rows_reads_the_split_it_is_asked_for(tiny_lm: LanguageModel) -> None:
    config = DataConfig(total_tokens=3000, heldout_tokens=1000, context_tokens=64)
    train, held = token_rows(tiny_lm, config), token_rows(tiny_lm, config, "heldout")
    assert (train.n_tokens, held.n_tokens) == (3000, 1000)
    assert not set(train.names) & set(held.names)


def test_real_text_packs_and_unpacks(real: Path, tiny_lm: LanguageModel) -> None:
    files = sorted((real / "text").rglob("*.txt"))
    if not files:
        pytest.skip(f"no .txt files under {real / 'text'}")
    config = DataConfig(source=str(files[0]), total_tokens=20_000, context_tokens=128)
    rows = pack_documents(documents(config, "all"), tiny_lm, 128, total_tokens=20_000)
    assert rows.n_tokens == 20_000
