"""Planted dictionaries: rows that are sparse sums of known directions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def directions(n_features: int = 64, d_in: int = 32) -> Tensor:
    """Returns the true features, unit rows [n_features, d_in]."""
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator), dim=1)


def rows(n: int, true: Tensor, *, piece: int = 200, density: float = 0.05, seed: int = 1) -> Iterator[Tensor]:
    """Yields `n` rows in uneven pieces, each row the sum of a few features at strengths between 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    given = 0
    while given < n:
        size = min(piece, n - given)
        active = torch.rand(size, len(true), generator=generator) < density
        yield (active * (1 + torch.rand(size, len(true), generator=generator))) @ true + 0.5
        given += size
