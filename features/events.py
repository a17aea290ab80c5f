"""Every activation of every feature, from the order of the text into the order of the features.

Enters: batches of (feature, token number, activation) in the order of the text. Leaves: the same events ordered by
(feature, token number), in ranges of features that fit in memory.

1. Events gather in memory; at `chunk_events` they are sorted by feature, keeping their order, and written as one
   chunk: counts per feature, token numbers, activations. A chunk becomes visible only when complete, under the numbers
   of the batches that it holds: several processes fill one folder.
2. A range of features is read from all chunks and merged without comparing anything: chunks follow the text, so the
   place of each event is the feature's start plus what earlier chunks hold of the feature (a counting sort).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.event_loops import gather_by_feature


@dataclass(frozen=True)
class EventRange:
    """The events of the features `first` ≤ feature < `last`, ordered by (feature, token number)."""

    first: int
    last: int
    counts: np.ndarray
    """int64 [last − first]: events of each feature."""
    features: np.ndarray
    """int32 [n]: the feature of each event."""
    ordinals: np.ndarray
    """int64 [n]: number of the token in the text."""
    activations: np.ndarray
    """float32 [n]."""

    @property
    def starts(self) -> np.ndarray:
        """int64 [last − first]: each feature's first event."""
        return np.cumsum(self.counts) - self.counts

    def select(self, kept: np.ndarray) -> EventRange:
        """The range with the events that the boolean or increasing index array `kept` picks."""
        features = self.features[kept]
        counts = np.bincount(features - self.first, minlength=self.last - self.first)
        return EventRange(self.first, self.last, counts, features, self.ordinals[kept], self.activations[kept])


class _Chunk(NamedTuple):
    """Events of the batches `first` ≤ number < `next`."""

    first: int
    next: int
    events: int
    path: Path


class EventSpill:
    """Takes events in the order of the text and gives them back in the order of the features.

    `folder` may hold the chunks of a run that was killed, or those that other processes write: they are kept, and
    `missing` says which batches they leave.
    """

    def __init__(self, folder: Path, n_features: int, chunk_events: int = 4_000_000) -> None:
        self.folder = folder
        self.n_features = n_features
        self.chunk_events = chunk_events
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._pending_events = 0
        self._first = self._next = 0
        self.read_again()

    @staticmethod
    def prepare(folder: Path) -> None:
        """Makes the folder, and removes what a killed run left unfinished in it."""
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.partial"):
            shutil.rmtree(leftover)

    def read_again(self) -> None:
        """Takes up all chunks that stand in the folder by now, also those of other processes."""
        found: list[_Chunk] = []
        for path in self.folder.glob("chunk-*-*"):
            if path.suffix != ".partial":
                facts = json.loads((path / "chunk.json").read_text())
                found.append(_Chunk(facts["first"], facts["next"], facts["events"], path))
        self._chunks = sorted(found)
        self.n_events = sum(chunk.events for chunk in found) + self._pending_events

    def missing(self, n_batches: int) -> list[int]:
        """Returns the batches, of `n_batches`, that no chunk holds."""
        held = {number for chunk in self._chunks for number in range(chunk.first, chunk.next)}
        return [number for number in range(n_batches) if number not in held]

    def append(self, batch: int, features: np.ndarray, ordinals: np.ndarray, activations: np.ndarray) -> None:
        """Adds the events of the batch of this number, which stands behind those added before."""
        if batch != self._next:
            self.flush()
        if not self._pending:
            self._first = batch
        self._pending.append((features, ordinals, activations))
        self._pending_events += features.size
        self.n_events += features.size
        self._next = batch + 1
        if self._pending_events >= self.chunk_events:
            self.flush()

    def flush(self) -> None:
        """Writes what is in memory as a chunk."""
        if not self._pending:
            return
        features = np.concatenate([part[0] for part in self._pending])
        ordinals = np.concatenate([part[1] for part in self._pending])
        activations = np.concatenate([part[2] for part in self._pending])
        counts = np.bincount(features, minlength=self.n_features)
        by_feature, values_by_feature = np.empty_like(ordinals), np.empty_like(activations)
        gather_by_feature(features, ordinals, activations, counts, by_feature, values_by_feature)
        chunk = self.folder / f"chunk-{self._first:09d}-{self._next:09d}"
        partial = chunk.with_suffix(".partial")
        partial.mkdir()
        np.save(partial / "counts.npy", counts)
        np.save(partial / "ordinals.npy", by_feature)
        np.save(partial / "activations.npy", values_by_feature)
        facts = {"events": int(features.size), "first": self._first, "next": self._next}
        (partial / "chunk.json").write_text(json.dumps(facts))
        os.replace(partial, chunk)
        self._chunks.append(_Chunk(self._first, self._next, int(features.size), chunk))
        self._chunks.sort()
        self._pending, self._pending_events = [], 0

    def ranges(self, max_events: int = 4_000_000, max_features: int = 1024) -> Iterator[EventRange]:
        """Yields all features in ranges of at most `max_events` events, or one feature where that alone has more."""
        self.flush()
        paths = [chunk.path for chunk in self._chunks]
        counts = [np.load(path / "counts.npy") for path in paths]
        total = np.sum(counts, axis=0) if counts else np.zeros(self.n_features, dtype=np.int64)
        offsets = [np.concatenate(([0], np.cumsum(count))) for count in counts]
        ordinals = [np.load(path / "ordinals.npy", mmap_mode="r") for path in paths]
        activations = [np.load(path / "activations.npy", mmap_mode="r") for path in paths]
        for first, last in split_features(total, max_events, max_features):
            wanted = total[first:last]
            size = int(wanted.sum())
            place = np.cumsum(wanted) - wanted
            merged_ordinals = np.empty(size, dtype=np.int64)
            merged_activations = np.empty(size, dtype=np.float32)
            for count, offset, chunk_ordinals, chunk_activations in zip(
                counts, offsets, ordinals, activations, strict=True
            ):
                part = count[first:last]
                start, stop = offset[first], offset[last]
                source_start = offset[first:last] - start
                target = np.repeat(place - source_start, part) + np.arange(stop - start)
                merged_ordinals[target] = chunk_ordinals[start:stop]
                merged_activations[target] = chunk_activations[start:stop]
                place = place + part
            features = np.repeat(np.arange(first, last, dtype=np.int32), wanted)
            yield EventRange(first, last, wanted, features, merged_ordinals, merged_activations)

    def remove(self) -> None:
        """Deletes the chunks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def split_features(counts: np.ndarray, max_events: int, max_features: int) -> Iterator[tuple[int, int]]:
    """Cuts the features into consecutive ranges of at most `max_events` events and `max_features` features."""
    before = np.concatenate(([0], np.cumsum(counts)))
    first = 0
    while first < counts.size:
        last = int(np.searchsorted(before, before[first] + max_events, side="right")) - 1
        last = min(max(last, first + 1), first + max_features, counts.size)
        yield first, last
        first = last


@dataclass(frozen=True)
class StoredEvents:
    """Rows of the table events as columns."""

    features: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    activations: np.ndarray


def read_events(path: Path, start: int, stop: int) -> StoredEvents:
    """Reads the rows start ≤ n < stop of the table events."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    ends = np.cumsum(sizes)
    first, last = (int(np.searchsorted(ends, row, side="right")) for row in (start, stop - 1))
    groups = list(range(first, last + 1)) if stop > start else []
    table = file.read_row_groups(groups)
    offset = start - (int(ends[first]) - sizes[first]) if groups else 0
    table = table.slice(offset, stop - start)
    return StoredEvents(*(table[name].to_numpy() for name in ("feature", "document", "position", "activation")))
