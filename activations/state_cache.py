"""A bounded memory of what a model computed, which two models never share.

Enters: a model, the name of a computation and what it gave. Leaves: the same tensor, without the computation.

    cache = StateCache(max_bytes=1 << 28)
    rows = text_rows(lm, texts, sites, cache=cache)      # the second time nothing runs

It is explicit: nothing is remembered unless a cache is handed over. Entries belong to the model object (by a number
that is given once and never again, so that a new model in the place of a freed one meets nothing of it) and to the
state of its weights: moving, casting or training the model, or loading weights into it, makes old entries unreachable.
Only writing through `parameter.data` goes unnoticed (torch counts no such change): call `clear` after it. While an
intervention or a reader is at work on the model nothing is remembered and nothing recalled.

The least recently used entries leave when `max_bytes` is reached; larger tensors are computed and not kept. What is
handed out is a copy, so that no caller can change what the next one gets.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from activations.model import LanguageModel

_SERIALS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_NEXT = itertools.count()
_NAMING = threading.Lock()


class StateCache:
    """Tensors by model and computation, at most `max_bytes` of them.

    Attributes:
        hits: recalls so far.
        misses: computations so far, those included that were not kept.
    """

    def __init__(self, max_bytes: int = 1 << 28) -> None:
        """Raises ValueError for a bound that is not positive."""
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes}, expected at least 1: name the memory that may be used")
        self.max_bytes = max_bytes
        self.hits = self.misses = 0
        self._kept: OrderedDict[tuple[Hashable, ...], Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory of the tensors that are kept."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, lm: LanguageModel) -> Shelf:
        """Returns this model's entries, for the length of one computation: its weights are looked at here, once."""
        return Shelf(self, lm, model_state(lm))

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _recall(self, key: tuple[Hashable, ...]) -> Tensor | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            self.hits += 1
            return found.clone()

    def _keep(self, key: tuple[Hashable, ...], value: Tensor) -> None:
        size = value.numel() * value.element_size()
        with self._lock:
            self.misses += 1
            if size > self.max_bytes:
                return
            if (before := self._kept.pop(key, None)) is not None:
                self._bytes -= before.numel() * before.element_size()
            self._kept[key] = value.detach().clone()
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= gone.numel() * gone.element_size()


class Shelf:
    """What one model has computed; nothing is kept or recalled while its activations are edited or read elsewhere."""

    def __init__(self, cache: StateCache, lm: LanguageModel, state: tuple[int, int]) -> None:
        self._cache, self._lm, self._state = cache, lm, state

    def recall(self, name: Hashable) -> Tensor | None:
        """Returns a copy of what was computed under `name`, or None."""
        return None if len(self._lm.taps) else self._cache._recall((*self._state, name))

    def keep(self, name: Hashable, value: Tensor) -> None:
        """Remembers a copy of `value`, if it fits."""
        if not len(self._lm.taps):
            self._cache._keep((*self._state, name), value)


def model_state(lm: LanguageModel) -> tuple[int, int]:
    """Returns what tells this model, with its weights as they are now, from every other in this process."""
    with _NAMING:
        serial = _SERIALS.setdefault(lm.model, -1)
        if serial < 0:
            serial = _SERIALS[lm.model] = next(_NEXT)
    tensors = itertools.chain(lm.model.named_parameters(), lm.model.named_buffers())
    state = hash(
        tuple((name, str(t.dtype), t.data_ptr(), 0 if t.is_inference() else t._version) for name, t in tensors)
    )
    return serial, state
