"""The features that tell labels apart: ranked on one half of the texts, reported on the other.

Enters: texts with a label each (`sae.labelled_text`). Leaves: for each label the features
that tell it from the rest best, with what they reach on texts that had no say in choosing them.

1. Texts that stand in the set more than once count once: none is in both halves. Each label is a task of its own,
   against as many texts of other labels; half of either side, drawn by seed, is the training half
   (`sae.probing.halves`).
2. A text's value of a feature is the largest activation (or the mean) over its tokens, 0 where it is silent.
3. On the training half every feature has an AUC: the chance that a text with the label has the larger value, ties
   counting one half. Features are ranked by its distance from one half; `more` or `less` says on which side.
4. The best get the threshold with the highest balanced accuracy on the training half, halfway between two values. On
   the test half this one-feature classifier's balanced accuracy and the AUC are reported, with 95 % intervals of 400
   replicates that resample texts.

The intervals are those of each feature by itself. The first of many features is chosen, but not on the test half.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from features import scoring

if TYPE_CHECKING:
    from features.dictionary import Dictionary
    from sae.labelled_text import LabelledText
    from sae.pooling import Pooled

TEXTS_PER_LABEL = 1000


@dataclass(frozen=True)
class LabelFeature:
    """A feature that tells a label from the rest."""

    label: str
    feature: int
    direction: str
    """`more`: larger on texts with the label; `less`: smaller."""
    train_auc: float
    """What it was chosen by; 0.5 says nothing, for `less` it is below."""
    auc: float
    """On the test half."""
    auc_low: float | None
    auc_high: float | None
    balanced_accuracy: float
    """Of the threshold chosen on the training half, on the test half."""
    balanced_accuracy_low: float | None
    balanced_accuracy_high: float | None
    threshold: float
    """Says the label above it (`more`) or below it (`less`)."""
    n_test: int
    """Texts, or tokens, of the test half."""
    explanation: str


@dataclass(frozen=True)
class ByLabel:
    """Features by label, best first for each."""

    name: str
    pooling: str
    features: list[LabelFeature]
    duplicates: int
    """Texts that stood in the set before."""
    unit: str = "texts"
    """What carries the labels: `texts` or `tokens`."""
    left_out: list[str] = field(default_factory=list)
    """Labels of tokens that are too rare for two halves."""

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(feature) for feature in self.features]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def by_label(
    dictionary: Dictionary,
    labelled: LabelledText,
    limit: int = 10,
    pooling: Literal["max", "mean"] = "max",
    texts_per_label: int = TEXTS_PER_LABEL,
    seed: int = 0,
) -> ByLabel:
    """Ranks features for every label (for the second one alone where there are two). Loads the model.

    Raises:
        ValueError: a label with too few texts to be halved, or texts without tokens.
    """
    import torch

    from sae.labelled_text import LabelledText
    from sae.pooling import pool_texts
    from sae.probing import MIN_TEXTS, halves

    first = list({text: place for place, text in reversed(list(enumerate(labelled.texts)))}.values())
    places = sorted(first)
    single = LabelledText(labelled.name, [labelled.texts[p] for p in places], [labelled.labels[p] for p in places])
    sample = single.sample(texts_per_label, seed)
    dictionary.lm  # noqa: B018  (puts the SAE where the model is)
    pooled = pool_texts(dictionary.lm, {"sae": dictionary.sae}, sample.texts, pooling=pooling)["sae"]
    found: list[LabelFeature] = []
    classes = sample.classes
    for label in classes[1:] if len(classes) == 2 else classes:
        is_label = np.array([each == label for each in sample.labels])
        if min(is_label.sum(), (~is_label).sum()) < MIN_TEXTS:
            raise ValueError(
                f"set `{labelled.name}` has {is_label.sum()} of {is_label.size} texts labelled {label!r}, expected at "
                f"least {MIN_TEXTS} with and without: add texts"
            )
        train, test = (half.numpy() for half in halves(torch.from_numpy(is_label), seed))
        found += best_features(pooled, is_label, train, test, label, limit, seed, np.arange(int(test.sum())))
    texts = dictionary.explanations_of([each.feature for each in found])
    told = [replace(each, explanation=texts.get(each.feature, "")) for each in found]
    return ByLabel(labelled.name, pooling, told, len(labelled.texts) - len(places))


def feature_aucs(pooled: Pooled, is_label: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """float64 [d_sae]: AUC of every feature over the chosen texts, ties counting one half, silent texts being 0.

    All at once: entries are ranked inside their feature, and the silent texts of a feature share one rank, between its
    negative and its positive values.
    """
    texts, features, values = (part.numpy() for part in (pooled.texts, pooled.latents, pooled.values))
    kept = chosen[texts] & (values != 0)
    texts, features, values = texts[kept], features[kept], values[kept].astype(float)
    n, yes = int(chosen.sum()), int((chosen & is_label).sum())
    order = np.lexsort((values, features))
    texts, features, values = texts[order], features[order], values[order]
    entries = np.bincount(features, minlength=pooled.d_sae)
    below = np.bincount(features[values < 0], minlength=pooled.d_sae)
    silent = n - entries
    starts = np.cumsum(entries) - entries
    place = np.arange(features.size) - starts[features]
    # entries of one feature with one value share the mean of their ranks
    new = np.append(True, (np.diff(features) != 0) | (np.diff(values) != 0))[: features.size]
    run = np.cumsum(new) - 1
    ranks = np.bincount(run, weights=place) / np.maximum(np.bincount(run), 1) if features.size else np.zeros(0)
    rank = (ranks[run] if features.size else ranks) + np.where(values > 0, silent[features], 0)
    has = is_label[texts]
    loud = np.bincount(features[has], minlength=pooled.d_sae)
    total = np.bincount(features[has], weights=rank[has], minlength=pooled.d_sae)
    total += (yes - loud) * (below + (silent - 1) / 2)
    return (total - yes * (yes - 1) / 2) / (yes * (n - yes))


def best_features(
    pooled: Pooled,
    is_label: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    label: str,
    limit: int,
    seed: int,
    owner: np.ndarray,
) -> list[LabelFeature]:
    """The features whose AUC on the rows `train` is farthest from one half, with what they reach on the rows `test`.

    `owner` numbers, from 0, what each row of `test` belongs to: intervals resample that. Explanations are left empty.
    """
    import torch

    aucs = feature_aucs(pooled, is_label, train)
    best = np.argsort(-np.abs(aucs - 0.5), kind="stable")[: max(limit, 0)]
    columns = pooled.columns(torch.from_numpy(best)).numpy().astype(float)
    truth = is_label[test]
    weights = scoring.document_weights(int(owner.max()) + 1, seed)
    found = []
    for feature, values in zip(best.tolist(), columns.T, strict=True):
        sign = 1 if aucs[feature] >= 0.5 else -1
        threshold = best_threshold(sign * values[train], is_label[train])
        accuracy = scoring.measure(scoring.balanced_accuracy, sign * values[test] > threshold, truth, owner, weights)
        auc = scoring.measure(scoring.auc, values[test], truth, owner, weights)
        assert accuracy is not None
        assert auc is not None
        found.append(
            LabelFeature(
                label=label,
                feature=feature,
                direction="more" if sign > 0 else "less",
                train_auc=float(aucs[feature]),
                auc=auc.value,
                auc_low=auc.low,
                auc_high=auc.high,
                balanced_accuracy=accuracy.value,
                balanced_accuracy_low=accuracy.low,
                balanced_accuracy_high=accuracy.high,
                threshold=sign * threshold,
                n_test=int(truth.size),
                explanation="",
            )
        )
    return found


def best_threshold(values: np.ndarray, truth: np.ndarray) -> float:
    """The threshold above which a yes is said with the highest balanced accuracy; of equal ones the smallest."""
    levels = np.unique(values)
    if levels.size == 1:
        return float(levels[0])
    between = (levels[:-1] + levels[1:]) / 2
    order = np.sort(values[truth]), np.sort(values[~truth])
    above = [1 - np.searchsorted(side, between, side="right") / max(side.size, 1) for side in order]
    return float(between[int(np.argmax(above[0] - above[1]))])
