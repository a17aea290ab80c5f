"""How features change between two models on one text: density and mean activation, with intervals over documents.

Enters: the events of paired features on the shared text. Leaves: a `Shift` for each pair.

Documents are the units, since tokens of one are alike. With d_j the difference of a feature's sums in document j of n_j
tokens, and D = Σ d_j / Σ n_j, the standard error of D is that of a ratio,
    s² = J / (J − 1) · Σ (d_j − D n_j)² / (Σ n_j)²,
and the interval D ± 1.96 s. A shift counts as a change where either p-value stands among those that the procedure of
Benjamini & Hochberg (1995) keeps at a false discovery rate of 5 %, over all features and both figures.

Source: Cochran 1977, "Sampling Techniques", section 2.11 and 6.3 (ratio estimate over clusters).
"""

from __future__ import annotations

import math

import numpy as np

from features.comparison_records import Shift
from features.shared_text import SharedEvents, SharedText

Z = 1.959964
RATE = 0.05
LEAST_DOCUMENTS = 2


def shifts(
    a: SharedEvents, b: SharedEvents, own: np.ndarray, other: np.ndarray, text: SharedText
) -> list[Shift | None]:
    """The shift of each pair, second minus first; None where fewer than two documents are shared."""
    if text.n_documents < LEAST_DOCUMENTS:
        return [None] * own.size
    sizes = np.bincount(text.documents, minlength=text.n_documents).astype(float)
    estimates, errors = np.zeros((own.size, 2)), np.zeros((own.size, 2))
    for number, (i, j) in enumerate(zip(own.tolist(), other.tolist(), strict=True)):
        sums = [_by_document(events, feature, text) for events, feature in ((a, i), (b, j))]
        for figure in (0, 1):
            change = sums[1][figure] - sums[0][figure]
            estimate = change.sum() / sizes.sum()
            spread = np.square(change - estimate * sizes).sum() * sizes.size / (sizes.size - 1)
            estimates[number, figure], errors[number, figure] = estimate, math.sqrt(spread) / sizes.sum()
    found: np.ndarray = np.any(discoveries(estimates, errors), axis=1)
    low, high = estimates - Z * errors, estimates + Z * errors
    return [
        Shift(
            density=float(estimates[n, 0]),
            density_low=float(low[n, 0]),
            density_high=float(high[n, 0]),
            mean=float(estimates[n, 1]),
            mean_low=float(low[n, 1]),
            mean_high=float(high[n, 1]),
            is_change=bool(found[n]),
        )
        for n in range(own.size)
    ]


def discoveries(estimates: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """bool, shaped like `estimates`: which differ from 0 at a false discovery rate of `RATE`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(errors > 0, np.abs(estimates) / errors, np.where(estimates != 0, np.inf, 0.0)).reshape(-1)
    p = np.array([math.erfc(value / math.sqrt(2)) for value in z.tolist()])
    order = np.argsort(p, kind="stable")
    passes = np.flatnonzero(p[order] <= RATE * np.arange(1, p.size + 1) / max(p.size, 1))
    kept = np.zeros(p.size, dtype=bool)
    if passes.size:
        kept[order[: passes[-1] + 1]] = True
    return kept.reshape(estimates.shape)


def _by_document(events: SharedEvents, feature: int, text: SharedText) -> tuple[np.ndarray, np.ndarray]:
    """(number, sum of activations) of a feature's events in each document."""
    tokens, values = events.of(feature)
    documents = text.documents[tokens]
    counts = np.bincount(documents, minlength=text.n_documents).astype(float)
    return counts, np.bincount(documents, np.abs(values).astype(float), minlength=text.n_documents)
