"""Labelled tokens: texts in which pieces carry labels, such as names of persons or parts of speech.

Enters: a file (gzipped or not). Leaves: `LabelledTokens`, pieces as characters of a text, so that any model's tokens
can be laid over them.

* `.jsonl`: `{"text": …, "spans": [{"start": 0, "end": 4, "label": "person"}]}`, characters from `start` up to, not
  including, `end`; `spans` may be called `entities`, and a span may be a list `[0, 4, "person"]`. Or
  `{"tokens": ["I", "go"], "labels": ["PRON", "VERB"]}`, also `tags`, `ner_tags`, `upos` or another field that is named.
* `.conllu`: words in column 2, parts of speech (or another column) as labels; `.conll`, `.iob2`, `.bio`: words and tags
  of columns that are named or found. Sentences are divided by empty lines, and are texts of their own; `# text = …`
  gives the words' spacing.

Tags of IOB kind (`B-LOC`, `I-LOC`, `O`) lose their prefix, and `O` is no label.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

SPAN_FIELDS = ("spans", "entities")
TAG_FIELDS = ("labels", "tags", "ner_tags", "upos")
COLUMNS = (".conllu", ".conll", ".iob2", ".bio")
_IOB = re.compile(r"[BIESLU]-(.+)")


class Span(NamedTuple):
    """A labelled piece of a text."""

    start: int
    """First character."""
    end: int
    """Character behind the last."""
    label: str


@dataclass(frozen=True)
class LabelledTokens:
    """Texts with labelled pieces."""

    name: str
    texts: Sequence[str]
    spans: Sequence[Sequence[Span]]

    @property
    def labels(self) -> list[str]:
        """The distinct labels, sorted."""
        return sorted({span.label for spans in self.spans for span in spans})


def is_labelled_tokens(path: str | Path) -> bool:
    """Whether a file labels tokens and not whole texts, by its ending or the fields of its first record."""
    path = Path(path)
    if not path.is_file():
        return False
    if any(suffix in COLUMNS for suffix in path.suffixes):
        return True
    if ".jsonl" not in path.suffixes:
        return False
    first = next((line for line in _read(path).split("\n") if line.strip()), "null")
    try:
        record = json.loads(first)
    except json.JSONDecodeError:
        return False
    has_spans = isinstance(record, dict) and any(isinstance(record.get(name), list) for name in SPAN_FIELDS)
    return has_spans or (isinstance(record, dict) and isinstance(record.get("tokens"), list))


def labelled_tokens(path: str | Path, field: str | None = None) -> LabelledTokens:
    """Reads a file of labelled tokens; `field` names the field, or the number of the column from 1, of the labels.

    Raises:
        ValueError: another kind of file, a damaged record (named by its line), or no label at all.
    """
    path = Path(path)
    kind = next((suffix for suffix in path.suffixes if suffix in (".jsonl", *COLUMNS)), None)
    if kind is None or not path.is_file():
        raise ValueError(
            f"{path} is no file of labelled tokens, expected .jsonl, .conllu, .conll, .iob2 or .bio (.gz allowed): "
            "convert it, or check the path"
        )
    content = _read(path)
    found = list(_of_records(content, path, field) if kind == ".jsonl" else _of_columns(content, path, kind, field))
    if not any(spans for _, spans in found):
        raise ValueError(
            f"{path} holds {len(found)} texts without any label, expected some: check the file or the field"
        )
    return LabelledTokens(path.name.split(".")[0], [text for text, _ in found], [spans for _, spans in found])


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged ({error}), expected labelled tokens: copy it again") from None


def _of_records(content: str, path: Path, field: str | None) -> Iterator[tuple[str, list[Span]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if isinstance(record.get("tokens"), list):
                name = field or next(name for name in TAG_FIELDS if name in record)
                words, tags = [str(word) for word in record["tokens"]], record[name]
                if len(words) != len(tags):
                    raise ValueError(f"{len(words)} tokens and {len(tags)} labels")
                text = record.get("text")
                yield _laid_out(words, [str(tag) for tag in tags], text if isinstance(text, str) else None)
            else:
                text, name = str(record["text"]), field or next(name for name in SPAN_FIELDS if name in record)
                yield text, [_span(span, text) for span in record[name]]
        except (KeyError, StopIteration, TypeError, AttributeError, ValueError) as error:
            reason = "no labels" if isinstance(error, StopIteration) else " ".join(str(error).split())[:120]
            raise ValueError(
                f"{path} line {number} cannot be taken ({reason}), expected a text with spans of start, end and label, "
                "or tokens with as many labels: correct it, or name the field"
            ) from None


def _span(given: Any, text: str) -> Span:
    start, end, label = (given["start"], given["end"], given["label"]) if isinstance(given, dict) else given
    if isinstance(start, bool) or not isinstance(start, int) or not isinstance(end, int):
        raise TypeError(f"a span from {start!r} to {end!r}")
    if not 0 <= start < end <= len(text):
        raise ValueError(f"a span from {start} to {end} in a text of {len(text)} characters")
    return Span(start, end, str(label))


def _of_columns(content: str, path: Path, kind: str, field: str | None) -> Iterator[tuple[str, list[Span]]]:
    if field is not None and not (field.isdigit() and int(field) > 0):
        raise ValueError(f"the labels of {path} stand in a column, got the name {field!r}: give its number from 1")
    numbered = kind in (".conllu", ".iob2")
    for number, block in _blocks(content):
        rows = [re.split(r"\t| +", line.rstrip("\r")) for line in block if not line.startswith("#")]
        # parts of a word that was written as one (1-2), and words that were left out (1.1), are no tokens of the text
        rows = [row for row in rows if not (numbered and not row[0].isdigit())]
        if not rows:
            continue
        word = 1 if numbered else 0
        column = int(field) - 1 if field is not None else {".conllu": 3, ".iob2": 2}.get(kind, -1)
        if any(len(row) <= max(word, column, 1) for row in rows):
            raise ValueError(
                f"{path} line {number} begins a sentence with too few columns, expected a word and a label in each "
                "line: correct it, or name the column"
            )
        told = next((line.partition("=")[2].strip() for line in block if re.match(r"#\s*text\s*=", line)), None)
        yield _laid_out([row[word] for row in rows], [row[column] for row in rows], told)


def _blocks(content: str) -> Iterator[tuple[int, list[str]]]:
    """Sentences with the number of their first line."""
    block: list[str] = []
    first = 1
    for number, line in enumerate([*content.split("\n"), ""], 1):
        if line.strip():
            if not block:
                first = number
            block.append(line)
        elif block:
            yield first, block
            block = []


def _laid_out(words: Sequence[str], tags: Sequence[str], text: str | None) -> tuple[str, list[Span]]:
    """Words as pieces of their text; of words joined by spaces where they are not those of the text."""
    places = _places(words, text) if text is not None else None
    if text is None or places is None:
        text = " ".join(words)
        places = _places(words, text)
        assert places is not None
    spans: list[Span] = []
    for (start, end), tag in zip(places, tags, strict=True):
        iob = _IOB.fullmatch(tag)
        if end > start and tag not in ("O", "_", ""):
            spans.append(Span(start, end, iob[1] if iob else tag))
    return text, spans


def _places(words: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """Where the words stand in the text, one behind the other; None where one does not."""
    at, places = 0, []
    for word in words:
        start = text.find(word, at)
        if start < 0 or text[at:start].strip():
            return None
        at = start + len(word)
        places.append((start, at))
    return places
