"""What the pages of features show, laid out so that one read finds it: the file `pages` of a build.

Enters: the tables of a build that are ordered by feature. Leaves: the same rows once more, feature beside feature. A
page needs a handful of rows of a dozen tables, and Parquet has no small reads: its footers tell of all row groups, and
of a group everything is decoded. SQL reads the tables; who has no such file (earlier builds) reads these for pages too.

    blocks    zstd, of `BLOCK_FEATURES` consecutive features each: rows of every table and feature (int32 [tables,
              features]), then column after column as they stand in memory, texts as numbers
    places    int64 [blocks + 1]: where each block begins
    contents  JSON: the tables, their columns with dtype or texts, where `places` stand
    length    of the contents, 8 bytes, and `MAGIC`

All numbers are little-endian.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.columns import as_array

NAME = "pages"
MAGIC = b"GBPAGES1"
BLOCK_FEATURES = 16
SPAN_FEATURES = 2048
"""Features whose rows are taken from the tables at a time."""
THREADS = 2
_TAIL_BYTES = 8192

Columns = dict[str, np.ndarray]


class _Contents(NamedTuple):
    n_features: int
    places_at: int
    tables: dict[str, dict[str, Any]]
    """Of each table its columns, in the order of the blocks: a dtype, or a list of texts."""


def write_pages(build: Path, n_features: int, wanted: Mapping[str, Sequence[str]]) -> None:
    """Writes the file from those of the `wanted` tables that the build has; a table's rows must rise by feature."""
    present = {name: columns for name, columns in wanted.items() if (build / f"{name}.parquet").is_file()}
    tables = {name: _Table(build / f"{name}.parquet", columns) for name, columns in present.items()}
    unfinished = build / f"{NAME}.partial"
    places = [0]
    with open(unfinished, "wb") as file, ThreadPoolExecutor(THREADS) as pool:

        def keep(blocks: Iterator[bytes]) -> None:
            for block in blocks:
                file.write(block)
                places.append(places[-1] + len(block))

        waiting: Iterator[bytes] = iter(())
        for first in range(0, n_features, SPAN_FEATURES):
            last = min(first + SPAN_FEATURES, n_features)
            span = [table.take(first, last) for table in tables.values()]
            # a span is packed while the next one is read
            packing = pool.map(partial(_pack, span), range(0, -(-(last - first) // BLOCK_FEATURES)))
            keep(waiting)
            waiting = packing
        keep(waiting)
        file.write(np.array(places, dtype="<i8").tobytes())
        contents = _Contents(n_features, places[-1], {name: table.kinds() for name, table in tables.items()})
        told = json.dumps(contents._asdict()).encode()
        file.write(told + len(told).to_bytes(8, "little") + MAGIC)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, build / NAME)


class _Span(NamedTuple):
    counts: np.ndarray
    """int32 [blocks, features]"""
    starts: list[int]
    columns: list[np.ndarray]


class _Table:
    """A table that is read from its first feature to its last."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.columns = list(columns)
        self._codes: dict[str, dict[str, int]] = {}
        self._dtypes: dict[str, str] = {}
        self._batches = self._read(path)
        self._held: list[tuple[np.ndarray, Columns]] = []

    def take(self, first: int, last: int) -> _Span:
        """The rows of features first ≤ i < last: how many each has (by block), where blocks begin, and the columns."""
        while not self._held or self._held[-1][0][-1] < last:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._held.append(batch)
        owner = np.concatenate([held[0] for held in self._held] or [np.zeros(0, dtype=np.int32)])
        bounds = np.searchsorted(owner, np.arange(first, last + 1))
        taken = [
            np.concatenate([held[1][name] for held in self._held])[bounds[0] : bounds[-1]]
            if self._held
            else np.zeros(0, dtype=self._dtypes.get(name, "<i4"))
            for name in self.columns
        ]
        self._held = [held for held in self._held if held[0][-1] >= last]
        counts = np.zeros((-(-(last - first) // BLOCK_FEATURES), BLOCK_FEATURES), dtype="<i4")
        counts.reshape(-1)[: last - first] = np.diff(bounds)
        return _Span(counts, np.concatenate(([0], np.cumsum(counts.sum(1)))).tolist(), taken)

    def kinds(self) -> dict[str, Any]:
        """Of each column the texts that its numbers stand for, or its dtype."""
        return {
            name: list(self._codes[name]) if name in self._codes else self._dtypes.get(name, "<i4")
            for name in self.columns
        }

    def _read(self, path: Path) -> Iterator[tuple[np.ndarray, Columns]]:
        file = pq.ParquetFile(path)
        for batch in file.iter_batches(131_072, columns=["feature", *self.columns], use_threads=False):
            if batch.num_rows:
                found = pa.Table.from_batches([batch])
                yield as_array(found["feature"]), {name: self._numbers(name, found[name]) for name in self.columns}

    def _numbers(self, name: str, column: pa.ChunkedArray) -> np.ndarray:
        if not pa.types.is_string(column.type):
            found = as_array(column)
            self._dtypes[name] = found.dtype.newbyteorder("<").str
            return found
        codes = self._codes.setdefault(name, {})
        encoded = column.combine_chunks().dictionary_encode()
        number = [codes.setdefault(text, len(codes)) for text in encoded.dictionary.to_pylist()]
        return np.array(number, dtype=np.int32)[as_array(pa.chunked_array([encoded.indices]))]


def _pack(tables: Sequence[_Span], block: int) -> bytes:
    """One block: its size in memory, then zstd."""
    parts = [span.counts[block].data for span in tables]
    for span in tables:
        rows = slice(span.starts[block], span.starts[block + 1])
        parts += [column[rows].tobytes() for column in span.columns]
    whole = b"".join(parts)
    return len(whole).to_bytes(8, "little") + pa.Codec("zstd", 1).compress(whole, asbytes=True)


class Pages:
    """The opened file; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        try:
            self._contents = self._read_contents(path)
        except BaseException:
            os.close(self._file)
            raise
        self._last: tuple[int, bytes] = (-1, b"")

    def _read_contents(self, path: Path) -> _Contents:
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        if tail[-8:] != MAGIC:
            raise ValueError(f"{path} ends with {tail[-8:]!r}, expected {MAGIC!r}: build the dictionary again")
        length = int.from_bytes(tail[-16:-8], "little")
        if length + 16 > len(tail):
            tail = os.pread(self._file, length + 16, size - length - 16)
        return _Contents(**json.loads(tail[-16 - length : -16]))

    def has(self, table: str, columns: Sequence[str]) -> bool:
        """Tells whether these columns of a table are in the file."""
        return set(columns) <= self._contents.tables.get(table, {}).keys()

    def rows(self, feature: int, wanted: Mapping[str, Sequence[str]]) -> dict[str, Columns]:
        """The feature's rows of some tables in their order: for each the columns that are wanted."""
        number, place = divmod(feature, BLOCK_FEATURES)
        block, names = self._block(number), self._contents.tables
        counts = np.frombuffer(block, dtype="<i4", count=len(names) * BLOCK_FEATURES).reshape(-1, BLOCK_FEATURES)
        found: dict[str, Columns] = {}
        at = counts.nbytes
        for (table, kinds), count in zip(names.items(), counts, strict=True):
            start, n, total = int(count[:place].sum()), int(count[place]), int(count.sum())
            columns: Columns = {}
            for name, kind in kinds.items():
                is_text = isinstance(kind, list)
                dtype = np.dtype("<i4" if is_text else kind)
                if name in wanted.get(table, ()):
                    column = np.frombuffer(block, dtype=dtype, count=n, offset=at + start * dtype.itemsize)
                    columns[name] = np.array(kind, dtype=object)[column] if is_text else column
                at += total * dtype.itemsize
            found[table] = columns
        return {table: {name: found[table][name] for name in columns} for table, columns in wanted.items()}

    def _block(self, number: int) -> bytes:
        # the parts of a page are asked for one after another
        last, block = self._last
        if last != number:
            at = self._contents.places_at + 8 * number
            first, end = np.frombuffer(os.pread(self._file, 16, at), dtype="<i8").tolist()
            packed = os.pread(self._file, end - first, first)
            size = int.from_bytes(packed[:8], "little")
            block = pa.Codec("zstd").decompress(packed[8:], size, asbytes=True)
            self._last = number, block
        return block

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)
