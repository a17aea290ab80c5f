"""One progress bar for all long work: rate and time left on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from activations.processes import is_first


class Advance(Protocol):
    """Moves the bar by `amount` units and shows `note` (a short status such as the loss) beside it."""

    def __call__(self, amount: float, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: float | None, unit: str, done: float = 0) -> Iterator[Advance]:
    """Shows a bar on stderr while the block runs; yields the function that moves it.

    `total` and `done` are in `unit`s; a total of None shows a rate without an end. Nothing is printed when stderr is
    not a terminal; of several processes the first alone speaks.
    """
    if not sys.stderr.isatty() or not is_first():
        yield lambda amount, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f}%"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task: TaskID = bar.add_task(title, total=total, completed=int(done), rate="", note="")

        def advance(amount: float, note: str = "") -> None:
            speed = bar.tasks[task].speed
            rate = f"{_short(speed)} {unit}/s" if speed else ""
            bar.update(task, advance=amount, rate=rate, note=note)

        yield advance


def _short(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.1f}"
