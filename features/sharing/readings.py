"""What is active on a text, to take along: one or two readings as JSON or CSV.

JSON holds the readings whole, and their comparison where there are two. CSV has a row for each feature at each token on
which it is active.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from features.records import ActiveFeatures
from features.sharing.flat_tables import csv_text
from features.text_comparison import ReadingComparison

COLUMNS = {
    "side": pa.string(),
    "token": pa.int64(),
    "text": pa.string(),
    "feature": pa.int64(),
    "activation": pa.float64(),
}


def readings_json(readings: Sequence[ActiveFeatures], comparison: ReadingComparison | None = None) -> str:
    """Returns `{"readings": [...], "comparison": ...}`."""
    content = {
        "readings": [json.loads(reading.to_json()) for reading in readings],
        "comparison": None if comparison is None else json.loads(comparison.to_json()),
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


def readings_csv(readings: Sequence[ActiveFeatures]) -> str:
    """Returns a table: side (a, b), token, its text, feature, activation, and the measure under its own name."""
    rows = [{"side": side} | row for side, reading in zip("ab", readings, strict=False) for row in reading.cell_rows()]
    measures = {name: pa.float64() for row in rows[:1] for name in row if name not in COLUMNS}
    return csv_text(pa.Table.from_pylist(rows, schema=pa.schema(list((COLUMNS | measures).items()))))
