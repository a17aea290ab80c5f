"""Features as flat tables for spreadsheets and data frames: CSV and Parquet.

Enters: an opened dictionary. Leaves: a folder with one file a table, or one file with one row a feature where the name
ends in `.csv` or `.parquet`. CSV has lists of tokens as JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from activations.progress import progress
from features import schema
from features.dictionary import Dictionary
from features.records import Feature
from features.sharing.documents import partial, partial_folder, people_rows
from features.sharing.reading import read_features

LISTED = 10
_STRING, _STRINGS = pa.string(), pa.list_(pa.string())
FEATURE_COLUMNS = pa.schema(
    [
        ("feature", pa.int32()),
        ("label", _STRING),
        ("label_author", _STRING),
        ("label_created", _STRING),
        ("explanation", _STRING),
        ("method", _STRING),
        ("score", pa.float64()),
        ("count", pa.int64()),
        ("density", pa.float64()),
        ("mean_activation", pa.float32()),
        ("std_activation", pa.float32()),
        ("max_activation", pa.float32()),
        ("documents", pa.int32()),
        ("is_dead", pa.bool_()),
        ("tokens", _STRINGS),
        ("promotes", _STRINGS),
        ("suppresses", _STRINGS),
        ("neighbours", pa.list_(pa.int32())),
        ("lists", _STRINGS),
        ("strongest_example", _STRING),
    ]
)
EXAMPLE_COLUMNS = pa.schema(
    [
        *((name, schema.TABLES["examples"].arrow_schema().field(name).type) for name in ("feature", "stratum", "rank")),
        ("document", _STRING),
        ("position", pa.int32()),
        ("activation", pa.float32()),
        ("before", _STRING),
        ("token", _STRING),
        ("after", _STRING),
        ("tokens", _STRINGS),
        ("activations", pa.list_(pa.float32())),
    ]
)


def write_flat(dictionary: Dictionary, features: Sequence[int], out: Path, kind: str, name: str | None = None) -> Path:
    """Writes tables as `kind`, csv or parquet; of lists `name` alone where one is given. Returns the path."""
    if out.suffix == f".{kind}":
        rows = flat_tables(dictionary, features, name)["features"]
        if kind == "parquet":
            partial_file = out.with_name(f"{out.name}.partial")
            out.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, partial_file, compression="zstd")
            partial_file.replace(out)
        else:
            with partial(out) as file:
                file.write(csv_text(rows))
        return out
    with partial_folder(out) as folder:
        for table, rows in flat_tables(dictionary, features, name).items():
            if kind == "parquet":
                pq.write_table(rows, folder / f"{table}.parquet", compression="zstd")
            else:
                (folder / f"{table}.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
    return out


def flat_tables(dictionary: Dictionary, features: Sequence[int], name: str | None = None) -> dict[str, pa.Table]:
    """The tables by name: features, examples, logits, neighbours, histograms, and those of people's words."""
    people = people_rows(dictionary, features, name)
    lists_of: dict[int, list[str]] = {}
    for row in people["lists"]:
        lists_of.setdefault(row["feature"], []).append(row["list"])
    rows: list[dict[str, Any]] = []
    examples: list[dict[str, Any]] = []
    with progress("export", len(features), "features") as advance:
        for feature in read_features(dictionary, features):
            rows.append(_feature_row(feature, list(dict.fromkeys(lists_of.get(feature.id, [])))))
            examples += _example_rows(feature)
            advance(1)
    tables = {
        "features": pa.Table.from_pylist(rows, schema=FEATURE_COLUMNS),
        "examples": pa.Table.from_pylist(examples, schema=EXAMPLE_COLUMNS),
    }
    numbers = pa.table({"feature": pa.array(features, pa.int32()), "place": range(len(features))})
    for table in ("logits", "neighbours", "histograms"):
        found = dictionary.store.query(f"select * from {table} where list_contains($f, feature)", {"f": list(features)})
        order = "side" if table == "logits" else None
        joined = found.join(numbers, "feature")
        last = "rank" if table != "histograms" else "bin"
        keys = [("place", "ascending"), *([(order, "descending")] if order else []), (last, "ascending")]
        tables[table] = joined.sort_by(keys).drop_columns(["place"]).select(found.column_names)
    for table, found in people.items():
        tables[table] = pa.Table.from_pylist(found, schema=schema.TABLES[table].arrow_schema())
    return tables


def csv_text(table: pa.Table) -> str:
    """A table as CSV: text as it is, quoted where it must be; lists as JSON; nothing for null."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.column_names)
    columns = [
        [json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value for value in column.to_pylist()]
        for column in table.columns
    ]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _feature_row(feature: Feature, lists: list[str]) -> dict[str, Any]:
    label = next((e for e in feature.explanations if e.method == "label"), None)
    written = next((e for e in feature.explanations if e.method != "label"), None)
    strongest = feature.examples[0] if feature.examples else None
    return {
        "feature": feature.id,
        "label": label and label.text,
        "label_author": label and label.author,
        "label_created": label and label.time,
        "explanation": written and written.text,
        "method": written and written.method,
        "score": written and written.score,
        **{name: getattr(feature, name) for name in ("count", "density", "documents", "is_dead")},
        **{name: getattr(feature, name) for name in ("mean_activation", "std_activation", "max_activation")},
        "tokens": [token for token, _, _ in feature.tokens[:LISTED]],
        "promotes": [entry.token for entry in feature.top_logits[:LISTED]],
        "suppresses": [entry.token for entry in feature.bottom_logits[:LISTED]],
        "neighbours": [entry.feature for entry in feature.neighbours],
        "lists": lists,
        "strongest_example": strongest and strongest.text,
    }


def _example_rows(feature: Feature) -> list[dict[str, Any]]:
    return [
        {
            **{name: getattr(e, name) for name in ("feature", "stratum", "rank", "position", "activation", "tokens")},
            "document": e.document_name,
            "before": "".join(e.tokens[: e.center]),
            "token": e.tokens[e.center],
            "after": "".join(e.tokens[e.center + 1 :]),
            "activations": e.activations,
        }
        for e in feature.examples
    ]
