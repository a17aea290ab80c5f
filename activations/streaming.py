"""Rows straight from the language model into training, mixed by a shuffle buffer.

Enters: a `LanguageModel`, `TokenRows`, sites. Leaves: shuffled chunks of rows whose order and bits depend on the seed
alone, also when the stream is left, its state saved, and taken up again.

1. Token rows are visited in a random order, a new one each epoch.
2. The model fills a buffer of `buffer_rows` rows; half of them, drawn at random, are copied out in random order.
3. These are handed out in chunks, slices of one piece of memory, while a thread lets the model fill the room they left
   and draws the next half; at the end everything is handed out. With the half in training and the half drawn ahead,
   twice `buffer_rows` rows are in memory.

What the model does in that thread is its own: edits (`lm.intervene`) that begin after the iteration has begun are not
seen there. An error in it is raised to whoever asks for the rows that it was to fill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from activations.harvesting import HarvestConfig, row_batch, special_ids
from activations.mixing import Ahead, Cancelled, Held, MixingPool
from activations.store import ROW_DTYPES
from activations.tokens import TokenRows

if TYPE_CHECKING:
    from activations.model import LanguageModel

LAYOUT = 2  # of the state: rows were permuted in place before


def stream(
    lm: LanguageModel,
    rows: TokenRows,
    site: str | Sequence[str],
    config: HarvestConfig | None = None,
    *,
    seed: int = 0,
    epochs: int | None = 1,
    chunk_rows: int = 8192,
    exclude_special_tokens: bool = True,
) -> StreamRows:
    """Returns shuffled rows of `site` (of several: dicts by site), computed while they are read."""
    return StreamRows(lm, rows, site, config or HarvestConfig(), seed, epochs, chunk_rows, exclude_special_tokens)


class _Round(NamedTuple):
    """One draw, and where things stood after it."""

    rows: dict[str, Tensor]
    held: Held
    """What stayed in the pool."""
    epoch: int
    place: int
    """Place in the visits of the epoch's token rows, up to which the model had read."""
    number: int
    """Draws so far."""


class StreamRows:
    """Rows from the model through a shuffle buffer; iterating again after `restore` goes on, otherwise starts anew."""

    def __init__(
        self,
        lm: LanguageModel,
        rows: TokenRows,
        site: str | Sequence[str],
        config: HarvestConfig,
        seed: int,
        epochs: int | None,
        chunk_rows: int,
        exclude_special_tokens: bool,
    ) -> None:
        self.sites = [site] if isinstance(site, str) else list(site)
        self._single = isinstance(site, str)
        self._lm, self._rows, self._config = lm, rows, config
        self._seed, self._epochs, self._chunk_rows = seed, epochs, chunk_rows
        self._excluded = special_ids(lm, exclude_special_tokens)
        self._widths = {name: lm.site_width(name) for name in self.sites}
        self._batch = max(1, config.batch_tokens // rows.context_tokens)
        self._kept_per_epoch = int(np.count_nonzero(rows.trained_mask(self._excluded)))
        if not self._kept_per_epoch:
            raise ValueError(
                "the token rows hold no token to train on, expected text: name another data source, or other data.roles"
            )
        self._restored = False
        self._visits = -1, np.empty(0, dtype=np.int64)
        self._reset()

    @property
    def d_in(self) -> int:
        """Width of the rows (of all sites together)."""
        return sum(self._widths.values())

    @property
    def n_rows(self) -> int | None:
        """Rows in all epochs; None if they never end."""
        return None if self._epochs is None else self._epochs * self._kept_per_epoch

    @property
    def mixing(self) -> dict[str, Any]:
        """Says how rows are mixed: each is drawn from this many, but for the last ones."""
        rows = self._config.buffer_rows if self.n_rows is None else min(self._config.buffer_rows, self.n_rows)
        return {"source": "model", "mixed_rows": rows, "chunk_rows": self._chunk_rows}

    def _reset(self) -> None:
        self._pool: MixingPool | None = None
        self._round = _Round(self._no_rows(), Held(torch.empty(0, dtype=torch.long), 0), 0, 0, 0)
        self._given = 0

    def _no_rows(self) -> dict[str, Tensor]:
        dtype = ROW_DTYPES[self._config.dtype]
        return {name: torch.empty((0, width), dtype=dtype) for name, width in self._widths.items()}

    def _new_pool(self) -> MixingPool:
        # the last batch may bring more rows than there is room for
        capacity = self._config.buffer_rows + self._batch * self._rows.context_tokens
        return MixingPool(self._widths, capacity, ROW_DTYPES[self._config.dtype], self._lm.device)

    def state(self) -> dict[str, Tensor]:
        """Returns the rows in memory that were not handed out, and the place in the token rows behind them.

        Rows that the thread has read beyond these are read again by whoever goes on.
        """
        held = self._round.held
        kept = self._no_rows() if self._pool is None else self._pool.rows_at(held.slots[: held.count])
        state = {f"kept/{name}": rows for name, rows in kept.items()}
        state |= {f"left/{name}": rows[self._given :].clone() for name, rows in self._round.rows.items()}
        place = torch.tensor([self._round.epoch, self._round.place, self._round.number])
        return state | {"place": place, "settings": torch.tensor(self._settings())}

    def _settings(self) -> list[int]:
        return [
            LAYOUT,
            self._seed,
            self._chunk_rows,
            self._config.buffer_rows,
            self._batch,
            len(self._rows),
            self._kept_per_epoch,
            *self._widths.values(),
        ]

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on, in the next iteration, after the chunk that `state` was taken behind."""
        if state["settings"].tolist() != self._settings():
            raise ValueError(
                f"the state is of a stream with settings {state['settings'].tolist()}, expected {self._settings()} "
                "(layout, seed, chunk_rows, buffer_rows, batch, token rows, kept rows, widths): resume with the same "
                "settings"
            )
        self._reset()
        self._pool = self._new_pool()
        self._pool.add({name: state[f"kept/{name}"] for name in self.sites})
        left = {name: state[f"left/{name}"].clone() for name in self.sites}
        self._round = _Round(left, self._pool.held, *state["place"].tolist())
        self._restored = True

    def __iter__(self) -> Iterator[Any]:
        if not self._restored:
            self._reset()
        self._restored = False
        pool = self._pool = self._pool or self._new_pool()
        as_of_now = self._lm.edits_as_of_now()
        upcoming: Ahead[_Round | None] | None = None
        try:
            while True:
                upcoming = Ahead(self._next_round(pool, as_of_now), "stream-rows")
                size = len(self._round.rows[self.sites[0]])
                while self._given < size:
                    chosen = slice(self._given, self._given + self._chunk_rows)
                    self._given = min(chosen.stop, size)
                    yield self._chunk(chosen)
                following = upcoming.result()
                if following is None:
                    return
                self._round, self._given = following, 0
        finally:
            if upcoming is not None:
                upcoming.cancel()

    def _chunk(self, chosen: slice) -> Tensor | dict[str, Tensor]:
        chunk = {name: rows[chosen] for name, rows in self._round.rows.items()}
        return chunk[self.sites[0]] if self._single else chunk

    def _next_round(
        self, pool: MixingPool, as_of_now: Callable[[], Any]
    ) -> Callable[[Callable[[], bool]], _Round | None]:
        """Returns the work that follows the round now handed out: let the model fill the pool, and draw from it."""
        before = self._round

        def work(is_wanted: Callable[[], bool]) -> _Round | None:
            epoch, place, number = before.epoch, before.place, before.number
            with ExitStack() as stack:
                stack.enter_context(as_of_now())
                if self._lm.device.type == "cuda":
                    side = torch.cuda.Stream(self._lm.device)
                    side.wait_stream(torch.cuda.default_stream(self._lm.device))
                    stack.enter_context(torch.cuda.stream(side))
                while pool.count < self._config.buffer_rows and not self._is_over(epoch):
                    if not self._lm.goes_on(is_wanted()):
                        raise Cancelled("the rows are not read on, here or in another process")
                    epoch, place = self._fill(pool, epoch, place)
            if not pool.count:
                return None
            share = pool.count if self._is_over(epoch) else -(-pool.count // 2)
            drawn = pool.draw(share, self._generator("buffer", number + 1))
            return _Round(drawn, pool.held, epoch, place, number + 1)

        return work

    def _is_over(self, epoch: int) -> bool:
        return self._epochs is not None and epoch >= self._epochs

    def _fill(self, pool: MixingPool, epoch: int, place: int) -> tuple[int, int]:
        """Reads one batch of token rows and returns the place after it."""
        if self._visits[0] != epoch:
            self._visits = epoch, torch.randperm(len(self._rows), generator=self._generator("rows", epoch)).numpy()
        chosen = self._visits[1][place : place + self._batch]
        pool.add(row_batch(self._lm, self._rows[chosen], self.sites, self._excluded).values)
        place += len(chosen)
        return (epoch + 1, 0) if place >= len(self._rows) else (epoch, place)

    def _generator(self, part: str, number: int) -> torch.Generator:
        key = hashlib.blake2b(f"{self._seed} {part} {number}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "big"))
