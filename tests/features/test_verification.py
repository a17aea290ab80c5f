"""`dict verify`: a whole dictionary passes; one changed byte or row is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import Dictionary, schema, verification
from features.store import LABELS, MANIFEST, Store, describe_files, read_manifest, write_json
from features.text_events import TextEvents, TextEventsWriter
from ui import cli


def broken(folder: Path) -> list[verification.Check]:
    return [check for check in verification.verify(folder).checks if not check.ok]


def change(folder: Path, table: str, how: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes rows of a table and records the new file as if it had been built so."""
    info = read_manifest(folder)
    path = folder / info["build"] / f"{table}.parquet"
    whole = pq.ParquetFile(path).read()
    rows = whole.to_pylist()
    how(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=whole.schema), path)
    write_json(folder / MANIFEST, info | {"files": describe_files(path.parent)})


def set_cell(row: int, column: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def how(rows: list[dict[str, Any]]) -> None:
        rows[row][column] = value

    return how


def swap(first: int, second: int) -> Callable[[list[dict[str, Any]]], None]:
    def how(rows: list[dict[str, Any]]) -> None:
        rows[first], rows[second] = rows[second], rows[first]

    return how


def test_a_whole_dictionary_passes_every_check(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Dictionary.open(copied)
    opened.add_label(3, "mine")
    opened.add_to_list("good", [3])
    opened.close()
    result = verification.verify(copied)
    assert result.ok, broken(copied)
    assert len(result.checks) > 25
    assert cli.run(["dict", "verify", str(copied)]) == 0
    assert "pass" in capsys.readouterr().out
    assert cli.run(["dict", "verify", str(copied), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_one_changed_byte_of_any_file_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = Store(copied).build
    for name in read_manifest(copied)["files"]:
        path = build / name
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        found = broken(copied)
        assert [check.file for check in found if check.promise == "size and hash as recorded"] == [name]
        assert str(path) in found[0].broken
        path.write_bytes(content)
    (build / "logit_ids.parquet").unlink()
    (build / "events.parquet").write_bytes(b"PAR1")
    assert cli.run(["dict", "verify", str(copied)]) == 1
    captured = capsys.readouterr()
    assert "is missing" in captured.out.replace("\n", " ")
    assert "has 4 bytes" in captured.out.replace("\n", " ")
    assert len(captured.err.splitlines()) == 1
    assert "checks, expected none" in captured.err


CHANGES = [
    ("events", swap(10, 11), "events.parquet", "row 11 .*out of order"),
    ("events", set_cell(7, "activation", 0.0), "events.parquet", "row 7 .*impossible"),
    ("events", set_cell(0, "activation", 1e6), "events.parquet", "features.parquet row 0: max_activation"),
    ("events", lambda rows: rows.pop(5), "events.parquet", r"\d+ rows, recorded are \d+"),
    ("features", set_cell(4, "count", 10**6), "events.parquet", "features.parquet row 4: count"),
    ("features", set_cell(4, "density", 0.9), "events.parquet", "features.parquet row 4: density"),
    ("features", set_cell(4, "mean_activation", 9e3), "events.parquet", "features.parquet row 4: mean_activation"),
    ("features", set_cell(95, "is_dead", False), "features.parquet", "row 95"),
    ("features", set_cell(5, "first_event", 1), "events.parquet", "features.parquet row 5: first_event"),
    ("features", swap(2, 3), "features.parquet", "row 2 .*and 1 more"),
    ("examples", set_cell(3, "position", 10**6), "examples.parquet", r"row 3 \(feature=\d+.*position=1000000"),
    ("examples", set_cell(0, "activation", 0.5), "examples.parquet", "row 0"),
    ("examples", swap(0, 1), "examples.parquet", "row 0"),
    ("histograms", set_cell(2, "count", 10**6), "histograms.parquet", r"row \d+ \(feature=0"),
    ("histograms", set_cell(2, "low", 1e9), "histograms.parquet", "row 2"),
    ("neighbours", set_cell(6, "neighbour", 1), "neighbours.parquet", "row 6"),
    ("neighbours", set_cell(5, "cosine", 1.5), "neighbours.parquet", "row 5"),
    ("logit_ids", set_cell(8, "token_id", 10**6), "logit_ids.parquet", "row 8"),
    ("normed_logit_ids", set_cell(8, "logit", float("nan")), "normed_logit_ids.parquet", "row 8"),
    ("encoder_neighbours", set_cell(6, "neighbour", 1), "encoder_neighbours.parquet", "row 6"),
    (
        "coactivations",
        set_cell(4, "neighbour", 95),
        "coactivations.parquet",
        r"row 4 \(feature=0, rank=4, neighbour=95",
    ),
    ("coactivations", set_cell(4, "jaccard", 1.5), "coactivations.parquet", "row 4"),
    ("coactivations", swap(2, 3), "coactivations.parquet", "row 2"),
    ("coactivations", set_cell(0, "count", 0), "coactivations.parquet", "row 0"),
    ("position_profiles", set_cell(2, "count", 0), "position_profiles.parquet", r"row \d+ \(feature=0"),
    ("position_profiles", set_cell(2, "tokens", 1), "position_profiles.parquet", "row 2"),
    ("position_profiles", swap(1, 2), "position_profiles.parquet", "row 2"),
    ("boundaries", set_cell(3, "share", 0.9), "boundaries.parquet", "row 3"),
    ("boundaries", lambda rows: rows.pop(5), "boundaries.parquet", "row 4"),
    ("feature_tokens", set_cell(1, "mass", 2.0), "feature_tokens.parquet", "row 1"),
    ("token_ids", set_cell(9, "position", 100), "token_ids.parquet", "row 9 .*does not follow"),
    ("token_ids", set_cell(9, "is_indexed", False), "token_ids.parquet", "indexed ones, recorded are"),
    ("documents", set_cell(1, "n_tokens", 1), "token_ids.parquet", "documents.parquet row 1: n_tokens=1"),
    ("documents", set_cell(1, "first_token", 1), "token_ids.parquet", "documents.parquet row 1: first_token=1"),
    ("vocabulary", set_cell(3, "count", 77), "token_ids.parquet", "vocabulary.parquet row 3: count=77"),
    ("vocabulary", swap(3, 4), "vocabulary.parquet", "row 3"),
]


@pytest.mark.parametrize(("table", "how", "file", "where"), CHANGES)
def test_one_changed_row_is_named_though_the_hashes_hold(
    copied: Path, table: str, how: Callable[[list[dict[str, Any]]], None], file: str, where: str
) -> None:
    import re

    change(copied, table, how)
    found = broken(copied)
    assert not [check for check in found if check.promise == "size and hash as recorded"]
    assert [check for check in found if check.file == file and re.search(where, check.broken)], found


def test_events_in_the_order_of_the_text_that_disagree_with_the_table_are_named(copied: Path) -> None:
    info = read_manifest(copied)
    build = copied / info["build"]
    pieces = list(TextEvents(build / "text_events").all())
    strongest = int(np.argmax(np.abs(pieces[0].activations)))
    with TextEventsWriter(build, info["n_tokens"]) as writer:
        for number, piece in enumerate(pieces):
            values = piece.activations.copy()
            if number == 0:
                values[strongest] *= 2
            writer.take(piece._replace(activations=values))
    write_json(copied / MANIFEST, info | {"files": describe_files(build)})
    (check,) = broken(copied)
    assert check.file == "text_events"
    assert check.broken.startswith(f"feature {pieces[0].features[strongest]} has max_activation ")


def test_neighbours_that_disagree_are_named(copied: Path) -> None:
    rows = Dictionary.open(copied).sql("from neighbours").to_pylist()
    pairs = {(row["feature"], row["neighbour"]) for row in rows}
    at = next(i for i, row in enumerate(rows) if row["rank"] == 0 and (row["neighbour"], row["feature"]) in pairs)
    change(copied, "neighbours", set_cell(at, "cosine", 0.999))
    assert [check.promise for check in broken(copied)] == ["a pair has one cosine, seen from both sides"]


def test_pairs_that_disagree_are_named(copied: Path) -> None:
    rows = Dictionary.open(copied).sql("from coactivations").to_pylist()
    pairs = {(row["feature"], row["neighbour"]) for row in rows}
    at = next(i for i, row in enumerate(rows) if (row["neighbour"], row["feature"]) in pairs)
    change(copied, "coactivations", set_cell(at, "count", rows[at]["count"] + 1))
    assert [check.promise for check in broken(copied)] == ["a pair has one count, seen from both sides"]


def test_a_build_of_an_earlier_version_shows_later_tables_empty_and_passes(copied: Path) -> None:
    info = read_manifest(copied)
    for table in schema.OPTIONAL:
        (copied / info["build"] / f"{table}.parquet").unlink()
    write_json(copied / MANIFEST, info | {"files": describe_files(copied / info["build"])})
    opened = Dictionary.open(copied)
    assert verification.verify(copied).ok
    for table in schema.OPTIONAL:
        names = [column.name for column in schema.TABLES[table].columns]
        assert opened.sql(f"from {table}").column_names == names
    assert opened.sql("from normed_logits").num_rows == 0
    feature = opened.feature(3)
    assert feature.neighbours
    assert (feature.coactivations, feature.positions, feature.top_normed_logits) == ([], [], [])
    opened.close()


def test_labels_that_cannot_be_read_or_name_nothing_are_found(copied: Path) -> None:
    opened = Dictionary.open(copied)
    opened.add_label(3, "mine")
    opened.close()
    with duckdb.connect(str(copied / LABELS)) as connection:
        connection.execute("insert into labels values (999, 'x', 'y', 'z')")
    assert [(check.file, check.broken) for check in broken(copied)] == [
        (LABELS, "table labels row 1 names feature 999, the dictionary has 96")
    ]
    (copied / LABELS).write_bytes(b"no database" * 1000)
    found = broken(copied)
    assert [check.file for check in found] == [LABELS]
    assert "cannot be read" in found[0].broken


def test_a_folder_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no dictionary"):
        verification.verify(tmp_path)
