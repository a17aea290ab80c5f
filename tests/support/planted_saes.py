"""SAEs and runs for planted rows: settings of every architecture, and the rows in the shape that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import torch

from sae import SAEConfig, TrainConfig
from sae.config import TOP_K_FAMILY

TRUE = planted.directions()
N_ROWS = 256 * 250


def settings(architecture: str, **changes: Any) -> SAEConfig:
    sparsity = dict(k=5) if architecture in (*TOP_K_FAMILY, "matching_pursuit") else {}
    wiring: dict[str, Any] = {}
    if architecture in ("transcoder", "skip_transcoder", "crosscoder", "clt"):
        sparsity = dict(k=5)
    if architecture in ("crosscoder", "clt"):
        wiring = dict(n_sites=2)
    if not sparsity:
        sparsity = dict(target_l0=2.8)  # planted rows have 3.2 features each
    return SAEConfig(**{**dict(architecture=architecture, d_in=32, d_sae=96), **sparsity, **wiring, **changes})


def config(out: Path, sae: SAEConfig, **changes: Any) -> TrainConfig:
    default: dict[str, Any] = dict(total_rows=N_ROWS, batch_rows=256, lr=5e-3, device="cpu", out=str(out))
    return TrainConfig(sae=sae, **{**default, **changes})


def shaped(sae: SAEConfig, n: int = N_ROWS, seed: int = 1) -> Any:
    """Yields planted rows in the shape that the architecture reads."""
    for rows in planted.rows(n, TRUE, seed=seed):
        if sae.architecture == "clt":
            yield torch.stack([rows, rows.flip(1)], 1), torch.stack([rows, 2 * rows], 1)
        elif sae.predicts_target:
            yield rows, rows.flip(1) + 0.5 * rows
        else:
            yield torch.stack([rows, 3 * rows.flip(1)], 1) if sae.n_sites == 2 else rows


def late(**changes: Any) -> SAEConfig:
    return settings("matryoshka_batchtopk", matryoshka_widths=[6, 24, 96], nesting_start=0.4, **changes)
