"""How alike two rankings or two sets of numbers are."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from activations.analyses.agreement import _ranks


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Returns Pearson's r; NaN where one side is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / length) if length else float("nan")


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Returns Spearman's ρ, ties at their mean rank; NaN where one side is constant."""
    return pearson(_ranks(a), _ranks(b))
