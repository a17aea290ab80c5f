"""Exports and imports: what goes out comes back word for word, and nothing is half taken."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from features import Dictionary, schema
from features.labels import table
from features.sharing import documents, flat_tables
from features.sharing.imports import import_files
from features.sharing.reading import read_features, select_features
from features.store import LABELS, MANIFEST
from ui import cli

HOSTILE = '<script>alert(1)</script> \'; drop table labels; --, "q"\r\n\0 \u202e ${x} `tick` =1+1'
PEOPLE = ("labels", "explanations", "scores", "lists", "list_names")


@pytest.fixture
def said(copied: Path) -> Any:
    """A dictionary about which people and methods have said things, hostile ones too."""
    opened = Dictionary.open(copied)
    for feature, text, author in ((3, "first", "ann"), (3, HOSTILE, "bob"), (5, "five\ud800", HOSTILE)):
        opened.add_label(feature, text, author)
    opened.add_to_list(HOSTILE, [3, 9, 5], author="ann", note=HOSTILE)
    opened.add_to_list("second", [9], author="bob")
    opened.lists.create("empty", note="for later", author="bob")
    when = "2025-05-05T05:05:05+00:00"
    row = {"feature": 3, "method": "token-statistics", "author": "glassbox", "created": when}
    rows = [row | {"text": HOSTILE, "score": 0.1 + 0.2, "rule": '{"a": 1}'}, row | {"feature": 9, "text": "nine"}]
    opened.store.write_labels("explanations", table("explanations", rows))
    score = {"scorer": "detection", "score": 1 / 3, "n": 50}
    opened.store.write_labels("scores", table("scores", [row | score]))
    yield opened
    opened.close()


@pytest.fixture
def empty(built: Path, tmp_path: Path) -> Any:
    """Another copy of the same dictionary, about which nobody has said anything."""
    opened = Dictionary.open(shutil.copytree(built, tmp_path / "empty"))
    yield opened
    opened.close()


def words(dictionary: Dictionary) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that was said, order aside."""
    rows = {name: dictionary.store.query(f"select * from {name}").to_pylist() for name in PEOPLE}
    return {name: sorted((tuple(row.values()) for row in found), key=repr) for name, found in rows.items()}


def test_many_features_are_read_as_one_by_one(said: Dictionary) -> None:
    chosen = [3, 4, 5, 95, 9]
    assert list(read_features(said, chosen)) == [said.feature(feature) for feature in chosen]
    assert list(read_features(said, [7], 2, 1)) == [said.feature(7, 2, 1)]


def test_what_to_share_is_chosen_by_number_list_or_not_at_all(said: Dictionary) -> None:
    assert select_features(said, [5, 3, 5]) == [5, 3]
    assert select_features(said, name=HOSTILE) == [3, 9, 5]
    assert select_features(said) == list(range(96))
    with pytest.raises(ValueError, match="were both given"):
        select_features(said, [1], "second")
    with pytest.raises(ValueError, match="the list 'empty' is empty"):
        select_features(said, name="empty")
    with pytest.raises(ValueError, match="does not exist"):
        select_features(said, [96])


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_an_export_brings_everything_said_into_an_empty_copy(
    kind: str, said: Dictionary, empty: Dictionary, tmp_path: Path
) -> None:
    out = tmp_path / ("out.json" if kind == "json" else "tables")
    everything = list(range(said.n_features))
    if kind == "json":
        documents.write_json(said, everything, out)
    else:
        flat_tables.write_flat(said, everything, out, kind)
    report = import_files(empty, [out])
    assert report.added == {"explanations": 2, "scores": 1, "labels": 3, "lists": 4, "list_names": 3}
    assert words(empty) == words(said)
    assert empty.feature(3).explanations == said.feature(3).explanations
    assert empty.lists.all() == said.lists.all()
    again = import_files(empty, [out])
    assert sum(again.added.values()) == 0
    assert again.known == sum(report.added.values())


def test_the_document_holds_features_as_documented(said: Dictionary, tmp_path: Path) -> None:
    path = documents.write_json(said, [3, 9], tmp_path / "new folder" / "some.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["format"], content["version"]) == ("glassbox-features", 1)
    assert [row["feature"] for row in content["features"]] == [3, 9]
    feature, got = said.feature(3), content["features"][0]
    assert got["count"] == feature.count
    assert got["max_activation"] == pytest.approx(feature.max_activation, rel=1e-7)
    assert [e["tokens"] for e in got["examples"]] == [e.tokens for e in feature.examples]
    assert [e["activations"] for e in got["examples"]] == [pytest.approx(e.activations) for e in feature.examples]
    assert [(e["token"], e["logit"]) for e in got["top_logits"]] == [
        (t, pytest.approx(x)) for t, _, x in feature.top_logits
    ]
    assert [n["feature"] for n in got["neighbours"]] == [n for n, _ in feature.neighbours]
    assert got["histogram"]["counts"] == feature.histogram.counts
    assert {row["text"] for row in content["labels"]} == {"first", HOSTILE}
    assert {row["list"] for row in content["list_names"]} == {HOSTILE, "second"}
    listed = json.loads(documents.write_json(said, [9], tmp_path / "list.json", "second").read_text())
    assert [row["list"] for row in listed["lists"]] == ["second"]


def test_flat_tables_have_one_row_a_feature_and_hostile_text_as_it_is(said: Dictionary, tmp_path: Path) -> None:
    path = flat_tables.write_flat(said, [3, 5], tmp_path / "some.csv", "csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["feature"] for row in rows] == ["3", "5"]
    assert rows[0]["label"] == HOSTILE
    assert json.loads(rows[0]["promotes"]) == [entry.token for entry in said.feature(3).top_logits]
    assert rows[0]["strongest_example"] == said.feature(3).examples[0].text
    whole = pq.ParquetFile(flat_tables.write_flat(said, [3, 5], tmp_path / "some.parquet", "parquet")).read()
    assert whole["label"].to_pylist()[0] == HOSTILE
    assert whole["lists"].to_pylist() == [[HOSTILE], [HOSTILE]]
    tables = flat_tables.flat_tables(said, [5, 3])
    assert tables["examples"].num_rows == sum(len(said.feature(f).examples) for f in (5, 3))
    assert tables["logits"]["feature"].to_pylist()[:8] == [5] * 8
    with pytest.raises(FileExistsError, match="exists already"):
        flat_tables.write_flat(said, [3], tmp_path, "csv")


def test_a_spreadsheet_of_labels_gets_author_and_time_from_who_imports(empty: Dictionary, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("feature,label\n3,one\n4,\n5,=cmd\n", encoding="utf-8")
    assert import_files(empty, [path], author="ann").added["labels"] == 2
    label = empty.feature(5).explanations[0]
    assert (label.text, label.author) == ("=cmd", "ann")
    assert import_files(empty, [path], author="ann").known == 2


def test_what_stands_there_stays_beside_what_comes(said: Dictionary, empty: Dictionary, tmp_path: Path) -> None:
    empty.add_label(3, "my own", author="carl")
    empty.lists.create("second", author="carl")
    import_files(empty, [documents.write_json(said, list(range(96)), tmp_path / "all.json")])
    assert {e.text for e in empty.feature(3).explanations if e.method == "label"} == {"my own", "first", HOSTILE}
    assert empty.lists.get("second").features == [9]


def broken_documents(whole: str) -> dict[str, tuple[str, str]]:
    """Damaged exports by name, with what the refusal says."""
    content = json.loads(whole)
    other = json.loads(whole)
    other["dictionary"]["identity"]["sae"] = "f" * 64
    far, timeless, foreign = (json.loads(whole) for _ in range(3))
    far["labels"][1]["feature"] = 96
    timeless["labels"][1]["created"] = "yesterday"
    foreign["version"] = 2
    del content["lists"]
    return {
        "cut.json": (whole[: len(whole) // 2], "cut short or no JSON"),
        "lacking.json": (json.dumps(content), "is damaged"),
        "other.json": (json.dumps(other), "is of another SAE.*--any-sae"),
        "far.json": (json.dumps(far), "feature 96 does not exist.*nothing was imported"),
        "timeless.json": (json.dumps(timeless), "cannot be taken"),
        "version.json": (json.dumps(foreign), "version 2, expected 1"),
        "else.json": ('{"a": 1}', "of no known kind"),
        "empty.json": ("", "cut short or no JSON"),
        "columns.csv": ("number,words\n1,a\n", "has the columns number, words, expected"),
        "cut.csv": ('feature,text\n3,"half', "no whole CSV"),
        "short.csv": ("feature,text,author\n3,one,ann\n4,tw\n", "another number of cells"),
        "nan.csv": ("feature,method,text,score\n3,m,t,nan\n", "score is 'nan'"),
        "bad.parquet": ("PAR1", "no whole Parquet"),
    }


def test_damaged_and_foreign_files_are_refused_in_one_line_and_nothing_is_taken(
    said: Dictionary, empty: Dictionary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = documents.write_json(said, list(range(96)), tmp_path / "whole.json")
    for name, (text, message) in broken_documents(whole.read_text(encoding="utf-8")).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message) as refused:
            import_files(empty, [whole, tmp_path / name])
        assert "\n" not in str(refused.value)
    assert all(not rows for rows in words(empty).values())
    with pytest.raises(FileNotFoundError, match="nowhere.json does not exist"):
        import_files(empty, [tmp_path / "nowhere.json"])
    assert import_files(empty, [tmp_path / "other.json"], any_sae=True).added["labels"] == 3
    capsys.readouterr()
    assert cli.run(["dict", "import", str(empty.path), str(tmp_path / "cut.json")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_command_shares_and_takes(
    said: Dictionary, empty: Dictionary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, other = str(said.path), str(empty.path)

    def run(*arguments: str) -> str:
        assert cli.run(["dict", *arguments]) == 0
        return capsys.readouterr().out

    assert "2 new on the list 'bookmarks', which has 2" in run("list", "add", folder, "1", "2", "--note", "odd")
    assert "bookmarks" in run("list", "show", folder)
    assert "odd" in run("list", "show", folder, "bookmarks")
    assert json.loads(run("list", "show", folder, "bookmarks", "--json"))["entries"][0]["feature"] == 1
    run("list", "rename", folder, "bookmarks", "kept")
    assert "odd" in run("list", "remove", folder, "2", "--list", "kept")
    run("list", "create", folder, "new", "--note", "n")
    assert "Deleted the list new" in run("list", "delete", folder, "new")
    assert "first" in run("label", folder, "3")
    assert "mine" in run("label", folder, "8", "mine", "--author", "ann")
    assert "mine" in run("label", folder, "8", "--remove", "--author", "ann")
    for arguments in (
        ("--format", "json", "--out", str(tmp_path / "a.json")),
        ("--format", "csv", "--out", str(tmp_path / "csv")),
        ("--format", "html", "--features", "3,5", "--out", str(tmp_path / "two.html")),
        ("--format", "html", "--list", "kept", "--out", str(tmp_path / "pages")),
        ("--format", "neuronpedia", "--list", "kept", "--model-id", "tiny", "--out", str(tmp_path / "np")),
    ):
        assert "features: " in run("export", folder, *arguments)
    assert "labels" in run("import", other, str(tmp_path / "a.json"))
    assert "Nothing new" in run("import", other, str(tmp_path / "csv"))
    for arguments in (
        ("--format", "xml", "--out", "x"),
        ("--features", "a,b", "--out", "x.html"),
        ("--list", "none", "--out", "x.html"),
        ("--out", str(said.path)),
    ):
        assert cli.run(["dict", "export", folder, *arguments]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_label_table_is_shared() -> None:
    shared = {table.name for table in schema.PEOPLE} - {"feature_map"}  # the map is made, not said
    assert set(PEOPLE) == shared
    assert MANIFEST
    assert LABELS
