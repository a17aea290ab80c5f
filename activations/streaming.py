"""Rows straight from the language model into training, mixed by a shuffle buffer.

Enters: a `LanguageModel`, `TokenRows`, sites. Leaves: shuffled chunks of rows whose order and bits depend on the seed
alone, also when the stream is left, its state saved, and taken up again.

1. Token rows are visited in a random order, a new one each epoch.
2. The model fills a buffer of `buffer_rows` rows; the buffer is permuted; its first half is handed out in chunks.
3. The other half stays, the model refills the buffer, and so on; at the end everything is handed out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activations.harvesting import HarvestConfig, row_batch, special_ids
from activations.store import DTYPES
from activations.tokens import TokenRows

if TYPE_CHECKING:
    from activations.model import LanguageModel


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
        self._widths = [lm.site_width(name) for name in self.sites]
        self._dtype = DTYPES[config.dtype]
        self._batch = max(1, config.batch_tokens // rows.context_tokens)
        self._kept_per_epoch = int(np.count_nonzero(rows.trained_mask(self._excluded)))
        if not self._kept_per_epoch:
            raise ValueError("the token rows hold only special tokens, expected text: name another data source")
        self._restored = False
        self._reset()

    @property
    def d_in(self) -> int:
        """Width of the rows (of all sites together)."""
        return sum(self._widths)

    @property
    def n_rows(self) -> int | None:
        """Rows in all epochs; None if they never end."""
        return None if self._epochs is None else self._epochs * self._kept_per_epoch

    def _reset(self) -> None:
        capacity = self._config.buffer_rows + self._batch * self._rows.context_tokens
        self._buffer = torch.empty((capacity, self.d_in), dtype=self._dtype)
        self._filled, self._order, self._given, self._release = 0, torch.empty(0, dtype=torch.long), 0, 0
        self._epoch, self._place, self._shuffles = 0, 0, 0

    def state(self) -> dict[str, Tensor]:
        """Returns the buffer, the order in which it is handed out, and the place in the token rows."""
        place = [self._epoch, self._place, self._shuffles, self._given, self._release]
        return {
            "buffer": self._buffer[: self._filled].clone(),
            "order": self._order.clone(),
            "place": torch.tensor(place),
            "settings": torch.tensor(self._settings()),
        }

    def _settings(self) -> list[int]:
        return [
            self._seed,
            self._chunk_rows,
            self._config.buffer_rows,
            self._batch,
            len(self._rows),
            self._kept_per_epoch,
        ]

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on, in the next iteration, after the chunk that `state` was taken behind."""
        if state["settings"].tolist() != self._settings() or state["buffer"].shape[1] != self.d_in:
            raise ValueError(
                f"the state is of a stream with settings {state['settings'].tolist()}, expected {self._settings()} "
                "(seed, chunk_rows, buffer_rows, batch, token rows, kept rows): resume with the same settings"
            )
        self._reset()
        self._filled = len(state["buffer"])
        self._buffer[: self._filled].copy_(state["buffer"])
        self._order = state["order"].clone()
        self._epoch, self._place, self._shuffles, self._given, self._release = state["place"].tolist()
        self._restored = True

    def __iter__(self) -> Iterator[Any]:
        if not self._restored:
            self._reset()
        self._restored = False
        while True:
            while self._given < self._release:
                chosen = self._order[self._given : min(self._given + self._chunk_rows, self._release)]
                self._given += len(chosen)
                yield self._chunk(chosen)
            if not self._refill():
                return

    def _chunk(self, chosen: Tensor) -> Tensor | dict[str, Tensor]:
        rows = self._buffer.index_select(0, chosen)
        return rows if self._single else dict(zip(self.sites, rows.split(self._widths, dim=1), strict=True))

    def _refill(self) -> bool:
        """Keeps what was not handed out, lets the model fill the rest, and permutes; False when nothing is left."""
        kept = self._buffer.index_select(0, self._order[self._given :])
        self._buffer[: len(kept)] = kept
        self._filled = len(kept)
        while self._filled < self._config.buffer_rows and not self._is_exhausted():
            self._fill()
        if self._filled == 0:
            return False
        self._shuffles += 1
        self._order = torch.randperm(self._filled, generator=self._generator("buffer", self._shuffles))
        self._given = 0
        self._release = self._filled if self._is_exhausted() else -(-self._filled // 2)
        return True

    def _is_exhausted(self) -> bool:
        return self._epochs is not None and self._epoch >= self._epochs

    def _fill(self) -> None:
        visits = torch.randperm(len(self._rows), generator=self._generator("rows", self._epoch)).numpy()
        chosen = visits[self._place : self._place + self._batch]
        rows = self._rows
        part = TokenRows(rows.tokens[chosen], rows.documents[chosen], rows.positions[chosen], rows.names)
        batch = row_batch(self._lm, part, self.sites, self._excluded)
        size, column = len(batch.documents), 0
        for name, width in zip(self.sites, self._widths, strict=True):
            self._buffer[self._filled : self._filled + size, column : column + width].copy_(batch.values[name])
            column += width
        self._filled += size
        self._place += len(chosen)
        if self._place >= len(rows):
            self._epoch, self._place = self._epoch + 1, 0

    def _generator(self, part: str, number: int) -> torch.Generator:
        key = hashlib.blake2b(f"{self._seed} {part} {number}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "big"))
