"""Arrow columns become the arrays that their values are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.columns import as_array

COLUMNS = [
    pa.chunked_array([pa.array([1, 2, 3], pa.int32()), pa.array([], pa.int32()), pa.array([4], pa.int32())]),
    pa.chunked_array([pa.array([0.5, -1.0], pa.float32())]),
    pa.chunked_array([pa.array([True, False, True] * 7), pa.array([False])]),
    pa.chunked_array([pa.array(["a", "<b>", ""])]),
    pa.chunked_array([pa.array([1, None], pa.int64())]),
    pa.chunked_array([], pa.bool_()),
    pa.chunked_array([], pa.float64()),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
@pytest.mark.parametrize("first", [0, 1, 9])
def test_columns_and_their_slices_keep_their_values(column: Any, first: int) -> None:
    part = column.slice(first)
    assert as_array(part).tolist() == part.to_pylist()
    if pa.types.is_boolean(part.type):
        assert as_array(part).dtype == np.bool_
