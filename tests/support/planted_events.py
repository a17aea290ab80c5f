"""A dictionary with planted events, so that the true rule of a feature is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from features import Dictionary
from features.schema import TABLES
from features.store import describe_files


def plant(copied: Path, where: str, seed: int = 0) -> Dictionary:
    """Makes feature 7 active exactly where the SQL condition holds, and feature 8 at random tokens."""
    opened = Dictionary.open(copied)
    query = f"""
        with rows as (
            select 7::integer as feature, document, position, (1 + position % 3)::float as activation
            from tokens where is_indexed and ({where})
            union all
            select 8::integer, document, position, 1.0::float from tokens
            where is_indexed and hash(document * 1000 + position) % 20 = 0
            union all select * from events where feature not in (7, 8)
        ) select * from rows order by feature, document, position
    """
    events = opened.sql(query).cast(TABLES["events"].arrow_schema())
    counts = np.bincount(events["feature"].to_numpy(), minlength=96)
    features = opened.sql("select * from features order by feature")
    for name, column in (
        ("count", counts),
        ("first_event", np.cumsum(counts) - counts),
        ("is_dead", counts == 0),
    ):
        index = features.column_names.index(name)
        features = features.set_column(
            index, features.field(index), [column.astype(features.field(index).type.to_pandas_dtype())]
        )
    opened.close()
    build = opened.store.build
    pq.write_table(events, build / "events.parquet")
    pq.write_table(features, build / "features.parquet")
    manifest = json.loads((copied / "dictionary.json").read_text())
    manifest["files"] = describe_files(build)
    (copied / "dictionary.json").write_text(json.dumps(manifest))
    return Dictionary.open(copied)
