"""Arrow columns as NumPy arrays, without pandas.

Arrow's own conversion imports pandas at its first use wherever that is installed, which takes longer than everything
else that the first page of a feature asks for. Numbers are taken as they stand in the column's buffers.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_NUMBERS = {
    pa.int8(): np.int8,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """The column as an array: numbers and booleans without nulls (maybe read-only), else objects."""
    if column.type == pa.bool_() and not column.null_count:
        return np.concatenate([np.zeros(0, dtype=bool), *(_bits(piece) for piece in column.chunks)])
    if column.type not in _NUMBERS or column.null_count:
        return np.array(column.to_pylist(), dtype=object)
    kind = _NUMBERS[column.type]
    pieces = [
        np.frombuffer(piece.buffers()[1], dtype=kind, count=len(piece), offset=piece.offset * np.dtype(kind).itemsize)
        for piece in column.chunks
        if len(piece)
    ]
    if not pieces:
        return np.zeros(0, dtype=kind)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _bits(piece: pa.Array) -> np.ndarray:
    if not len(piece):
        return np.zeros(0, dtype=bool)
    bits = np.unpackbits(np.frombuffer(piece.buffers()[1], dtype=np.uint8), bitorder="little")
    return bits[piece.offset : piece.offset + len(piece)].astype(bool)
