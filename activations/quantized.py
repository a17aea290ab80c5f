"""Rows as eight-bit integers, each row with a scale of its own.

    q = round(x / s),  s = max|x| / 127 of the row         x̂ = s · q,  |x − x̂| ≤ s / 2 in every element

Symmetric, without zero point: 0 stays 0 and the sign stays. A row with few large elements loses the small ones; how
much an SAE notices, `python -m benchmarks.eight_bits` measures.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

LEVELS = 127


def quantized(rows: Float[Tensor, "n d"]) -> tuple[Int8[Tensor, "n d"], Float[Tensor, " n"]]:
    """Returns rows as integers and each row's scale in float32; a row of zeros has scale 0."""
    exact = rows.float()
    scales = exact.abs().amax(dim=1) / LEVELS
    steps = exact / torch.where(scales > 0, scales, 1)[:, None]
    return steps.round().to(torch.int8), scales


def dequantized(
    integers: Int8[Tensor, "n d"], scales: Float[Tensor, " n"], dtype: torch.dtype = torch.bfloat16
) -> Float[Tensor, "n d"]:
    """Returns the rows that the integers stand for, rounded to `dtype`."""
    return (integers.float() * scales[:, None]).to(dtype)
