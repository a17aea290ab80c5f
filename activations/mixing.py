"""A pool of rows that are drawn from at random, and work that runs ahead of those who wait for it.

Enters: rows of several sites in any order. Leaves: tensors of rows drawn from all that are in the pool, in random
order, contiguous in memory, so that those who train on them only take slices. A draw makes room where it took from, and
new rows go there: each row is copied in once and out once, and nothing is permuted twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def host_rows(n_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns uninitialised rows in host memory, pinned where `device` copies from it faster that way."""
    return torch.empty((n_rows, width), dtype=dtype, pin_memory=device.type == "cuda")


class Held(NamedTuple):
    """The rows in a pool at some moment: valid until those that were drawn last have been replaced twice."""

    slots: Tensor
    count: int


class MixingPool:
    """At most `capacity` rows of some sites; a row of all sites together has one place."""

    def __init__(
        self, widths: Mapping[str, int], capacity: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        self._device = torch.device(device)
        self._rows = {site: host_rows(capacity, width, dtype, self._device) for site, width in widths.items()}
        self._staging: dict[str, Tensor] = {}
        # places of the rows, in the order that draws go by; those from `count` on are free
        self._held = Held(torch.arange(capacity), 0)

    @property
    def count(self) -> int:
        """Rows in the pool."""
        return self._held.count

    @property
    def held(self) -> Held:
        """What is in the pool now."""
        return self._held

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Puts rows in, the same number at every site, on any device."""
        slots, count = self._held
        size = len(next(iter(values.values())))
        chosen = slots[count : count + size]
        for site, value in values.items():
            self._rows[site].index_copy_(0, chosen, self._on_host(site, value))
        self._held = Held(slots, count + size)

    def _on_host(self, site: str, value: Tensor) -> Tensor:
        dtype = self._rows[site].dtype
        if value.device.type != "cuda":
            return value.to("cpu", dtype)
        staging = self._staging.get(site)
        if staging is None or len(staging) < len(value):
            staging = self._staging[site] = host_rows(len(value), value.shape[1], dtype, value.device)
        staged = staging[: len(value)]
        staged.copy_(value.to(dtype), non_blocking=True)
        torch.cuda.current_stream(value.device).synchronize()
        return staged

    def draw(self, n_rows: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Takes `n_rows` rows out, drawn from all in random order, in memory of their own."""
        slots, count = self._held
        shuffled = slots[:count][torch.randperm(count, generator=generator)]
        chosen, kept = shuffled[:n_rows], shuffled[n_rows:]
        drawn = self.rows_at(chosen)
        self._held = Held(torch.cat([kept, chosen, slots[count:]]), len(kept))
        return drawn

    def rows_at(self, slots: Tensor) -> dict[str, Tensor]:
        """Returns copies of the rows at some places."""
        copied = {}
        for site, rows in self._rows.items():
            copied[site] = host_rows(len(slots), rows.shape[1], rows.dtype, self._device)
            torch.index_select(rows, 0, slots, out=copied[site])
        return copied


class Cancelled(Exception):
    """Ends work that nobody waits for any more."""


class Ahead(Generic[T]):
    """Runs `work` in a thread of its own at once; `result` waits for what it returns, or raises what it raised.

    `work` is handed a function that says whether its result is still wanted: not once `cancel` was called or the
    program ends. It asks now and then, and raises `Cancelled`.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], T], name: str) -> None:
        self._work = work
        self._stop = threading.Event()
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work(self._is_wanted))
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is raised where the result is asked for)
            self._error = error

    def _is_wanted(self) -> bool:
        return not self._stop.is_set() and threading.main_thread().is_alive()

    def result(self) -> T:
        """Waits for the work to end and returns its result."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def cancel(self) -> None:
        """Ends the work at its next check and waits till it has ended."""
        self._stop.set()
        self._thread.join()
