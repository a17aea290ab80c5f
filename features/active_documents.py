"""What is active on an indexed document, told from its stored events: no model is needed.

Enters: a dictionary, a document and a position in it. Leaves: `ActiveFeatures` of the tokens around that position, and
documents by parts of their names. Values are those of the index, which read the document in its own rows of context: a
model that reads the piece alone gives others near the piece's beginning. Effects and attribution need the model:
`features.active` on the document's text.

A document's events are read from the file `features.text_events`. Where an earlier version built the dictionary, they
are found by reading the column of documents of the table events once: with a hundred million events that takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from features.active import Events, check_measure, measured, ranked
from features.records import ActiveFeatures, DocumentPart

if TYPE_CHECKING:
    from features.dictionary import Dictionary
    from features.text_events import TextEvents

STORED_MEASURES = ("activation", "surprise")
"""Measures that stored events answer."""
PART_TOKENS = 2_000
"""Tokens that are shown of a long document at once."""


class DocumentHit(NamedTuple):
    """A document whose name was asked for."""

    document: int
    name: str
    n_tokens: int


def find_documents(dictionary: Dictionary, words: str = "", limit: int = 20) -> list[DocumentHit]:
    """Documents whose names hold all of the words (in any case), in the order of the text; a number finds its own."""
    documents = dictionary.text.documents
    wanted = words.lower().split()
    hits: list[DocumentHit] = []
    if len(wanted) == 1 and wanted[0].isascii() and wanted[0].isdigit():
        row = int(np.searchsorted(documents.ids, int(wanted[0]))) if len(wanted[0]) < 10 else len(documents.ids)
        if row < len(documents.ids) and int(documents.ids[row]) == int(wanted[0]):
            hits.append(DocumentHit(int(documents.ids[row]), documents.names[row], int(documents.n_tokens[row])))
    for row, name in enumerate(documents.names):
        if len(hits) >= limit:
            break
        number = int(documents.ids[row])
        lowered = name.lower()
        if all(word in lowered for word in wanted) and (not hits or hits[0].document != number):
            hits.append(DocumentHit(number, name, int(documents.n_tokens[row])))
    return hits[: max(limit, 0)]


def active_in(
    dictionary: Dictionary,
    document: int,
    at: int | None = None,
    top: int = 10,
    by: str = "activation",
    n_tokens: int = PART_TOKENS,
) -> ActiveFeatures:
    """What is active on `n_tokens` tokens of an indexed document around position `at` (default: its beginning).

    Raises:
        ValueError: no such document or position, or a measure that stored events do not answer.
    """
    check_measure(by, STORED_MEASURES)
    if n_tokens < 1:
        raise ValueError(f"got n_tokens={n_tokens}, expected at least 1: ask for a token or more")
    text = dictionary.text
    ids = text.documents.ids
    row = int(np.searchsorted(ids, document)) if document >= 0 else len(ids)
    if row >= len(ids) or int(ids[row]) != document:
        raise ValueError(
            f"there is no document {document} in dictionary {dictionary.name}, expected one of its {len(ids):,}: "
            "find one by its name"
        )
    begin, length = (int(found[0]) for found in text.extents(np.array([document])))
    at = begin if at is None else at
    if not begin <= at < begin + length:
        raise ValueError(
            f"document {document} has no position {at}, expected {begin} to {begin + length - 1}: choose one of these"
        )
    first = begin + max(min(at - begin - n_tokens // 2, length - n_tokens), 0)
    stop = min(first + n_tokens, begin + length)
    window = text.window(document, first, 0, stop - first - 1)
    start = int(text.ordinals(np.array([document]), np.array([first]))[0])
    indexed = text.column("is_indexed", start, start + stop - first)
    part = DocumentPart(
        document,
        text.name(document),
        first,
        (begin, begin + length),
        dictionary.store.keeps_all_events,
    )
    events = (
        _from_text(text.events, start, stop - first) if text.events else _from_table(dictionary, document, first, stop)
    )
    bare = ActiveFeatures(
        "".join(window.tokens), window.tokens, [], [], by, special=np.flatnonzero(~indexed).tolist(), part=part
    )
    return ranked(dictionary, bare, events, measured(dictionary, events, by), top)


def _from_text(held: TextEvents, start: int, n_tokens: int) -> Events:
    found = held.between(start, start + n_tokens)
    values = found.activations.astype(np.float64)
    return Events(found.tokens, found.features.astype(np.int64), values, values)


def _from_table(dictionary: Dictionary, document: int, first: int, stop: int) -> Events:
    found = dictionary.store.query(
        "select feature, position, activation from events where document = $document "
        "and position >= $first and position < $stop order by position, feature",
        {"document": document, "first": first, "stop": stop},
    )
    features, positions, values = (column.to_numpy() for column in found.columns)
    values = values.astype(np.float64)
    return Events(positions.astype(np.int64) - first, features.astype(np.int64), values, values)
