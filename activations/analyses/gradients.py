"""Attribution by gradients at the token embeddings: their norm, times the input, integrated along a path.

Enters: a `Metric`. Leaves: the parts of an `Attribution` (`activations.analyses.attribution` has the formulas and their
limits). `at_the_text` and `gradients` are what other methods build on.

Source: Simonyan et al. 2013 (1312.6034); Sundararajan et al. 2017 (1703.01365).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.baselines import BATCH_TOKENS, baseline_embeddings, embeddings_of
from activations.analyses.targets import Metric


def gradient_norm(metric: Metric) -> dict[str, Any]:
    value, _, gradient = at_the_text(metric)
    return {"scores": gradient.norm(dim=-1).cpu().numpy(), "value": value, "settings": {}}


def gradient_x_input(metric: Metric) -> dict[str, Any]:
    value, rows, gradient = at_the_text(metric)
    return {"scores": (gradient * rows).sum(-1).cpu().numpy(), "value": value, "settings": {}}


def integrated_gradients(metric: Metric, *, baseline: str | int = "pad", steps: int = 32) -> dict[str, Any]:
    if steps < 1:
        raise ValueError(f"got steps={steps}, expected at least 1: ask for 16 or more")
    rows, base = embeddings_of(metric, metric.tokens), baseline_embeddings(metric, baseline)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas = torch.tensor((nodes + 1) / 2, device=rows.device, dtype=rows.dtype)
    total = torch.zeros(rows.shape[1:], dtype=torch.float64, device=rows.device)
    chunk = max(1, BATCH_TOKENS // rows.shape[1])
    for start in range(0, steps, chunk):
        some = alphas[start : start + chunk]
        _, gradient = gradients(metric, base + some[:, None, None] * (rows - base))
        weight = torch.tensor(weights[start : start + chunk] / 2, device=rows.device)
        total += (gradient.double() * weight[:, None, None]).sum(0)
    scores = (total * (rows - base)[0].double()).sum(-1)[: metric.count].cpu().numpy()
    with torch.no_grad():
        value, base_value = (float(metric(metric.tokens, each)) for each in (rows, base))
    return {
        "scores": scores,
        "value": value,
        "baseline_value": base_value,
        "error": float(scores.sum() - (value - base_value)),
        "settings": {"baseline": baseline, "steps": steps},
    }


def at_the_text(metric: Metric) -> tuple[float, Tensor, Tensor]:
    """Returns the number, the text's own rows and the gradient there; Float64[tokens, d] both."""
    rows = embeddings_of(metric, metric.tokens)
    values, gradient = gradients(metric, rows)
    return float(values[0]), rows[0, : metric.count].double(), gradient[0, : metric.count].double()


def gradients(metric: Metric, rows: Float[Tensor, "batch seq d"]) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = rows.detach().clone().requires_grad_()
        values = metric(metric.tokens.expand(len(rows), -1), leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient
