"""Every activation of every feature, from the order of the text into the order of the features.

Enters: batches of (feature, token number, activation) in the order of the text. Leaves: the same events ordered by
(feature, token number), in ranges of features that fit in memory.

1. Events gather in memory; at `chunk_events` they are sorted by feature, keeping their order, and written as one
   chunk: counts per feature, then token number and activation of each event, eight bytes. A chunk becomes visible only
   when complete, under the numbers of the batches that it holds: several processes fill one folder.
2. A range of features is read from all chunks and merged without comparing anything: chunks follow the text, so the
   place of each event is the feature's start plus what earlier chunks hold of the feature (a counting sort).
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.event_loops import gather_by_feature, merge_chunk, take_codes
from features.scratch import scratch

EVENTS = "events"
"""File of a chunk: uint64, the number of the token above the bits of the activation."""
WRITERS = 2
"""Chunks that are sorted and written side by side, while the next one fills."""


@dataclass(frozen=True)
class EventRange:
    """The events of the features `first` ≤ feature < `last`, ordered by (feature, token number)."""

    first: int
    last: int
    counts: np.ndarray
    """int64 [last − first]: events of each feature."""
    ordinals: np.ndarray
    """int32 [n]: number of the token in the text."""
    activations: np.ndarray
    """float32 [n]."""
    facts: np.ndarray
    """uint64 [n]: those of the token (`features.token_facts`)."""

    @property
    def starts(self) -> np.ndarray:
        """int64 [last − first]: each feature's first event."""
        return np.cumsum(self.counts) - self.counts

    @property
    def features(self) -> np.ndarray:
        """int32 [n]: the feature of each event."""
        return np.repeat(np.arange(self.first, self.last, dtype=np.int32), self.counts)


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

    def __init__(self, folder: Path, n_features: int, chunk_events: int = 2_000_000) -> None:
        self.folder = folder
        self.n_features = n_features
        self.chunk_events = chunk_events
        self._filling = _Buffer(0, n_features)
        self._spare: list[_Buffer] = []
        self._pending = 0
        self._writer = ThreadPoolExecutor(WRITERS)
        self._writing: deque[Future[_Buffer]] = deque()
        self._first = self._next = 0
        self.read_again()

    @staticmethod
    def prepare(folder: Path) -> None:
        """Makes the folder, and removes what a killed run left unfinished in it, or an earlier version otherwise."""
        folder.mkdir(parents=True, exist_ok=True)
        for chunk in folder.glob("chunk-*"):
            if chunk.suffix == ".partial" or not (chunk / EVENTS).is_file():
                shutil.rmtree(chunk)

    def read_again(self) -> None:
        """Takes up all chunks that stand in the folder by now, also those of other processes."""
        found: list[_Chunk] = []
        for path in self.folder.glob("chunk-*-*"):
            if path.suffix != ".partial":
                facts = json.loads((path / "chunk.json").read_text())
                found.append(_Chunk(facts["first"], facts["next"], facts["events"], path))
        self._chunks = sorted(found)
        self.n_events = sum(chunk.events for chunk in found) + self._pending

    def missing(self, n_batches: int) -> list[int]:
        """Returns the batches, of `n_batches`, that no chunk holds."""
        held = {number for chunk in self._chunks for number in range(chunk.first, chunk.next)}
        return [number for number in range(n_batches) if number not in held]

    def append(self, batch: int, indices: np.ndarray, values: np.ndarray, ordinals: np.ndarray) -> None:
        """Adds the non-zero codes (`indices` and `values` [n, k], padded with −1) of the tokens `ordinals` [n], which
        are the batch of this number and stand behind those added before."""
        if batch != self._next:
            self.flush()
        if self._first == self._next:
            self._first = batch
        self._filling.make_room(self._pending, indices.size, self.chunk_events)
        before = self._pending
        self._pending = take_codes(
            np.ascontiguousarray(indices),
            np.ascontiguousarray(values, dtype=np.float32).view(np.int32),
            np.ascontiguousarray(ordinals, dtype=np.int32),
            before,
            self._filling.features,
            self._filling.events,
            self._filling.counts,
        )
        self.n_events += self._pending - before
        self._next = batch + 1
        if self._pending >= self.chunk_events:
            self.flush()

    def flush(self) -> None:
        """Has what is in memory written as a chunk by another thread."""
        if self._next == self._first:
            return
        while len(self._writing) >= WRITERS:
            self._spare.append(self._writing.popleft().result())
        n = self._pending
        chunk = _Chunk(self._first, self._next, n, self.folder / f"chunk-{self._first:09d}-{self._next:09d}")
        self._writing.append(self._writer.submit(_write_chunk, chunk, self._filling))
        self._chunks.append(chunk)
        self._chunks.sort()
        self._pending, self._first = 0, self._next
        self._filling = self._spare.pop() if self._spare else _Buffer(0, self.n_features)
        self._filling.counts[:] = 0

    def close(self) -> None:
        """Writes what is in memory and lets go of it."""
        self.flush()
        while self._writing:
            self._writing.popleft().result()
        self._spare = []
        self._filling = _Buffer(0, self.n_features)

    def ranges(
        self, facts: np.ndarray, max_events: int = 4_000_000, max_features: int = 1024
    ) -> Iterator[Callable[[], EventRange]]:
        """Yields all features in ranges of at most `max_events` events, or one feature where that alone has more.

        Each is given as a call that reads it, which may run in any thread; what it returns stays as it is until that
        thread reads another. `facts` [text] are those of all tokens.
        """
        self.close()
        counts = [np.memmap(chunk.path / "counts", dtype=np.int32, mode="r") for chunk in self._chunks]
        total = np.zeros(self.n_features, dtype=np.int64)
        for count in counts:
            total += count
        starts = [0] * len(counts)
        for first, last in split_features(total, max_events, max_features):
            parts = [np.array(count[first:last]) for count in counts]
            yield partial(self._read, first, last, total[first:last], parts, list(starts), facts)
            starts = [start + int(part.sum()) for start, part in zip(starts, parts, strict=True)]

    def _read(
        self,
        first: int,
        last: int,
        counts: np.ndarray,
        parts: Sequence[np.ndarray],
        starts: Sequence[int],
        facts: np.ndarray,
    ) -> EventRange:
        """Merges the events of a range from all chunks, in which they begin at `starts`."""
        size = int(counts.sum())
        ordinals = scratch("ordinals", size, np.int32)
        bits, found = scratch("bits", size, np.uint32), scratch("facts", size, np.uint64)
        place = np.cumsum(counts) - counts
        for chunk, part, start in zip(self._chunks, parts, starts, strict=True):
            events = scratch("events", int(part.sum()), np.uint64)
            with open(chunk.path / EVENTS, "rb", 0) as file:
                file.seek(events.itemsize * start)
                if file.readinto(events.data) != events.nbytes:
                    raise OSError(f"{chunk.path / EVENTS} was cut short, expected all its events: index again")
            merge_chunk(part, place, events, facts, ordinals, bits, found)
        return EventRange(first, last, counts, ordinals, bits.view(np.float32), found)

    def chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields what each chunk holds, one after the other: events of each feature, and the events ordered by it."""
        self.close()
        for chunk in self._chunks:
            counts = np.fromfile(chunk.path / "counts", dtype=np.int32)
            yield counts, np.fromfile(chunk.path / EVENTS, dtype=np.uint64)

    def remove(self) -> None:
        """Deletes the chunks."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Buffer:
    """Events in the order of the text, as they come, and how many each feature has."""

    def __init__(self, size: int, n_features: int) -> None:
        self.features, self.events = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.uint64)
        self.counts = np.zeros(n_features, dtype=np.int64)

    def make_room(self, held: int, more: int, chunk_events: int) -> None:
        """Grows where `more` events do not fit behind the `held` ones: by doubling, up to a chunk and a batch."""
        needed = held + more
        if needed <= self.features.size:
            return
        size = max(needed, min(2 * needed, chunk_events + more))
        for name in ("features", "events"):
            before = getattr(self, name)
            larger = np.empty(size, dtype=before.dtype)
            larger[:held] = before[:held]
            setattr(self, name, larger)


def _write_chunk(chunk: _Chunk, buffer: _Buffer) -> _Buffer:
    """Sorts a buffer's events by feature and writes them, whole or not at all; returns the buffer for the next."""
    n, counts = chunk.events, buffer.counts
    events = buffer.events[:n]
    between = scratch("rest_between", n, np.uint16), scratch("events_between", n, np.uint64)
    gather_by_feature(buffer.features[:n], events, counts, *between)
    unfinished = chunk.path.with_suffix(".partial")
    unfinished.mkdir()
    for name, column in (("counts", counts.astype(np.int32)), (EVENTS, events)):
        # numpy's own writers do not say that a disk is full
        with open(unfinished / name, "wb") as file:
            file.write(column.data)
    facts = {"events": chunk.events, "first": chunk.first, "next": chunk.next}
    (unfinished / "chunk.json").write_text(json.dumps(facts))
    os.replace(unfinished, chunk.path)
    return buffer


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
