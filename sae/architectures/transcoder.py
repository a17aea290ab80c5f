"""Transcoders: read one place, write another, typically an MLP's input and output (Dunefsky et al. 2024,
arXiv 2406.11944); with a linear skip from input to output (Paulo et al. 2025, arXiv 2501.18823).

    ŷ = W_decᵀ f + b_dec (+ W_skip x),     f as the config's `activation` chooses from W_enc x + b_enc

The encoder reads x itself. The skip starts as the best linear map that the first batch gives, so that latents explain
what is not linear.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-2  # of the mean eigenvalue of the inputs' covariance: a batch may hold fewer rows than columns


def linear_map(x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> Float[Tensor, "d_out d_in"]:
    """Returns the ridge regression of y on x, both centred."""
    x, y = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    covariance = x.T @ x
    ridge = RIDGE * covariance.diagonal().mean() + torch.finfo(torch.float64).tiny
    covariance.diagonal().add_(ridge)
    return torch.linalg.solve(covariance, x.T @ y).T.float()
