"""Two readings beside each other: which features are active in one and not in the other.

    compare_readings(first, a, second, b) -> ReadingComparison

Enters: two readings (`Dictionary.active_on`, `features.active_documents`) by one measure, each with its dictionary.
Leaves: the features of only one side, and those of both. What two features have to do with each other depends on what
is compared:

* *texts*: two texts in one dictionary. A number means the same in both; features of both are ranked by how much their
  totals differ.
* *models*: one text in dictionaries of one SAE over two models (before and after fine-tuning, say). As above.
* *dictionaries*: one text in two dictionaries. Numbers mean nothing to each other: features are counterparts where each
  is the other's nearest by the cosine of what they measure over the text, and that is at least `LIKE`. Tokens of two
  tokenizers are laid beside each other by the characters they cover. A counterpart on one text need not be one on
  another: `features.comparison` compares whole dictionaries.

Of each side the `LOOKED_AT` features of largest total are looked at when counterparts are sought.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from features.comparison import is_same_sae
from features.records import ActiveFeatures

if TYPE_CHECKING:
    from features.dictionary import Dictionary

LIKE = 0.5
LOOKED_AT = 500


@dataclass(frozen=True)
class ReadFeature:
    """A feature in one reading."""

    feature: int
    total: float
    """What the reading ranks by, over the whole text."""
    max_activation: float
    """Largest activation on the text (by its size)."""
    tokens: int
    """Tokens on which it is active."""
    explanation: str


@dataclass(frozen=True)
class ReadPair:
    """A feature of both readings, or a feature of each that are counterparts."""

    a: ReadFeature
    b: ReadFeature
    cosine: float | None
    """Of what they measure over the text, where one text is compared."""

    @property
    def difference(self) -> float:
        """By how much the second total is larger."""
        return self.b.total - self.a.total


@dataclass(frozen=True)
class ReadingComparison:
    """What two readings have, and have not, in common."""

    kind: str
    """texts, models or dictionaries: what is compared."""
    by: str
    only_a: list[ReadFeature]
    """Largest total first."""
    only_b: list[ReadFeature]
    both: list[ReadPair]
    """Of texts and models the largest differences first, of dictionaries the largest totals."""
    found: dict[str, int]
    """How many there are of each kind; the lists may hold fewer."""

    def rows(self) -> list[dict[str, Any]]:
        """A record for each line of the three lists."""
        lines: list[tuple[str, ReadFeature | None, ReadFeature | None, float | None]] = [
            *(("only_a", one, None, None) for one in self.only_a),
            *(("only_b", None, one, None) for one in self.only_b),
            *(("both", pair.a, pair.b, pair.cosine) for pair in self.both),
        ]
        return [
            {"where": where, "cosine": cosine}
            | {f"{name}_a": getattr(a, name) if a else None for name in ReadFeature.__dataclass_fields__}
            | {f"{name}_b": getattr(b, name) if b else None for name in ReadFeature.__dataclass_fields__}
            for where, a, b, cosine in lines
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def compare_readings(
    first: Dictionary, a: ActiveFeatures, second: Dictionary, b: ActiveFeatures, top: int = 20
) -> ReadingComparison:
    """Compares what is active in two readings; each list holds `top` features.

    Raises:
        ValueError: readings by two measures, or of two texts in two dictionaries.
    """
    if (a.by, a.target) != (b.by, b.target):
        told = [f"{side.by}{'' if side.target is None else f' on {side.target!r}'}" for side in (a, b)]
        raise ValueError(
            f"the readings are by {told[0]} and by {told[1]}, expected one measure and one target: rank both alike"
        )
    mine, theirs = _totals(a), _totals(b)
    cosines: dict[int, float] = {}
    one_text = _said(a) == _said(b)
    is_one_dictionary = first is second or first.store.build == second.store.build
    if is_one_dictionary or (one_text and is_same_sae(first, second)):
        kind = "texts" if is_one_dictionary else "models"
        partner = {feature: feature for feature in mine if feature in theirs}
    elif not one_text:
        raise ValueError("two texts in two dictionaries were given, expected one of both alike: change one at a time")
    else:
        kind = "dictionaries"
        partner, cosines = _counterparts(a, mine, b, theirs)
    taken = set(partner.values())
    only_a = [feature for feature in mine if feature not in partner]
    only_b = [feature for feature in theirs if feature not in taken]
    both = list(partner.items())
    if kind != "dictionaries":
        both.sort(key=lambda pair: -abs(theirs[pair[1]] - mine[pair[0]]))
    found = {"only_a": len(only_a), "only_b": len(only_b), "both": len(both)}
    only_a, only_b, both = only_a[:top], only_b[:top], both[:top]
    says_a = first.explanations_of([*only_a, *(pair[0] for pair in both)])
    says_b = second.explanations_of([*only_b, *(pair[1] for pair in both)])
    return ReadingComparison(
        kind,
        a.by,
        [_read(a, feature, mine, says_a) for feature in only_a],
        [_read(b, feature, theirs, says_b) for feature in only_b],
        [
            ReadPair(_read(a, own, mine, says_a), _read(b, other, theirs, says_b), cosines.get(own))
            for own, other in both
        ],
        found,
    )


def _totals(reading: ActiveFeatures) -> dict[int, float]:
    """Each active feature's total, largest first, as `features.active` defines it."""
    combine = max if reading.by == "surprise" else sum
    totals = {feature: combine(cell.measure for cell in reading.cells(feature)) for feature in reading.features}
    return dict(sorted(totals.items(), key=lambda item: (-abs(item[1]), item[0])))


def _read(
    reading: ActiveFeatures, feature: int, totals: Mapping[int, float], explanations: Mapping[int, str]
) -> ReadFeature:
    cells = reading.cells(feature)
    largest = max((cell.activation for cell in cells), key=abs)
    return ReadFeature(feature, float(totals[feature]), largest, len(cells), explanations.get(feature, ""))


def _said(reading: ActiveFeatures) -> str:
    """The text without special tokens, which tokenizers add as they like."""
    special = set(reading.special)
    return "".join(token for index, token in enumerate(reading.tokens) if index not in special)


def _counterparts(
    a: ActiveFeatures, mine: dict[int, float], b: ActiveFeatures, theirs: dict[int, float]
) -> tuple[dict[int, int], dict[int, float]]:
    """The second reading's feature for each of the first that has one, and the cosine between them."""
    own, other = list(mine)[:LOOKED_AT], list(theirs)[:LOOKED_AT]
    if not own or not other:
        return {}, {}
    by_token = a.tokens == b.tokens
    left, right = _profiles(a, own, by_token), _profiles(b, other, by_token)
    likeness = left @ right.T
    forth, back = likeness.argmax(1), likeness.argmax(0)
    pairs = [(i, int(j)) for i, j in enumerate(forth) if back[j] == i and likeness[i, j] >= LIKE]
    partner = {own[i]: other[j] for i, j in pairs}
    return partner, {own[i]: float(likeness[i, j]) for i, j in pairs}


def _profiles(reading: ActiveFeatures, features: list[int], by_token: bool) -> np.ndarray:
    """float32 [features, tokens or characters]: what each measures over the text, in length 1."""
    found = np.zeros((len(features), len(reading.tokens)), dtype=np.float32)
    for row, feature in enumerate(features):
        for cell in reading.cells(feature):
            found[row, cell.token] = cell.measure
    if not by_token:
        special = set(reading.special)
        lengths = [0 if index in special else len(token) for index, token in enumerate(reading.tokens)]
        found = np.repeat(found, lengths, axis=1)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)
