"""Rules as data: what an explanation says about tokens, in a form that predicts activations.

Enters: a rule ("the attribute is one of S", with the mean activation of each member) and the attributes of tokens
(`features.attributes`). Leaves: an expected activation for each token, the same on every machine.

"token ∈ S" is the attribute `token`, "after t" `previous`, "before t" `next`; what the decoder promotes stands beside
the rule as words and predicts nothing. The division of documents is here too, so that those who fit rules and those who
test them hold the same documents apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from features.attributes import Attribute, Tokens, attributes_of

FIT, CHOOSE, TEST = 0, 1, 2
SPLITS = 3
WHOLE_DOCUMENTS_FROM = 10
"""Documents below which a corpus cannot be divided by document."""
_TURN = (FIT, FIT, FIT, CHOOSE, TEST)


@dataclass(frozen=True)
class Rule:
    """A rule about tokens: the feature is active where the attribute is one of the keys."""

    attribute: str
    keys: list[Any]
    """Categories, from the highest expected activation; token ids, words or names (`features.attributes`)."""
    activations: list[float]
    """Mean size of the activation over all occurrences of each of them in the documents of `FIT` and `CHOOSE`."""
    precision: float
    recall: float
    promotes: list[str] = field(default_factory=list)
    """Tokens that the feature's decoder direction promotes most."""
    seed: int = 0
    """Seed of the division of documents: those of its `TEST` part had no say in the rule."""

    @classmethod
    def from_json(cls, text: str) -> Rule:
        """Reads a stored rule.

        Raises:
            ValueError: a rule that another version wrote.
        """
        content = json.loads(text)
        if "seed" not in content:
            raise ValueError("the stored rule names no division of documents, expected one: run `glassbox explain`")
        content["keys"] = [tuple(key) if isinstance(key, list) else key for key in content["keys"]]
        return cls(**content)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    def predict(self, tokens: Tokens, vocabulary: list[str]) -> np.ndarray:
        """float64 [n]: expected activation at each token, 0 where the rule does not apply."""
        return Predictor(attributes_of(tokens, vocabulary)).at(self, np.arange(tokens.ids.size))


class Predictor:
    """Predicts activations by rules at tokens whose attributes are known; made once for many rules."""

    def __init__(self, attributes: Sequence[Attribute]) -> None:
        self._attributes = {attribute.name: attribute for attribute in attributes}
        self._categories: dict[str, dict[Any, int]] = {}

    def at(self, rule: Rule, places: np.ndarray) -> np.ndarray:
        """float64, shaped like `places`: the rule's expected activation at tokens given by their index."""
        attribute = self._attributes[rule.attribute]
        if rule.attribute not in self._categories:
            self._categories[rule.attribute] = {key: number for number, key in enumerate(attribute.keys)}
        known = self._categories[rule.attribute]
        expected = np.zeros(attribute.size)
        for key, activation in zip(rule.keys, rule.activations, strict=True):
            if (category := known.get(key)) is not None:
                expected[category] = activation
        return expected[attribute.categories[places]]


@dataclass(frozen=True)
class Division:
    """Which documents rules are fitted on, chosen on and tested on."""

    order: np.ndarray
    """int64 [n]: rows of the documents in the order drawn; of any five in a row, three fit, one chooses, one tests."""
    parts: np.ndarray
    """int64 [n]: `FIT`, `CHOOSE` or `TEST` of each row."""


def divide_documents(n_documents: int, seed: int) -> Division:
    """Divides documents by seed; every beginning of the order holds all parts."""
    order = np.random.default_rng(seed).permutation(n_documents)
    parts = np.empty(n_documents, dtype=np.int64)
    parts[order] = np.resize(np.array(_TURN), n_documents)
    return Division(order, parts)
