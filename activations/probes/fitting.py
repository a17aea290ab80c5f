"""Kinds of probes: each takes rows and yes-or-no labels, and returns what scores a row above 0 for yes.

Enters: training rows to fit on, validation rows to choose settings by; test rows are never seen here. Rows are brought
to float64. Both classes weigh equally.

| kind | direction w | chosen on validation rows |
| --- | --- | --- |
| `logistic` | minimum of Σ log(1 + e^∓s) + λ‖w‖²/2 on standardised columns | λ |
| `k_sparse` | the same on the k columns whose class means lie farthest apart, in deviations | k, unless given |
| `mean_difference` | μ₁ − μ₀; the threshold lies half way | nothing |
| `pca` | the principal component of the rows, labels unseen, that divides the classes best | which of the first ten |
| `nonlinear` | none: w₂·tanh(W₁z + b₁) + b₂ with 16 hidden units and an L2 penalty | the penalty |

A direction that separates classes is evidence that a row holds the difference, not that the model uses it: see
`activations.probes.causal`.

Sources: Alain & Bengio 2016; Gurnee et al. 2023, "Finding neurons in a haystack" (k-sparse); Marks & Tegmark 2023
(mean difference); Zou et al. 2023 (PCA); Hewitt & Liang 2019 (controls).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.logistic import Probe, auc, fit

KINDS = ("logistic", "k_sparse", "mean_difference", "pca", "nonlinear")
STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
KS = (1, 2, 4, 8, 16, 32)
COMPONENTS = 10
HIDDEN = 16
PENALTIES = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class NonlinearProbe:
    """One hidden layer of tanh units on standardised columns."""

    mean: Float[Tensor, " columns"]
    scale: Float[Tensor, " columns"]
    w_in: Float[Tensor, "columns hidden"]
    b_in: Float[Tensor, " hidden"]
    w_out: Float[Tensor, " hidden"]
    b_out: float

    def scores(self, x: Float[Tensor, "n columns"]) -> Float[Tensor, " n"]:
        """Returns the log-odds of yes, as the probe sees them."""
        hidden = torch.tanh((x.double() - self.mean) / self.scale @ self.w_in + self.b_in)
        return hidden @ self.w_out + self.b_out


AnyProbe = Probe | NonlinearProbe


@dataclass(frozen=True)
class Fitted:
    """A probe and what was chosen for it, in words (`strength 10`, `k 4`, `component 2`)."""

    probe: AnyProbe
    setting: str
    chosen: float | None = None
    """The number in `setting`; None where nothing is chosen."""
    columns: tuple[int, ...] = ()
    """The columns that a k-sparse probe reads, strongest first."""


@torch.no_grad()
def fit_probe(
    kind: str,
    x: Float[Tensor, "n columns"],
    y: Bool[Tensor, " n"],
    x_validation: Float[Tensor, "m columns"],
    y_validation: Bool[Tensor, " m"],
    *,
    k: int | None = None,
    chosen: float | None = None,
    seed: int = 0,
) -> Fitted:
    """Fits one kind of probe on `x`, with settings that do best on the validation rows; `k` fixes `k_sparse`'s.

    `chosen` is the setting of an earlier `Fitted`, to be used again: validation rows then decide nothing.

    Raises:
        ValueError: an unknown kind, one class alone on either side, rows that are not finite, a k that does not fit.
    """
    x, x_validation = x.double(), x_validation.double()
    for what, rows, labels in (("training", x, y), ("validation", x_validation, y_validation)):
        yes = int(labels.sum())
        if not 0 < yes < len(labels):
            raise ValueError(f"{yes} of {len(labels)} {what} rows are positive, expected both classes: add examples")
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{what} rows hold numbers that are not finite, expected finite ones: check the model")
    if kind == "mean_difference":
        return Fitted(mean_difference(x, y), "")
    if kind == "pca":
        return _best_component(x, y, x_validation, y_validation, chosen)
    if kind == "logistic":
        grid = STRENGTHS if chosen is None else (chosen,)
        return _best(
            "strength", [(each, fit(x, y, strength=each, balanced=True)) for each in grid], x_validation, y_validation
        )
    if kind == "nonlinear":
        grid = PENALTIES if chosen is None else (chosen,)
        return _best("penalty", [(each, _fit_nonlinear(x, y, each, seed)) for each in grid], x_validation, y_validation)
    if kind == "k_sparse":
        return _fit_sparse(x, y, x_validation, y_validation, k if chosen is None else int(chosen))
    raise ValueError(f"probe {kind!r} is unknown, expected one of {', '.join(KINDS)}: choose among these")


def mean_difference(x: Float[Tensor, "n columns"], y: Bool[Tensor, " n"]) -> Probe:
    """Returns the probe along μ₁ − μ₀ whose threshold lies half way between the class means."""
    x = x.double()
    yes, no = x[y].mean(0), x[~y].mean(0)
    weight = yes - no
    return Probe(weight, -float(weight @ (yes + no)) / 2)


def principal_directions(
    x: Float[Tensor, "n columns"], count: int = COMPONENTS
) -> tuple[Float[Tensor, "count columns"], Float[Tensor, " count"]]:
    """Returns unit principal components of centred rows and the share of variance of each, largest first.

    Each component's sign makes its largest element positive. Fewer come back where the rows span fewer.
    """
    centred = x.double() - x.double().mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    real = singular > singular[0] * max(centred.shape) * torch.finfo(torch.float64).eps
    directions = directions[real][:count]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    variance = singular.square()
    return directions, (variance / variance.sum().clamp(min=1e-300))[real][:count]


def along(direction: Float[Tensor, " columns"], x: Float[Tensor, "n columns"], y: Bool[Tensor, " n"]) -> Probe:
    """Returns the probe that reads one direction; its sign and threshold (half way between means) are from `x`."""
    placed = x.double() @ direction
    yes, no = placed[y].mean(), placed[~y].mean()
    sign = 1.0 if yes >= no else -1.0
    return Probe(sign * direction, -sign * float(yes + no) / 2)


def separation(x: Float[Tensor, "n columns"], y: Bool[Tensor, " n"]) -> Float[Tensor, " columns"]:
    """Returns |μ₁ − μ₀| of each column in its own standard deviations; 0 for a constant column."""
    x = x.double()
    spread = x.std(0, correction=0)
    difference = (x[y].mean(0) - x[~y].mean(0)).abs()
    return torch.where(spread > 1e-12 * x.abs().amax(0).clamp(min=1e-300), difference / spread, 0.0)


def log_loss(scores: Float[Tensor, " n"], y: Bool[Tensor, " n"]) -> float:
    """Returns the mean over both classes of −ln p of the right class, in nats."""
    losses = torch.nn.functional.binary_cross_entropy_with_logits(scores, y.to(scores), reduction="none")
    return float(losses[y].mean() + losses[~y].mean()) / 2


def _best(what: str, tried: Sequence[tuple[float, AnyProbe]], x: Tensor, y: Tensor) -> Fitted:
    if len(tried) == 1:
        chosen, probe = tried[0]
    else:
        chosen, probe = min(tried, key=lambda each: log_loss(each[1].scores(x), y))
    return Fitted(probe, f"{what} {chosen:g}", chosen)


def _best_component(x: Tensor, y: Tensor, x_validation: Tensor, y_validation: Tensor, chosen: float | None) -> Fitted:
    directions, _ = principal_directions(x)
    if chosen is None:
        probes = [along(direction, x, y) for direction in directions]
        scored = [auc(probe.scores(x_validation), y_validation) for probe in probes]
        chosen = 1.0 + max(range(len(probes)), key=lambda place: scored[place])
    return Fitted(along(directions[int(chosen) - 1], x, y), f"component {int(chosen)}", chosen)


def _fit_sparse(x: Tensor, y: Tensor, x_validation: Tensor, y_validation: Tensor, k: int | None) -> Fitted:
    width = x.shape[1]
    if k is not None and not 0 < k <= width:
        raise ValueError(f"k={k}, expected 1 to {width}, the columns there are: choose another k")
    order = separation(x, y).sort(descending=True, stable=True).indices
    tried: list[tuple[float, AnyProbe]] = []
    for size in [k] if k is not None else [each for each in KS if each <= width]:
        columns = order[:size]
        sparse = fit(x[:, columns], y, balanced=True)
        weight = torch.zeros(width, dtype=torch.float64)
        weight[columns] = sparse.weight
        tried.append((size, Probe(weight, sparse.bias)))
    found = _best("k", tried, x_validation, y_validation)
    return replace(found, columns=tuple(order[: int(found.chosen or 0)].tolist()))


def _fit_nonlinear(x: Float[Tensor, "n columns"], y: Bool[Tensor, " n"], penalty: float, seed: int) -> NonlinearProbe:
    mean, spread = x.mean(0), x.std(0, correction=0)
    scale = torch.where(spread > 1e-12 * mean.abs().clamp(min=1e-12), spread, torch.inf)
    z = (x - mean) / scale
    generator = torch.Generator().manual_seed(seed)
    width = z.shape[1]
    w_in = torch.randn(width, HIDDEN, generator=generator, dtype=torch.float64) / width**0.5
    w_out = torch.randn(HIDDEN, generator=generator, dtype=torch.float64) / HIDDEN**0.5
    parameters = [w_in, torch.zeros(HIDDEN, dtype=torch.float64), w_out, torch.zeros((), dtype=torch.float64)]
    target = y.to(z)
    yes = int(y.sum())
    weights = torch.where(y, len(y) / (2 * yes), len(y) / (2 * (len(y) - yes)))
    with torch.enable_grad():
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=60, max_eval=70, tolerance_change=1e-6, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            scores = torch.tanh(z @ parameters[0] + parameters[1]) @ parameters[2] + parameters[3]
            missed = torch.nn.functional.binary_cross_entropy_with_logits(scores, target, weights, reduction="sum")
            total = missed + penalty / 2 * (parameters[0].square().sum() + parameters[2].square().sum())
            total.backward()
            return total

        optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    w_in, b_in, w_out, b_out = (parameter.detach() for parameter in parameters)
    return NonlinearProbe(mean, scale, w_in, b_in, w_out, float(b_out))
