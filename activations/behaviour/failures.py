"""Where a model fails: cases that went wrong, and the kinds of text on which it goes wrong more often.

    failure_report(model, texts, expected, tags=None) -> FailureReport

Enters: a black box, texts, right answers, perhaps tags of each text. Leaves: every failure with the model's answer
(those it was surest of first), and slices: texts with a tag, a length in the first or last quarter, digits, capitals,
negation, a question, a character outside ASCII, or a word. For each slice the failure rate with Wilson's interval, and
p, the chance of so large a difference to the other texts if kinds did not matter (Fisher's exact test, two-sided), made
stricter by the number of slices that were tried (Holm).

Slices are found on the texts they are told of: what is below 0.05 is worth a look on new texts, not proof. Slices
overlap.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from activations.analyses.plain import to_json
from activations.behaviour.answers import BlackBox, ask
from activations.behaviour.consistency import starts_right
from activations.intervals import Interval, share_interval
from activations.progress import progress

MIN_SLICE = 5
"""Texts that a slice must hold, and leave out."""
WORDS = 30
"""Words, the most frequent over texts, that are tried as slices."""
_NEGATION = re.compile(r"\b(not|no|never|none|nothing|cannot|without|\w+n't)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A text that was answered wrongly."""

    text: str
    expected: str
    answer: str
    confidence: float | None
    """Probability of the answer by its tokens (geometric mean), where the model tells it."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A kind of text."""

    slice: str
    n: int
    failures: int
    rate: float
    low: float
    high: float
    rate_elsewhere: float
    p: float
    """Of Fisher's exact test, Holm-adjusted over all slices."""


@dataclass(frozen=True, kw_only=True)
class FailureReport:
    """What went wrong, and where."""

    n: int
    failures: tuple[Failure, ...]
    rate: float
    low: float
    high: float
    slices: tuple[Slice, ...]
    """Most telling first."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each failure, the surest first."""
        return [asdict(each) for each in self.failures]

    def to_json(self) -> str:
        return to_json(self)


def failure_report(
    model: BlackBox,
    texts: Sequence[str],
    expected: Sequence[str],
    *,
    tags: Sequence[Sequence[str]] | None = None,
    right: Callable[[str, str], bool] = starts_right,
) -> FailureReport:
    """Asks every text, and sorts what went wrong. `right(answer, expected)` says what is right.

    Raises:
        ValueError: no texts, or other numbers of texts, right answers and tags.
    """
    if not texts or len(expected) != len(texts) or (tags is not None and len(tags) != len(texts)):
        counted = f"{len(texts)} texts, {len(expected)} right answers" + ("" if tags is None else f", {len(tags)} tags")
        raise ValueError(f"got {counted}, expected as many of each, at least one: pair them again")
    failed: list[bool] = []
    failures = []
    with progress("Failures", len(texts), "texts") as advance:
        for text, wanted in zip(texts, expected, strict=True):
            answer = ask(model, text)
            failed.append(not right(answer.text, wanted))
            if failed[-1]:
                log_p = answer.log_probabilities
                sure = math.exp(math.fsum(log_p) / len(log_p)) if log_p else None
                failures.append(Failure(text=text, expected=wanted, answer=answer.text, confidence=sure))
            advance(1)
    whole = share_interval(sum(failed), len(failed))
    return FailureReport(
        n=len(texts),
        failures=tuple(sorted(failures, key=lambda each: -(each.confidence or 0.0))),
        rate=whole.value,
        low=whole.low,
        high=whole.high,
        slices=tuple(_slices(texts, tags, np.array(failed))),
    )


def _slices(texts: Sequence[str], tags: Sequence[Sequence[str]] | None, failed: np.ndarray) -> list[Slice]:
    found = []
    for name, inside in _kinds(texts, tags).items():
        n = int(inside.sum())
        if min(n, len(texts) - n) < MIN_SLICE:
            continue
        hits, elsewhere = int(failed[inside].sum()), int(failed[~inside].sum())
        share: Interval = share_interval(hits, n)
        p = fisher_p(hits, n, elsewhere, len(texts) - n)
        found.append((name, n, hits, share, elsewhere / (len(texts) - n), p))
    found.sort(key=lambda each: each[-1])
    shown, worst = [], 0.0
    for place, (name, n, hits, share, other, p) in enumerate(found):
        worst = max(worst, min(1.0, p * (len(found) - place)))
        shown.append(
            Slice(
                slice=name, n=n, failures=hits, rate=share.value, low=share.low, high=share.high, rate_elsewhere=other,
                p=worst,
            )
        )  # fmt: skip
    return shown


def _kinds(texts: Sequence[str], tags: Sequence[Sequence[str]] | None) -> dict[str, np.ndarray]:
    lengths = np.array([len(text) for text in texts])
    cuts = np.quantile(lengths, [0.25, 0.75])
    kinds = {
        f"up to {cuts[0]:.0f} characters": lengths <= cuts[0],
        f"more than {cuts[1]:.0f} characters": lengths > cuts[1],
        "holds digits": _holds(texts, re.compile(r"\d")),
        "holds a word in capitals": _holds(texts, re.compile(r"\b[A-Z]{2,}\b")),
        "holds a negation": _holds(texts, _NEGATION),
        "is a question": _holds(texts, re.compile(r"\?\s*$")),
        "holds characters outside ASCII": _holds(texts, re.compile(r"[^\x00-\x7f]")),
    }
    words = [set(re.findall(r"\w+", text.casefold())) for text in texts]
    frequent = Counter(word for row in words for word in row)
    for word, _ in frequent.most_common(WORDS):
        kinds[f"holds the word {word!r}"] = np.array([word in row for row in words])
    for tag in sorted({tag for row in tags or () for tag in row}):
        kinds[f"tag {tag}"] = np.array([tag in row for row in tags or ()])
    return kinds


def _holds(texts: Sequence[str], pattern: re.Pattern[str]) -> np.ndarray:
    return np.array([pattern.search(text) is not None for text in texts])


def fisher_p(hits: int, n: int, other_hits: int, other_n: int) -> float:
    """Returns the two-sided p of Fisher's exact test between hits of n and other hits of other n."""
    total, marked = n + other_n, hits + other_hits

    def log_p(count: int) -> float:
        return _log_choose(n, count) + _log_choose(other_n, marked - count) - _log_choose(total, marked)

    here = log_p(hits)
    possible = range(max(0, marked - other_n), min(n, marked) + 1)
    return min(1.0, math.fsum(math.exp(each) for each in map(log_p, possible) if each <= here + 1e-9))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
