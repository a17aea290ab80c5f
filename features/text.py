"""The indexed text by token number, read from Parquet row groups as they are needed.

Enters: a store. Leaves: windows of tokens around a place, and whole columns.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from features.store import Store

TOKEN_ROW_GROUP = 65_536
JOINED_TOKENS = 20_000_000
"""Tokens that searches for phrases and patterns read; more would not fit beside everything else."""


class Window(NamedTuple):
    """Tokens around a place, with their positions in the document and the index of the place among them."""

    tokens: list[str]
    positions: np.ndarray
    center: int


class Documents(NamedTuple):
    """The table documents as columns; each document's tokens are consecutive and so are their positions."""

    ids: np.ndarray
    names: list[str]
    n_tokens: np.ndarray
    first_token: np.ndarray


class Joined(NamedTuple):
    """The beginning of the text as one string."""

    text: str
    token_ends: np.ndarray
    """int64 [tokens]: where each token ends in it."""
    document_ends: np.ndarray
    """int64 [documents]: where each document ends in it; the last one may be cut."""

    def tokens(self, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the first and the last token of pieces start ≤ character < stop."""
        first = np.searchsorted(self.token_ends, start, side="right")
        return first, np.searchsorted(self.token_ends, stop - 1, side="right")


class Text:
    """Tokens of the indexed text; row groups stay in memory once read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._groups: dict[tuple[str, int], np.ndarray] = {}
        self._file: pq.ParquetFile | None = None

    @cached_property
    def documents(self) -> Documents:
        """The documents in the order of their tokens."""
        table = pq.ParquetFile(self._store.build / "documents.parquet").read()
        return Documents(
            table["document"].to_numpy(),
            table["name"].to_pylist(),
            table["n_tokens"].to_numpy().astype(np.int64),
            table["first_token"].to_numpy(),
        )

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token id."""
        return pq.ParquetFile(self._store.build / "vocabulary.parquet").read(["token"])["token"].to_pylist()

    @property
    def n_tokens(self) -> int:
        """Tokens of the text."""
        return int(self._store.info["n_tokens"])

    @cached_property
    def joined(self) -> Joined:
        """The first `JOINED_TOKENS` tokens as one string, made at first use."""
        ids = self.column("token_id", 0, min(self.n_tokens, JOINED_TOKENS))
        lengths = np.array([len(token) for token in self.vocabulary])
        ends = np.cumsum(lengths[ids])
        vocabulary = self.vocabulary
        first = self.documents.first_token
        last = np.append(first[1:], self.n_tokens)[first < ids.size]
        return Joined("".join([vocabulary[i] for i in ids]), ends, ends[np.minimum(last, ids.size) - 1])

    def name(self, document: int) -> str:
        """Where a document comes from."""
        return self.documents.names[self._row(document)]

    def ordinals(self, documents: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Numbers of the tokens at positions of documents."""
        rows = np.searchsorted(self.documents.ids, documents)
        return self.documents.first_token[rows] + positions - self._first_positions[rows]

    def extents(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position of the first token and number of tokens of each of these documents."""
        rows = np.searchsorted(self.documents.ids, documents)
        return self._first_positions[rows], self.documents.n_tokens[rows]

    def window(self, document: int, position: int, before: int, after: int) -> Window:
        """The tokens around a position, cut at the document's ends."""
        row = self._row(document)
        start = int(self.documents.first_token[row])
        stop = start + int(self.documents.n_tokens[row])
        center = start + position - int(self._first_positions[row])
        first, last = max(start, center - max(before, 0)), min(stop, center + max(after, 0) + 1)
        tokens = [self.vocabulary[i] for i in self.column("token_id", first, last).tolist()]
        return Window(tokens, np.arange(first, last) - center + position, center - first)

    def column(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """A column of the table token_ids for the tokens numbered first ≤ n < last."""
        last = self.n_tokens if last is None else last
        groups = range(first // TOKEN_ROW_GROUP, max(first, last - 1) // TOKEN_ROW_GROUP + 1)
        parts = [self._group(name, group) for group in groups]
        offset = first - groups[0] * TOKEN_ROW_GROUP
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[offset : offset + last - first]

    @cached_property
    def _first_positions(self) -> np.ndarray:
        groups = self.documents.first_token // TOKEN_ROW_GROUP
        found = np.empty(groups.size, dtype=np.int64)
        for group in np.unique(groups).tolist():
            inside = groups == group
            places = self.documents.first_token[inside] - group * TOKEN_ROW_GROUP
            found[inside] = self._group("position", group)[places]
        return found

    def _group(self, name: str, group: int) -> np.ndarray:
        with self._lock:
            if (name, group) not in self._groups:
                if self._file is None:
                    self._file = pq.ParquetFile(self._store.build / "token_ids.parquet")
                column = self._file.read_row_group(group, columns=[name])[name]
                self._groups[name, group] = column.to_numpy()
            return self._groups[name, group]

    def _row(self, document: int) -> int:
        return int(np.searchsorted(self.documents.ids, document))
