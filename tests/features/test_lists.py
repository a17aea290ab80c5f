"""Labels and lists of people: who, when and why is kept; what removes says what; several programs write at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from features import Dictionary, verification
from features.lists import Lists
from features.store import LABELS

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '<script>alert(1)</script> \'; drop table lists; -- \0 \n \u202e "q"'


@pytest.fixture
def opened(copied: Path) -> Any:
    dictionary = Dictionary.open(copied)
    yield dictionary
    dictionary.close()


def test_a_list_keeps_who_put_what_on_it_when_and_why(opened: Dictionary) -> None:
    made = opened.lists.create("to check", note="before Friday", author="ann")
    assert (made.author, made.note, made.features) == ("ann", "before Friday", [])
    assert opened.add_to_list("to check", [5, 3, 5], author="bob", note="odd") == [5, 3]
    assert opened.add_to_list("to check", [3, 9], author="ann") == [9]
    opened.add_to_list("to check", [3], author="ann", note="still odd")
    found = opened.lists.get("to check")
    assert found.features == [5, 3, 9]
    assert [(e.feature, e.author, e.note) for e in found.entries] == [
        (5, "bob", "odd"), (3, "bob", "odd"), (9, "ann", None), (3, "ann", "still odd"),
    ]  # fmt: skip
    assert all(entry.time.endswith("+00:00") for entry in found.entries)


def test_lists_are_renamed_and_what_removes_says_what(opened: Dictionary) -> None:
    opened.add_to_list("a", [1, 2, 3], author="ann", note="n")
    opened.lists.rename("a", "b")
    assert [known.name for known in opened.lists.all()] == ["b"]
    removed = opened.lists.remove("b", [2])
    assert [(entry.feature, entry.author, entry.note) for entry in removed] == [(2, "ann", "n")]
    with pytest.raises(ValueError, match="feature 2 is not on the list 'b'.*nothing was removed"):
        opened.lists.remove("b", [1, 2])
    assert opened.lists.get("b").features == [1, 3]
    opened.lists.remove("b", [1, 3])
    assert opened.lists.get("b").author == "ann"  # an empty list is still a list
    opened.add_to_list("b", [7])
    assert opened.lists.delete("b").features == [7]
    assert opened.lists.all() == []


def test_a_wrong_name_is_refused_and_the_nearest_is_named(opened: Dictionary) -> None:
    with pytest.raises(ValueError, match="no list yet"):
        opened.lists.get("a")
    opened.add_to_list("bookmarks", [1])
    opened.add_to_list("other", [1])
    for call in (
        lambda: opened.lists.get("bookmark"),
        lambda: opened.lists.delete("bookmark"),
        lambda: opened.lists.remove("bookmark", [1]),
        lambda: opened.lists.rename("bookmark", "x"),
    ):
        with pytest.raises(ValueError, match="there is no list 'bookmark'.*did you mean 'bookmarks'"):
            call()
    with pytest.raises(ValueError, match="a list 'other' already"):
        opened.lists.rename("bookmarks", "other")
    with pytest.raises(ValueError, match="a list 'other' already"):
        opened.lists.create("other")
    with pytest.raises(ValueError, match="has no name"):
        opened.lists.create("  ")
    with pytest.raises(ValueError, match="does not exist"):
        opened.add_to_list("other", [10_000])


def test_hostile_names_notes_and_authors_stay_text(opened: Dictionary) -> None:
    opened.add_to_list(HOSTILE, [1], author=HOSTILE, note=HOSTILE)
    opened.add_label(1, HOSTILE + "\ud800", author=HOSTILE)
    found = opened.lists.get(HOSTILE)
    assert (found.entries[0].author, found.entries[0].note) == (HOSTILE, HOSTILE)
    assert opened.feature(1).explanation == HOSTILE + "\\ud800"  # half a character has no UTF-8
    assert opened.lists.delete(HOSTILE).name == HOSTILE


def test_a_label_is_removed_only_by_name_of_its_author_and_is_told(opened: Dictionary) -> None:
    from features import labels

    opened.add_label(3, "one", author="ann")
    opened.add_label(3, "two", author="ann")
    opened.add_label(3, "three", author="bob")
    assert [label.text for label in labels.labels_of(opened.store, 3)] == ["three", "two", "one"]
    with pytest.raises(ValueError, match="has no label by 'carl'"):
        opened.remove_labels(3, author="carl")
    assert [label.text for label in opened.remove_labels(3, author="ann")] == ["one", "two"]
    assert opened.feature(3).explanation == "three"


def test_the_newest_label_is_shown_whenever_it_was_brought_in(opened: Dictionary) -> None:
    from features.labels import table

    opened.add_label(3, "today")
    old = {"feature": 3, "text": "of 2020", "author": "ann", "created": "2020-01-01T00:00:00+00:00"}
    opened.store.write_labels("labels", table("labels", [old]))
    assert opened.feature(3).explanation == "today"
    assert opened.explanations_of([3]) == {3: "today"}
    assert opened.search("of 2020")[0].explanation == "today"


def test_a_labels_database_of_an_earlier_version_is_taken_over(opened: Dictionary) -> None:
    with duckdb.connect(str(opened.path / LABELS)) as connection:
        connection.execute("create table lists (list varchar, feature integer, author varchar, created varchar)")
        connection.execute("insert into lists values ('old', 4, 'ann', '2024-01-01T00:00:00+00:00')")
    assert opened.lists.get("old").author == "ann"
    opened.lists.remove("old", [4])
    assert opened.lists.get("old").entries == []
    assert verification.verify(opened.path).ok


def writer(folder: Path, author: str, count: int, script: Path) -> subprocess.Popen[str]:
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path; from features.lists import Lists; from features.store import Store\n"
        "from features.labels import add_label\n"
        f"store = Store(Path({str(folder)!r}))\n"
        f"for i in range({count}):\n"
        f"    add_label(store, i % 9, f'text {{i}}', {author!r})\n"
        f"    Lists(store).add('both', [i % 40], f'note {{i}}', {author!r})\n"
        "    print(i, flush=True)\n"
    )
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)


def test_two_programs_that_write_at_once_both_succeed(copied: Path, tmp_path: Path) -> None:
    (copied / LABELS).unlink(missing_ok=True)  # they also make the database at once
    programs = [writer(copied, name, 12, tmp_path / f"{name}.py") for name in ("ann", "bob")]
    assert [(program.communicate(timeout=120), program.returncode)[1] for program in programs] == [0, 0]
    opened = Dictionary.open(copied)
    for author in ("ann", "bob"):
        for name in ("labels", "lists"):
            rows = opened.sql(f"select count(*) as n from {name} where author = '{author}'")
            assert rows["n"][0].as_py() == 12
    assert len(opened.lists.all()) == 1


def test_nothing_acknowledged_is_lost_when_a_writer_is_killed(copied: Path, tmp_path: Path) -> None:
    reader = Dictionary.open(copied)
    assert reader.sql("select count(*) as n from labels")["n"][0].as_py() == 0
    program = writer(copied, "ann", 10_000, tmp_path / "ann.py")
    assert program.stdout is not None
    for _ in range(5):
        program.stdout.readline()
    time.sleep(0.013)
    program.send_signal(signal.SIGKILL)
    acknowledged = 5 + len(program.communicate()[0].splitlines())
    for name in ("labels", "lists"):
        kept = reader.sql(f"select count(*) as n from {name}")["n"][0].as_py()
        assert acknowledged <= kept <= acknowledged + 1
    reader.add_label(1, "after it", author="bob")
    assert reader.feature(1).explanation == "after it"


def test_a_commit_that_only_the_log_holds_is_seen_by_an_open_reader(copied: Path) -> None:
    reader = Dictionary.open(copied)
    reader.add_label(2, "before")
    assert reader.feature(2).explanation == "before"
    code = (
        f"import duckdb, os; c = duckdb.connect({str(copied / LABELS)!r});"
        "c.execute(\"set checkpoint_threshold='1GB'\");"
        "c.execute(\"insert into labels values (2, 'in the log', 'ann', '2999-01-01T00:00:00+00:00')\");"
        f"os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert os.path.exists(copied / f"{LABELS}.wal")
    assert reader.feature(2).explanation == "in the log"


def test_a_database_that_is_held_too_long_is_an_error_that_says_so(copied: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("features.store.LOCK_WAIT_S", 0.2)
    opened = Dictionary.open(copied)
    opened.add_label(1, "mine")
    code = f"import duckdb, sys; c = duckdb.connect({str(copied / LABELS)!r}); print(1, flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(OSError, match=r"could not be opened.*lock.*end the program that holds it"):
        Lists(opened.store).add("a", [1])
    holder.communicate()
    code = (
        f"import fcntl, sys; file = open({str(copied / LABELS) + '.lock'!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print(1, flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(OSError, match=r"could not be opened \(another program has held its lock for 0.2 s\)"):
        Lists(opened.store).add("a", [1])
    holder.communicate()
    assert Lists(opened.store).add("a", [1]) == [1]
