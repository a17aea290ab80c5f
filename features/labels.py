"""What people and methods say about features: explanations, scores and labels (lists are in `features.lists`).

Enters: records. Leaves: records; both by way of `features.store`, which opens the labels database for the length of
one query only, so that several programs can read and write it in turn. A label is added and never changed: the newest
is shown, the others are its history, and only `remove_labels`, which says what it removed, takes one away.
"""

from __future__ import annotations

import getpass
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from features import schema
from features.store import Store


@dataclass(frozen=True)
class Explanation:
    """One text about a feature."""

    text: str
    method: str
    """`label` for a person's own words, otherwise the method that wrote it."""
    score: float | None
    author: str
    time: str
    """UTC, ISO 8601."""
    rule: str | None = None
    """JSON of the rule behind a machine's text."""


@dataclass(frozen=True)
class Score:
    """How well an explanation predicts a feature's activations, by one scorer (docs/explanations.md)."""

    method: str
    """Of the explanation, or the baseline."""
    scorer: str
    score: float
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    n: int | None
    """Windows that were judged."""
    failures: int | None
    """Windows without a usable answer."""
    time: str
    """UTC, ISO 8601."""


def now() -> str:
    """The time as the label tables hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def person() -> str:
    """The name of the user who runs the program."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def storable(text: str) -> str:
    """The text with half characters (lone surrogates), which UTF-8 cannot hold, written as their codes."""
    return text.encode("utf-8", "backslashreplace").decode()


def add_label(store: Store, feature: int, text: str, author: str | None) -> Explanation:
    """Writes a person's label; the newest label of a feature counts.

    Raises:
        ValueError: an empty label.
        OSError: another program has held the labels database for too long.
    """
    text = storable(text).strip()
    if not text:
        raise ValueError(f"the label of feature {feature} is empty, expected a text: write one")
    label = Explanation(text, "label", None, storable(author or person()), now())
    row = {"feature": feature, "text": label.text, "author": label.author, "created": label.time}
    store.write_labels("labels", table("labels", [row]))
    return label


def labels_of(store: Store, feature: int) -> list[Explanation]:
    """All labels that a feature was ever given and that nobody removed, newest first."""
    return [explanation for explanation in explanations_of(store, feature) if explanation.method == "label"]


def remove_labels(store: Store, feature: int, author: str | None) -> list[Explanation]:
    """Removes an author's labels of a feature (by default those of the user who runs the program); returns them.

    Raises:
        ValueError: there is none.
    """
    author = author or person()
    with store.edit_labels() as connection:
        removed = connection.execute(
            "delete from labels where feature = ? and author = ? returning text, author, created", [feature, author]
        ).fetchall()
    if not removed:
        raise ValueError(f"feature {feature} has no label by {author!r}, expected one to remove: name its author")
    return [Explanation(text, "label", None, writer, created) for text, writer, created in removed]


def write_explanations(store: Store, rows: pa.Table, method: str, feature: int | None = None) -> None:
    """Replaces all explanations of `method`, or only that of one feature, by `rows` (as in the table explanations)."""
    which = "" if feature is None else f" and feature = {feature:d}"
    store.write_labels("explanations", rows, replace_where=f"method = '{_quoted(method)}'{which}")


def keep_explanations(store: Store, method: str, features: Sequence[int]) -> None:
    """Removes the explanations of `method` for all other features than these."""
    others = f" and feature not in ({', '.join(f'{feature:d}' for feature in features)})" if features else ""
    store.write_labels("explanations", table("explanations", []), f"method = '{_quoted(method)}'{others}")


def write_scores(store: Store, rows: pa.Table, method: str, scorers: Sequence[str]) -> None:
    """Replaces the scores of the explanations of `method` by `scorers`, and by their variants (`<scorer>_…`)."""
    which = " or ".join(f"scorer = '{_quoted(name)}' or starts_with(scorer, '{_quoted(name)}_')" for name in scorers)
    # those of a merged dictionary's parts are of other text, and stay
    of_this_text = f"method = '{_quoted(method)}' and source is null and ({which})"
    store.write_labels("scores", rows, replace_where=of_this_text)


def explanations_of(store: Store, feature: int) -> list[Explanation]:
    """Labels of a feature, newest first, then what methods wrote, best score first."""
    people = store.people_of(feature, ("labels", "explanations"))
    own = [Explanation(row["text"], "label", None, row["author"], row["created"]) for row in people["labels"]]
    own.sort(key=lambda label: label.time)
    written = people["explanations"]
    written.sort(key=lambda row: -math.inf if row["score"] is None else row["score"], reverse=True)
    found = [(row["text"], row["method"], row["score"], row["author"], row["created"], row["rule"]) for row in written]
    return own[::-1] + [Explanation(*row) for row in found]


def scores_of(store: Store, feature: int) -> list[Score]:
    """The scores of a feature's explanations, by method and scorer."""
    rows = store.people_of(feature, ("scores",))["scores"]
    found = [
        Score(*(row[key] for key in ("method", "scorer", "score", "low", "high", "n", "failures", "created")))
        for row in rows
    ]
    return sorted(found, key=lambda score: (score.method, score.scorer))


def table(name: str, rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Records as rows of a label table; keys that they lack are null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema.TABLES[name].arrow_schema())


def _quoted(text: str) -> str:
    return text.replace("'", "''")
