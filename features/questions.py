"""A person's question in SQL: which statements may run, for how long, and how much they may answer.

Enters: a cursor on a locked view database (`features.schema.open_locked`) and the text of a question. Leaves: an Arrow
table, or a refusal in one line.

The lock keeps files, settings and extensions out of reach. It lets a SELECT hide an insert and EXPLAIN ANALYZE run what
it explains, which a read-only database refuses in turn; here only the kinds of statement that ask are let through. The
kind is what DuckDB's own parser says it is, never what the text looks like.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Statement

TIMEOUT_S = 60.0
ANSWER_BYTES = 2 << 30
BATCH_ROWS = 100_000
NESTING = 200
"""Brackets inside each other; the parser, which nothing interrupts, needs minutes for thousands that stay open."""
EXPECTED = "expected exactly one SELECT (also WITH, FROM, VALUES, DESCRIBE, SUMMARIZE, SHOW, or EXPLAIN of one)"


def check_question(cursor: DuckDBPyConnection, query: str) -> Statement:
    """Returns the one statement of `query`, which asks and does nothing else.

    Raises:
        ValueError: no statement, several, one that is no question, or text that is nested too deep or not Unicode.
        duckdb.Error: text that is no SQL.
    """
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the query has half a character at {error.start}, {EXPECTED}: remove it") from None
    if (depth := _nesting(query)) > NESTING:
        raise ValueError(f"the query opens {depth} brackets inside each other, {EXPECTED} with at most {NESTING}")
    statements = cursor.extract_statements(query)
    kinds = [_kind(statement) for statement in statements]
    if kinds == ["EXPLAIN"] and _explains_a_question(cursor, statements[0].query):
        return statements[0]
    if kinds != ["SELECT"]:
        got = "no statement" if not kinds else ", ".join(kinds[:5])
        raise ValueError(f"got {got}, {EXPECTED}: the dictionary is read-only for SQL")
    return statements[0]


def ask(cursor: DuckDBPyConnection, query: str, timeout_s: float | None = TIMEOUT_S) -> pa.Table:
    """Answers one question; columns of the same name get `_2`, `_3`, … behind it.

    Raises:
        ValueError: a statement that is no question, one that fails, that is not done after `timeout_s`, or whose answer
            is larger than `ANSWER_BYTES`.
    """
    import duckdb

    if timeout_s is not None and not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s}, expected seconds above 0, or none for no limit: raise it")
    batches: list[pa.RecordBatch] = []
    size = 0
    with _deadline(cursor, timeout_s) as has_passed:
        try:
            reader = cursor.sql(check_question(cursor, query)).to_arrow_reader(BATCH_ROWS)  # pyright: ignore[reportArgumentType]
            for batch in reader:
                batches.append(batch)
                size += batch.nbytes
                if size > ANSWER_BYTES:
                    raise ValueError(
                        f"the answer is larger than {ANSWER_BYTES >> 20:,} MiB, expected less: "
                        "ask for fewer columns, group, or add a limit"
                    )
        except (duckdb.Error, OSError) as error:  # an answer that streams fails as OSError, with DuckDB's message
            if has_passed.is_set():
                raise ValueError(
                    f"the query was stopped after {timeout_s:g} s, expected an answer within that time: "
                    "ask for less, or allow more time"
                ) from None
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise ValueError(f"the query failed ({reason}), {EXPECTED} over the dictionary's tables") from None
    return pa.Table.from_batches(batches, reader.schema).rename_columns(_distinct(reader.schema.names))


def _nesting(query: str) -> int:
    import duckdb

    text, deepest, depth = query.encode(), 0, 0
    for place, kind in duckdb.tokenize(query):
        if kind == duckdb.token_type.operator:
            depth += (text[place] in b"([{") - (text[place] in b")]}")
            deepest = max(deepest, depth)
    return deepest


def _kind(statement: Statement) -> str:
    try:
        return statement.type.name
    except ValueError:  # kinds that the parser knows and its Python names do not, such as MERGE INTO
        return "a statement without a name"


def _explains_a_question(cursor: DuckDBPyConnection, explanation: str) -> bool:
    """Tells whether what stands behind EXPLAIN is one SELECT by itself: ANALYZE and other options are not."""
    import duckdb

    text = explanation.encode()
    words = [place for place, kind in duckdb.tokenize(explanation) if kind != duckdb.token_type.comment]
    keyword = text[words[0] :].split(maxsplit=1)[0].lower()
    behind = text[words[0] + len("explain") :].decode()
    try:
        kinds = [_kind(statement) for statement in cursor.extract_statements(behind)]
    except duckdb.Error:
        return False
    return keyword.startswith(b"explain") and kinds == ["SELECT"]


def _distinct(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        number, free = 2, name
        while free in found:
            number, free = number + 1, f"{name}_{number}"
        found.append(free)
    return found


@contextmanager
def _deadline(cursor: DuckDBPyConnection, timeout_s: float | None) -> Iterator[threading.Event]:
    """Interrupts the cursor when the block lasts longer; the event says so. None: never."""
    has_passed, guard = threading.Event(), threading.Lock()
    is_running = True

    def stop() -> None:
        with guard:
            if is_running:
                has_passed.set()
                cursor.interrupt()

    timer = threading.Timer(timeout_s or 0.0, stop)
    timer.daemon = True
    if timeout_s is not None:
        timer.start()
    try:
        yield has_passed
    finally:
        with guard:
            is_running = False
        timer.cancel()
