"""How far methods agree: rank correlations, and what happens when the tokens they name go.

    compare_methods(attributions) -> Agreement
    deletion_curve(lm, text, attribution, target=None, …) -> DeletionCurve

Spearman's ρ between the absolute scores of each pair of methods (ties take their mean rank), special tokens included
as they come. The deletion curve replaces tokens by a substitute, the highest scores first, and reads the target after
each; the insertion curve starts with all replaced and puts them back in the same order. A method that names what
matters makes the first fall and the second rise early: `deletion_area` low, `insertion_area` high (means over the
curve, in units of the target). A method can look good here only because replaced texts are strange to the model.

Source: Samek et al. 2017 (1509.06321); Petsiuk et al. 2018 (1806.07421).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from activations.analyses.attribution import Attribution
from activations.analyses.baselines import BATCH_TOKENS, baseline_ids, replaceable
from activations.analyses.plain import plain, to_json
from activations.analyses.targets import Metric, Target

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class Agreement:
    """Rank correlations between methods on one text."""

    methods: tuple[str, ...]
    correlations: Float[np.ndarray, "methods methods"]
    """Spearman's ρ of absolute scores; NaN where a method scores all tokens alike."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each pair of methods."""
        return [
            {"a": first, "b": second, "rank_correlation": plain(self.correlations[i, j])}
            for i, first in enumerate(self.methods)
            for j, second in enumerate(self.methods)
            if i < j
        ]

    def to_json(self) -> str:
        return to_json(self)


def compare_methods(attributions: Mapping[str, Attribution]) -> Agreement:
    """Correlates the scores of one text by several methods.

    Raises:
        ValueError: fewer than two methods, or scores of different texts.
    """
    found = list(attributions.values())
    if len(found) < 2 or len({entry.token_ids for entry in found}) > 1:
        raise ValueError(f"got {len(found)} attributions, expected two or more of one text: run several methods on it")
    ranks = np.stack([_ranks(np.abs(entry.scores)) for entry in found])
    centred = ranks - ranks.mean(1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = centred @ centred.T / np.outer(lengths, lengths)
    return Agreement(methods=tuple(attributions), correlations=correlations)


@dataclass(frozen=True)
class DeletionCurve:
    """The target as tokens go and as they come, in the order of a method's scores."""

    method: str
    target: str
    order: tuple[int, ...]
    """Positions, the highest score first."""
    deletion: Float[np.ndarray, " steps"]
    """The number after 0, 1, 2, … replaced tokens."""
    insertion: Float[np.ndarray, " steps"]
    """The number with 0, 1, 2, … tokens of the text, the others replaced."""

    @property
    def deletion_area(self) -> float:
        """Mean of the curve by the trapezoid rule; low is good."""
        return _mean_height(self.deletion)

    @property
    def insertion_area(self) -> float:
        """The same; high is good."""
        return _mean_height(self.insertion)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each step."""
        return [
            {"step": step, "deletion": float(gone), "insertion": float(back)}
            for step, (gone, back) in enumerate(zip(self.deletion, self.insertion, strict=True))
        ]

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def deletion_curve(
    lm: LanguageModel,
    attribution: Attribution,
    target: Target = None,
    *,
    substitute: str | int = "pad",
    contrast: str | int | None = None,
    position: int | None = None,
    measure: str = "logit",
) -> DeletionCurve:
    """Replaces the tokens of an attribution's text one after another; give the target that was attributed.

    Raises:
        ValueError: whatever the target or the substitute refuses.
    """
    tokens = torch.tensor([attribution.token_ids])
    metric = Metric(lm, tokens, target, contrast=contrast, position=position, measure=measure)
    places = replaceable(metric)
    order = sorted(places, key=lambda place: -attribution.scores[place])
    empty = metric.tokens.clone()
    empty[0, places] = baseline_ids(metric, substitute, places)
    steps = len(order) + 1
    rows = torch.cat([metric.tokens.repeat(steps, 1), empty.repeat(steps, 1)])
    for step in range(1, steps):
        rows[step, order[:step]] = empty[0, order[:step]]
        rows[steps + step, order[:step]] = metric.tokens[0, order[:step]]
    size = max(1, BATCH_TOKENS // rows.shape[1])
    found = torch.cat([metric(rows[start : start + size]) for start in range(0, len(rows), size)]).double()
    values = found.cpu().numpy()
    return DeletionCurve(attribution.method, metric.name, tuple(order), values[:steps], values[steps:])


def _mean_height(curve: np.ndarray) -> float:
    return float((curve[:-1] + curve[1:]).mean() / 2)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, tied values at their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[place]
