"""Codes that tests and benchmarks of several kernels share."""

from __future__ import annotations

import torch
from torch import Tensor

from sae.sparse import RaggedCodes


def random_codes(
    rows: int,
    d_sae: int,
    most: int,
    *,
    spare: int = 0,
    silent_frac: float = 0.0,
    frequent: int | None = None,
    is_signed: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> RaggedCodes:
    """Returns codes of 0 to `most` different latents a row, each row's in ascending order.

    `spare` places hold no code, a share `silent_frac` has value 0, and `frequent` is a latent of every row. The upper
    quarter of the latents has no codes.
    """
    generator = torch.Generator().manual_seed(seed)
    used = max(1, d_sae - d_sae // 4)
    per_row: list[Tensor] = []
    for _ in range(rows):
        count = int(torch.randint(0, min(most, used) + 1, (), generator=generator))
        chosen = torch.randperm(used, generator=generator)[:count]
        if frequent is not None:
            chosen = torch.cat([chosen, torch.tensor([frequent])]).unique()
        per_row.append(chosen.sort().values)
    counts = torch.tensor([len(chosen) for chosen in per_row])
    indices = torch.cat([*per_row, torch.zeros(spare, dtype=torch.int64)])
    values = torch.randn(len(indices), generator=generator, dtype=torch.float64)
    values = values if is_signed else values.abs() + 0.1
    values[torch.rand(len(values), generator=generator) < silent_frac] = 0
    values[len(values) - spare :] = 0
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    return RaggedCodes(starts.to(device), indices.to(device), values.to(device, dtype))
