"""The scorers with a rule in the place of a reader: what would one who knows only the rule have answered?

Enters: a rule and windows (`features.scoring_samples`). Leaves: `Answers`, deterministic and free.

* Detection: a window's score is the largest activation that the rule expects in it.
* Fuzzing: the mean activation that the rule expects at the marked tokens.
* Simulation: the expected activation of every token, as it is.

A rule that expects a little everywhere must not answer yes everywhere: from which score on the answer is yes is chosen
for each feature on windows of documents that are not of the test.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.rules import Rule
from features.scoring_samples import ACTIVE, SILENT, FeatureWindows, WindowedPart


class Answers(NamedTuple):
    """What was answered to windows."""

    said: np.ndarray
    """bool [n]: the answer."""
    score: np.ndarray
    """float64 [n]: how sure it is, larger for yes."""
    failed: np.ndarray
    """bool [n]: no usable answer came."""


class RuleReader:
    """Answers by one rule; `training` are windows of the train part that its thresholds are chosen on."""

    def __init__(self, rule: Rule, part: WindowedPart, train: WindowedPart, training: FeatureWindows) -> None:
        self._rule, self._part = rule, part
        expected = train.predictor.at(rule, train.windows[training.windows])
        kept = (training.kinds == ACTIVE) | (training.kinds == SILENT)
        is_active = training.kinds == ACTIVE
        self.detection_from = best_threshold(expected.max(1)[kept], is_active[kept])
        at_tokens = training.activations[is_active] > 0
        self.fuzzing_from = best_threshold(
            np.concatenate([expected[is_active][at_tokens], expected[is_active][~at_tokens]]),
            np.repeat([True, False], [int(at_tokens.sum()), int((~at_tokens).sum())]),
        )

    def detect(self, drawn: FeatureWindows) -> Answers:
        """Is the feature active anywhere in the window?"""
        return self._answer(self.simulate(drawn).max(1), self.detection_from)

    def fuzz(self, drawn: FeatureWindows, marks: np.ndarray) -> Answers:
        """Is the feature active at the marked tokens?"""
        expected = self.simulate(drawn)
        return self._answer((expected * marks).sum(1) / np.maximum(marks.sum(1), 1), self.fuzzing_from)

    def simulate(self, drawn: FeatureWindows) -> np.ndarray:
        """float64 [n, window_tokens]: the expected activation of each token."""
        return self._part.predictor.at(self._rule, self._part.windows[drawn.windows])

    @staticmethod
    def _answer(score: np.ndarray, threshold: float) -> Answers:
        return Answers(score >= threshold, score, np.zeros(score.size, dtype=bool))


def best_threshold(score: np.ndarray, truth: np.ndarray) -> float:
    """The score from which on "yes" has the best balanced accuracy, between the scores that it divides.

    Where nothing separates the classes (or one is missing), every score above zero counts as yes.
    """
    values = np.unique(score)
    if truth.all() or not truth.any() or values.size < 2:
        return float(np.nextafter(0, 1))
    true = np.searchsorted(np.sort(score[truth]), values, side="left") / truth.sum()
    false = np.searchsorted(np.sort(score[~truth]), values, side="left") / (~truth).sum()
    # of those at or above each value: hits 1 − true, correct rejections false
    gain = (1 - true) + false
    best = int(np.argmax(gain[1:])) + 1
    return float((values[best - 1] + values[best]) / 2)
