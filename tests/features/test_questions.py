"""SQL from people: it asks and does nothing else, for everybody at once, and text stays text."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from features import Dictionary, questions
from features.schema import SHOWN, VIEWS
from features.store import LABELS, MANIFEST
from ui import cli

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    '<img src=x onerror=alert(1)> \x1b[31mred\x1b[2J \'; drop table labels; -- "q" \u202etfel \u0085 [bold]b[/bold]'
)


def test_every_documented_table_answers_with_its_columns_and_types(dictionary: Dictionary) -> None:
    for name, table in SHOWN.items():
        described = dictionary.sql(f'describe "{name}"').to_pylist()
        assert [(row["column_name"], row["column_type"]) for row in described] == [
            (column.name, column.sql_type) for column in table.columns
        ]
        assert dictionary.sql(f'select * from "{name}" limit 1').column_names == [c.name for c in table.columns]
    assert set(VIEWS) < set(SHOWN)
    listed = {row["name"] for row in dictionary.sql("show tables").to_pylist()}
    assert listed == set(SHOWN)


ATTACKS = [
    "create table x as select 1",
    "create view x as select 1",
    "create macro x() as 1",
    "create secret x (type s3)",
    "create temp table x as select 1",
    "create type x as int",
    "create schema x",
    "create sequence x",
    "insert into labels values (1, 'x', 'y', 'z')",
    "delete from labels",
    "drop view features",
    "update labels set text = 'x'",
    "alter table labels add column x int",
    "truncate labels",
    "merge into labels using features on true when matched then delete",
    "comment on view features is 'x'",
    "with x as (insert into labels values (1, 'a', 'b', 'c') returning *) select * from x",
    "with x as (delete from labels returning *) select * from x",
    "with x as (update labels set text = 'x' returning *) from x",
    "copy (select 1) to 'x.csv'",
    "copy (select 1) to '{outside}/x.csv'",
    "copy features to '{build}/x.parquet'",
    "copy labels from '{build}/x.parquet'",
    "copy from database views to memory",
    "attach 'x.db'",
    "attach '{build}/x.db' as other",
    "attach '{labels}' as people",
    "attach ':memory:' as m",
    "detach views",
    "use memory",
    "install httpfs",
    "force install httpfs from community",
    "load httpfs",
    "load '{build}/events.parquet'",
    "update extensions",
    "set enable_external_access = true",
    "set global temp_directory = '{build}'",
    "set variable x = 1",
    "reset lock_configuration",
    "pragma database_list",
    "pragma enable_profiling",
    "pragma export_database('{build}/x')",
    "export database '{build}/x'",
    "import database '{build}'",
    "explain analyze select 1",
    "explain (analyze) select 1",
    "explain (analyze, format json) select 1",
    "explain /* x */ analyze with x as (insert into labels values (1, 'a', 'b', 'c') returning *) select * from x",
    "explain insert into labels values (1, 'a', 'b', 'c')",
    "explain copy (select 1) to '{build}/x.csv'",
    "select 1; select 2",
    "select 1; drop view features",
    "prepare x as select 1",
    "execute x",
    "begin",
    "commit",
    "vacuum",
    "analyze",
    "checkpoint",
    "call pragma_version()",
    "call enable_logging()",
    "",
    "-- only a comment",
    "select * from read_text('/etc/hostname')",
    "select * from '/etc/passwd'",
    "from read_csv('{outside}/secret.csv')",
    "from '{outside}/secret.csv'",
    "select * from read_csv('{build}/../../secret.csv')",
    "select * from read_csv('{build}/./../../secret.csv')",
    "select * from read_csv(['{build}/../../secret.csv'])",
    "select * from read_json('{build}/../{manifest}')",
    "select * from read_blob('{build}/../{manifest}')",
    "select * from read_parquet('file://{outside}/secret.parquet')",
    "select * from sniff_csv('{outside}/secret.csv')",
    "select * from parquet_schema('{outside}/secret.parquet')",
    "select * from read_csv('{link}')",
    "select * from read_duckdb('{labels}', table_name = 'labels')",
    "select * from glob('/etc/*')",
    "select * from glob('{outside}/*')",
    "select * from query('select * from read_text(''/etc/hostname'')')",
    "select * from json_execute_serialized_sql(json_serialize_sql('from read_text(''/etc/hostname'')'))",
    "select * from 'https://example.org/x.csv'",
    "select * from read_csv('s3://bucket/x.csv')",
    "select getenv('HOME')",
    "select nothing from features",
    "select $x",
    "selec",
    "select " + "(" * 20_000,
    "select '\ud800'",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_sql_refuses_all_but_questions_in_one_line(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Dictionary.open(copied)
    opened.add_label(1, "mine", author="ann")
    outside, build = copied.parent, opened.store.build
    (outside / "secret.csv").write_text("secret\ntr3asure\n")
    pq.write_table(opened.sql("select 1 as secret"), outside / "secret.parquet")
    monkeypatch.chdir(outside)
    link = build / "link.csv"
    link.symlink_to(outside / "secret.csv")
    before = contents(outside)
    places = {"build": build, "outside": outside, "manifest": MANIFEST, "labels": copied / LABELS, "link": link}
    for attack in ATTACKS:
        query = attack
        for key, value in places.items():
            query = query.replace("{" + key + "}", str(value))
        with pytest.raises(ValueError, match="expected exactly one SELECT") as refusal:
            pytest.fail(f"answered {query}: {opened.sql(query).to_pylist()}")
        assert "\n" not in str(refusal.value)
        assert "tr3asure" not in str(refusal.value)
    assert contents(outside) == before
    assert opened.sql("select count(*) as n from features")["n"][0].as_py() == 96
    assert opened.sql("select text from labels")["text"].to_pylist() == ["mine"]
    opened.close()


@pytest.mark.parametrize(
    "query",
    [
        "select 1;",
        "with x as (select 1 as n) select n from x",
        "from features select feature limit 1",
        "values (1)",
        "describe features",
        "summarize select density from features",
        "show tables",
        "explain select * from events",
        "-- why\n/* é */ explain -- analyze\n select 'é'",
    ],
)
def test_every_kind_of_question_is_answered(dictionary: Dictionary, query: str) -> None:
    assert dictionary.sql(query).num_rows > 0


def test_sql_does_not_see_the_programs_variables(dictionary: Dictionary) -> None:
    secret = dictionary.sql("select 1 as one")
    assert secret.num_rows == 1
    with pytest.raises(ValueError, match="secret"):
        dictionary.sql("select * from secret")
    assert dictionary.sql("from duckdb_secrets()").num_rows == 0


def test_columns_of_one_name_are_told_apart(dictionary: Dictionary) -> None:
    assert dictionary.sql("select 1 as a, 2 as a, 3 as a_2, 4 as a").to_pylist() == [
        {"a": 1, "a_2": 2, "a_2_2": 3, "a_3": 4}
    ]


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) from range(1000000000) a, range(100000) b where a.range * b.range % 7 = 3",
        "select a.range from range(1000000000) a, range(100000) b",
    ],
)
def test_a_query_that_runs_away_is_stopped(dictionary: Dictionary, query: str) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"stopped after 0\.3 s, expected an answer within"):
        dictionary.sql(query, timeout_s=0.3)
    assert time.perf_counter() - started < 5
    assert dictionary.sql("select 1 as n", timeout_s=None).num_rows == 1
    with pytest.raises(ValueError, match="expected seconds above 0"):
        dictionary.sql("select 1", timeout_s=0)


def test_an_answer_that_would_fill_the_memory_is_stopped(dictionary: Dictionary, monkeypatch: Any) -> None:
    monkeypatch.setattr(questions, "ANSWER_BYTES", 3 << 20)
    with pytest.raises(ValueError, match="larger than 3 MiB, expected less"):
        dictionary.sql("from range(10000000000)")
    assert dictionary.sql("from range(300000)").num_rows == 300_000


@pytest.mark.slow
def test_a_hundred_readers_get_right_answers_while_labels_are_written(copied: Path) -> None:
    opened = Dictionary.open(copied)
    writer = Dictionary.open(copied)
    expected = {
        feature: opened.sql(
            f"select count(*) as n, sum(activation) as s from events where feature = {feature}"
        ).to_pylist()
        for feature in range(10)
    }
    written, stop = [0], threading.Event()
    start = threading.Barrier(101)

    def write() -> None:
        start.wait()
        while not stop.is_set():
            writer.add_label(written[0] % 90, f"label {written[0]}", author="writer")
            written[0] += 1
            stop.wait(0.3)

    def read(reader: int) -> int:
        start.wait()
        seen = 0
        for turn in range(2):
            feature = (reader + turn) % 10
            answer = opened.sql(f"select count(*) as n, sum(activation) as s from events where feature = {feature}")
            assert answer.to_pylist() == expected[feature]
            texts = opened.sql("select text from labels order by rowid")["text"].to_pylist()
            assert texts == [f"label {number}" for number in range(len(texts))]
            assert len(texts) >= seen
            seen = len(texts)
        return seen

    background = threading.Thread(target=write)
    background.start()
    with ThreadPoolExecutor(100) as pool:
        seen = list(pool.map(read, range(100)))
    stop.set()
    background.join()
    assert len(seen) == 100
    assert max(seen) <= written[0]
    assert opened.sql("select count(*) as n from labels")["n"][0].as_py() == written[0] > 0


@pytest.mark.slow
def test_several_processes_read_right_answers_while_another_writes(copied: Path, tmp_path: Path) -> None:
    script = tmp_path / "reader.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from features import Dictionary\n"
        f"d = Dictionary.open({str(copied)!r})\n"
        "seen = 0\n"
        "while seen < 8:\n"
        "    n = d.sql('select (select sum(count) from features) as a, (select count(*) from events) b').to_pylist()\n"
        "    assert n[0]['a'] == n[0]['b'] > 0\n"
        "    texts = d.sql('select text from labels order by rowid')['text'].to_pylist()\n"
        "    assert texts == [f'label {i}' for i in range(len(texts))] and len(texts) >= seen\n"
        "    seen = len(texts)\n"
    )
    writer = Dictionary.open(copied)
    readers = [subprocess.Popen([sys.executable, script]) for _ in range(3)]
    written = 0
    while any(reader.poll() is None for reader in readers) or written < 8:
        writer.add_label(written % 90, f"label {written}")
        written += 1
        time.sleep(0.05)
    assert [reader.returncode for reader in readers] == [0, 0, 0]


def test_hostile_text_comes_back_as_text(copied: Path) -> None:
    opened = Dictionary.open(copied)
    opened.add_label(2, HOSTILE, author="\x1b[1meve")
    assert opened.sql("select text from labels")["text"].to_pylist() == [HOSTILE]
    quoted = HOSTILE.replace("'", "''")
    assert opened.sql(f"select '{quoted}' as t, feature from labels where text = '{quoted}'").to_pylist() == [
        {"t": HOSTILE, "feature": 2}
    ]
    assert opened.sql("select 'a\0b' as t")["t"].to_pylist() == ["a\0b"]
    assert opened.search("'; drop")[0].feature == 2
    tokens = "".join(opened.sql("select token from tokens order by document, position")["token"].to_pylist())
    assert "<img src=x onerror=alert(1)>" in tokens
    opened.close()


def test_the_terminal_shows_hostile_text_and_does_not_obey_it(
    copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    opened = Dictionary.open(copied)
    opened.add_label(2, HOSTILE)
    opened.close()
    assert cli.run(["sql", str(copied), 'select text as "[red]head[/red]\x1b[2J" from labels']) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\x85" not in shown
    assert "[red]head[/red]\\x1b[2J" in shown
    assert "<img src=x onerror=alert(1)> \\x1b[31mred" in shown
    assert "[bold]b[/bold]" in shown
    assert cli.run(["sql", str(copied), 'select "\x1b[2J\u202e"']) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "\x1b" not in error
    assert "\u202e" not in error
    out = tmp_path / "answer"
    assert cli.run(["sql", str(copied), "select text from labels", "--format", "json", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == [{"text": HOSTILE}]


def test_the_command_cuts_stops_and_writes(built: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    query = "select feature from features order by feature"
    assert cli.run(["sql", str(built), query, "--limit", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split() == ["feature", "0", "1", "2"]
    assert "96 rows, 3 shown" in captured.err
    out = tmp_path / "f.parquet"
    assert cli.run(["sql", str(built), query, "--format", "parquet", "--out", str(out)]) == 0
    assert pq.read_table(out)["feature"].to_pylist() == list(range(96))
    endless = "select count(*) from range(1000000000) a, range(100000) b where a.range * b.range % 7 = 3"
    assert cli.run(["sql", str(built), endless, "--timeout", "0.2"]) == 1
    assert "stopped after 0.2 s" in capsys.readouterr().err
    nan = "select 'nan'::double as a, [1.5, 'inf'::double] as b"
    assert cli.run(["sql", str(built), nan, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"a": None, "b": [1.5, None]}]
    assert cli.run(["sql", str(built), "select date '5000000-01-01'"]) == 1
    assert "expected years 1 to 9999" in capsys.readouterr().err
