"""Memory that a thread uses again and again: pages fresh from the system cost more than what is written to them."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import DTypeLike

_held = threading.local()


def scratch(name: str, size: int, kind: DTypeLike) -> np.ndarray:
    """An array [size] of whatever values; it is this thread's until it asks for the same name again.

    It is kept as long as the thread lives: to be used in threads that end with their work.
    """
    n_bytes = size * np.dtype(kind).itemsize
    memory: np.ndarray | None = getattr(_held, name, None)
    if memory is None or memory.size < n_bytes:
        memory = np.empty(n_bytes + n_bytes // 8, dtype=np.uint8)
        setattr(_held, name, memory)
    return memory[:n_bytes].view(kind)
