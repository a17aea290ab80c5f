"""The classic analyses of raw internals: one module per method, one call each, a frozen result with `.rows()` and
`.to_json()`.

Enters: a `LanguageModel` and a text (or its tokens, Int[1, seq]). Leaves: a result dataclass of numpy arrays. Names are
imported from their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activations.analyses.lens import LogitLens as LogitLens
    from activations.analyses.lens import logit_lens as logit_lens

_HOMES = {
    "LogitLens": "lens",
    "logit_lens": "lens",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'activations.analyses' has no attribute {name!r}")
    return getattr(importlib.import_module(f"activations.analyses.{_HOMES[name]}"), name)
