"""The dictionary folder: what is in it, when it counts as whole, and the only way that queries reach it.

Enters: a folder

    dictionary.json     names the current build; replaced in one step when a build is complete
    build-<name>/       immutable: Parquet tables, the SAE, the sizes and hashes of both in dictionary.json
    labels.duckdb       people's labels, explanations and scores; small, writable

Leaves: Arrow tables. Questions run on a private database of views (`features.schema`) that is opened read-only and
locked; the labels database is opened for the length of one query only, since DuckDB lets one writer or many readers
in, never both, and is copied into the view database whenever it has changed.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from features import questions, schema
from features.columns import as_array

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FORMAT = 1
MANIFEST = "dictionary.json"
LABELS = "labels.duckdb"
SPILL = "spill"
"""Folder inside a build that holds its events while it is made."""
LOCK_WAIT_S = 20.0
SHOWN_BEFORE, SHOWN_AFTER = 24, 12
"""Tokens before and after an example's own that are shown with it, and kept where other events are not."""
ASKED_DIRECTLY = 4

_labels_locks: dict[str, threading.RLock] = {}
_labels_locks_guard = threading.Lock()
_running: tuple[int, DuckDBPyConnection] | None = None
_attached = itertools.count()


def _attach(path: Path) -> DuckDBPyConnection:
    """Opens a database for reading through this process's own empty one, under a name that nothing else has."""
    global _running
    import duckdb

    with _labels_locks_guard:
        if _running is None or _running[0] != os.getpid():  # a fork has its memory, but none of its threads
            _running = os.getpid(), duckdb.connect()
            atexit.register(_let_go)
        cursor = _running[1].cursor()
    name, quoted = f"labels_{next(_attached)}", str(path).replace("'", "''")
    try:
        cursor.execute(f"attach '{quoted}' as {name} (read_only)")
        cursor.execute(f"use {name}")
    except duckdb.Error:
        cursor.close()
        raise
    return cursor


def _let_go() -> None:
    """Closes what `_attach` keeps open: DuckDB's binding complains of what is left when the interpreter ends."""
    global _running
    if _running is not None:
        _running[1].close()
        _running = None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Sizes and hashes of all files below `folder` but those of the unfinished index, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != SPILL)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_hash(path)} for path in paths
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads `dictionary.json`; refuses a folder that has none, or one of another format, in one line."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        builds = list(folder.glob("build-*")) if folder.is_dir() else []
        hint = "an unfinished build; run `glassbox index` again to complete it" if builds else "no dictionary"
        raise FileNotFoundError(
            f"{folder} holds {hint}: expected a folder with {MANIFEST}; build one with `glassbox index`"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read ({reason}): expected JSON; build the dictionary again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "build" not in manifest:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ValueError(f"{path} has format {found}, expected {FORMAT}: build the dictionary again with this version")
    return manifest


@contextmanager
def _turn(path: Path, shared: bool, deadline: float) -> Iterator[None]:
    """Holds a lock file, with other readers where `shared`; where it cannot be made nobody of us writes either.

    DuckDB locks its file too, but lets go of it before its log is removed: of two programs that write in quick
    succession one lost a commit in some hundreds (measured, DuckDB 2.0).
    """
    try:
        handle = os.open(path, os.O_RDONLY if shared and path.exists() else os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        if not shared:
            raise
        yield
        return
    try:
        while True:
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(
                        f"{path.with_suffix('')} could not be opened (another program has held its lock for "
                        f"{LOCK_WAIT_S:g} s), expected a free labels database: end the program that holds it"
                    ) from None
                time.sleep(0.005)
        yield
    finally:
        os.close(handle)


class BuildLock:
    """A lock on a build folder, shared by its readers, or held alone by who writes or removes it.

    It is the system's lock on the folder itself: it writes nothing, and ends with the process at the latest. File
    systems without locks give none; a build is then removed under its readers when another takes its place.
    """

    def __init__(self, build: Path) -> None:
        self._descriptor = os.open(build, os.O_RDONLY)
        self._release = weakref.finalize(self, os.close, self._descriptor)

    def take(self, *, alone: bool = False, wait: bool = True) -> bool:
        """Waits for the lock, or says whether it was free."""
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            fcntl.flock(self._descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF):
                raise
        return True

    def release(self) -> None:
        self._release()


def remove_build(build: Path) -> None:
    """Deletes a build that another has replaced, unless someone reads it still: then the next build does."""
    if build.is_dir():
        lock = BuildLock(build)
        if lock.take(alone=True, wait=False):
            shutil.rmtree(build, ignore_errors=True)
        lock.release()


class Store:
    """One opened dictionary folder; safe to use from several threads.

    It stays with the build that it has opened: one that replaces it is seen by who opens the folder anew.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).absolute()
        while True:
            self.info = read_manifest(self.folder)
            self.build = self.folder / str(self.info["build"])
            try:
                self._lock_of_build = BuildLock(self.build)
                self._lock_of_build.take()
                self.verify()
                break
            except FileNotFoundError:
                # replaced and removed between two steps: look again
                if read_manifest(self.folder)["build"] == self.info["build"]:
                    self.verify()
                    raise
        self._views: DuckDBPyConnection | None = None
        self._views_stamp: tuple[int, ...] | None = None
        self._views_time = 0.0
        self._asked: tuple[tuple[int, ...], int] = ((), 0)
        self._people: tuple[tuple[int, ...] | None, dict[str, pa.Table]] = (None, {})
        self._lock = threading.Lock()

    def verify(self, deep: bool = False) -> None:
        """Checks that every file of the build is there with its recorded size; with `deep`, also its hash."""
        for name, facts in self.info["files"].items():
            path = self.build / name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, expected a file of {facts['bytes']} bytes: build again")
            size = path.stat().st_size
            if size != facts["bytes"]:
                raise ValueError(f"{path} has {size} bytes, expected {facts['bytes']}: restore it or build again")
            if deep and file_hash(path) != facts["sha256"]:
                raise ValueError(f"{path} has changed, expected the recorded hash: restore it or build again")

    def require_all_events(self, purpose: str) -> None:
        """ValueError where the dictionary keeps the events around examples only."""
        if not self.keeps_all_events:
            raise ValueError(
                f"dictionary {self.info['name']} keeps {self.info['n_kept_events']:,} of {self.info['n_events']:,} "
                f"events, those around its examples, and {purpose} needs all: index again with index.events=all and "
                "an index.event_limit above that number"
            )

    @property
    def keeps_all_events(self) -> bool:
        """Whether the table events is complete (`index.events`)."""
        return self.info.get("events", "all") == "all"

    def event_bounds(self) -> np.ndarray:
        """int64 [n_features + 1]: rows of events from bounds[f] to bounds[f + 1] are feature f's, as far as kept."""
        first = self.query("select first_event from features order by feature")["first_event"]
        rows = self.query("select count(*) as n from events")["n"]
        return np.concatenate([first.to_numpy(), rows.to_numpy()])

    def query(self, sql: str, parameters: Sequence[object] | Mapping[str, object] = ()) -> pa.Table:
        """Runs one of the library's own questions on the locked database."""
        cursor = self._connection().cursor()
        try:
            return cursor.sql(sql, params=parameters or None).to_arrow_table()
        finally:
            cursor.close()

    def people_of(self, feature: int, tables: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The rows of label tables about one feature, in the order in which they were written.

        The first times after a change their database itself is asked: a few pages need no copy of all. Opening it costs
        more than looking into a copy, so that whoever goes on asking makes one.
        """
        import duckdb

        stamp = self.labels_stamp()
        if stamp != self._asked[0]:
            self._asked = stamp, 0
        if stamp and stamp != self._people[0] and self._asked[1] < ASKED_DIRECTLY:
            self._asked = stamp, self._asked[1] + 1
            try:
                return self._people_asked(feature, tables)
            except (duckdb.CatalogException, duckdb.BinderException):
                pass  # of an earlier version, which lacks tables or columns: the copy has them
        people = self.people_at(stamp)
        found: dict[str, list[dict[str, Any]]] = {}
        for name in tables:
            places = np.flatnonzero(as_array(people[name]["feature"]) == feature).tolist()
            found[name] = [row for place in places for row in people[name].slice(place, 1).to_pylist()]
        return found

    def people_at(self, stamp: tuple[int, ...] | None) -> dict[str, pa.Table]:
        """A copy of the label tables that is at least as new as the stamp."""
        held, people = self._people
        if held != stamp:
            people = self.read_labels()
            self._people = stamp, people
        return people

    def _people_asked(self, feature: int, tables: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        with self._labels_database(read_only=True, attached=True) as connection:
            for name in tables:
                columns = [column.name for column in schema.TABLES[name].columns]
                asked = f"{schema.select_people(schema.TABLES[name], set(columns))} where feature = ? order by rowid"
                rows = connection.execute(asked, [feature]).fetchall()
                found[name] = [dict(zip(columns, row, strict=True)) for row in rows]
        return found

    def sql(self, sql: str, timeout_s: float | None = questions.TIMEOUT_S) -> pa.Table:
        """Answers a person's question (`features.questions`)."""
        cursor = self._connection().cursor()
        try:
            return questions.ask(cursor, sql, timeout_s)
        finally:
            cursor.close()

    def read_labels(self) -> dict[str, pa.Table]:
        """Copies the label tables out of their database; empty tables where there is none yet."""
        if not (self.folder / LABELS).exists():
            return {table.name: table.arrow_schema().empty_table() for table in schema.PEOPLE}
        with self._labels_database(read_only=True) as connection:
            present = connection.execute("select table_name, column_name from duckdb_columns()").fetchall()
            return {
                table.name: (
                    connection.sql(schema.select_people(table, {c for t, c in present if t == table.name}))
                    .to_arrow_table()
                    .cast(table.arrow_schema())
                    if table.name in {name for name, _ in present}
                    else table.arrow_schema().empty_table()
                )
                for table in schema.PEOPLE
            }

    def write_labels(self, table: str, rows: pa.Table, replace_where: str | None = None) -> None:
        """Adds rows to a label table in one transaction; `replace_where` (our own SQL) removes old ones first."""
        with self.edit_labels() as connection:
            if replace_where is not None:
                connection.execute(f'delete from "{table}" where {replace_where}')
            schema.insert_people(connection, table, rows)

    @contextmanager
    def edit_labels(self) -> Iterator[DuckDBPyConnection]:
        """The labels database in one transaction: when the block ends all that it did is kept, if it raises nothing."""
        with self._labels_database(read_only=False) as connection:
            schema.create_people_tables(connection)
            connection.execute("begin")
            yield connection  # closing a connection without a commit takes everything back
            connection.execute("commit")

    def close(self) -> None:
        """Closes the view database, and lets the build go."""
        with self._lock:
            if self._views is not None:
                self._views.close()
                self._views = None
            self._lock_of_build.release()

    @contextmanager
    def _labels_database(self, read_only: bool, attached: bool = False) -> Iterator[DuckDBPyConnection]:
        """Opens the labels database for the length of a block; waits while another process holds it.

        With `attached` a DuckDB that runs already opens it, which takes a few milliseconds instead of some tens.
        """
        import duckdb

        path = self.folder / LABELS
        with _labels_locks_guard:
            lock = _labels_locks.setdefault(os.path.realpath(path), threading.RLock())
        deadline = time.monotonic() + LOCK_WAIT_S
        with lock, _turn(path.with_name(f"{LABELS}.lock"), read_only, deadline):
            while True:
                try:
                    connection = _attach(path) if attached else duckdb.connect(str(path), read_only=read_only)
                    break
                except duckdb.IOException as error:
                    if "lock" not in str(error) or time.monotonic() > deadline:
                        reason = str(error).splitlines()[0]
                        raise OSError(
                            f"{path} could not be opened ({reason}): expected a free, "
                            f"{'readable' if read_only else 'writable'} labels database; "
                            "end the program that holds it, or check the folder's permissions"
                        ) from None
                    time.sleep(0.02)
            try:
                yield connection
            finally:
                if attached:
                    name = connection.execute("select current_database()").fetchall()[0][0]
                    connection.execute(f'use memory; detach "{name}"')
                connection.close()

    def labels_stamp(self) -> tuple[int, ...]:
        """Tells states of the labels database apart."""
        stamp: tuple[int, ...] = ()
        # a writer that was killed leaves what it committed in the log beside the database
        for name in (LABELS, f"{LABELS}.wal"):
            try:
                facts = (self.folder / name).stat()
            except FileNotFoundError:
                continue
            stamp += facts.st_ino, facts.st_mtime_ns, facts.st_size
        return stamp

    def _connection(self) -> DuckDBPyConnection:
        asked = time.monotonic()
        with self._lock:
            # who waited here while another copied the labels takes that copy: it is younger than the question
            looked = time.monotonic()
            is_young = self._views is not None and self._views_time >= asked
            stamp = self._views_stamp if is_young else self.labels_stamp()
            if self._views is None or stamp != self._views_stamp:
                people = self.people_at(stamp)
                # an open database keeps its file alive: it needs no name, and vanishes with its last cursor
                with tempfile.TemporaryDirectory(prefix="glassbox-views-") as folder:
                    path = Path(folder) / "views.duckdb"
                    schema.write_view_database(path, self.build, people)
                    self._views = schema.open_locked(path, self.build)
                self._views_stamp, self._views_time = stamp, looked
            return self._views
