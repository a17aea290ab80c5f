"""What is active on a text: one text, two, or one in two dictionaries.

`Ask` is what a person asked, as the address says it; `Readings` answers it and keeps the last answers, which the panels
of single tokens, lanes and downloads ask for again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ui.render import feature as feature_render
from ui.render import html
from ui.render import reading as render
from ui.render.html import escape
from ui.views.shelf import Shelf

if TYPE_CHECKING:
    from features import Dictionary
    from features.records import ActiveFeatures
    from features.text_comparison import ReadingComparison

KEPT = 12
MEASURES = {
    "Activation": "activation",
    "Surprise": "surprise",
    "Effect on a next token": "effect",
    "Attribution to the last prediction": "attribution",
}
AIMED = ("effect", "attribution")
SHOWN_FEATURES = (8, 16, 32, 64)
DOCUMENTS = 12


@dataclass(frozen=True)
class Ask:
    """What is to be shown; empty where nothing was given."""

    dictionary: str
    text: str = ""
    document: int | None = None
    at: int | None = None
    by: str = "activation"
    target: str = ""
    top: int = 16
    second: str = ""
    """Another text."""
    other: str = ""
    """Another dictionary."""
    feature: int | None = None
    token: str = ""
    """Index of a token, `b` before it where it is one of the second reading."""

    @property
    def is_stored(self) -> bool:
        """Whether stored events answer it: no model is needed."""
        return self.document is not None and not self.text and self.by not in AIMED and not self.second

    @property
    def is_empty(self) -> bool:
        return not self.text and self.document is None


@dataclass(frozen=True)
class Side:
    """One reading, with where it comes from."""

    name: str
    dictionary: Dictionary
    reading: ActiveFeatures


class Readings:
    """Answers, the last of which are kept; safe to ask from several threads.

    `check` refuses texts that no model is to read (`ui.browser.limits`).
    """

    def __init__(self, shelf: Shelf, check: Callable[..., None] = lambda *_texts: None) -> None:
        self.shelf = shelf
        self._check = check
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[object, ...], ActiveFeatures] = OrderedDict()

    def sides(self, ask: Ask) -> list[Side]:
        """Returns the readings that are asked for, one or two.

        Raises:
            ValueError: what the library refuses, such as a text too long.
        """
        self._check(ask.text, ask.second)
        first = self._side(ask.dictionary, ask, ask.text)
        if ask.second:
            return [first, self._side(ask.dictionary, ask, ask.second)]
        if ask.other and ask.other in self.shelf.by_name and ask.other != ask.dictionary:
            if ask.target == "" and first.reading.target is not None:
                ask = replace(ask, target=first.reading.target)  # what one model expects, both are asked about
            return [first, self._side(ask.other, ask, ask.text)]
        return [first]

    def comparison(self, sides: list[Side], top: int) -> ReadingComparison | None:
        """Returns what two readings have in common; None where there is one."""
        from features.text_comparison import compare_readings

        if len(sides) < 2:
            return None
        a, b = sides
        return compare_readings(a.dictionary, a.reading, b.dictionary, b.reading, top)

    def _side(self, name: str, ask: Ask, text: str) -> Side:
        dictionary = self.shelf.get(name)
        key = (name, text, None if text else ask.document, None if text else ask.at, ask.by, ask.target, ask.top)
        with self._lock:
            found = self._kept.get(key)
        if found is None:
            found = _read(dictionary, ask, text)
        with self._lock:
            self._kept[key] = found
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return Side(name, dictionary, found)


def _read(dictionary: Dictionary, ask: Ask, text: str) -> ActiveFeatures:
    from features.active import TextTooLong
    from features.active_documents import active_in

    target = (ask.target or None) if ask.by in AIMED else None
    if text or ask.document is None:
        return dictionary.active_on(text, ask.top, ask.by, target)
    if ask.by not in AIMED:
        return active_in(dictionary, ask.document, ask.at, ask.top, ask.by)
    piece = active_in(dictionary, ask.document, ask.at, 0, n_tokens=dictionary.lm.context_tokens)
    try:
        return dictionary.active_on(piece.text, ask.top, ask.by, target)
    except TextTooLong as long:  # tokens of a piece are not always those of its text
        return dictionary.active_on(long.beginning, ask.top, ask.by, target)


def shown(readings: Readings, ask: Ask | None) -> str:
    """Returns the whole answer, or why there is none."""
    from features.active import TextTooLong

    if ask is None or ask.is_empty:
        return _notice("Paste a text, or pick a document of the dictionary by its name.", "muted")
    try:
        sides = readings.sides(ask)
        found = readings.comparison(sides, ask.top)
    except TextTooLong as long:
        return _too_long(ask, long.n_tokens, long.most_tokens, long.beginning, str(long))
    except (ValueError, OSError) as error:
        return _notice(str(error))
    first = sides[0].dictionary
    if ask.feature is not None and ask.feature >= first.n_features:
        told = f"The address names feature {ask.feature:,}, expected 0 to {first.n_features - 1:,}: choose one below."
        missed = f'<p class="notice" role="alert">{escape(told)}</p>'
    else:
        missed = ""
    return f'<div class="gb"><div class="stack">{missed}{_heats(sides, ask)}{_compared(sides, found)}</div></div>'


def _notice(told: str, kind: str = "notice") -> str:
    role = ' role="alert"' if kind == "notice" else ""
    return f'<div class="gb"><p class="{kind}"{role}>{escape(told)}</p></div>'


def _too_long(ask: Ask, n_tokens: int, most: int, beginning: str, told: str) -> str:
    words = (
        {"by": ask.by} | ({"target": ask.target} if ask.target else {}) | ({"other": ask.other} if ask.other else {})
    )
    if ask.text.startswith(beginning):
        words |= {"text": beginning} | ({"second": ask.second} if ask.second else {})
    else:
        words |= {"text": ask.text, "second": beginning}
    offer = html.link(f"Use its first {most:,} tokens", "text", ask.dictionary, " data-first-part", **words)
    return (
        f'<div class="gb"><div class="notice stack" role="alert"><p>{escape(told)}</p><p>{n_tokens:,} tokens were '
        f"given; the limit is {most:,}. {offer}</p></div></div>"
    )


def _titles(sides: list[Side]) -> list[str]:
    if len(sides) < 2:
        return [""]
    if sides[0].name == sides[1].name:
        return ["the first text", "the second text"]
    return [side.name for side in sides]


def _compared(sides: list[Side], found: ReadingComparison | None) -> str:
    if found is None:
        return ""
    first, second = _titles(sides)
    links = feature_render.linker(sides[0].name), feature_render.linker(sides[1].name)
    return render.comparison(found, (first, second), links)


def _heats(sides: list[Side], ask: Ask) -> str:
    ranked: list[int] = []
    one_space = len({side.name for side in sides}) == 1
    if one_space:  # the same features in both, so that lanes stand beside each other
        both = [entry for side in sides for entry in side.reading.ranked]
        both.sort(key=lambda entry: -abs(entry.total))
        ranked = list(dict.fromkeys(entry.feature for entry in both))[: ask.top]
    titles = _titles(sides)
    pieces = []
    for name, side, title in zip("ab", sides, titles, strict=False):
        reading = side.reading
        numbers = ranked if one_space else [entry.feature for entry in reading.ranked]
        if name == "a" and ask.feature is not None and ask.feature not in numbers:
            numbers = [*numbers, *([ask.feature] if 0 <= ask.feature < side.dictionary.n_features else [])]
        says = side.dictionary.explanations_of(numbers)
        chosen = ask.feature if name == "a" or one_space else None
        pieces.append(
            render.heat(
                reading,
                [(number, says.get(number, "")) for number in numbers],
                render.scales(reading, side.dictionary.max_activations),  # pyright: ignore[reportArgumentType]
                feature_render.linker(side.name),
                title=_heading(side, title, ask),
                side=name,
                space=side.name,
                feature=chosen,
                token=_chosen(ask, name, reading),
            )
        )
    return f'<div class="readings n{len(pieces)}">{"".join(pieces)}</div>'


def _heading(side: Side, title: str, ask: Ask) -> str:
    part = side.reading.part
    if part is None:
        return escape(title or "Text")
    first, stop = part.first_position, part.first_position + len(side.reading.tokens)
    begin, end = part.document_positions
    links = []
    half = len(side.reading.tokens) // 2
    for text, at, is_there in (("← before", first - half, first > begin), ("after →", stop + half, stop < end)):
        if is_there:
            place = max(begin, min(at, end - 1))
            links.append(html.link(text, "text", ask.dictionary, document=part.document, at=place, by=ask.by))
    where = f"tokens {first:,} to {stop - 1:,} of {end:,}" if links else ""
    kept = "" if part.all_events else '<span class="muted">events around examples alone</span>'
    before = f"{escape(title)}: " if title else ""
    return before + render.document_heading(part.name, where, [*links, *([kept] if kept else [])])


def _chosen(ask: Ask, side: str, reading: ActiveFeatures) -> int | None:
    """Returns the index of the token that the address names on a side."""
    found = place(ask.token)
    if found is None and not ask.token and ask.at is not None and side == "a" and reading.part is not None:
        found = "a", ask.at - reading.part.first_position
    if found is None or found[0] != side or not 0 <= found[1] < len(reading.tokens):
        return None
    return found[1]


def place(token: str) -> tuple[str, int] | None:
    """Returns the side and the index that a word of the address names: `12`, `b12`."""
    side, digits = ("b", token[1:]) if token.startswith("b") else ("a", token)
    return (side, int(digits)) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None


def _picked(readings: Readings, ask: Ask) -> tuple[str, Side, int] | None:
    for name, side in zip("ab", readings.sides(ask), strict=False):
        token = _chosen(ask, name, side.reading)
        if token is not None:
            return name, side, token
    return None


def _missed(readings: Readings, ask: Ask) -> str:
    """Returns why the token of the address is none of the text's; empty where it names none."""
    if not ask.token:
        return ""
    known = [
        f"{before}0 to {before}{len(side.reading.tokens) - 1}"
        for before, side in zip(("", "b"), readings.sides(ask), strict=False)
        if side.reading.tokens
    ]
    return f"The address names the token “{ask.token[:20]}”, expected one of {' or '.join(known)}. "


def token_panel(readings: Readings, ask: Ask | None) -> str:
    """Returns the features of the chosen token."""
    if ask is None or ask.is_empty:
        return ""
    try:
        picked = _picked(readings, ask)
    except (ValueError, OSError):  # said where the text would stand
        return ""
    if picked is None:
        told = "Choose a token in the text to see its features and what the model predicts there."
        return _notice(f"{_missed(readings, ask)}{told}", "notice" if ask.token else "muted")
    name, side, token = picked
    says = side.dictionary.explanations_of([feature for feature, _ in side.reading.per_token[token]])
    maxima, link = side.dictionary.max_activations, feature_render.linker(side.name)
    return render.token_panel(side.reading, token, says, maxima, link, name)  # pyright: ignore[reportArgumentType]


def lens_panel(readings: Readings, ask: Ask | None) -> str:
    """Returns the logit lens at the chosen token, or why there is none."""
    from features.reading_lens import lens_at

    if ask is None or ask.is_empty:
        return ""
    try:
        picked = _picked(readings, ask)
    except (ValueError, OSError):
        return ""
    if picked is None:
        return ""
    _, side, token = picked
    try:
        return render.lens_panel(lens_at(side.dictionary, side.reading, token))
    except (ValueError, OSError) as error:
        return _notice(f"No logit lens: {error}", "muted small")


def documents(dictionary: Dictionary, words: str, name: str, by: str) -> str:
    """Returns links to the documents whose names hold the words."""
    from features.active_documents import find_documents

    hits = find_documents(dictionary, words, DOCUMENTS)
    return render.document_list(hits, name, by if by not in AIMED else "activation")


def download(readings: Readings, ask: Ask, kind: str) -> str:
    """Returns the answer as a file's content: `json` or `csv`.

    Raises:
        ValueError: what the library refuses.
    """
    from features.sharing.readings import readings_csv, readings_json

    sides = readings.sides(ask)
    both = [side.reading for side in sides]
    return readings_csv(both) if kind == "csv" else readings_json(both, readings.comparison(sides, 1_000))
