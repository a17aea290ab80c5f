"""Named lists of features: bookmarks, findings to show, features to look at again.

Enters: names, features, notes. Leaves: records. Who put a feature on a list, when and why is kept; the same feature
put there again with another note keeps both. What removes says what it removed. Each change is one transaction on the
labels database, so that two programs may change the same list at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from features import schema
from features.labels import now, person, storable, table
from features.store import Store

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BOOKMARKS = "bookmarks"
"""The list that features go to when none is named."""
MOST_NUMBERS = 10_000


@dataclass(frozen=True)
class ListEntry:
    """A feature on a list."""

    feature: int
    author: str
    time: str
    """UTC, ISO 8601."""
    note: str | None


@dataclass(frozen=True)
class NamedList:
    """A list with its entries in the order in which they were added."""

    name: str
    author: str
    """Who made it."""
    time: str
    """When, UTC, ISO 8601."""
    note: str | None
    entries: list[ListEntry]

    @property
    def features(self) -> list[int]:
        """The features on it, each once, in the order in which they were added."""
        return list(dict.fromkeys(entry.feature for entry in self.entries))

    def rows(self) -> list[dict[str, Any]]:
        """The entries as plain records."""
        return [asdict(entry) for entry in self.entries]

    def to_json(self) -> str:
        """The list as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


class Lists:
    """The lists of one dictionary."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[NamedList]:
        """All lists, the oldest first."""
        entries = self._store.query("select * from lists order by created, rowid").to_pylist()
        heads = self._store.query("select * from list_names order by created, rowid").to_pylist()
        return assemble(heads, entries)

    def get(self, name: str) -> NamedList:
        """The list of that name.

        Raises:
            ValueError: there is none.
        """
        found = {known.name: known for known in self.all()}
        if name not in found:
            raise _unknown(name, list(found))
        return found[name]

    def create(self, name: str, note: str | None = None, author: str | None = None) -> NamedList:
        """Makes an empty list.

        Raises:
            ValueError: no name, or one that is taken.
        """
        name = _checked(name)
        head = {"list": name, "author": storable(author or person()), "created": now(), "note": _note(note)}
        with self._store.edit_labels() as connection:
            if name in _names(connection):
                raise ValueError(f"there is a list {name!r} already, expected a new name: choose another one")
            schema.insert_people(connection, "list_names", table("list_names", [head]))
        return NamedList(name, head["author"], head["created"], head["note"], [])

    def add(self, name: str, features: Sequence[int], note: str | None = None, author: str | None = None) -> list[int]:
        """Puts features on a list and makes it where there is none; returns those that were not on it before.

        One that is on it stays as it is, unless there is a new note: that stands beside the earlier ones.
        """
        name, note = _checked(name), _note(note)
        writer, created = storable(author or person()), now()
        wanted = list(dict.fromkeys(int(feature) for feature in features))
        with self._store.edit_labels() as connection:
            if name not in _names(connection):
                head = {"list": name, "author": writer, "created": created}
                schema.insert_people(connection, "list_names", table("list_names", [head]))
            there = connection.execute("select feature, note, author from lists where list = ?", [name]).fetchall()
            known = {feature for feature, _, _ in there}
            rows = [
                {"list": name, "feature": feature, "author": writer, "created": created, "note": note}
                for feature in wanted
                if feature not in known or (note and (feature, note, writer) not in there)
            ]
            schema.insert_people(connection, "lists", table("lists", rows))
        return [feature for feature in wanted if feature not in known]

    def remove(self, name: str, features: Sequence[int]) -> list[ListEntry]:
        """Takes features off a list and returns the entries that stood there.

        Raises:
            ValueError: no such list, or a feature that is not on it; then nothing is removed.
        """
        wanted = list(dict.fromkeys(int(feature) for feature in features))
        with self._store.edit_labels() as connection:
            if name not in (names := _names(connection)):
                raise _unknown(name, names)
            removed = connection.execute(
                "delete from lists where list = $name and list_contains($wanted, feature) "
                "returning feature, author, created, note",
                {"name": name, "wanted": wanted},
            ).fetchall()
            entries = [ListEntry(*row) for row in removed]
            missing = sorted(set(wanted) - {entry.feature for entry in entries})
            if missing:
                raise ValueError(
                    f"feature {missing[0]} is not on the list {name!r}, expected features that are: nothing was removed"
                )
            _keep_head(connection, name, entries)
        return entries

    def rename(self, name: str, new: str) -> None:
        """Gives a list another name.

        Raises:
            ValueError: no such list, no name, or one that is taken.
        """
        new = _checked(new)
        with self._store.edit_labels() as connection:
            names = _names(connection)
            if name not in names:
                raise _unknown(name, names)
            if new in names:
                raise ValueError(f"there is a list {new!r} already, expected a new name: choose another one")
            for of_lists in ("lists", "list_names"):
                connection.execute(f"update {of_lists} set list = $new where list = $name", {"new": new, "name": name})

    def delete(self, name: str) -> NamedList:
        """Deletes a list and returns what it held.

        Raises:
            ValueError: no such list.
        """
        columns: list[str] = ["feature", "list", "author", "created", "note"]
        with self._store.edit_labels() as connection:
            if name not in (names := _names(connection)):
                raise _unknown(name, names)
            heads = connection.execute("delete from list_names where list = ? returning author, created, note", [name])
            of_head = [dict(zip(("author", "created", "note"), row, strict=True)) for row in heads.fetchall()]
            gone = connection.execute(
                f"delete from lists where list = ? returning {', '.join(columns)}", [name]
            ).fetchall()
            entries: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in gone]
        return assemble([{"list": name, **head} for head in of_head], entries)[0]


def feature_numbers(text: str) -> list[int]:
    """Numbers of features as people write them, such as `7, 12 40-45`, each once.

    Raises:
        ValueError: nothing, something else than numbers, or more than `MOST_NUMBERS`.
    """
    found: dict[int, None] = {}
    for part in text.replace(",", " ").split():
        low, dash, high = part.partition("-")
        if not all(end.isascii() and end.isdigit() and len(end) < 10 for end in (low, high or low)) or (
            dash and not high
        ):
            raise ValueError(f"got `{part}`, expected numbers of features: write for example 7, 12, 40-45")
        first, last = int(low), int(high or low)
        if last < first or last - first >= MOST_NUMBERS or len(found) + last - first >= MOST_NUMBERS:
            raise ValueError(f"`{part}` is not a range of at most {MOST_NUMBERS:,} features, rising: write fewer")
        found |= dict.fromkeys(range(first, last + 1))
    if not found:
        raise ValueError("no feature was named, expected numbers: write for example 7, 12, 40-45")
    return list(found)


def is_bookmarked(store: Store, feature: int) -> bool:
    """Whether a feature is on the list of bookmarks; asked of every page, so without a query."""
    return any(row["list"] == BOOKMARKS for row in store.people_of(feature, ["lists"])["lists"])


def assemble(heads: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]) -> list[NamedList]:
    """Rows of the tables list_names and lists as lists; of several heads of one list the earliest counts."""
    of_list: dict[str, list[ListEntry]] = {}
    for row in entries:
        of_list.setdefault(row["list"], []).append(
            ListEntry(row["feature"], row["author"], row["created"], row["note"])
        )
    found: dict[str, NamedList] = {}
    for head in sorted(heads, key=lambda head: head["created"]):
        name = head["list"]
        found.setdefault(name, NamedList(name, head["author"], head["created"], head["note"], of_list.get(name, [])))
    for name, kept in of_list.items():  # lists of earlier versions have no row in list_names
        found.setdefault(name, NamedList(name, kept[0].author, kept[0].time, None, kept))
    return sorted(found.values(), key=lambda known: known.time)


def _names(connection: DuckDBPyConnection) -> list[str]:
    rows = connection.execute("select list from list_names union select list from lists order by 1").fetchall()
    return [name for (name,) in rows]


def _keep_head(connection: DuckDBPyConnection, name: str, removed: Sequence[ListEntry]) -> None:
    """A list of an earlier version is known by its entries alone: without them it stays as an empty one."""
    if name not in _names(connection):
        head = {"list": name, "author": removed[0].author, "created": removed[0].time}
        schema.insert_people(connection, "list_names", table("list_names", [head]))


def _unknown(name: str, known: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, n=1) or list(known[:1])
    hint = f"did you mean {near[0]!r}?" if near else "there is no list yet; add features to one first"
    return ValueError(f"there is no list {name!r}, expected the name of a list: {hint}")


def _checked(name: str) -> str:
    name = storable(name).strip()
    if not name:
        raise ValueError("the list has no name, expected a text: write one")
    return name


def _note(note: str | None) -> str | None:
    return (storable(note).strip() or None) if note else None
