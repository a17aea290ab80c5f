"""Calibration: of the answers given with probability p, are p right?

    calibrate(confidences, correct) -> Calibration
    next_token_calibration(lm, texts) -> Calibration

    ECE = Σ_b n_b/n |accuracy_b − confidence_b|;  MCE the largest of these gaps;  Brier = mean (p − right)²

over bins of equal width (or with equally many answers, `by="count"`). `auroc` is the chance that a right answer came
with a higher probability than a wrong one: it says whether confidence ranks, where ECE says whether it is true.

ECE depends on the bins and is biased upwards with few answers: `ece_expected` is what a perfectly calibrated model with
these probabilities would show (its answers drawn by its own probabilities, mean of 200 draws); only more than that is
miscalibration. The Brier score has no bins, and mixes calibration with how hard the questions are.

Sources: Guo et al. 2017 (arXiv 1706.04599); Brier 1950; Roelofs et al. 2022 on the bias (arXiv 2012.08668).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from activations.analyses.plain import to_json
from activations.intervals import bootstrap_interval, share_interval
from activations.logistic import auc
from activations.progress import progress

if TYPE_CHECKING:
    from activations.model import LanguageModel

BINS = 10
DRAWS = 200
CLIP = 1e-12


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers of one range of confidence."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean, as is `accuracy`, with Wilson's 95 % interval."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How true stated probabilities are."""

    name: str
    n: int
    accuracy: float
    confidence: float
    """Mean."""
    ece: float
    ece_low: float
    ece_high: float
    ece_expected: float
    """Of a perfectly calibrated model with these probabilities."""
    mce: float
    brier: float
    log_loss: float
    """−ln of the probability of what happened (right or wrong), in nats, as a mean."""
    auroc: float
    bins: tuple[Bin, ...]
    """The reliability diagram; empty bins are left out."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each bin."""
        return [asdict(each) for each in self.bins]

    def to_json(self) -> str:
        return to_json(self)


def calibrate(
    confidences: Sequence[float] | np.ndarray,
    correct: Sequence[bool] | np.ndarray,
    *,
    bins: int = BINS,
    by: str = "width",
    name: str = "answers",
    seed: int = 0,
) -> Calibration:
    """Holds probabilities of answers against whether they were right.

    Raises:
        ValueError: nothing, lists of other lengths, numbers outside of 0 to 1, an unknown `by`.
    """
    p, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=bool)
    if p.shape != right.shape or p.ndim != 1 or not len(p):
        raise ValueError(
            f"got {p.shape} confidences and {right.shape} answers, expected as many, at least one: pair them"
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"confidences run from {p.min():.3g} to {p.max():.3g}, expected 0 to 1: give probabilities")
    if by not in ("width", "count") or bins < 1:
        raise ValueError(f"got by={by!r} and bins={bins}, expected width or count and at least 1: choose again")
    place, edges = _places(p, bins, by)
    gaps = bootstrap_interval(len(p), lambda chosen: _ece(p[chosen], right[chosen], place[chosen], bins), seed=seed)
    generator = np.random.default_rng(seed)
    expected = [_ece(p, generator.random(len(p)) < p, place, bins) for _ in range(DRAWS)]
    shown = []
    for number in np.unique(place):
        inside = place == number
        share = share_interval(int(right[inside].sum()), int(inside.sum()))
        shown.append(
            Bin(
                low=float(edges[number]),
                high=float(edges[number + 1]),
                n=int(inside.sum()),
                confidence=float(p[inside].mean()),
                accuracy=share.value,
                accuracy_low=share.low,
                accuracy_high=share.high,
            )
        )
    happened = np.where(right, p, 1 - p).clip(CLIP, 1)
    return Calibration(
        name=name,
        n=len(p),
        accuracy=float(right.mean()),
        confidence=float(p.mean()),
        ece=gaps.value,
        ece_low=gaps.low,
        ece_high=gaps.high,
        ece_expected=float(np.mean(expected)),
        mce=max(abs(each.accuracy - each.confidence) for each in shown),
        brier=float(((p - right) ** 2).mean()),
        log_loss=float(-np.log(happened).mean()),
        auroc=auc(torch.from_numpy(p), torch.from_numpy(right)),
        bins=tuple(shown),
    )


@torch.no_grad()
def next_token_calibration(
    lm: LanguageModel, texts: Sequence[str], *, bins: int = BINS, by: str = "width", seed: int = 0
) -> Calibration:
    """Holds the probability of a decoder's first choice at every token of texts against what really follows.

    Raises:
        ValueError: no decoder, a text that is empty or too long, texts of single tokens.
    """
    from activations.analyses.inputs import tokens_of

    if lm.kind != "decoder":
        raise ValueError(f"{lm.name} is no decoder, expected a model that predicts what follows: use one such as gpt2")
    p: list[float] = []
    right: list[bool] = []
    with progress("Calibration", len(texts), "texts") as advance:
        for text in texts:
            tokens = tokens_of(lm, text)
            best = torch.softmax(lm.logits(tokens)[0, :-1].double(), dim=-1).max(-1)
            p += best.values.tolist()
            right += (best.indices == tokens[0, 1:].to(best.indices)).tolist()
            advance(1)
    return calibrate(p, right, bins=bins, by=by, name=f"{lm.name}, next token", seed=seed)


def _places(p: np.ndarray, bins: int, by: str) -> tuple[np.ndarray, np.ndarray]:
    if by == "width":
        edges = np.linspace(0, 1, bins + 1)
    else:
        edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)))
        if len(edges) < 2:
            edges = np.array([edges[0], edges[0]])
    place = np.searchsorted(edges[1:-1], p, side="right")
    return place, edges


def _ece(p: np.ndarray, right: np.ndarray, place: np.ndarray, bins: int) -> float:
    gaps = np.bincount(place, weights=right.astype(float) - p, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))
