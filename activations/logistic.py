"""Logistic regression with an L2 penalty, as probes need it: few rows, many or few columns, no tuning.

Enters: columns and a yes-or-no label for each row. Leaves: a `Probe`.

Columns are brought to mean 0 and standard deviation 1; the loss Σ log(1 + exp(∓s)) + ‖w‖² / 2 (scikit-learn's default
strength C = 1) has one minimum, found in float64: by Newton's method in the span of the rows where that is small (the
minimum lies in it, so fewer rows than columns cost little), by L-BFGS elsewhere. The bias is not penalised. Probes of
one class against many weigh both sides equally.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NEWTON_COLUMNS = 600
"""Columns (or rows, if they are fewer) up to which Newton's method is the faster one."""
NEWTON_STEPS = 50


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
    basis = None
    if len(z) < z.shape[1]:
        left, singular, basis = torch.linalg.svd(z, full_matrices=False)
        z = left * singular
    minimum = _newton if z.shape[1] <= NEWTON_COLUMNS else _lbfgs
    parameters = minimum(z, target, weights, strength)
    w = parameters[:-1] if basis is None else parameters[:-1] @ basis
    weight = w / scale
    return Probe(weight, float(parameters[-1] - mean @ weight))


def _newton(z: Tensor, target: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Newton's method with halved steps; returns Float[columns + 1], the bias last."""
    rows = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
    penalty = torch.full_like(rows[0], strength)
    penalty[-1] = 0

    def loss(at: Tensor) -> float:
        missed = torch.nn.functional.binary_cross_entropy_with_logits(rows @ at, target, weights, reduction="sum")
        return float(missed + (penalty * at.square()).sum() / 2)

    at = torch.zeros_like(rows[0])
    value = loss(at)
    for _ in range(NEWTON_STEPS):
        share = (rows @ at).sigmoid()
        gradient = (weights * (share - target)) @ rows + penalty * at
        if float(gradient.abs().max()) < 1e-9 * len(rows):
            break
        bent = (weights * share * (1 - share))[:, None] * rows
        hessian = rows.T @ bent
        # a bias that is not penalised can be flat where all rows are certain
        hessian.diagonal().add_(penalty + 1e-10)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while (new := loss(at - size * step)) > value and size > 1e-6:
            size /= 2
        if new >= value:
            break  # as low as rounding lets it get
        at, value = at - size * step, new
    return at


def _lbfgs(z: Tensor, target: Tensor, weights: Tensor, strength: float) -> Tensor:
    """L-BFGS; returns Float[columns + 1], the bias last."""
    parameters = torch.zeros(z.shape[1] + 1, dtype=torch.float64, device=z.device)
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
    return parameters


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
