"""Who writes with the model, so that it can be stopped: one run for each session.

A run begins before its turn at the model comes; Stop, a closed page and the session's next run end it, whether it
waits or writes. Writers ask `Run.is_stopped` before every token.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from dataclasses import dataclass, field


@dataclass
class Run:
    """One go at writing."""

    number: int
    ends: float = math.inf
    """When it is over, on the clock `time.monotonic`."""
    _stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self._stopped.set()

    def is_late(self) -> bool:
        return time.monotonic() > self.ends

    def is_stopped(self) -> bool:
        return self._stopped.is_set() or self.is_late()


class Runs:
    """The runs of all sessions by the session's name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._runs: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def begin(self, session: str) -> int:
        """Begins a run, which ends the session's one before, and returns its number."""
        with self._lock:
            if before := self._runs.get(session):
                before.stop()
            run = Run(next(self._numbers))
            self._runs[session] = run
            return run.number

    def get(self, session: str, number: int) -> Run | None:
        """Returns the run of that number; None where it was stopped or another one has begun."""
        with self._lock:
            run = self._runs.get(session)
            return run if run is not None and run.number == number and not run.is_stopped() else None

    def end(self, session: str, number: int | None = None) -> None:
        """Stops a session's run, where a number is given only that one, and forgets it."""
        with self._lock:
            run = self._runs.get(session)
            if run is not None and number in (None, run.number):
                run.stop()
                del self._runs[session]
