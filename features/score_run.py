"""Scores of explanations: how well one who knows only the explanation predicts where its feature is active.

Enters: an opened, explained dictionary and the names of scorers. Leaves: rows of the table scores, and a report with
means over features beside those of two baselines:

* `random rule`: the rule of another feature, drawn by seed;
* `most frequent token`: "active at the token where this feature is most often active in the training documents".

All are judged on the same windows of documents that had no part in any rule. Definitions: docs/explanations.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from activations.progress import progress
from features import labels, schema
from features.dictionary import Dictionary
from features.explain import METHOD
from features.rule_scorers import Answers, RuleReader
from features.rules import Rule
from features.scoring import (
    REPLICATES,
    Measure,
    auc,
    balanced_accuracy,
    document_weights,
    f1,
    measure,
    simulation,
)
from features.scoring_samples import (
    ACTIVE,
    HARD,
    SILENT,
    FeatureWindows,
    ScoreConfig,
    ScoringText,
    fuzz_marks,
    rng_of,
)

RULE_SCORERS = ("detection", "fuzzing", "simulation")
VERSION = 2
"""Of the definitions of the scorers: figures of different versions are not to be compared."""
RANDOM, FREQUENT = "random rule", "most frequent token"
LEAST_WINDOWS = 5
"""Active, and silent, test windows below which a feature is not scored."""


@dataclass(frozen=True)
class ScoreMean:
    """One figure of one method over all scored features."""

    method: str
    scorer: str
    mean: float
    low: float | None
    """Lower end of the 95 % interval with features and documents resampled."""
    high: float | None
    features: int
    failures: int


@dataclass(frozen=True)
class ScoreReport:
    """What a scoring run wrote."""

    means: list[ScoreMean]
    scored: int
    unscored: int
    """Explained features without a rule, or with too few test windows."""
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(mean) for mean in self.means]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass
class _Mean:
    """Sums a figure over features, and its replicates with each feature counted as often as it is drawn."""

    features: int = 0
    failures: int = 0
    total: float = 0.0
    drawn: np.ndarray = field(default_factory=lambda: np.zeros(REPLICATES))
    sums: np.ndarray = field(default_factory=lambda: np.zeros(REPLICATES))

    def add(self, found: Measure, weights: np.ndarray) -> None:
        self.features += 1
        self.failures += found.failures
        self.total += found.value
        # a feature of few documents is lost from replicates that draw none of them: left out there it would make the
        # means of other features than those of the figure, so it keeps its own
        self.drawn += weights
        self.sums += weights * np.where(np.isnan(found.replicates), found.value, found.replicates)

    def result(self, method: str, scorer: str) -> ScoreMean:
        low = high = None
        if self.features > 1 and (self.drawn > 0).all():
            low, high = (float(end) for end in np.quantile(self.sums / self.drawn, [0.025, 0.975]))
        return ScoreMean(method, scorer, self.total / self.features, low, high, self.features, self.failures)


class Means:
    """Gathers the figures of features: rows of the table scores, and means over features."""

    def __init__(self, seed: int, created: str, version: int = VERSION) -> None:
        self._base = {"seed": seed, "version": version, "created": created}
        self._means: dict[tuple[str, str], _Mean] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._seed = seed

    def add(self, feature: int, method: str, scorer: str, found: Measure) -> None:
        """Adds a figure of one feature."""
        drawings = rng_of(self._seed, feature, 2).poisson(1.0, REPLICATES)
        self._means.setdefault((method, scorer), _Mean()).add(found, drawings)
        self._rows.setdefault(method, []).append(
            {"feature": feature, "method": method, "scorer": scorer, "score": found.value}
            | {"low": found.low, "high": found.high, "n": found.n, "failures": found.failures}
            | self._base
        )

    def write(self, dictionary: Dictionary, scorers: Sequence[str]) -> None:
        """Replaces what the table holds of these methods and scorers."""
        for method, rows in self._rows.items():
            table = pa.Table.from_pylist(rows, schema=schema.TABLES["scores"].arrow_schema())
            labels.write_scores(dictionary.store, table, method, scorers)

    def results(self) -> list[ScoreMean]:
        return [mean.result(*key) for key, mean in self._means.items()]


def score_rules(dictionary: Dictionary, scorers: Sequence[str], config: ScoreConfig | None = None) -> ScoreReport:
    """Scores the rules of the token statistics with `scorers` (of `RULE_SCORERS`) and writes the table scores.

    Raises:
        ValueError: an unknown scorer, a dictionary without rules, or one of too few documents.
    """
    check_scorers(scorers)
    config = config or ScoreConfig()
    started = time.perf_counter()
    rules = stored_rules(dictionary)
    seed = next(iter(rules.values())).seed
    text = ScoringText(dictionary, config, seed)
    ruled = np.array(sorted(rules))
    chosen = chosen_features(ruled, config)
    others = derangement(ruled, config.seed)
    weights = document_weights(len(text.test.rows), config.seed)
    means = Means(config.seed, labels.now())
    scored = 0
    with progress("score", chosen.size, "features") as advance:
        for feature in chosen.tolist():
            drawn = text.draw(feature)
            enough = min((drawn.kinds == ACTIVE).sum(), (drawn.kinds == SILENT).sum()) >= LEAST_WINDOWS
            frequent = text.train.frequent_token(feature)
            if not enough or frequent is None:
                advance(1)
                continue
            scored += 1
            token, mean = frequent
            readers = {
                METHOD: rules[feature],
                RANDOM: rules[others[feature]],
                FREQUENT: Rule("token", [token], [mean], 0.0, 0.0, seed=seed),
            }
            training = text.draw(feature, text.train)
            simulated = text.simulated(feature)
            for method, rule in readers.items():
                reader = RuleReader(rule, text.test, text.train, training)
                for scorer, found in judged_by(reader, drawn, text, scorers, weights):
                    means.add(feature, method, scorer, found)
                if "simulation" in scorers:
                    both = simulation(reader.simulate(simulated), simulated.activations, simulated.documents, weights)
                    means.add(feature, method, "simulation", both[0])
                    means.add(feature, method, "simulation_explained", both[1])
            advance(1)
    means.write(dictionary, scorers)
    return ScoreReport(
        means=means.results(),
        scored=scored,
        unscored=int(chosen.size) - scored,
        seconds=round(time.perf_counter() - started, 2),
    )


def check_scorers(scorers: Sequence[str]) -> None:
    """Refuses names of scorers that there are not."""
    if unknown := [name for name in scorers if name not in RULE_SCORERS]:
        raise ValueError(
            f"scorer {unknown[0]!r} is unknown, expected one of {', '.join(RULE_SCORERS)}: choose among these"
        )


@runtime_checkable
class Judge(Protocol):
    """Who answers for windows: a rule, or a language model that reads an explanation."""

    def detect(self, drawn: FeatureWindows) -> Answers: ...

    def fuzz(self, drawn: FeatureWindows, marks: np.ndarray) -> Answers: ...


def judged_by(
    judge: Judge, drawn: FeatureWindows, text: ScoringText, scorers: Sequence[str], weights: np.ndarray
) -> Iterator[tuple[str, Measure]]:
    """The figures of detection and fuzzing, as far as asked for, by name."""
    if "detection" in scorers:
        answers = judge.detect(drawn)
        for name, kind in (("detection", SILENT), ("detection_hard", HARD)):
            kept = (drawn.kinds == ACTIVE) | (drawn.kinds == kind)
            yield from judged(name, answers, drawn.kinds == ACTIVE, drawn.documents, kept, weights)
    if "fuzzing" in scorers:
        windows, marks, kinds = fuzz_marks(drawn, rng_of(text.config.seed, drawn.feature, 3))
        answers = judge.fuzz(windows, marks)
        for name, kind in (("fuzzing", 1), ("fuzzing_inactive", 2)):
            kept = (kinds == 0) | (kinds == kind)
            yield from judged(name, answers, kinds == 0, windows.documents, kept, weights)


def judged(
    name: str, answers: Answers, truth: np.ndarray, documents: np.ndarray, kept: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[str, Measure]]:
    """Balanced accuracy (under the scorer's own name), F1 and AUC of the answers to the kept windows."""
    for suffix, figure, answer in (
        ("", balanced_accuracy, answers.said),
        ("_f1", f1, answers.said),
        ("_auc", auc, answers.score),
    ):
        found = measure(figure, answer[kept], truth[kept], documents[kept], weights, answers.failed[kept])
        if found is not None:
            yield name + suffix, found


def stored_rules(dictionary: Dictionary) -> dict[int, Rule]:
    """The rules of the token statistics by feature; ValueError where there are none."""
    rows = dictionary.store.query(
        "select feature, rule from explanations where method = ? and rule is not null", [METHOD]
    )
    if rows.num_rows == 0:
        raise ValueError(f"dictionary {dictionary.name} has no rules, expected some: run `glassbox explain` first")
    return {
        feature: Rule.from_json(rule)
        for feature, rule in zip(rows["feature"].to_pylist(), rows["rule"].to_pylist(), strict=True)
    }


def chosen_features(features: np.ndarray, config: ScoreConfig) -> np.ndarray:
    """The features to score: all, or as many as the config says, drawn by seed."""
    if config.features is None or config.features >= features.size:
        return features
    return np.sort(np.random.default_rng(config.seed).choice(features, config.features, replace=False))


def derangement(features: np.ndarray, seed: int) -> dict[int, int]:
    """Another feature for each, itself only where there is no other."""
    order = np.random.default_rng(seed).permutation(features)
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
