"""Rules in plain words: the texts that people read as explanations.

Enters: the categories that a rule names, with their shares of the feature's activation. Leaves: a short text.
Tokens stand in backquotes; blanks and line breaks are spelled out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from features.attributes import (
    CLASSES,
    NONE,
    PLACE_BREAK,
    PLACE_CONTEXT_START,
    PLACE_DOCUMENT_START,
    PLACE_INSIDE,
    PLACE_LINE_END,
    PLACE_LINE_START,
)

LISTED = 5
TOLD_SHARE = 0.9
MOSTLY_SHARE = 0.6
CLASS_WORDS = {
    "number": "numbers",
    "line break": "line breaks",
    "blank": "blanks",
    "opening bracket": "opening brackets",
    "closing bracket": "closing brackets",
    "quote": "quotation marks",
    "comparison": "comparisons",
    "operator": "operators",
    "sentence end": "sentence ends",
    "punctuation": "punctuation",
    "CAPITALS": "words in capitals",
    "Capitalised": "capitalised words",
    "word": "lower-case words",
    "word piece": "pieces inside words",
    "name with underscore": "names with an underscore",
    "other": "mixed tokens",
}
REGION_WORDS = {
    "code": "in code",
    "docstring": "in docstrings",
    "string": "in string literals",
    "comment": "in comments",
    "prose": "in prose",
}
_CLASS_PATTERNS = [(name, re.compile(pattern)) for name, pattern in CLASSES[:-1]]


class Member(NamedTuple):
    """One category of a rule: its key and its share of the activation that the rule covers."""

    key: Any
    share: float


def quoted(text: str) -> str:
    """A token for people: trimmed and in backquotes; blanks are spelled out."""
    if not text:
        return "nothing"
    if not text.strip():
        breaks, spaces = text.count("\n"), len(text) - len(text.rstrip(" ")) if "\n" in text else len(text)
        if not breaks:
            return "a tab" if set(text) == {"\t"} else ("a space" if spaces == 1 else f"{spaces} spaces")
        first = "a line break" if breaks == 1 else "an empty line"
        return f"{first} and {spaces} spaces" if spaces else first
    shown = text.strip(" ").replace("\n", "⏎").replace("`", "ˋ").replace("\t", "⇥")
    return f"`{shown}`"


def _list(parts: Sequence[str], limit: int = LISTED) -> str:
    """Names in a row; what exceeds `limit` is counted."""
    unique = list(dict.fromkeys(parts))
    if len(unique) > limit:
        return ", ".join(unique[:limit]) + f" and {len(unique) - limit} more"
    return unique[0] if len(unique) == 1 else ", ".join(unique[:-1]) + " and " + unique[-1]


def _shares(parts: Sequence[tuple[str, float]], limit: int = LISTED, mostly: bool = True) -> str:
    """Names by their shares, the heaviest first; a tail of small ones goes unsaid or as "others"."""
    summed: dict[str, float] = {}
    for name, share in parts:
        summed[name] = summed.get(name, 0.0) + share
    total = sum(summed.values()) or 1.0
    ranked = sorted(summed.items(), key=lambda item: -item[1])
    told: list[str] = []
    covered = 0.0
    for name, share in ranked:
        if told and (covered >= TOLD_SHARE * total or len(told) == limit):
            break
        told.append(name)
        covered += share
    has_rest = covered < TOLD_SHARE * total
    if mostly and len(told) > 1 and ranked[0][1] >= MOSTLY_SHARE * total:
        return f"mostly {told[0]}, also {_list(told[1:], limit)}" + (" and others" if has_rest else "")
    return ", ".join(told) + " and others" if has_rest else _list(told, limit)


def tokens_text(members: Sequence[tuple[str, float]], limit: int = LISTED, mostly: bool = True) -> str:
    """Names a set of token texts: one word, a class of tokens, a shared ending or beginning, or a list."""
    kept = _without_tail(members)
    if len(kept) > 1 and all("\n" in text and not text.strip() for text, _ in kept):
        depths = sorted({len(text) - len(text.rstrip(" ")) for text, _ in kept})
        deep = f"by {_list([str(depth) for depth in depths], 8)} spaces" if depths != [0] else "by no spaces"
        return f"line breaks followed {deep}"
    members = kept if len(kept) == 1 else members
    stripped = [text.strip().lower() for text, _ in members]
    total = sum(share for _, share in members) or 1.0
    if len(set(stripped)) == 1 and stripped[0]:
        spelled = {text.strip() for text, _ in members}
        word = max(members, key=lambda member: member[1])[0]
        kind = "the word " if stripped[0].isalpha() and len(stripped[0]) > 1 else ""
        return f"{kind}{quoted(word)}" + (" in any case" if len(spelled) > 1 else "")
    if len(set(stripped)) >= 3:
        for name, pattern in _CLASS_PATTERNS:
            if name in ("word", "word piece", "name with underscore"):
                continue
            if all(pattern.fullmatch(text) for text, _ in members):
                return (
                    f"{CLASS_WORDS[name]}: {_shares([(quoted(text), share) for text, share in members], limit, mostly)}"
                )
        leading = [(text.strip(), share) for text, share in members if text.strip().isalpha()]
        if len(leading) >= 3 and sum(share for _, share in leading) > 0.9 * total:
            words = [text.lower() for text, _ in leading]
            prefix = _shared_beginning(words)
            suffix = _shared_beginning([word[::-1] for word in words])[::-1]
            shown = _shares([(quoted(text), share) for text, share in leading], limit, mostly)
            if len(suffix) >= 2 and len(suffix) >= len(prefix):
                return f"words ending in `{suffix}`: {shown}"
            if len(prefix) >= 3:
                return f"words beginning with `{prefix}`: {shown}"
    return _shares([(quoted(text), share) for text, share in members], limit, mostly)


def _without_tail(members: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The heaviest members that together hold nearly all."""
    ranked = sorted(members, key=lambda member: -member[1])
    total = sum(share for _, share in ranked) or 1.0
    kept: list[tuple[str, float]] = []
    covered = 0.0
    for text, share in ranked:
        if kept and covered >= 0.95 * total:
            break
        kept.append((text, share))
        covered += share
    return kept


def _shared_beginning(words: Sequence[str]) -> str:
    """What all words begin with: the smallest and the largest word share no more than the others do."""
    low, high = min(words), max(words)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]


def place_text(place: int) -> str:
    """A place in line and document."""
    if place >= PLACE_BREAK:
        return _depth("the line break before a line", place - PLACE_BREAK)
    if place >= PLACE_LINE_START:
        return _depth("the first token of a line", place - PLACE_LINE_START)
    return {
        PLACE_INSIDE: "inside a line",
        PLACE_LINE_END: "the last token of a line",
        PLACE_DOCUMENT_START: "the first tokens of a document",
        PLACE_CONTEXT_START: "the first token that the model sees",
    }[place]


def _depth(what: str, depth: int) -> str:
    return f"{what} without indentation" if depth == 0 else f"{what} indented {4 * depth} spaces"


def rule_text(attribute: str, members: Sequence[Member], vocabulary: Sequence[str]) -> str:
    """The rule "the feature is active where the attribute is one of the members", in words."""
    by_share = sorted(members, key=lambda member: -member.share)

    def token(index: int) -> str:
        return "" if index == NONE else vocabulary[index]

    if attribute == "token":
        return tokens_text([(token(m.key), m.share) for m in by_share])
    if attribute == "class":
        return _list([CLASS_WORDS[m.key] for m in by_share])
    if attribute == "region":
        return "text " + _list([REGION_WORDS[m.key] for m in by_share])
    if attribute == "place":
        return _places_text([m.key for m in by_share])
    if attribute == "word":
        words = [(f"`{m.key}`", m.share) for m in by_share if m.key]
        return f"the token that completes {_shares(words)}" if words else "what stands between words"
    if attribute == "line":
        words = [(f"`{m.key}`" if m.key else "nothing", m.share) for m in by_share]
        return f"lines beginning with {_shares(words)}"
    if attribute == "previous":
        return "the token after " + _after([(token(m.key), m.share) for m in by_share])
    if attribute == "next":
        return "just before " + _after([(token(m.key), m.share) for m in by_share])
    if attribute == "previous two":
        return "the token after " + _shares([(quoted(token(m.key[0]) + token(m.key[1])), m.share) for m in by_share])
    if attribute == "pair":
        return _pairs_text([(token(m.key[0]), token(m.key[1]), m.share) for m in by_share])
    if attribute == "line and token":
        groups = _grouped([(m.key[0], token(m.key[1]), m.share) for m in by_share])
        if all(text.strip() == outer for outer, inner in groups for text, _ in inner):
            return tokens_text([member for _, inner in groups for member in inner]) + " at the beginning of a line"
        return "; ".join(f"{tokens_text(inner, 3)} on {_line(outer)}" for outer, inner in groups)
    if attribute == "line and class":
        groups = _grouped([(m.key[0], m.key[1], m.share) for m in by_share])
        return "; ".join(
            f"{_list([CLASS_WORDS[name] for name, _ in inner], 3)} on {_line(outer)}" for outer, inner in groups
        )
    if attribute == "region and token":
        groups = _grouped([(m.key[0], token(m.key[1]), m.share) for m in by_share])
        return "; ".join(f"{tokens_text(inner)} {REGION_WORDS[outer]}" for outer, inner in groups)
    if attribute == "region and class":
        groups = _grouped([(m.key[0], m.key[1], m.share) for m in by_share])
        return "; ".join(
            f"{_list([CLASS_WORDS[name] for name, _ in inner], 3)} {REGION_WORDS[outer]}" for outer, inner in groups
        )
    raise AssertionError(attribute)


def _line(first_word: str) -> str:
    return f"lines beginning with `{first_word}`" if first_word else "empty lines"


def _after(members: list[tuple[str, float]]) -> str:
    return tokens_text(
        [(text if text else "the start of the document", share) for text, share in members], mostly=False
    )


def _grouped(entries: list[tuple[Any, Any, float]]) -> list[tuple[Any, list[tuple[Any, float]]]]:
    """(outer, [(inner, share)]) with the two heaviest outer keys first; smaller ones are left unsaid."""
    groups: dict[Any, list[tuple[Any, float]]] = {}
    for outer, inner, share in entries:
        groups.setdefault(outer, []).append((inner, share))
    ranked = sorted(groups.items(), key=lambda item: -sum(share for _, share in item[1]))
    return ranked[:2]


def _places_text(places: list[int]) -> str:
    for first, last, words in (
        (PLACE_BREAK, 1 << 30, "the line break before an indented line"),
        (PLACE_LINE_START, PLACE_BREAK, "the first token of a line"),
    ):
        if len(places) > 2 and all(first <= place < last for place in places):
            return words
    return _list([place_text(place) for place in places], 3)


def _pairs_text(pairs: list[tuple[str, str, float]]) -> str:
    total = sum(share for _, _, share in pairs) or 1.0
    second = _grouped([(second, first, share) for first, second, share in pairs])
    first = _grouped([(first, second, share) for first, second, share in pairs])
    share_second = sum(share for _, share in second[0][1]) / total
    share_first = sum(share for _, share in first[0][1]) / total
    if share_second > 0.8 and share_second >= share_first:
        return f"{quoted(second[0][0])} after {_after(second[0][1])}"
    if share_first > 0.8:
        return f"{tokens_text(first[0][1])} after {_after([(first[0][0], 1.0)])}"
    return "the end of " + _shares([(quoted(before + after), share) for before, after, share in pairs])
