"""Rows of an activation store on their way into training: read shard by shard, mixed within windows.

Enters: an `ActivationStore`. Leaves: chunks of rows whose order depends on the seed alone, resumable after any of them.

1. An epoch visits the shards in a random order; windows are runs of as many whole shards as fit.
2. A thread reads the next window while this one is in training: each shard from its beginning to its end, each row put
   where the window's random order has it. Chunks are slices of the window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activations.mixing import host_rows

if TYPE_CHECKING:
    from activations.store import ActivationStore


class StoreRows:
    """Rows of one or several sites from a store; iterating again after `restore` goes on, otherwise starts anew."""

    def __init__(
        self,
        store: ActivationStore,
        site: str | Sequence[str],
        seed: int,
        epochs: int | None,
        chunk_rows: int,
        shuffle: bool,
        window_rows: int,
    ) -> None:
        if not store.n_rows:
            raise ValueError(f"store at {store.path} holds no rows, expected some: harvest again")
        self.sites = [site] if isinstance(site, str) else list(site)
        self._single = isinstance(site, str)
        self.d_in = sum(store.d_in(name) for name in self.sites)
        self.store = store
        self._seed, self._epochs, self._chunk_rows = seed, epochs, chunk_rows
        self._shuffle, self._window_rows = shuffle, window_rows
        self._epoch, self._window, self._row = 0, 0, 0
        self._start = (0, 0, 0)

    @property
    def n_rows(self) -> int | None:
        """Rows in all epochs; None if they never end."""
        return None if self._epochs is None else self._epochs * self.store.n_rows

    @property
    def mixing(self) -> dict[str, Any]:
        """Says how rows are mixed: the sizes of the first epoch's windows as they are."""
        if not self._shuffle:
            return {"source": "store", "mixed_rows": 1, "chunk_rows": self._chunk_rows}
        sizes = [sum(self.store.shards[index].rows for index in window) for window in self._windows(0)]
        return {
            "source": "store",
            "mixed_rows": max(sizes),
            "smallest_window_rows": min(sizes),
            "windows": len(sizes),
            "chunk_rows": self._chunk_rows,
        }

    def state(self) -> dict[str, Tensor]:
        """Returns the place after the last yielded chunk, and what the order depends on."""
        place = torch.tensor([self._epoch, self._window, self._row])
        return {"place": place, "order": torch.tensor(self._order())}

    def _order(self) -> list[int]:
        return [self._seed, self._chunk_rows, int(self._shuffle), self._window_rows, self.store.n_rows]

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on, in the next iteration, after the chunk that `state` was taken behind."""
        if state["order"].tolist() != self._order():
            raise ValueError(
                f"the state belongs to rows in another order {state['order'].tolist()}, expected {self._order()} "
                "(seed, chunk_rows, shuffle, window_rows, rows): resume with the same settings"
            )
        epoch, window, row = state["place"].tolist()
        self._start = (epoch, window, row)
        self._epoch, self._window, self._row = self._start

    def __iter__(self) -> Iterator[Any]:
        (self._epoch, self._window, self._row), self._start = self._start, (0, 0, 0)
        with ThreadPoolExecutor(1, thread_name_prefix="store-rows") as pool:
            upcoming: Future[dict[str, Tensor]] | None = None
            while self._epochs is None or self._epoch < self._epochs:
                windows = self._windows(self._epoch)
                while self._window < len(windows):
                    rows = upcoming.result() if upcoming else self._load(windows, self._epoch, self._window)
                    upcoming = self._load_next(pool, windows)
                    size = len(rows[self.sites[0]])
                    while self._row < size:
                        chosen = slice(self._row, self._row + self._chunk_rows)
                        self._row = min(chosen.stop, size)
                        yield self._chunk(rows, chosen)
                    self._window, self._row = self._window + 1, 0
                self._epoch, self._window = self._epoch + 1, 0

    def _load_next(self, pool: ThreadPoolExecutor, windows: Sequence[Sequence[int]]) -> Future[Any] | None:
        """Starts reading the window after this one, of the next epoch if need be."""
        if self._window + 1 < len(windows):
            return pool.submit(self._load, windows, self._epoch, self._window + 1)
        if self._epochs is None or self._epoch + 1 < self._epochs:
            return pool.submit(self._load, self._windows(self._epoch + 1), self._epoch + 1, 0)
        return None

    def _chunk(self, rows: dict[str, Tensor], chosen: slice) -> Tensor | dict[str, Tensor]:
        chunk = {site: value[chosen] for site, value in rows.items()}
        return chunk[self.sites[0]] if self._single else chunk

    def _windows(self, epoch: int) -> list[list[int]]:
        """Groups the shards of an epoch, in its order, into windows of at most `window_rows` rows or one shard."""
        shards = [index for index, entry in self.store.shards.items() if entry.rows]
        order = self._permutation(len(shards), epoch, 0)
        windows: list[list[int]] = []
        rows = self._window_rows
        for place in range(len(shards)) if order is None else order.tolist():
            entry = self.store.shards[shards[place]]
            if rows + entry.rows > self._window_rows:
                windows.append([])
                rows = 0
            windows[-1].append(entry.index)
            rows += entry.rows
        return windows

    def _permutation(self, count: int, epoch: int, part: int) -> Tensor | None:
        if not self._shuffle:
            return None
        key = hashlib.blake2b(f"{self._seed} {epoch} {part}".encode(), digest_size=7).digest()
        return torch.randperm(count, generator=torch.Generator().manual_seed(int.from_bytes(key, "big")))

    def _load(self, windows: Sequence[Sequence[int]], epoch: int, window: int) -> dict[str, Tensor]:
        """Reads a window's shards one after another, each row straight to its place in the window's order."""
        shards = windows[window]
        size = sum(self.store.shards[index].rows for index in shards)
        order = self._permutation(size, epoch, window + 1)
        place = None if order is None else torch.empty_like(order)
        if place is not None and order is not None:
            place[order] = torch.arange(size)
        pinned = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        rows = {site: host_rows(size, self.store.d_in(site), self.store.row_dtype, pinned) for site in self.sites}
        done = 0
        for index in shards:
            here = slice(done, done + self.store.shards[index].rows)
            done = here.stop
            for site, read in self.store.read_rows(index, self.sites).items():
                if place is None:
                    rows[site][here] = read
                else:
                    rows[site].index_copy_(0, place[here], read)
        return rows
