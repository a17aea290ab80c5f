"""Whole sequences of tokens for training through the model itself, in a random order, exactly resumable.

Enters: `TokenRows`. Leaves: chunks by name, one row a token: `tokens` Int64[n, 1] and `kept` Bool[n, 1], whether the
token's activation is trained on. Sequences come whole and unpadded: a sequence that holds padding is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from activations.tokens import TokenRows


class SequenceRows:
    """Sequences in an order of their own in each epoch; iterating again after `restore` goes on, else starts anew."""

    def __init__(
        self,
        rows: TokenRows,
        special_ids: frozenset[int] = frozenset(),
        *,
        seed: int = 0,
        epochs: int | None = 1,
        chunk_sequences: int = 32,
    ) -> None:
        whole = np.flatnonzero(rows.mask().all(axis=1))
        if not len(whole):
            raise ValueError(
                f"no row of {rows.context_tokens} tokens is full, expected whole sequences: give more text, or lower "
                "data.context_tokens"
            )
        self.context_tokens = rows.context_tokens
        self._tokens = torch.from_numpy(rows.tokens[whole].astype(np.int64))
        self._kept = torch.from_numpy(rows.trained_mask(special_ids)[whole])
        self._seed, self._epochs, self._chunk = seed, epochs, chunk_sequences
        self._place = (0, 0)
        self._start = (0, 0)

    @property
    def rows_per_epoch(self) -> int:
        """Tokens of all sequences."""
        return self._tokens.numel()

    def state(self) -> dict[str, Tensor]:
        """Returns the place after the last yielded chunk, and what the order depends on."""
        return {"place": torch.tensor(self._place), "order": torch.tensor(self._settings())}

    def _settings(self) -> list[int]:
        return [self._seed, self._chunk, *self._tokens.shape]

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on, in the next iteration, after the chunk that `state` was taken behind."""
        if state["order"].tolist() != self._settings():
            raise ValueError(
                f"the state belongs to sequences in another order {state['order'].tolist()}, expected "
                f"{self._settings()} (seed, chunk, sequences, tokens): resume with the same settings"
            )
        epoch, place = state["place"].tolist()
        self._place = self._start = (epoch, place)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self._place, self._start = self._start, (0, 0)
        while self._epochs is None or self._place[0] < self._epochs:
            epoch, place = self._place
            chosen = self._order(epoch)[place : place + self._chunk]
            following = place + len(chosen)
            self._place = (epoch, following) if following < len(self._tokens) else (epoch + 1, 0)
            yield {"tokens": self._tokens[chosen].reshape(-1, 1), "kept": self._kept[chosen].reshape(-1, 1)}

    def _order(self, epoch: int) -> Tensor:
        key = hashlib.blake2b(f"{self._seed} sequences {epoch}".encode(), digest_size=7).digest()
        return torch.randperm(len(self._tokens), generator=torch.Generator().manual_seed(int.from_bytes(key, "big")))
