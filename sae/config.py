"""The settings of a sparse autoencoder and of its training run.

`SAEConfig` says what the dictionary is, `TrainSettings` how it is trained; `TrainConfig` joins them with the run's
size and folder. A YAML file's `train` section holds `TrainSection`, its `saes` entries the fields of `SAEConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ARCHITECTURES = ("topk",)
Normalization = Literal["none", "expected_average_only_in"]


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """What a dictionary is. `SAEConfig(d_in=…, d_sae=…, k=…)` alone is the recommended recipe."""

    __pydantic_config__ = {"extra": "forbid"}

    d_in: int
    """Width of the activations."""
    d_sae: int
    """Number of latents."""
    k: int | None = None
    """Latents active in each row (the top-k family)."""
    architecture: str = "topk"
    """Name of the architecture, as in SAELens's `cfg.json`."""
    normalize_activations: Normalization = "expected_average_only_in"
    """Scale inputs to mean norm √d_in while training (by the first batch; folded into the saved weights)."""
    normalize_decoder: bool = True
    """Keep decoder rows at unit norm."""
    decoder_bias_init: Literal["mean", "zeros"] = "mean"
    """Where `b_dec` starts: the mean of the first batch, or zero."""
    auxk_alpha: float = 1 / 32
    """Weight of the auxiliary loss that lets dead latents model the residual error; 0 switches it off."""
    auxk_k: int | None = None
    """Dead latents that take part in each row's auxiliary loss; default d_in / 2."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture `{self.architecture}` is not available, expected one of {', '.join(ARCHITECTURES)}: "
                "choose one of these"
            )
        if self.d_in < 1 or self.d_sae < 1:
            raise ValueError(f"d_in={self.d_in} and d_sae={self.d_sae} must be positive: set both")
        if self.k is None:
            raise ValueError(f"architecture `{self.architecture}` needs k, got none: set k, for example k=32")
        if not 1 <= self.k <= self.d_sae:
            raise ValueError(f"k={self.k} must lie between 1 and d_sae={self.d_sae}: lower k or raise d_sae")
        if self.auxk_k is not None and self.auxk_k < 1:
            raise ValueError(f"auxk_k={self.auxk_k} must be positive: leave it out for d_in / 2")
        if self.auxk_alpha < 0:
            raise ValueError(f"auxk_alpha={self.auxk_alpha} must not be negative: 0 switches the auxiliary loss off")

    @property
    def active(self) -> int:
        """k as a number: checked at construction for the architectures that have one."""
        assert self.k is not None
        return self.k

    @property
    def auxk_latents(self) -> int:
        """How many dead latents take part in each row's auxiliary loss."""
        return self.auxk_k if self.auxk_k is not None else max(1, self.d_in // 2)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a dictionary is trained; schedules are fractions of the run, so that short runs learn too."""

    __pydantic_config__ = {"extra": "forbid"}

    batch_rows: int = 2048
    """Rows in one optimiser step."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    seed: int = 0
    """Seed of the initial weights (and, where the run reads a store or stream, of the order of its rows)."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""
    warmup_frac: float = 0.03
    """Share of the run over which the rate rises from zero."""
    decay_frac: float = 0.3
    """Share of the run, at its end, over which the rate falls to zero."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; none leaves it as it is."""
    dead_after_tokens: int | None = None
    """Rows of silence after which a latent counts as dead; default a tenth of the run, at most 10 million."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints of the exact-resume state."""
    log_every_steps: int = 50
    """Steps between lines of `metrics.jsonl`."""

    def __post_init__(self) -> None:
        for name in ("batch_rows", "checkpoint_every_steps", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1: raise it")
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive: try 1e-3")
        for name in ("warmup_frac", "decay_frac"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1: it is a share of the run")


@dataclass(frozen=True, kw_only=True)
class TrainSection(TrainSettings):
    """The `train` section of a config file: one set of settings for all of its SAEs."""

    total_rows: int | None = None
    """Rows to train each SAE on; default one pass over the data (`epochs` passes)."""
    epochs: float = 1.0
    """Passes over the activations when `total_rows` is not given."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainSettings):
    """One SAE's complete training run."""

    sae: SAEConfig
    """The dictionary to train."""
    total_rows: int
    """Rows to train on; the last incomplete batch is dropped."""
    out: str
    """Run folder to write."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_rows < self.batch_rows:
            raise ValueError(
                f"total_rows={self.total_rows} is less than one batch of batch_rows={self.batch_rows}: raise the first "
                "or lower the second"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.total_rows // self.batch_rows

    @property
    def dead_after_rows(self) -> int:
        """Rows without an activation after which a latent counts as dead."""
        if self.dead_after_tokens is not None:
            return self.dead_after_tokens
        return min(10_000_000, max(self.batch_rows, self.total_rows // 10))
