"""Standard errors of ratios of sums, from contiguous groups of what was summed.

Enters: one vector of sums for each piece of the data, in the data's order. Leaves: the groups and the error of a ratio.

Neighbouring rows are alike (one document), so pieces are joined into at most 64 contiguous groups: where there are
more, neighbours are merged two by two and later groups take twice as many pieces (batch means with doubling). The error
is that of the linearised ratio R = ΣA / ΣB over G groups: √(G/(G−1) · Σ (A_g − R·B_g)²) / ΣB (Cochran 1977, §6.3).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

GROUPS = 64


class RatioSums:
    """Sums kept in contiguous groups; memory is at most 64 vectors."""

    def __init__(self) -> None:
        self._whole: list[Tensor] = []
        self._open: Tensor | None = None
        self._pieces, self._size = 0, 1

    def add(self, sums: Float[Tensor, " sums"]) -> None:
        """Adds one piece's sums."""
        self._open = sums.clone() if self._open is None else self._open + sums
        self._pieces += 1
        if self._pieces < self._size:
            return
        self._whole.append(self._open)
        self._open, self._pieces = None, 0
        if len(self._whole) == GROUPS:
            self._whole = [a + b for a, b in zip(self._whole[::2], self._whole[1::2], strict=True)]
            self._size *= 2

    def groups(self) -> Float[Tensor, "groups sums"]:
        """Returns the sums of every group; a last incomplete one joins its neighbour."""
        whole = list(self._whole)
        if self._open is not None:
            if whole:
                whole[-1] = whole[-1] + self._open
            else:
                whole = [self._open]
        return torch.stack(whole)

    def ratio_error(self, numerators: Float[Tensor, " groups"], denominators: Float[Tensor, " groups"]) -> float | None:
        """Returns the standard error of ΣA / ΣB over the groups; None for a single group."""
        count, total = len(numerators), float(denominators.sum())
        if count < 2 or total == 0:
            return None
        left = numerators - numerators.sum() / total * denominators
        return math.sqrt(count / (count - 1) * float(left.pow(2).sum())) / abs(total)
