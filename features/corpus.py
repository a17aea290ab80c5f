"""The indexed text: its tokens in order, with their documents, and the tables of both.

Enters: rows of tokens (`activations.TokenRows`). Leaves: `Corpus`, in which every token has a number, its ordinal, and
the Parquet files token_ids, documents and vocabulary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features import schema
from features.event_tables import write_table
from features.text import TOKEN_ROW_GROUP, write_packed


@dataclass(frozen=True)
class Corpus:
    """The tokens to index in the order of (document, position), numbered from 0: their ordinals."""

    rows: Any
    """TokenRows in the order of the text."""
    ordinal_of: np.ndarray
    """int64 [rows, context]: the token's number, −1 at padding."""
    tokens: np.ndarray
    """int32 [n]."""
    documents: np.ndarray
    """int32 [n]."""
    positions: np.ndarray
    """int32 [n]."""
    context_positions: np.ndarray
    """int32 [n]: column in the row that the model reads."""
    is_indexed: np.ndarray
    """bool [n]: counts in the statistics."""

    @property
    def n_indexed(self) -> int:
        return int(self.is_indexed.sum())


def arrange_corpus(rows: Any, special_ids: frozenset[int], total_tokens: int | None) -> Corpus:
    """Numbers the tokens of `rows` in the order of the text; tokens in `special_ids` are kept but not counted.

    Raises:
        ValueError: no token to index, or a token that stands in the text twice.
    """
    tokens, documents, positions = (np.asarray(part) for part in (rows.tokens, rows.documents, rows.positions))
    kept = getattr(rows, "kept", None)
    kept = np.ones(tokens.shape, dtype=bool) if kept is None else kept
    if total_tokens is not None and tokens.size:
        some = slice(max(1, -(-total_tokens // tokens.shape[1])))
        tokens, documents, positions, kept = tokens[some], documents[some], positions[some], kept[some]
    if tokens.size >= 2**31:
        raise ValueError(
            f"the text has {tokens.size:,} tokens, expected fewer than {2**31:,}: index fewer with index.total_tokens"
        )
    if not _in_order(documents, positions):
        real = documents >= 0
        first = np.where(real.any(1), real.argmax(1), 0)
        line = np.arange(len(documents))
        order = np.lexsort(
            (positions[line, first], np.where(real.any(1), documents[line, first], np.iinfo(np.int32).max))
        )
        tokens, documents, positions, kept = tokens[order], documents[order], positions[order], kept[order]
        if not _in_order(documents, positions):
            raise ValueError(
                "the rows to index hold a token twice or documents out of order, expected rows of consecutive tokens: "
                "pack the documents with activations.tokens"
            )
    real = documents >= 0
    ordinal_of = np.full(documents.shape, -1, dtype=np.int64)
    ordinal_of[real] = np.arange(int(real.sum()))
    flat = tokens[real].astype(np.int32)
    is_indexed = kept[real] & ~np.isin(flat, np.fromiter(special_ids, dtype=np.int32, count=len(special_ids)))
    if not is_indexed.any():
        raise ValueError(f"no token to index among {flat.size} tokens: expected text; check the data section")
    columns = np.broadcast_to(np.arange(documents.shape[1], dtype=np.int32), documents.shape)
    arranged = {"tokens": tokens, "documents": documents, "positions": positions}
    if getattr(rows, "kept", None) is not None:
        arranged["kept"] = kept
    return Corpus(
        dataclasses.replace(rows, **arranged),
        ordinal_of,
        flat,
        documents[real].astype(np.int32),
        positions[real].astype(np.int32),
        np.ascontiguousarray(columns[real]),
        is_indexed,
    )


def _in_order(documents: np.ndarray, positions: np.ndarray) -> bool:
    real = documents >= 0
    document, position = documents[real].astype(np.int64), positions[real].astype(np.int64)
    step = np.diff(document)
    return bool(np.all((step > 0) | ((step == 0) & (np.diff(position) == 1))))


def write_corpus_tables(build: Path, corpus: Corpus, lm: Any) -> None:
    """Writes the text, its documents and the vocabulary."""
    token_table = pa.table(
        [corpus.documents, corpus.positions, corpus.tokens, corpus.context_positions, corpus.is_indexed],
        schema=schema.TABLES["token_ids"].arrow_schema(),
    )
    write_table(build, "token_ids", token_table, TOKEN_ROW_GROUP)
    documents, first, counts = np.unique(corpus.documents, return_index=True, return_counts=True)
    names = corpus.rows.names
    write_table(
        build,
        "documents",
        pa.table(
            [documents, [str(names[i]) for i in documents], counts.astype(np.int32), first],
            schema=schema.TABLES["documents"].arrow_schema(),
        ),
    )
    write_packed(build, corpus.tokens, corpus.positions, first)
    size = max(int(lm.vocab_size), int(corpus.tokens.max()) + 1)
    counts = np.bincount(corpus.tokens[corpus.is_indexed], minlength=size)
    write_table(
        build,
        "vocabulary",
        pa.table(
            [np.arange(size, dtype=np.int32), _token_texts(lm, size), counts],
            schema=schema.TABLES["vocabulary"].arrow_schema(),
        ),
    )


def _token_texts(lm: Any, size: int) -> list[str]:
    known = lm.token_strings(list(range(min(size, int(lm.vocab_size)))))
    # lone surrogates cannot be stored as UTF-8
    known = [text.encode("utf-8", "backslashreplace").decode() for text in known]
    return known + [f"<{i}>" for i in range(len(known), size)]
