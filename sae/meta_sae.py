"""The meta-SAE: how far a dictionary's directions are themselves sums of fewer directions.

Enters: an SAE. Leaves: the variance of its decoder rows that a small dictionary, trained on them, explains.

Latents that are compositions of others (Bussmann et al. 2024, "Showing SAE latents are not atomic using meta-SAEs")
make W_dec compressible: an SAE of a quarter of the width with four active latents is trained on the unit decoder rows,
and its explained variance on the same rows is the score. Higher means less atomic.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.config import SAEConfig, TrainConfig
from sae.evaluation import evaluate
from sae.geometry import unit_rows
from sae.model import SAE
from sae.trainer import train

WIDTH_SHARE = 4
ACTIVE = 4
LR = 4e-3
EPOCHS = 200
MAX_ROWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MetaSAE:
    """How compressible a dictionary is."""

    explained_variance: float
    """Of the unit decoder rows, by the meta-SAE."""
    shuffled_explained_variance: float
    """The same for rows whose coordinates were shuffled within each column: what unrelated directions would give."""
    d_sae: int
    """Latents of the meta-SAE."""
    dead_frac: float

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record a figure: `metric`, `value`."""
        return [{"metric": name, "value": value} for name, value in asdict(self).items()]

    def to_json(self) -> dict[str, Any]:
        """Returns all figures, ready for JSON."""
        return asdict(self)


def meta_sae(sae: SAE, *, total_rows: int | None = None, seed: int = 0) -> MetaSAE:
    """Trains a meta-SAE on an SAE's decoder rows (and one on shuffled rows, as a control) and scores it.

    Each row comes 200 times, but no more than a million rows in all, unless `total_rows` says otherwise.

    Raises:
        ValueError: fewer than 64 latents.
    """
    if sae.config.d_sae < 64:
        raise ValueError(f"a meta-SAE of {sae.config.d_sae} latents says nothing, expected 64 or more: use a wider SAE")
    rows = unit_rows(sae.W_dec.detach()).cpu()
    total_rows = total_rows or min(MAX_ROWS, EPOCHS * len(rows))
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.stack([column[torch.randperm(len(rows), generator=generator)] for column in rows.T], 1)
    found, control = (_trained(each, total_rows, seed) for each in (rows, unit_rows(mixed)))
    return MetaSAE(
        explained_variance=found.explained_variance,
        shuffled_explained_variance=control.explained_variance,
        d_sae=len(rows) // WIDTH_SHARE,
        dead_frac=found.dead_frac,
    )


def _trained(rows: Tensor, total_rows: int, seed: int) -> Any:
    batch_rows = min(512, len(rows))
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            sae=SAEConfig(d_in=rows.shape[1], d_sae=len(rows) // WIDTH_SHARE, k=ACTIVE, architecture="topk"),
            batch_rows=batch_rows,
            total_rows=max(total_rows, batch_rows),
            lr=LR,
            seed=seed,
            device="cpu",
            out=str(Path(folder) / "meta"),
            checkpoint_every_steps=1_000_000,
        )
        result = train(config, _repeated(rows, seed))
    return evaluate(result.sae, [rows])


def _repeated(rows: Float[Tensor, "n d"], seed: int) -> Iterator[Float[Tensor, "n d"]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield rows[torch.randperm(len(rows), generator=generator)]
