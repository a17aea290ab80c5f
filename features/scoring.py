"""What a prediction is worth: balanced accuracy, F1, AUC, correlation, each with an interval over documents.

Enters: predictions and truths of windows, and the document of each. Leaves: `Measure`s.

Windows of one document are alike, so the interval resamples documents, not windows: `document_weights` draws how often
each document counts in each replicate, and every figure here takes such weights. Where either class comes from one
document alone there is nothing to resample, and no interval is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

REPLICATES = 400


class Measure(NamedTuple):
    """A figure with its interval."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; None where all of a class comes from one document."""
    high: float | None
    n: int
    """Windows that were judged."""
    failures: int
    """Windows without a usable answer; they are left out of the figure."""
    replicates: np.ndarray
    """float64 [replicates]: the figure with documents resampled; NaN where a class vanished."""


def document_weights(n_documents: int, seed: int, replicates: int = REPLICATES) -> np.ndarray:
    """float64 [replicates, n_documents]: how often each document is drawn in each replicate."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=replicates).astype(float)


def balanced_accuracy(said: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [replicates]: (true positive rate + true negative rate) / 2 of answers `said` [n] under `weights`
    [replicates, n]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        hit = (weights @ (said & truth)) / (weights @ truth)
        rejected = (weights @ (~said & ~truth)) / (weights @ ~truth)
    return (hit + rejected) / 2


def f1(said: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall; 0 where nothing right was said."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * (weights @ (said & truth)) / (weights @ said + weights @ truth)


def accuracy(right: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of right answers; `truth` is not looked at."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ right) / weights.sum(1)


def auc(score: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a true window has the larger score than a false one, ties counting one half."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    true = np.add.reduceat(weights[:, order] * truth[order], starts, axis=1)
    false = np.add.reduceat(weights[:, order] * ~truth[order], starts, axis=1)
    below = np.cumsum(false, axis=1) - false
    with np.errstate(divide="ignore", invalid="ignore"):
        return (true * (below + false / 2)).sum(1) / (true.sum(1) * false.sum(1))


def measure(
    figure: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    answer: np.ndarray,
    truth: np.ndarray,
    documents: np.ndarray,
    weights: np.ndarray,
    failed: np.ndarray | None = None,
) -> Measure | None:
    """A figure with its interval; None where no window of a class was answered (`failed` marks those that were not)."""
    kept = np.ones(truth.size, dtype=bool) if failed is None else ~failed
    answer, truth, documents = answer[kept], truth[kept], documents[kept]
    failures = int((~kept).sum())
    if truth.size == 0:
        return None
    value = float(figure(answer, truth, np.ones((1, truth.size)))[0])
    if np.isnan(value):
        return None
    sides = [documents] if figure is accuracy else [documents[truth], documents[~truth]]
    replicates = figure(answer, truth, weights[:, documents])
    low, high = interval(replicates, min(np.unique(side).size for side in sides))
    return Measure(value, low, high, int(truth.size), failures, replicates)


def interval(replicates: np.ndarray, documents: int) -> tuple[float | None, float | None]:
    """The middle 95 % of the replicates; (None, None) where fewer than two documents were resampled."""
    found = replicates[~np.isnan(replicates)]
    if documents < 2 or found.size == 0:
        return None, None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def simulation(
    predicted: np.ndarray, truth: np.ndarray, documents: np.ndarray, weights: np.ndarray
) -> tuple[Measure, Measure]:
    """Correlation, and 1 − MSE / E[a²], of activations [n, tokens] over all tokens of all windows joined.

    A prediction without any spread correlates with nothing: 0. Replicates in which the feature is as active everywhere
    tell nothing: not a number.

    Source: the first as in openai/automated-interpretability, explanations/scoring.py.
    """
    sums = np.stack(
        [
            np.full(truth.shape[0], float(truth.shape[1])),
            predicted.sum(1),
            truth.sum(1),
            np.square(predicted).sum(1),
            np.square(truth).sum(1),
            (predicted * truth).sum(1),
        ],
        axis=1,
    )
    found = np.unique(documents).size
    measures = []
    for figure in (_correlation, _explained):
        replicates = figure(weights[:, documents] @ sums)
        low, high = interval(replicates, found)
        measures.append(Measure(float(figure(sums.sum(0, keepdims=True))[0]), low, high, truth.shape[0], 0, replicates))
    return measures[0], measures[1]


def _correlation(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        # sums of squares that cancel to rounding have no spread
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        unknown, flat = spread_y <= 1e-12 * n * yy, spread_x <= 1e-12 * n * xx
        found = np.where(flat, 0.0, (n * xy - x * y) / np.sqrt(np.abs(spread_x * spread_y)))
        return np.where(unknown | (n == 0), np.nan, found)


def _explained(sums: np.ndarray) -> np.ndarray:
    _, _, _, xx, yy, xy = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(yy > 0, 1 - (xx + yy - 2 * xy) / yy, np.nan)
