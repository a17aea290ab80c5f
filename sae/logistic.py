"""Logistic regression with an L2 penalty, as probes need it: few rows, many or few columns, no tuning.

Enters: columns and a yes-or-no label for each row. Leaves: a `Probe`.

Columns are brought to mean 0 and standard deviation 1; the loss Σ log(1 + exp(∓s)) + ‖w‖² / 2 (scikit-learn's default
strength C = 1) has one minimum, found by L-BFGS in float64. The bias is not penalised. Probes of one class against many
weigh both sides equally.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Probe:
    """A fitted regression in the columns' own units: a row's score is x · weight + bias, positive for yes."""

    weight: Float[Tensor, " columns"]
    bias: float

    def scores(self, x: Float[Tensor, "n columns"]) -> Float[Tensor, " n"]:
        """Returns the log-odds of yes, as the probe sees them."""
        return x.double() @ self.weight + self.bias


@torch.no_grad()
def fit(
    x: Float[Tensor, "n columns"], y: Bool[Tensor, " n"], *, strength: float = 1.0, balanced: bool = False
) -> Probe:
    """Fits a probe; `strength` is the weight of ‖w‖²/2, `balanced` gives both classes the same total weight.

    Raises:
        ValueError: one class alone.
    """
    yes = int(y.sum())
    if not 0 < yes < len(y):
        raise ValueError(f"a probe got {yes} positive rows of {len(y)}, expected both classes: add examples")
    x = x.detach().double()
    mean, std = x.mean(0), x.std(0, correction=0)
    scale = torch.where(std > 1e-12 * mean.abs().clamp(min=1e-12), std, torch.inf)
    z = (x - mean) / scale
    target = y.to(x.dtype)
    weights = torch.ones_like(target)
    if balanced:
        weights = torch.where(y, len(y) / (2 * yes), len(y) / (2 * (len(y) - yes)))
    parameters = torch.zeros(z.shape[1] + 1, dtype=torch.float64, device=x.device)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        w, bias = parameters[:-1], parameters[-1]
        scores = z @ w + bias
        wrong = weights * (scores.sigmoid() - target)
        parameters.grad = torch.cat([wrong @ z + strength * w, wrong.sum()[None]])
        fitted = torch.nn.functional.binary_cross_entropy_with_logits(scores, target, weights, reduction="sum")
        return fitted + strength / 2 * w.square().sum()

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    weight = parameters[:-1] / scale
    return Probe(weight, float(parameters[-1] - mean @ weight))


def accuracy(scores: Float[Tensor, " n"], y: Bool[Tensor, " n"]) -> float:
    """Returns the share of rows on the right side of 0."""
    return float(((scores > 0) == y).double().mean())


def f1(scores: Float[Tensor, " n"], y: Bool[Tensor, " n"]) -> float:
    """Returns the harmonic mean of precision and recall; 0 where nothing is found."""
    found = scores > 0
    hits = int((found & y).sum())
    return 2 * hits / max(1, int(found.sum()) + int(y.sum()))


def auc(scores: Float[Tensor, " n"], y: Bool[Tensor, " n"]) -> float:
    """Returns the chance that a yes scores above a no, ties counting half (Mann–Whitney U)."""
    values, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    upto = counts.cumsum(0).double()
    ranks = (upto - (counts.double() - 1) / 2)[inverse]
    yes = int(y.sum())
    no = len(y) - yes
    if not len(values) or not yes or not no:
        return float("nan")
    return float((ranks[y].sum() - yes * (yes + 1) / 2) / (yes * no))
