"""Distributions of what comes next: how sure a model is, and how far two of them are apart.

    entropy −Σ p ln p;  margin p₁ − p₂;  KL(p ‖ q) = Σ p ln(p / q);  JSD = ½ KL(p ‖ m) + ½ KL(q ‖ m), m = ½ (p + q)

in nats. The entropy of a uniform distribution over V choices is ln V; JSD lies between 0 and ln 2 and is symmetric; KL
is infinite where q has nothing that p has. Choices that a black box does not list are one choice, `(rest)`: entropy and
divergences are then lower bounds.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from activations.analyses.plain import to_json
from activations.behaviour.answers import REST, BlackBox, ask, same_answer
from activations.intervals import mean_interval
from activations.progress import progress

BINS = 20


def checked(choices: Mapping[str, float] | None) -> dict[str, float]:
    """Returns probabilities that sum to 1.

    Raises:
        ValueError: no choices, a negative one, or a sum that is not 1.
    """
    if not choices:
        raise ValueError(
            "the model gave no choices with its answer, expected probabilities: return an Answer with them"
        )
    values = dict(choices)
    total = math.fsum(values.values())
    if min(values.values()) < 0 or not abs(total - 1) < 1e-3:
        raise ValueError(f"choices sum to {total:.4g}, expected shares of 1 that are not negative: normalise them")
    return {key: value / total for key, value in values.items()}


def entropy(p: Mapping[str, float]) -> float:
    """Returns −Σ p ln p, in nats."""
    return -math.fsum(value * math.log(value) for value in p.values() if value > 0)


def margin(p: Mapping[str, float]) -> float:
    """Returns the largest share less the second."""
    ranked = sorted(p.values(), reverse=True)
    return ranked[0] - (ranked[1] if len(ranked) > 1 else 0.0)


def kl(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """Returns KL(p ‖ q) in nats; infinite where q lacks what p has."""
    parts = []
    for key, share in p.items():
        if share > 0:
            other = q.get(key, 0.0)
            if other <= 0:
                return math.inf
            parts.append(share * math.log(share / other))
    return max(0.0, math.fsum(parts))


def jsd(p: Mapping[str, float], q: Mapping[str, float]) -> float:
    """Returns the Jensen-Shannon divergence in nats, 0 to ln 2."""
    middle = {key: (p.get(key, 0.0) + q.get(key, 0.0)) / 2 for key in {**p, **q}}
    return (kl(p, middle) + kl(q, middle)) / 2


def aligned(p: Mapping[str, float], q: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns two distributions over the same names: where one has a `(rest)`, what the other lists alone joins it."""
    if REST not in p and REST not in q:
        return dict(p), dict(q)
    both = (p.keys() & q.keys()) - {REST}
    found = []
    for each in (p, q):
        kept = {key: each[key] for key in each if key in both}
        found.append(kept | {REST: math.fsum(each[key] for key in each if key not in both)})
    return found[0], found[1]


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """How sure the model is of what follows one text."""

    text: str
    first: str
    """The most probable choice."""
    probability: float
    margin: float
    entropy: float
    """Nats."""


@dataclass(frozen=True)
class ConfidenceReport:
    """The distribution of a model's confidence over texts."""

    texts: tuple[Confidence, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each text, the least sure first."""
        return sorted((asdict(each) for each in self.texts), key=lambda row: row["probability"])

    def histogram(self, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
        """Returns counts of texts by probability of the first choice, and the edges of the bins."""
        return np.histogram([each.probability for each in self.texts], bins=bins, range=(0.0, 1.0))

    def summary(self) -> dict[str, float]:
        """Returns means over texts."""
        names = ("probability", "margin", "entropy")
        return {f"mean_{name}": float(np.mean([getattr(each, name) for each in self.texts])) for name in names}

    def to_json(self) -> str:
        return to_json({"summary": self.summary(), "texts": self.texts})


def measure_confidence(model: BlackBox, texts: Sequence[str]) -> ConfidenceReport:
    """Asks for each text how sure the model is of what comes next.

    Raises:
        ValueError: no texts, or a model that gives no choices.
    """
    if not texts:
        raise ValueError("got no texts, expected at least one: give some")
    found = []
    with progress("Confidence", len(texts), "texts") as advance:
        for text in texts:
            p = checked(_choices(model, text))
            first = max(p, key=lambda key: p[key])
            found.append(Confidence(text=text, first=first, probability=p[first], margin=margin(p), entropy=entropy(p)))
            advance(1)
    return ConfidenceReport(tuple(found))


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """What a model makes of two texts."""

    first: str
    second: str
    first_answer: str
    second_answer: str
    is_same: bool
    """The answers are the same words."""
    edit_share: float
    """1 − the share of characters that the answers have in common, in order (difflib)."""
    jsd: float | None
    """Of the next token's distributions, in nats; None where the model gives none."""
    kl: float | None
    """KL(first ‖ second)."""


@dataclass(frozen=True)
class OutputComparison:
    """Pairs of texts, and how far a model's outputs on them are apart."""

    pairs: tuple[OutputDifference, ...]
    share_same: float
    mean_jsd: float | None
    jsd_low: float | None
    jsd_high: float | None

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each pair, the most different first."""
        return sorted((asdict(each) for each in self.pairs), key=lambda row: (-(row["jsd"] or 0.0), -row["edit_share"]))

    def to_json(self) -> str:
        return to_json(self)


def compare_outputs(model: BlackBox, firsts: Sequence[str], seconds: Sequence[str]) -> OutputComparison:
    """Holds a model's outputs on texts against those on others, pair by pair.

    Raises:
        ValueError: lists of other lengths, or empty ones.
    """
    if len(firsts) != len(seconds) or not firsts:
        raise ValueError(f"got {len(firsts)} and {len(seconds)} texts, expected as many, at least one: pair them again")
    found = []
    with progress("Compare", len(firsts), "pairs") as advance:
        for first, second in zip(firsts, seconds, strict=True):
            a, b = ask(model, first), ask(model, second)
            both = a.choices is not None and b.choices is not None
            p, q = aligned(checked(a.choices), checked(b.choices)) if both else ({}, {})
            found.append(
                OutputDifference(
                    first=first,
                    second=second,
                    first_answer=a.text,
                    second_answer=b.text,
                    is_same=same_answer(a.text, b.text),
                    edit_share=1 - difflib.SequenceMatcher(None, a.text, b.text, autojunk=False).ratio(),
                    jsd=jsd(p, q) if both else None,
                    kl=kl(p, q) if both else None,
                )
            )
            advance(1)
    apart = [each.jsd for each in found if each.jsd is not None]
    around = mean_interval(apart) if apart else None
    return OutputComparison(
        pairs=tuple(found),
        share_same=sum(each.is_same for each in found) / len(found),
        mean_jsd=None if around is None else around.value,
        jsd_low=None if around is None else around.low,
        jsd_high=None if around is None else around.high,
    )


def _choices(model: BlackBox, text: str) -> Mapping[str, float] | None:
    """The next token's distribution alone, where the model can tell it without writing an answer."""
    direct: Any = getattr(model, "choices", None)
    return ask(model, text).choices if direct is None else direct(text)
