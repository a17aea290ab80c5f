"""What people and methods say about features: explanations, scores, labels and lists.

Enters: records. Leaves: records; both by way of `features.store`, which opens the labels database for the length of
one query only, so that several programs can read and write it in turn.
"""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


def now() -> str:
    """The time as the label tables hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def person() -> str:
    """The name of the user who runs the program."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def add_label(store: Store, feature: int, text: str, author: str | None) -> Explanation:
    """Writes a person's label; the newest label of a feature counts.

    Raises:
        ValueError: an empty label.
    """
    text = text.strip()
    if not text:
        raise ValueError(f"the label of feature {feature} is empty, expected a text: write one")
    label = Explanation(text, "label", None, author or person(), now())
    row = {"feature": feature, "text": label.text, "author": label.author, "created": label.time}
    store.write_labels("labels", _table("labels", [row]))
    return label


def add_to_list(store: Store, name: str, features: Sequence[int], author: str | None) -> None:
    """Adds features to a person's list, which the first of them creates."""
    if not name.strip():
        raise ValueError("the list has no name, expected a text: write one")
    created, writer = now(), author or person()
    rows = [{"list": name.strip(), "feature": int(f), "author": writer, "created": created} for f in features]
    store.write_labels("lists", _table("lists", rows))


def write_explanations(store: Store, rows: pa.Table, method: str) -> None:
    """Replaces all explanations of `method` by `rows` (columns as in the table explanations)."""
    store.write_labels("explanations", rows, replace_where=f"method = '{_quoted(method)}'")


def write_scores(store: Store, rows: pa.Table, method: str, scorers: Sequence[str]) -> None:
    """Replaces the scores of the explanations of `method` by `scorers`, and by their variants (`<scorer>_…`)."""
    which = " or ".join(f"scorer = '{_quoted(name)}' or starts_with(scorer, '{_quoted(name)}_')" for name in scorers)
    store.write_labels("scores", rows, replace_where=f"method = '{_quoted(method)}' and ({which})")


def explanations_of(store: Store, feature: int) -> list[Explanation]:
    """Labels of a feature, newest first, then what methods wrote, best score first."""
    rows = store.query(
        """
        select text, 'label' as method, null::double as score, author, created as "time", null::varchar as rule
        from (select * from labels where feature = $feature order by rowid desc)
        union all
        select text, method, score, author, created, rule
        from (select * from explanations where feature = $feature order by score desc nulls last, rowid)
        """,
        {"feature": feature},
    ).to_pylist()
    return [Explanation(**row) for row in rows]


def record(explanation: Explanation) -> dict[str, object]:
    """The explanation as a plain record."""
    return asdict(explanation)


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _table(name: str, rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema.TABLES[name].arrow_schema())
