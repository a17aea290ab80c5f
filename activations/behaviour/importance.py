"""Which parts of a text an answer hangs on, asked from outside: leave a part out, or put something in its place.

    part_importance(model, text, by="word", substitute=None, measure=None) -> PartImportance

Enters: a black box and a text. Leaves, for each part, score(text) − score(text without the part), where the score is
(the first that applies): `measure` of the answer, if one is given; ln p(the answer to the whole text | changed text)
where the model can tell it; otherwise how much the new answer has in common with the first, 1 for the same.

It misleads where two parts stand for each other (each can go alone), and where a text with a hole is stranger than what
the hole took: substitutes are milder. One or `len(substitutes)` questions a part.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from activations.analyses.plain import to_json
from activations.behaviour.answers import Answer, BlackBox, ask, same_answer
from activations.progress import progress

PARTS = {
    "word": r"\w+|[^\w\s]+",
    "sentence": r"\S[^.!?\n]*(?:[.!?]+|\n|$)",
    "line": r"[^\n]*\S[^\n]*",
}
"""How texts are divided."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the text, and what hangs on it."""

    part: str
    start: int
    end: int
    """Characters of the text, `end` not included."""
    effect: float
    """Positive where the answer needs the part; NaN where nothing is left without it."""
    changes_answer: bool
    answer: str
    """To the (first) text without it."""


@dataclass(frozen=True)
class PartImportance:
    """How much an answer hangs on each part of its text."""

    text: str
    answer: str
    score: float
    """Of the whole text."""
    measure: str
    """What the score is."""
    how: str
    """`removal` or `substitution`."""
    parts: tuple[Part, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each part, in their order."""
        return [asdict(part) for part in self.parts]

    def to_json(self) -> str:
        return to_json(self)


def part_importance(
    model: BlackBox,
    text: str,
    *,
    by: str = "word",
    substitute: str | Sequence[str] | None = None,
    measure: Callable[[Answer], float] | None = None,
) -> PartImportance:
    """Scores the words, sentences or lines of a text for the model's answer to it.

    With `substitute` parts are replaced, not removed; several are averaged over. `measure` turns an answer into a
    number.

    Raises:
        ValueError: an unknown `by`, or a text without parts.
    """
    if by not in PARTS:
        raise ValueError(f"by={by!r} is unknown, expected one of {', '.join(PARTS)}: choose one of these")
    spans = [match.span() for match in re.finditer(PARTS[by], text)]
    if not spans:
        raise ValueError(f"the text {text[:20]!r} has no {by}s, expected at least one: give a text")
    whole = ask(model, text)
    log_probability: Any = getattr(model, "log_probability", None)
    if measure is not None:
        name = getattr(measure, "__name__", "measure")
    else:
        name = "log-probability of the answer" if log_probability is not None else "likeness to the answer"

    def score(given: str, answer: Answer) -> float:
        if measure is not None:
            return float(measure(answer))
        if log_probability is not None:
            return float(log_probability(given, whole.text))
        return difflib.SequenceMatcher(None, whole.text, answer.text, autojunk=False).ratio()

    base = score(text, whole)
    others = [substitute] if isinstance(substitute, str) else list(substitute or [])
    found = []
    with progress("Parts", len(spans), "parts") as advance:
        for start, end in spans:
            changed = [f"{text[:start]}{other}{text[end:]}" for other in others] or [_without(text, start, end)]
            answers, scores = [], []
            for each in changed:
                answers.append(ask(model, each) if each.strip() else Answer(""))
                scores.append(score(each, answers[-1]) if each.strip() else math.nan)
            found.append(
                Part(
                    part=text[start:end],
                    start=start,
                    end=end,
                    effect=base - sum(scores) / len(scores),
                    changes_answer=not same_answer(answers[0].text, whole.text),
                    answer=answers[0].text,
                )
            )
            advance(1)
    return PartImportance(
        text=text,
        answer=whole.text,
        score=base,
        measure=name,
        how="substitution" if others else "removal",
        parts=tuple(found),
    )


def _without(text: str, start: int, end: int) -> str:
    """Takes a part out, and one of the spaces around it."""
    if start and text[start - 1] == " ":
        start -= 1
    elif end < len(text) and text[end] == " ":
        end += 1
    return text[:start] + text[end:]
