"""What people and methods said, out of files, into a dictionary: beside what is there, never over it.

Enters: an opened dictionary and files: our JSON, CSV and Parquet (`features.sharing.documents`, `flat_tables`), or
explanations of SAEDashboard and Neuronpedia (`features.sharing.foreign`). Leaves: rows of the label tables.

1. All files are read and checked: numbers of features, times, texts. One that is wrong refuses them all.
2. Rows that stand there word for word, with author and time, are left out, so that importing twice adds nothing.
3. The others are added in one transaction.

A CSV table is known by its columns: `feature, text` (or `label`) are labels, with `list` entries of lists, with
`method` explanations. Where author or time are missing, they are the importer's.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features import schema
from features.dictionary import Dictionary
from features.labels import now, person, storable, table
from features.sharing.documents import FORMAT, VERSION
from features.sharing.foreign import Said, read_content, read_dump
from features.sharing.reading import identity

Rows = dict[str, list[dict[str, Any]]]
NEEDED = {"labels": ("feature", "text"), "lists": ("list", "feature"), "list_names": ("list",)} | {
    "explanations": ("feature", "method", "text"),
    "scores": ("feature", "method", "scorer", "score"),
}


@dataclass(frozen=True)
class ImportReport:
    """What an import brought."""

    added: dict[str, int]
    """New rows by table."""
    known: int
    """Rows that were there already."""
    sources: list[str]
    """Where they come from."""

    def rows(self) -> list[dict[str, Any]]:
        """One record for each table."""
        return [{"table": name, "added": n} for name, n in self.added.items() if n]

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


def import_files(
    dictionary: Dictionary, paths: Sequence[str | Path], author: str | None = None, any_sae: bool = False
) -> ImportReport:
    """Brings labels, explanations, scores and lists from files into the dictionary: all of them, or none.

    `author` stands where a file names none. A file of ours names the SAE that it speaks of: another one is refused,
    since its numbers mean other features, unless `any_sae`.

    Raises:
        ValueError: a file cut short, of another kind, about another SAE, or with features that do not exist.
        FileNotFoundError: a path that does not exist.
    """
    rows: Rows = {name: [] for name in NEEDED}
    sources: list[str] = []
    for path in _inside([Path(path) for path in paths]):
        found, source = _read(dictionary, path, any_sae)
        for name, some in found.items():
            rows[name] += [_checked(dictionary, path, name, row, author or person()) for row in some]
        sources.append(source)
    return add_rows(dictionary, rows, sources)


def add_rows(dictionary: Dictionary, rows: Rows, sources: list[str]) -> ImportReport:
    """Adds rows of the label tables that are not there yet, in one transaction; a `created` of None is now."""
    added: dict[str, int] = {}
    known, moment = 0, now()
    with dictionary.store.edit_labels() as connection:
        for name, some in rows.items():
            columns = [column.name for column in schema.TABLES[name].columns]
            at = columns.index("created")
            listed = ", ".join(f'"{column}"' for column in columns)
            there = set(connection.execute(f'select {listed} from "{name}"').fetchall())
            timeless = {row[:at] + row[at + 1 :] for row in there}
            fresh = []
            for row in some:
                values = tuple(row.get(column) for column in columns)
                without = values[:at] + values[at + 1 :]
                if values in there or (row.get("created") is None and without in timeless):
                    known += 1
                    continue
                there.add(values)
                timeless.add(without)
                fresh.append(row | {"created": row.get("created") or moment})
            if fresh:
                schema.insert_people(connection, name, table(name, fresh))
            added[name] = len(fresh)
    return ImportReport(added, known, sources)


def _inside(paths: Sequence[Path]) -> list[Path]:
    """Of a folder of tables those of people's words; other folders are Neuronpedia's and stay whole."""
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist, expected a file or folder to import: check the path")
        names = [path / f"{name}.{kind}" for name in NEEDED for kind in ("csv", "parquet")] if path.is_dir() else []
        tables = [name for name in names if name.is_file()]
        found += tables or [path]
    return found


def _read(dictionary: Dictionary, path: Path, any_sae: bool) -> tuple[Rows, str]:
    if path.suffix == ".csv":
        return _read_table(path, _csv_rows(path))
    if path.suffix == ".parquet":
        try:
            return _read_table(path, pq.ParquetFile(path).read().to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is no whole Parquet file ({_brief(error)}), expected one: get it again") from None
    if path.is_file() and path.suffix == ".json":
        content = read_content(path)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return _read_document(dictionary, path, content, any_sae), f"{path.name} ({content['dictionary']['name']})"
    dump = read_dump([path])
    if not dump.said:
        raise ValueError(
            f"{path} holds features of {dump.kind or 'another project'} without any explanation, expected some to "
            "import: make a dictionary of its own with --new"
        )
    rows = [_explanation(dump.kind, said) for said in dump.said]
    return {"explanations": rows}, f"{path.name} ({dump.kind} {dump.model} {dump.source})"


def explanations_of_dump(kind: str, said: Sequence[Said]) -> Rows:
    """Rows of the table explanations for those of another project."""
    return {"explanations": [_explanation(kind, one) | {"created": _moment(one.created)} for one in said]}


def _explanation(kind: str, said: Said) -> dict[str, Any]:
    method = " ".join([kind.lower(), *([said.method] if said.method else [])])
    method += f" ({said.reader})" if said.reader else ""
    return {
        "feature": said.feature,
        "method": method,
        "text": said.text.strip(),
        "rule": None,
        "score": said.score,
        "author": said.author or kind.lower(),
        "created": said.created,
    }


def _read_document(dictionary: Dictionary, path: Path, content: Mapping[str, Any], any_sae: bool) -> Rows:
    version = content.get("version")
    if version != VERSION:
        raise ValueError(f"{path} has version {version}, expected {VERSION}: export it again with this version")
    try:
        found: Rows = {name: list(content[name]) for name in NEEDED}
        own, other = identity(dictionary.info), dict(content["dictionary"]["identity"])
        if not all(isinstance(row, dict) for rows in found.values() for row in rows):
            raise TypeError("a row is no object")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({_brief(error)}), expected what an export writes: get it again") from None
    if own != other and not any_sae:
        told = "of another model" if own["model"] != other.get("model") else "of another SAE"
        raise ValueError(
            f"{path} is {told} ({content['dictionary'].get('name')!r}) than dictionary {dictionary.name!r}, expected "
            "the same, since its numbers mean other features: import it there, or give --any-sae"
        )
    return found


def _read_table(path: Path, rows: list[dict[str, Any]]) -> tuple[Rows, str]:
    columns = set(rows[0]) if rows else set()
    if not rows:
        return {}, path.name
    if "text" not in columns and {"feature", "label"} <= columns:
        renamed = [
            {"feature": r["feature"], "text": r["label"]}
            | {"author": r.get("label_author"), "created": r.get("label_created")}
            for r in rows
            if r["label"]
        ]
        return {"labels": renamed}, path.name
    for name in ("scores", "explanations", "lists", "list_names", "labels"):
        if set(NEEDED[name]) <= columns:
            return {name: rows}, path.name
    told = "; ".join(f"{', '.join(needed)} for {name}" for name, needed in NEEDED.items())
    raise ValueError(f"{path} has the columns {', '.join(sorted(columns))[:200]}, expected {told}: name them so")


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no whole CSV in UTF-8 ({_brief(error)}), expected one: save it again") from None
    for row in rows:
        if None in row or None in row.values():
            raise ValueError(
                f"{path} line {reader.line_num} or before has another number of cells than the head, expected as many: "
                "is it cut short?"
            )
    if reader.fieldnames is None:
        raise ValueError(f"{path} is empty, expected a line of column names: save it again")
    return [{key: value if value != "" else None for key, value in row.items()} for row in rows]


def _checked(dictionary: Dictionary, path: Path, name: str, row: Mapping[str, Any], author: str) -> dict[str, Any]:
    """A row with the table's types; ValueError names the file and what is wrong."""
    found: dict[str, Any] = {}
    try:
        for column in schema.TABLES[name].columns:
            value = row.get(column.name)
            if value is None:
                if column.name in NEEDED[name] and column.name != "score":
                    raise ValueError(f"no {column.name}")
                found[column.name] = None
            elif pa.types.is_integer(column.type):
                if isinstance(value, bool) or str(int(value)) != str(value).strip():
                    raise ValueError(f"{column.name} is {value!r}")
                found[column.name] = int(value)
            elif pa.types.is_floating(column.type):
                found[column.name] = float(value)
                if not math.isfinite(found[column.name]):
                    raise ValueError(f"{column.name} is {value!r}")
            elif not isinstance(value, str):
                raise ValueError(f"{column.name} is {value!r}")
            else:
                found[column.name] = storable(value)
        for key in ("text", "list", "method"):
            if key in found and not found[key].strip():
                raise ValueError(f"an empty {key}")
        if "author" in found:
            found["author"] = found["author"] or author
        found["created"] = _moment(found["created"])
        if found.get("feature") is not None:
            dictionary.check_feature(found["feature"])
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} has a row of {name} that cannot be taken ({_brief(error)}), expected {', '.join(NEEDED[name])} "
            "for features of this dictionary: nothing was imported"
        ) from None
    return found


def _moment(created: str | None) -> str | None:
    """A time as the label tables hold it: UTC, ISO 8601, so that order of text is order of time."""
    if created is None:
        return None
    moment = datetime.fromisoformat(created)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat()


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
