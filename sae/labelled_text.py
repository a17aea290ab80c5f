"""Labelled text: what probes are trained on.

Enters: the name of a set that ships with the package, or a file of somebody's own (JSON lines or CSV, also gzipped).
Leaves: `LabelledText`.

The shipped sets are of our own writing: `topics` (code and documentation about four topics; its second label, the form,
makes it fit for spurious correlation removal), `forms` (the same lines, labelled code or prose), `sentiment` (short
reviews) and `subjects` (everyday prose about four subjects).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

SHIPPED = {
    "topics": ("topics.jsonl", "label", "form"),
    "forms": ("topics.jsonl", "form", "label"),
    "sentiment": ("sentiment.jsonl", "label", None),
    "subjects": ("subjects.jsonl", "label", None),
}
TEXT_FIELDS = ("text", "sentence", "tweet", "test_case", "input", "prompt")
LABEL_FIELDS = ("label", "label_gold", "class", "lang", "genre", "topic", "category")


@dataclass(frozen=True)
class LabelledText:
    """Texts with a label each; `second` holds another label of each text where there is one."""

    name: str
    texts: Sequence[str]
    labels: Sequence[str]
    second: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError(
                f"set `{self.name}` holds no texts, expected some with at least two labels: check the file"
            )
        if len(set(self.labels)) < 2:
            raise ValueError(
                f"set `{self.name}` holds the label {self.labels[0]!r} alone, expected at least two: a probe tells "
                "classes apart"
            )

    @property
    def classes(self) -> list[str]:
        """The distinct labels, sorted."""
        return sorted(set(self.labels))

    def sample(self, per_class: int, seed: int = 0) -> LabelledText:
        """Returns at most `per_class` texts of each label, drawn by seed, in their order."""
        generator = random.Random(seed)
        kept: list[int] = []
        for label in self.classes:
            places = [place for place, each in enumerate(self.labels) if each == label]
            kept += places if len(places) <= per_class else generator.sample(places, per_class)
        kept.sort()
        second = None if self.second is None else [self.second[place] for place in kept]
        return LabelledText(self.name, [self.texts[p] for p in kept], [self.labels[p] for p in kept], second)


def labelled_text(name: str | Path) -> LabelledText:
    """Opens a shipped set by its name, or a file by its path.

    Raises:
        ValueError: no such set or file, or a file that is not understood.
    """
    if str(name) in SHIPPED:
        file, label, second = SHIPPED[str(name)]
        content = (resources.files("sae") / "labelled" / file).read_text(encoding="utf-8")
        records = [json.loads(line) for line in content.splitlines()]
        other = [record[second] for record in records] if second else None
        return LabelledText(
            str(name), [record["text"] for record in records], [record[label] for record in records], other
        )
    if not Path(name).is_file():
        raise ValueError(f"`{name}` is no labelled set, expected one of {', '.join(SHIPPED)} or a file: check the path")
    return read_labelled(name)


def read_labelled(
    path: str | Path, text_field: str | None = None, label_field: str | None = None, *, by_line: bool = False
) -> LabelledText:
    """Reads JSON lines or CSV, gzipped or not; the fields default to usual names (`text`, `label`, …).

    With `by_line` every line of a text is a text of its own, under the same label: for a few long texts.

    Raises:
        ValueError: another kind of file, a damaged one, or one without the fields.
    """
    path = Path(path)
    kinds = [suffix for suffix in path.suffixes if suffix in (".jsonl", ".csv")]
    if not kinds:
        raise ValueError(f"{path} is no .jsonl or .csv file (.gz allowed), expected labelled text: convert it")
    try:
        content = path.read_bytes()
        decoded = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
        records = list(_records(decoded, kinds[-1]))
    except (UnicodeDecodeError, json.JSONDecodeError, EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error}), expected labelled text: copy it again") from error
    if not records:
        raise ValueError(f"{path} holds no texts, expected records with a text and a label: check the file")
    text_field = text_field or _field(records[0], TEXT_FIELDS, "text", path)
    label_field = label_field or _field(records[0], LABEL_FIELDS, "label", path)
    whole = [record for record in records if str(record.get(text_field) or "").strip() and label_field in record]
    pairs = [(str(record[text_field]), str(record[label_field])) for record in whole]
    if by_line:
        pairs = [(line.strip(), label) for text, label in pairs for line in text.splitlines() if line.strip()]
    return LabelledText(path.name.split(".")[0], [text for text, _ in pairs], [label for _, label in pairs])


def _records(content: str, kind: str) -> Iterator[dict[str, Any]]:
    if kind == ".csv":
        yield from csv.DictReader(io.StringIO(content, newline=""))
        return
    for line in content.split("\n"):
        if line.strip():
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _field(record: dict[str, Any], names: Sequence[str], what: str, path: Path) -> str:
    found = next((name for name in names if name in record), None)
    if found is None:
        raise ValueError(
            f"{path} has the fields {', '.join(map(str, record))} and no {what}, expected one of {', '.join(names)}: "
            "rename a field"
        )
    return found
