"""Results as plain records: what JSON can say of dataclasses that hold numpy arrays.

Not-a-number, which marks what does not exist (the next token of the last one), becomes null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Returns lists, dicts, numbers and strings for a result, its arrays nested lists and its NaNs None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> str:
    """Returns a result as JSON; lone surrogates of a text are escaped, so that the string can always be encoded."""
    return json.dumps(plain(value), ensure_ascii=True, allow_nan=False)
