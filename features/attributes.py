"""What can be said about a token without a model: the vocabulary of explanations.

Enters: token ids, their texts, and the document they stand in. Leaves: for each kind of attribute one category per
token (`token`, `previous`, `pair`, `word`, `line`, `region`, …) as small integers, with the key of each category.

Lines, regions and words are read off the text itself: spans of strings and comments are found with one expression, a
token belongs to the line of its last character. They are computed for every text; in prose the categories that only
code has stay empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

NONE = -1
"""Category of what is not there: the token before a document's first, or after its last."""

CLASSES = (
    ("number", r"\s*\d[\d_.]*"),
    ("line break", r"\s*\n\s*"),
    ("blank", r"[^\S\n]+"),
    ("opening bracket", r"\s*[(\[{<]+"),
    ("closing bracket", r"[^\S\n]*[)\]}>]+[:,;.]*"),
    ("quote", r"\s*[rbfu]?['\"`]+"),
    ("comparison", r"\s*(?:[<>=!]=|[<>]|\bis|\bin)"),
    ("operator", r"\s*[-+*/%=&|^~@]+"),
    ("sentence end", r"\s*[.!?]+"),
    ("punctuation", r"\s*[,;:.]+"),
    ("CAPITALS", r"\s*[A-Z][A-Z0-9_]+"),
    ("Capitalised", r"\s*[A-Z][a-z]*"),
    ("word", r"\s+[a-z]+"),
    ("word piece", r"[a-z]+"),
    ("name with underscore", r"\s*\w*_\w*"),
    ("other", r"(?s:.*)"),
)

_CLASS_PATTERN = re.compile("|".join(f"(?P<c{i}>{pattern})\\Z" for i, (_, pattern) in enumerate(CLASSES)))
_SPANS = re.compile(
    r"(?P<docstring>(?:\b[rRbBuU]{1,2})?(?:\"\"\"[\s\S]*?(?:\"\"\"|\Z)|'''[\s\S]*?(?:'''|\Z)))"
    r"|(?P<string>\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
    r"|(?P<comment>#[^\n]*)"
)
_FIRST_WORD = re.compile(r"[^\S\n]*(@?\w+|[^\w\s]{1,3}|)")
_WORD = re.compile(r"\w+")
REGIONS = ("code", "docstring", "string", "comment", "prose")
CODE_SUFFIXES = (".py", ".pyi", ".pyx")

# places of a token in its line and document
PLACE_INSIDE, PLACE_LINE_END, PLACE_DOCUMENT_START, PLACE_CONTEXT_START = 0, 1, 2, 3
PLACE_LINE_START, PLACE_BREAK = 10, 30
DEEPEST = 16


@dataclass(frozen=True)
class Attribute:
    """One kind of attribute over the sampled tokens."""

    name: str
    categories: np.ndarray
    """int64 [n]: the category of each token."""
    keys: list[Any]
    """What each category stands for: token ids, words, names of regions or classes, places."""

    @property
    def size(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Tokens:
    """Consecutive tokens of whole documents."""

    ids: np.ndarray
    """int32 [n]."""
    documents: np.ndarray
    """int32 [n]: number of the document, rising."""
    context_positions: np.ndarray
    """int32 [n]."""
    names: list[str]
    """Name of each of the documents that occur, in their order."""


def token_classes(vocabulary: list[str]) -> np.ndarray:
    """int64 [vocab]: the class of each token's text, an index of `CLASSES`."""
    found = np.empty(len(vocabulary), dtype=np.int64)
    for index, text in enumerate(vocabulary):
        match = _CLASS_PATTERN.match(text)
        found[index] = int(match.lastgroup[1:]) if match and match.lastgroup else len(CLASSES) - 1
    return found


def attributes_of(tokens: Tokens, vocabulary: list[str]) -> list[Attribute]:
    """All attributes of the tokens, the plainest first."""
    ids = tokens.ids.astype(np.int64)
    same_as_previous = np.concatenate(([False], tokens.documents[1:] == tokens.documents[:-1]))
    previous = np.where(same_as_previous, np.roll(ids, 1), NONE)
    following = np.where(np.append(same_as_previous[1:], False), np.roll(ids, -1), NONE)
    before_previous = np.where(same_as_previous, np.roll(previous, 1), NONE)
    classes = token_classes(vocabulary)[ids]
    words, lines, regions, places = _from_text(tokens, vocabulary)

    named = [name for name, _ in CLASSES]
    attributes = [
        _plain("token", ids, lambda key: int(key)),
        _plain("class", classes, lambda key: named[key]),
        _plain("region", regions, lambda key: REGIONS[key]),
        _plain("place", places, lambda key: int(key)),
        Attribute("word", *words),
        Attribute("line", *lines),
        _plain("previous", previous, lambda key: int(key)),
        _joined("pair", previous, ids),
        _joined("previous two", before_previous, previous),
        _plain("next", following, lambda key: int(key)),
    ]
    line_keys = lines[1]
    attributes += [
        _joined("line and token", lines[0], ids, first=lambda key: line_keys[key]),
        _joined("line and class", lines[0], classes, first=lambda key: line_keys[key], second=lambda key: named[key]),
        _joined("region and token", regions, ids, first=lambda key: REGIONS[key]),
        _joined("region and class", regions, classes, first=lambda key: REGIONS[key], second=lambda key: named[key]),
    ]
    return attributes


def _plain(name: str, values: np.ndarray, key: Any) -> Attribute:
    present, categories = np.unique(values, return_inverse=True)
    return Attribute(name, categories.astype(np.int64), [key(value) for value in present.tolist()])


def _joined(name: str, left: np.ndarray, right: np.ndarray, first: Any = int, second: Any = int) -> Attribute:
    offset = int(right.max(initial=0)) + 2
    present, categories = np.unique((left + 1) * offset + right + 1, return_inverse=True)
    keys = [(first(value // offset - 1), second(value % offset - 1)) for value in present.tolist()]
    return Attribute(name, categories.astype(np.int64), keys)


Interned = tuple[np.ndarray, list[str]]


def _from_text(tokens: Tokens, vocabulary: list[str]) -> tuple[Interned, Interned, np.ndarray, np.ndarray]:
    """Words so far, first words of lines, regions and places of all tokens, document by document."""
    n = tokens.ids.size
    words, lines = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    regions, places = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    word_ids: dict[str, int] = {}
    line_ids: dict[str, int] = {}
    starts = np.flatnonzero(np.concatenate(([True], tokens.documents[1:] != tokens.documents[:-1]))) if n else []
    for index, start in enumerate(starts):
        stop = starts[index + 1] if index + 1 < len(starts) else n
        part = slice(start, stop)
        texts = [vocabulary[i] for i in tokens.ids[part].tolist()]
        text = "".join(texts)
        lengths = np.array([len(piece) for piece in texts])
        end = np.cumsum(lengths)
        begin = end - lengths
        last = np.maximum(end - 1, begin)
        line_starts = np.array([0, *(match.end() for match in re.finditer("\n", text))])
        line = np.searchsorted(line_starts, last, side="right") - 1
        lines[part] = _first_words(text, line_starts, line_ids)[line]
        regions[part] = _regions(text, last, tokens.names[index])
        places[part] = _places(text, texts, begin, last, line_starts, line)
        words[part] = _words_so_far(text, begin, end, word_ids)
    places[tokens.context_positions == 0] = PLACE_CONTEXT_START
    return (words, list(word_ids)), (lines, list(line_ids)), regions, places


def _first_words(text: str, line_starts: np.ndarray, known: dict[str, int]) -> np.ndarray:
    found = np.empty(line_starts.size, dtype=np.int64)
    for number, start in enumerate(line_starts.tolist()):
        match = _FIRST_WORD.match(text, start)
        found[number] = known.setdefault(match.group(1) if match else "", len(known))
    return found


def _regions(text: str, last: np.ndarray, name: str) -> np.ndarray:
    if not name.endswith(CODE_SUFFIXES):
        return np.full(last.size, REGIONS.index("prose"))
    begins, kinds = [0], [0]
    for match in _SPANS.finditer(text):
        begins += [match.start(), match.end()]
        kinds += [REGIONS.index(match.lastgroup or "code"), 0]
    return np.array(kinds)[np.searchsorted(np.array(begins), last, side="right") - 1]


def _places(
    text: str, texts: list[str], begin: np.ndarray, last: np.ndarray, line_starts: np.ndarray, line: np.ndarray
) -> np.ndarray:
    """Where in its line a token stands; line starts and breaks also say how deep the line is indented."""
    ends = np.append(line_starts[1:] - 1, len(text))
    depth = np.empty(line_starts.size, dtype=np.int64)
    word_at = np.empty(line_starts.size, dtype=np.int64)
    for number, (start, stop) in enumerate(zip(line_starts.tolist(), ends.tolist(), strict=True)):
        content = text[start:stop]
        indent = len(content) - len(content.lstrip())
        depth[number] = min(indent // 4, DEEPEST)
        word_at[number] = start + indent
    places = np.zeros(len(texts), dtype=np.int64)
    is_break = np.array(["\n" in piece for piece in texts], dtype=bool)
    is_blank = np.array([not piece.strip() for piece in texts], dtype=bool)
    is_start = (begin <= word_at[line]) & (word_at[line] <= last) & ~is_blank
    is_end = (last == ends[line] - 1) & ~is_blank & ~is_start
    next_line = np.minimum(line + (np.array([piece.endswith("\n") for piece in texts], dtype=bool)), depth.size - 1)
    places[is_end] = PLACE_LINE_END
    places[is_start] = PLACE_LINE_START + depth[line][is_start]
    places[is_break] = PLACE_BREAK + depth[next_line][is_break]
    places[:2] = PLACE_DOCUMENT_START
    return places


def _words_so_far(text: str, begin: np.ndarray, end: np.ndarray, known: dict[str, int]) -> np.ndarray:
    """The part of the word that the token completes or continues, up to the token's end."""
    nothing = known.setdefault("", len(known))
    found = np.full(begin.size, nothing, dtype=np.int64)
    spans = [match.span() for match in _WORD.finditer(text)]
    if not spans:
        return found
    word_begin = np.array([span[0] for span in spans])
    word_end = np.array([span[1] for span in spans])
    # the word that holds the token's last character
    word = np.searchsorted(word_begin, end - 1, side="right") - 1
    inside = (word >= 0) & (end - 1 < word_end[np.maximum(word, 0)]) & (end > begin)
    for place in np.flatnonzero(inside).tolist():
        piece = text[word_begin[word[place]] : end[place]]
        found[place] = known.setdefault(piece, len(known))
    return found
