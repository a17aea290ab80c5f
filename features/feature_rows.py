"""The rows of one feature, from tables that are ordered by feature, without a query.

Enters: a build folder. Leaves: arrays of a few rows.

A page of a feature asks a dozen tables for a handful of rows each: they lie together in the file `pages`
(`features.pages`). What is not in it, or all of them where an earlier version built the dictionary, comes from the
tables. A query over a table of many row groups looks at all of them; here the groups that hold the feature are found by
bisection over their statistics, and only these are read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from features.columns import as_array
from features.pages import NAME, Pages

READERS = 2
ANYWHERE = 1 << 40


class FeatureRows:
    """Reads rows by feature; files stay open, safe to use from several threads."""

    def __init__(self, build: Path) -> None:
        self._build = build
        self._pages = Pages(build / NAME) if (build / NAME).is_file() else None
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._pool = ThreadPoolExecutor(READERS, "feature-rows")

    def has(self, table: str) -> bool:
        """Tells whether the build holds the file of a table."""
        return (self._build / f"{table}.parquet").is_file()

    def rows(self, feature: int, wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, np.ndarray]]:
        """The feature's rows of some tables in their order: for each the columns that are wanted.

        Tables are read side by side: decoding holds no lock of the interpreter.

        Raises:
            FileNotFoundError: the build has no such table.
        """
        pages = self._pages
        together = {} if pages is None else {name: of for name, of in wanted.items() if pages.has(name, of)}
        alone = [name for name in wanted if name not in together]
        read = self._pool.map(lambda table: self._open(table).rows(feature, wanted[table]), alone)
        found = pages.rows(feature, together) if pages is not None and together else {}
        return found | dict(zip(alone, read, strict=True))

    def close(self) -> None:
        """Lets go of the files."""
        self._pool.shutdown()
        if self._pages is not None:
            self._pages.close()
        with self._lock:
            for file in self._files.values():
                file.file.close()
            self._files.clear()

    def _open(self, table: str) -> _File:
        with self._lock:
            if table not in self._files:
                self._files[table] = _File(pq.ParquetFile(self._build / f"{table}.parquet", memory_map=True))
            return self._files[table]


class _File:
    """One table's file, and the features of those row groups that were looked at."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        names = file.metadata.schema
        self._column = next(i for i in range(file.metadata.num_columns) if names.column(i).name == "feature")
        self._extents: dict[int, tuple[int, int]] = {}

    def rows(self, feature: int, columns: Sequence[str]) -> dict[str, np.ndarray]:
        # one reader has one place in the file: threads take turns
        with self._lock:
            first = self._bisect(0, lambda extent: extent[1] < feature)
            last = self._bisect(first, lambda extent: extent[0] <= feature)
            read = self.file.read_row_groups(range(first, last), columns=["feature", *columns], use_threads=False)
        owner = as_array(read["feature"])
        start, stop = np.searchsorted(owner, [feature, feature + 1])
        return {name: as_array(read[name].slice(start, stop - start)) for name in columns}

    def _bisect(self, low: int, is_before: Callable[[tuple[int, int]], bool]) -> int:
        """The first row group from `low` on whose smallest and largest feature do not lie before what is looked for."""
        high = self.file.metadata.num_row_groups
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if is_before(self._extent(middle)) else (low, middle)
        return low

    def _extent(self, group: int) -> tuple[int, int]:
        if group not in self._extents:
            statistics: Any = self.file.metadata.row_group(group).column(self._column).statistics
            if statistics is None or not statistics.has_min_max:  # an empty group has none
                self._extents[group] = -1, ANYWHERE
            else:
                self._extents[group] = statistics.min, statistics.max
        return self._extents[group]


class FeatureEvents(NamedTuple):
    """One feature's events in the order of the text."""

    keys: np.ndarray
    """int64: document << 32 | position."""
    activations: np.ndarray

    @classmethod
    def of(cls, rows: Mapping[str, np.ndarray]) -> FeatureEvents:
        """Takes columns document, position and activation."""
        return cls(rows["document"].astype(np.int64) << 32 | rows["position"], rows["activation"])

    def at(self, documents: np.ndarray, positions: np.ndarray) -> list[float]:
        """Activations at positions of documents, 0 where the feature is silent."""
        if self.keys.size == 0:
            return [0.0] * positions.size
        wanted = positions.astype(np.int64) | documents.astype(np.int64) << 32
        place = np.minimum(np.searchsorted(self.keys, wanted), self.keys.size - 1)
        return np.where(self.keys[place] == wanted, self.activations[place], 0.0).astype(float).tolist()


def records(columns: dict[str, np.ndarray]) -> Iterator[tuple[Any, ...]]:
    """The rows of columns, as Python's numbers and texts."""
    return zip(*(column.tolist() for column in columns.values()), strict=True)
