"""Events in the order of the text, so that what is active on a document is read at once: the file `text_events`.

Enters: the chunks of an index (`features.events`), or the files of dictionaries that are merged. Leaves: the events of
any tokens. The table events is ordered by feature: a document's are spread over all of it. Here they stand once more,
token after token, where all events are kept; who has no such file (earlier builds) reads the table.

    blocks    of `BLOCK_TOKENS` consecutive tokens each: events and length of the first part (uint32 each), the parts
    places    int64 [blocks + 1]: where each block begins
    contents  JSON: tokens of the text and of a block, events, where `places` stand
    length    of the contents, 8 bytes, and `MAGIC`

A token's features rise and are told by their differences (int32, the first by itself); with the activation (float32)
an event has eight bytes, and byte i of all events of a block stands together (BYTE_STREAM_SPLIT). The four of them that
are alike, and how many events each token has (int32) before them, make the first part, zstd; the other four, of which
zstd would save nothing, the second. All numbers are little-endian.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from features.text_event_loops import by_token, join_bytes, split_bytes

if TYPE_CHECKING:
    from features.events import EventSpill

NAME = "text_events"
MAGIC = b"GBTEXTE1"
BLOCK_TOKENS = 64
THREADS = 2
_TAIL_BYTES = 1024
_READ_BLOCKS = 1024


class TokenEvents(NamedTuple):
    """Events of consecutive tokens, or of those that were asked for."""

    counts: np.ndarray
    """int64 [tokens]: events of each."""
    features: np.ndarray
    """int32 [n]: rising inside a token."""
    activations: np.ndarray
    """float32 [n]."""

    @property
    def tokens(self) -> np.ndarray:
        """int64 [n]: which of the tokens each event belongs to."""
        return np.repeat(np.arange(self.counts.size), self.counts)


def tokenwise(feature_counts: np.ndarray, events: np.ndarray, first: int) -> TokenEvents:
    """The events of a chunk, which are ordered by feature, in the order of their tokens from `first` on."""
    last = int(events.max(initial=first << 32) >> np.uint64(32))
    counts = np.zeros(last + 1 - first if events.size else 0, dtype=np.int64)
    features, bits = np.empty(events.size, dtype=np.int32), np.empty(events.size, dtype=np.uint32)
    by_token(feature_counts, events, first, counts, features, bits)
    return TokenEvents(counts, features, bits.view(np.float32))


def write_text_events(build: Path, spill: EventSpill, n_tokens: int) -> None:
    """Writes the file from the chunks of an index, which follow the text."""
    with TextEventsWriter(build, n_tokens) as writer:
        for counts, events in spill.chunks():
            writer.take(tokenwise(counts, events, writer.taken))


class TextEventsWriter:
    """Writes the file from the events of token after token; it is there when the block ends without an error."""

    def __init__(self, build: Path, n_tokens: int) -> None:
        self._build, self._n_tokens = build, n_tokens
        self._unfinished = build / f"{NAME}.partial"
        self._file = open(self._unfinished, "wb")  # noqa: SIM115  (closed by __exit__)
        self._pool = ThreadPoolExecutor(THREADS)
        self._places = [0]
        self._taken = self._n_events = 0
        self._rest = TokenEvents(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
        self._waiting: Iterator[bytes] = iter(())

    @property
    def taken(self) -> int:
        """Tokens that were taken."""
        return self._taken

    def take(self, events: TokenEvents) -> None:
        """Takes the events of the tokens behind those taken before."""
        self._taken += events.counts.size
        self._n_events += events.features.size
        joined = TokenEvents(*(np.concatenate(pair) for pair in zip(self._rest, events, strict=True)))
        whole = joined.counts.size // BLOCK_TOKENS * BLOCK_TOKENS
        cut = int(joined.counts[:whole].sum())
        self._rest = TokenEvents(joined.counts[whole:], joined.features[cut:].copy(), joined.activations[cut:].copy())
        self._keep(TokenEvents(joined.counts[:whole], joined.features[:cut], joined.activations[:cut]))

    def _keep(self, events: TokenEvents) -> None:
        counts = events.counts
        ends = np.cumsum(counts)
        starts = np.append(np.concatenate(([0], ends))[: counts.size : BLOCK_TOKENS], events.features.size)
        split = np.empty(8 * events.features.size, dtype=np.uint8)
        split_bytes(counts, events.features, events.activations.view(np.uint32), starts, split)
        pieces = [counts[first : first + BLOCK_TOKENS] for first in range(0, counts.size, BLOCK_TOKENS)]
        bounds = starts.tolist()
        packing = self._pool.map(
            lambda place: _pack(pieces[place], split[8 * bounds[place] : 8 * bounds[place + 1]]), range(len(pieces))
        )
        # what came before is written while this is packed
        self._write()
        self._waiting = packing

    def _write(self) -> None:
        for block in self._waiting:
            self._file.write(block)
            self._places.append(self._places[-1] + len(block))

    def __enter__(self) -> TextEventsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file, self._pool:
            if kind is not None:
                return
            behind = np.zeros(self._n_tokens - self._taken, dtype=np.int64)
            self._keep(self._rest._replace(counts=np.concatenate([self._rest.counts, behind])))
            self._write()
            self._file.write(np.array(self._places, dtype="<i8").tobytes())
            contents = _Contents(self._n_tokens, BLOCK_TOKENS, self._n_events, self._places[-1])
            told = json.dumps(contents._asdict()).encode()
            self._file.write(told + len(told).to_bytes(8, "little") + MAGIC)
            self._file.flush()
            os.fsync(self._file.fileno())
        os.replace(self._unfinished, self._build / NAME)


class _Contents(NamedTuple):
    n_tokens: int
    block_tokens: int
    n_events: int
    places_at: int


def _pack(counts: np.ndarray, split: np.ndarray) -> bytes:
    half = split.size // 2
    alike = pa.Codec("zstd", 1).compress(counts.astype("<i4").tobytes() + split[:half].tobytes(), asbytes=True)
    return np.array([split.size // 8, len(alike)], dtype="<u4").tobytes() + alike + split[half:].tobytes()


class TextEvents:
    """The opened file; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tail = self._mapped[-_TAIL_BYTES:]
        if tail[-8:] != MAGIC:
            raise ValueError(f"{path} ends with {tail[-8:]!r}, expected {MAGIC!r}: build the dictionary again")
        length = int.from_bytes(tail[-16:-8], "little")
        contents = _Contents(**json.loads(tail[-16 - length : -16]))
        self.n_tokens, self.n_events = contents.n_tokens, contents.n_events
        self._block_tokens = contents.block_tokens
        n_blocks = -(-contents.n_tokens // contents.block_tokens)
        self._places = np.frombuffer(self._mapped, "<i8", n_blocks + 1, contents.places_at)

    def between(self, first: int, stop: int) -> TokenEvents:
        """The events of the tokens numbered first ≤ n < stop."""
        return self.at(np.arange(first, stop))

    def at(self, ordinals: np.ndarray) -> TokenEvents:
        """The events of some tokens, whose numbers rise."""
        codec = pa.Codec("zstd")
        blocks, begins = np.unique(ordinals // self._block_tokens, return_index=True)
        ends = np.append(begins, ordinals.size)[1:].tolist()
        places, n_bytes = self._places[blocks].tolist(), np.diff(self._places)[blocks].tolist()
        found: list[TokenEvents] = []
        for block, begin, end, place, length in zip(
            blocks.tolist(), begins.tolist(), ends, places, n_bytes, strict=True
        ):
            first = block * self._block_tokens
            size = min(self._block_tokens, self.n_tokens - first)
            found.append(_taken(codec, self._mapped[place : place + length], size, ordinals[begin:end] - first))
        empty = TokenEvents(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
        return TokenEvents(*(np.concatenate(columns) for columns in zip(empty, *found, strict=True)))

    def all(self) -> Iterator[TokenEvents]:
        """The events of all tokens, piece by piece."""
        step = _READ_BLOCKS * self._block_tokens
        for first in range(0, self.n_tokens, step):
            yield self.between(first, min(first + step, self.n_tokens))


def _taken(codec: pa.Codec, block: bytes, n_tokens: int, wanted: np.ndarray) -> TokenEvents:
    """The events of the `wanted` tokens of a block, which has `n_tokens`."""
    n, length = np.frombuffer(block, "<u4", 2).tolist()
    alike = codec.decompress(block[8 : 8 + length], 4 * n_tokens + 4 * n, asbytes=True)
    counts = np.frombuffer(alike, "<i4", n_tokens).astype(np.int64)
    features, bits = np.empty(int(counts[wanted].sum()), np.int32), np.empty(int(counts[wanted].sum()), np.uint32)
    join_bytes(
        np.cumsum(counts) - counts,
        counts,
        wanted,
        np.frombuffer(alike, np.uint8, 4 * n, 4 * n_tokens),
        np.frombuffer(block, np.uint8, 4 * n, 8 + length),
        features,
        bits,
    )
    return TokenEvents(counts[wanted], features, bits.view(np.float32))
