"""The indexed text by token number, read from Parquet row groups as they are needed.

Enters: a store. Leaves: windows of tokens around a place, and whole columns.
"""

from __future__ import annotations

import mmap
import threading
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from features.columns import as_array
from features.store import Store
from features.text_events import NAME, TextEvents

TOKEN_ROW_GROUP = 16_384
"""Tokens that are read at a time for one window; earlier builds have groups of another size."""
JOINED_TOKENS = 20_000_000
"""Tokens that searches for phrases and patterns read; more would not fit beside everything else."""


PACKED = "text.bin"
"""The text once more, as numbers that can be read from any place on: ids (uint16, or int32 where they are larger),
then the first position of each document (int32)."""


def write_packed(build: Path, ids: np.ndarray, positions: np.ndarray, first_token: np.ndarray) -> None:
    """Writes the ids of all tokens, and the position of each document's first token."""
    with open(build / PACKED, "wb") as file:
        file.write(ids.astype("<u2" if int(ids.max(initial=0)) < 1 << 16 else "<i4").data)
        file.write(positions[first_token].astype("<i4").data)


class PackedText:
    """The file `PACKED` of a build, mapped into memory."""

    def __init__(self, path: Path, n_tokens: int, n_documents: int) -> None:
        with open(path, "rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._width = (len(self._mapped) - 4 * n_documents) // n_tokens
        self.ids = np.frombuffer(self._mapped, "<u2" if self._width == 2 else "<i4", n_tokens)
        self.first_positions = np.frombuffer(self._mapped, "<i4", n_documents, self._width * n_tokens)

    def ask(self, first: np.ndarray, last: np.ndarray) -> None:
        """Has the system read these tokens all at once, instead of one place after another when they are needed."""
        if not hasattr(self._mapped, "madvise"):
            return
        for page in np.unique(np.concatenate([first, last]) * self._width // mmap.PAGESIZE).tolist():
            self._mapped.madvise(mmap.MADV_WILLNEED, page * mmap.PAGESIZE, mmap.PAGESIZE)


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


def fold(text: str) -> str:
    """The text as it is compared without regard to case, as long as before."""
    return text.replace("İ", "i").lower().replace("ς", "σ")


class Joined(NamedTuple):
    """The beginning of the text as one string."""

    text: str
    token_ends: np.ndarray
    """int64 [tokens]: where each token ends in it."""
    document_ends: np.ndarray
    """int64 [documents]: where each document ends in it; the last one may be cut."""
    folded: str
    """The text without regard to case (`fold`)."""

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

    @cached_property
    def documents(self) -> Documents:
        """The documents in the order of their tokens."""
        table = pq.ParquetFile(self._store.build / "documents.parquet").read()
        return Documents(
            as_array(table["document"]),
            table["name"].to_pylist(),
            as_array(table["n_tokens"]).astype(np.int64),
            as_array(table["first_token"]),
        )

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of each token id."""
        return pq.ParquetFile(self._store.build / "vocabulary.parquet").read(["token"])["token"].to_pylist()

    @cached_property
    def lowered(self) -> list[str]:
        """The text of each token id in lower case."""
        return [token.lower() for token in self.vocabulary]

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
        whole = "".join([vocabulary[i] for i in ids.tolist()])
        return Joined(whole, ends, ends[np.minimum(last, ids.size) - 1], fold(whole))

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
        center = start + position - self._first_position(row)
        first, last = max(start, center - max(before, 0)), min(stop, center + max(after, 0) + 1)
        tokens = [self.vocabulary[i] for i in self.column("token_id", first, last).tolist()]
        return Window(tokens, np.arange(first, last) - center + position, center - first)

    def column(self, name: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """A column of the table token_ids for the tokens numbered first ≤ n < last."""
        last = self.n_tokens if last is None else last
        if name == "token_id" and self._packed is not None:
            return self._packed.ids[first:last]
        size = self._group_tokens
        groups = range(first // size, max(first, last - 1) // size + 1)
        parts = [self._group(name, group) for group in groups]
        offset = first - groups[0] * size
        return (parts[0] if len(parts) == 1 else np.concatenate(parts))[offset : offset + last - first]

    @cached_property
    def _first_positions(self) -> np.ndarray:
        if self._packed is not None:
            return self._packed.first_positions
        groups = self.documents.first_token // self._group_tokens
        found = np.empty(groups.size, dtype=np.int64)
        for group in np.unique(groups).tolist():
            inside = groups == group
            places = self.documents.first_token[inside] - group * self._group_tokens
            found[inside] = self._group("position", group)[places]
        return found

    def _first_position(self, row: int) -> int:
        """The position of a document's first token; one window needs no other document's."""
        if "_first_positions" in self.__dict__ or self._packed is not None:
            return int(self._first_positions[row])
        group, place = divmod(int(self.documents.first_token[row]), self._group_tokens)
        return int(self._group("position", group)[place])

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._store.build / "token_ids.parquet", memory_map=True)

    @cached_property
    def _group_tokens(self) -> int:
        """Tokens in a row group; all but the last have as many."""
        return self._file.metadata.row_group(0).num_rows

    def windows(self, documents: np.ndarray, positions: np.ndarray, before: int, after: int) -> list[Window]:
        """The tokens around many places, each cut at its document's ends."""
        self._fetch(documents, positions, before, after)
        rows = np.searchsorted(self.documents.ids, documents)
        start = self.documents.first_token[rows]
        center = start + positions - np.array([self._first_position(row) for row in rows.tolist()], dtype=np.int64)
        first = np.maximum(start, center - max(before, 0))
        last = np.minimum(start + self.documents.n_tokens[rows], center + max(after, 0) + 1)
        vocabulary, found = self.vocabulary, []
        for at, low, high, position in zip(
            center.tolist(), first.tolist(), last.tolist(), positions.tolist(), strict=True
        ):
            tokens = [vocabulary[i] for i in self.column("token_id", low, high).tolist()]
            found.append(Window(tokens, np.arange(low - at + position, high - at + position), at - low))
        return found

    def _fetch(self, documents: np.ndarray, positions: np.ndarray, before: int, after: int) -> None:
        """Reads at once what windows around these places need, instead of one after another."""
        if self._packed is not None:
            self._packed.ask(*self._edges(documents, positions, before, after))
            return
        rows = np.searchsorted(self.documents.ids, documents)
        start = self.documents.first_token[rows]
        self._read("position", start // self._group_tokens)
        center = start + positions - np.array([self._first_position(row) for row in rows.tolist()], dtype=np.int64)
        first = np.maximum(center - before, 0) // self._group_tokens
        last = np.minimum(center + after, self.n_tokens - 1) // self._group_tokens
        self._read("token_id", np.concatenate([first, last]))

    def _edges(
        self, documents: np.ndarray, positions: np.ndarray, before: int, after: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the first and the last token of windows, which documents may cut."""
        center = self.ordinals(documents, positions)
        return np.maximum(center - before, 0), np.minimum(center + after, self.n_tokens - 1)

    @cached_property
    def events(self) -> TextEvents | None:
        """The events in the order of the text, where the build has them so."""
        path = self._store.build / NAME
        return TextEvents(path) if path.is_file() else None

    @cached_property
    def _packed(self) -> PackedText | None:
        path = self._store.build / PACKED
        return PackedText(path, self.n_tokens, self.documents.ids.size) if path.is_file() else None

    def _read(self, name: str, groups: np.ndarray) -> None:
        with self._lock:
            missing = [group for group in np.unique(groups).tolist() if (name, group) not in self._groups]
            if not missing:
                return
            found = as_array(self._file.read_row_groups(missing, columns=[name], use_threads=False)[name])
            for place, group in enumerate(missing):
                start = place * self._group_tokens  # only the last group of all is shorter
                self._groups[name, group] = found[start : start + self._group_tokens]

    def _group(self, name: str, group: int) -> np.ndarray:
        if (name, group) not in self._groups:
            self._read(name, np.array([group]))
        return self._groups[name, group]

    def _row(self, document: int) -> int:
        return int(np.searchsorted(self.documents.ids, document))
