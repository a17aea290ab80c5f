"""Rows on their way into training: cut into batches, checked, and taken up again after a kill.

Enters: any iterable of row pieces, by site, with the same number of rows at every site. Leaves: batches of one size, by
site.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Rows = Mapping[str, Tensor]
"""Float[n, d] by site."""


class Batches:
    """Cuts rows of any sizes into batches of one size, checks them, and knows how to go on after a kill."""

    def __init__(
        self, rows: Iterable[Rows], batch_rows: int, widths: Mapping[str, int | None], total_rows: int
    ) -> None:
        self._source = rows
        self._iterator: Iterator[Rows] | None = None
        self._left: list[dict[str, Tensor]] = []
        self._left_rows = 0
        self._batch_rows, self._widths, self._total_rows = batch_rows, dict(widths), total_rows
        self.consumed = 0
        self._skip = 0

    def __next__(self) -> dict[str, Tensor]:
        if self._iterator is None:
            self._iterator = iter(self._source)
        while self._left_rows < self._batch_rows:
            self._add(self._read())
        pool = self._left[0]
        if len(self._left) > 1:
            pool = {site: torch.cat([piece[site] for piece in self._left]) for site in self._widths}
        batch = {site: value[: self._batch_rows] for site, value in pool.items()}
        self._left_rows -= self._batch_rows
        self._left = [{site: value[self._batch_rows :] for site, value in pool.items()}] if self._left_rows else []
        self.consumed += self._batch_rows
        return batch

    def _read(self) -> Rows:
        assert self._iterator is not None
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"the rows ended after {self.consumed + self._left_rows}, expected total_rows={self._total_rows}: "
                "give more rows or lower total_rows"
            ) from None

    def _add(self, given: Rows) -> None:
        if missing := [site for site in self._widths if site not in given]:
            raise ValueError(f"rows came without {missing[0]}, expected {', '.join(self._widths)}: read every site")
        piece = {site: given[site] for site in self._widths}
        for site, value in piece.items():
            width = self._widths[site]
            if value.ndim != 2 or (width is not None and value.shape[1] != width):
                raise ValueError(
                    f"rows of shape {tuple(value.shape)} came{_at(site)}, expected [n, d_in={width}]: set sae.d_in to "
                    "the activations' width"
                )
        size = len(next(iter(piece.values())))
        if any(len(value) != size for value in piece.values()):
            lengths = ", ".join(str(len(value)) for value in piece.values())
            raise ValueError(f"sites came with {lengths} rows, expected equal numbers: read them in one pass")
        if self._skip:
            dropped = min(self._skip, size)
            self._skip -= dropped
            piece, size = {site: value[dropped:] for site, value in piece.items()}, size - dropped
        if not size:
            return
        for site, value in piece.items():
            self._check_finite(site, value)
        self._left.append(piece)
        self._left_rows += size

    def _check_finite(self, site: str, value: Tensor) -> None:
        # a sum is finite only if all its terms are; a second look tells whether the sum itself ran over
        if torch.isfinite(value.sum(dtype=torch.float32)):
            return
        finite = torch.isfinite(value)
        if not finite.all():
            row, column = (int(i) for i in (~finite).nonzero()[0])
            raise ValueError(
                f"row {self.consumed + self._left_rows + row} holds {value[row, column].item()} in column {column}"
                f"{_at(site)}, expected finite activations: check the model's precision, or drop such rows"
            )

    @property
    def mixing(self) -> dict[str, Any]:
        """What the source says about how its rows are mixed; nothing where it does not say."""
        return dict(getattr(self._source, "mixing", {}))

    def close(self) -> None:
        """Ends work that the source does ahead of its reader; a generator that was given to read from stays open."""
        close = getattr(self._iterator, "close", None)
        if close is not None and self._iterator is not self._source:
            close()

    @property
    def is_restorable(self) -> bool:
        """Whether the source can be taken up in the middle, instead of being read again from its start."""
        return hasattr(self._source, "state") and hasattr(self._source, "restore")

    def state(self) -> dict[str, Tensor]:
        """Returns the place in the rows, with what was read and not yet trained on if the source goes on from there."""
        state = {"consumed": torch.tensor(self.consumed)}
        if self.is_restorable:
            for place, piece in enumerate(self._left):
                state |= {f"left/{place}/{site}": value.cpu() for site, value in piece.items()}
            state |= {f"source/{name}": value for name, value in self._source.state().items()}  # pyright: ignore
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved place."""
        self.consumed = int(state["consumed"])
        source = {name.removeprefix("source/"): value for name, value in state.items() if name.startswith("source/")}
        if not source or not self.is_restorable:
            self._skip = self.consumed
            return
        self._source.restore(source)  # pyright: ignore[reportAttributeAccessIssue]
        pieces: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("left/"):
                _, place, site = name.split("/", 2)
                pieces.setdefault(int(place), {})[site] = value
        self._left = [pieces[place] for place in sorted(pieces)]
        self._left_rows = sum(len(next(iter(piece.values()))) for piece in self._left)


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Returns the batch on a device, for all SAEs that train on it; from pinned memory nobody waits for the copy."""
    return {site: value.to(device, non_blocking=True) for site, value in batch.items()}


def _at(site: str) -> str:
    return "" if site in ("rows", "targets") else f" at {site}"
