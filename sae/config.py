"""The settings of a sparse autoencoder and of its training run.

`SAEConfig` says what the dictionary is and what it is trained towards, `TrainSettings` how it is trained; `TrainConfig`
joins them with the run's size and folder. A YAML file's `train` section holds `TrainSection`, its `saes` entries the
fields of `SAEConfig`. A setting that the chosen architecture does not read is refused: none is silently ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

TOP_K_FAMILY = ("topk", "batchtopk", "matryoshka_batchtopk", "abstopk")
SINGLE_SITE = (*TOP_K_FAMILY, "standard", "p_anneal", "gated", "jumprelu", "matching_pursuit")
WIRED = ("transcoder", "skip_transcoder", "crosscoder", "clt")
"""Architectures that read and write other rows than an autoencoder does, each with an `activation` of its own."""
ARCHITECTURES = (*SINGLE_SITE, *WIRED)

Activation = Literal["relu", "topk", "batchtopk", "jumprelu"]
Normalization = Literal["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"]
Penalty = Literal["l1", "lp", "tanh", "step"]
OptimizerName = Literal["adam", "muon", "signum"]
MomentsName = Literal["float32", "bfloat16", "int8"]
ComputeName = Literal["float32", "bfloat16", "fp8"]

_MECHANISMS = {"relu": "standard", "topk": "topk", "batchtopk": "batchtopk", "jumprelu": "jumprelu"}
_PENALTIES = {"standard": ("l1", "lp", "tanh"), "p_anneal": ("lp",), "gated": ("l1",), "jumprelu": ("step", "tanh")}
# which mechanisms read a setting; settings that are not named here are read by all
_READ_BY: dict[str, tuple[str, ...]] = {
    "k": (*TOP_K_FAMILY, "matching_pursuit"),
    "k_start": TOP_K_FAMILY,
    "penalty": tuple(_PENALTIES),
    "sparsity_coefficient": tuple(_PENALTIES),
    "target_l0": tuple(_PENALTIES),
    "penalty_exponent": ("standard", "p_anneal"),
    "tanh_scale": ("standard", "jumprelu"),
    "bandwidth": ("jumprelu",),
    "threshold_init": ("jumprelu",),
    "pre_activation_coefficient": ("jumprelu",),
    "matryoshka_widths": ("matryoshka_batchtopk",),
    "nesting_start": ("matryoshka_batchtopk",),
    "residual_threshold": ("matching_pursuit",),
}


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """What a dictionary is. `SAEConfig(d_in=…, d_sae=…, k=…)` alone is the recommended recipe."""

    __pydantic_config__ = {"extra": "forbid"}

    d_in: int
    """Width of the activations (of one site, where several are read)."""
    d_sae: int
    """Number of latents (of all sites together, in a cross-layer transcoder)."""
    k: int | None = None
    """Latents active in each row (top-k family: exactly, or on average over a batch; matching pursuit: at most)."""
    architecture: str = "matryoshka_batchtopk"
    """Name of the architecture, as in SAELens's `cfg.json` where SAELens has it; the default is the recommended one."""
    activation: Activation | None = None
    """How transcoders and crosscoders choose active latents: relu, topk (the default), batchtopk, jumprelu."""
    d_out: int | None = None
    """Width of what a transcoder writes; default d_in."""
    n_sites: int = 1
    """Sites read at once by a crosscoder or cross-layer transcoder."""
    apply_b_dec_to_input: bool | None = None
    """Encode x − b_dec instead of x; default yes where input and output are the same rows at one site."""
    normalize_activations: Normalization = "expected_average_only_in"
    """`expected_average_only_in` scales inputs to mean norm √d_in while training (by the first batch; folded into the
    saved weights). `constant_norm_rescale` (norm √d_in) and `layer_norm` work on each row and stay part of the SAE."""
    normalize_decoder: bool | None = None
    """Keep decoder rows at unit norm; default yes, except where a penalty weighs them (relu or jumprelu crosscoders
    and cross-layer transcoders)."""
    decoder_bias_init: Literal["mean", "geometric_median", "zeros"] = "mean"
    """Where `b_dec` starts: the mean or geometric median of the first batch, or zero."""
    auxk_alpha: float = 1 / 32
    """Weight of the auxiliary loss that lets dead latents model the residual error; 0 switches it off."""
    auxk_k: int | None = None
    """Dead latents that take part in each row's auxiliary loss; default d_in / 2, and k / 4 in abstopk, where many
    latents of either sign would model the error densely and come back together or not at all."""
    k_start: int | None = None
    """k at the beginning, falling linearly to `k` over the first `sparsity_warmup_frac` of the run; default k, and
    twice k (at most d_sae) in matryoshka_batchtopk."""
    penalty: Penalty | None = None
    """What is penalised: l1 (default), lp or tanh of activations; for jumprelu step (L0; default) or tanh."""
    sparsity_coefficient: float | None = None
    """Weight of the penalty; default: adjusted during the run until `target_l0` is met."""
    target_l0: float | None = None
    """Active latents a row that the penalty's weight is adjusted for; default 32 without `sparsity_coefficient`."""
    sparsity_warmup_frac: float | None = None
    """Share of the run over which the penalty rises from zero (or k falls from `k_start`); default 0.1, and 0.5 in
    matryoshka_batchtopk."""
    penalty_exponent: float | None = None
    """p of the lp penalty: constant in `standard` (default 0.5), the final one in `p_anneal` (default 0.2, from 1)."""
    tanh_scale: float | None = None
    """c in the penalty tanh(c·f·‖d‖); default 4."""
    bandwidth: float | None = None
    """Width of the rectangle through which JumpReLU's thresholds get gradients, in units of pre-activations;
    default 0.1 with the step penalty, 2 with tanh."""
    threshold_init: float | None = None
    """JumpReLU's first thresholds; default where the first batch meets `target_l0` (0.1 without one)."""
    pre_activation_coefficient: float | None = None
    """Weight of the penalty on pre-activations below JumpReLU's threshold that keeps latents alive; default 3e-6 with
    tanh, 0 with step."""
    matryoshka_widths: list[int] | None = None
    """Widths of the nested dictionaries, ascending, the last one d_sae; default d_sae / 32, 16, 8, 4, 2 and 1."""
    nesting_start: float | None = None
    """Share of the run from which the nested dictionaries count, made of the latents that are strongest by then (late
    nesting); default 0.25. With 0 they count from the start, in the latents' own order, as published."""
    residual_threshold: float | None = None
    """Matching pursuit stops at rows whose residual norm is below this; default 0.01."""

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture `{self.architecture}` is not available, expected one of {', '.join(ARCHITECTURES)}: "
                "choose one of these"
            )
        if self.d_in < 1 or self.d_sae < 1 or self.output_width < 1:
            raise ValueError(f"d_in={self.d_in} and d_sae={self.d_sae} must be positive: set both")
        self._check_wiring()
        self._check_unread()
        self._check_sparsity()
        if self.auxk_k is not None and self.auxk_k < 1:
            raise ValueError(f"auxk_k={self.auxk_k} must be positive: leave it out for its default")
        if self.auxk_alpha < 0:
            raise ValueError(f"auxk_alpha={self.auxk_alpha} must not be negative: 0 switches the auxiliary loss off")

    def _check_wiring(self) -> None:
        name = self.architecture
        if self.activation is not None and name not in WIRED:
            raise ValueError(
                f"architecture `{name}` does not read activation={self.activation!r}, expected none: it belongs to "
                f"{', '.join(WIRED)}"
            )
        if self.d_out not in (None, self.d_in) and name not in ("transcoder", "skip_transcoder", "clt"):
            raise ValueError(f"architecture `{name}` writes d_in={self.d_in}, got d_out={self.d_out}: leave d_out out")
        if name in ("crosscoder", "clt"):
            if self.n_sites < 2:
                raise ValueError(
                    f"architecture `{name}` reads several sites, got n_sites={self.n_sites}: name two or more"
                )
        elif self.n_sites != 1:
            raise ValueError(f"architecture `{name}` reads one site, got n_sites={self.n_sites}: leave n_sites out")
        if name in WIRED and self.normalize_activations in ("constant_norm_rescale", "layer_norm"):
            raise ValueError(
                f"architecture `{name}` got normalize_activations={self.normalize_activations}, which works on single "
                "rows of one site, expected expected_average_only_in or none: choose one of these"
            )
        if name == "clt" and self.d_sae % self.n_sites:
            raise ValueError(f"d_sae={self.d_sae} latents do not divide into n_sites={self.n_sites}: choose a multiple")

    def _check_unread(self) -> None:
        for setting, readers in _READ_BY.items():
            if getattr(self, setting) is not None and self.mechanism not in readers:
                raise ValueError(
                    f"architecture `{self.architecture}` does not read {setting}={getattr(self, setting)!r}: leave it "
                    f"out, or choose one of {', '.join(readers)}"
                )

    def _check_sparsity(self) -> None:
        mechanism = self.mechanism
        if mechanism in TOP_K_FAMILY and self.k is None:
            raise ValueError(f"architecture `{self.architecture}` needs k, got none: set k, for example k=32")
        for name in ("k", "k_start"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= self.d_sae:
                raise ValueError(f"{name}={value} must lie between 1 and d_sae={self.d_sae}: lower it or raise d_sae")
        if self.penalty is not None and self.penalty not in _PENALTIES[mechanism]:
            raise ValueError(
                f"architecture `{self.architecture}` has no penalty `{self.penalty}`, expected one of "
                f"{', '.join(_PENALTIES[mechanism])}: choose one of these"
            )
        positive = (
            "target_l0",
            "sparsity_coefficient",
            "penalty_exponent",
            "tanh_scale",
            "bandwidth",
            "threshold_init",
        )
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive: leave it out for its default")
        if self.sparsity_warmup_frac is not None and not 0 <= self.sparsity_warmup_frac <= 1:
            raise ValueError(f"sparsity_warmup_frac={self.sparsity_warmup_frac} must lie between 0 and 1")
        if self.nesting_start is not None and not 0 <= self.nesting_start < 1:
            raise ValueError(f"nesting_start={self.nesting_start} must lie in [0, 1): it is a share of the run")
        widths = self.matryoshka_widths
        if widths is not None and (sorted(set(widths)) != widths or widths[0] < 1 or widths[-1] != self.d_sae):
            raise ValueError(
                f"matryoshka_widths={widths} must ascend from at least 1 to d_sae={self.d_sae}: list the nested widths"
            )

    @property
    def mechanism(self) -> str:
        """How active latents are chosen: an architecture's own way, or that of its `activation`."""
        return _MECHANISMS[self.activation or "topk"] if self.architecture in WIRED else self.architecture

    @property
    def output_width(self) -> int:
        """Width of one row that is written."""
        return self.d_out if self.d_out is not None else self.d_in

    @property
    def predicts_target(self) -> bool:
        """Whether rows come as pairs: what is read, and what is to be written."""
        return self.architecture in ("transcoder", "skip_transcoder", "clt")

    @property
    def subtracts_b_dec(self) -> bool:
        """Whether the encoder reads x − b_dec."""
        if self.apply_b_dec_to_input is not None:
            return self.apply_b_dec_to_input
        return self.architecture not in WIRED

    @property
    def has_unit_decoder(self) -> bool:
        """Whether training keeps decoder rows at unit norm."""
        if self.normalize_decoder is not None:
            return self.normalize_decoder
        return not (self.architecture in ("crosscoder", "clt") and self.mechanism in _PENALTIES)

    @property
    def active(self) -> int:
        """k as a number: checked at construction for the architectures that have one."""
        assert self.k is not None
        return self.k

    @property
    def auxk_latents(self) -> int:
        """How many dead latents take part in each row's auxiliary loss."""
        if self.auxk_k is not None:
            return self.auxk_k
        return max(1, self.active // 4 if self.architecture == "abstopk" else self.d_in // 2)

    @property
    def l0_goal(self) -> float | None:
        """Active latents a row that the penalty's weight is adjusted for; None where the weight is fixed."""
        if self.mechanism not in _PENALTIES:
            return None
        if self.target_l0 is None and self.sparsity_coefficient is not None:
            return None
        return self.target_l0 if self.target_l0 is not None else 32.0

    @property
    def first_active(self) -> int:
        """k in the first step."""
        nested = self.mechanism == "matryoshka_batchtopk"
        return default(self.k_start, min(2 * self.active, self.d_sae) if nested else self.active)

    @property
    def sparsity_warmup(self) -> float:
        """Share of the run over which the penalty rises, or k falls."""
        return default(self.sparsity_warmup_frac, 0.5 if self.mechanism == "matryoshka_batchtopk" else 0.1)

    @property
    def nesting_from(self) -> float:
        """Share of the run from which nested dictionaries count."""
        return default(self.nesting_start, 0.25)

    @property
    def nested_widths(self) -> list[int]:
        """Widths of the nested dictionaries; the whole one alone outside the Matryoshka architecture."""
        if self.mechanism != "matryoshka_batchtopk":
            return [self.d_sae]
        if self.matryoshka_widths is not None:
            return list(self.matryoshka_widths)
        return sorted({max(1, round(self.d_sae / share)) for share in (32, 16, 8, 4, 2, 1)})


def default(value: Any, fallback: Any) -> Any:
    """Returns `value`, or `fallback` where it is None."""
    return fallback if value is None else value


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How a dictionary is trained; schedules are fractions of the run, so that short runs learn too."""

    __pydantic_config__ = {"extra": "forbid"}

    batch_rows: int = 2048
    """Rows in one optimiser step."""
    lr: float | None = None
    """Peak learning rate; default 0.25/√d_sae, at most 0.01, and a tenth of that with `init_from`."""
    seed: int = 0
    """Seed of the initial weights (and, where the run reads a store or stream, of the order of its rows)."""
    device: str = "auto"
    """`cpu`, `cuda` or `auto`."""
    optimizer: OptimizerName = "adam"
    """adam; muon (orthogonalised momentum for the matrices, Adam for vectors); signum (sign of the momentum)."""
    schedule_free: bool = False
    """Average iterates instead of decaying the rate (Defazio et al. 2024); the rate only warms up."""
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls over the last `decay_frac` of the run."""
    warmup_frac: float = 0.03
    """Share of the run over which the rate rises from zero."""
    decay_frac: float = 0.3
    """Share of the run, at its end, over which the rate falls to zero."""
    beta1: float = 0.9
    """Decay of the first moment (of the momentum in muon and signum)."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    moments: MomentsName = "float32"
    """How Adam's moments of the matrices are held on a GPU: float32, bfloat16 or int8 (two scales for each latent);
    small ones are rounded at random. Only in the fused step: top-k family, Adam, unclipped, one process."""
    compute_dtype: ComputeName = "float32"
    """What products and gathers read on a GPU, in the same fused step: float32, bfloat16 (weights and moments stay
    float32), or fp8 for the encoder product and bfloat16 for the rest."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient; none leaves it as it is."""
    ema_decay: float | None = None
    """Decay of an average of the weights, which is then what is saved; none saves the last weights."""
    dead_after_tokens: int | None = None
    """Rows of silence after which a latent counts as dead; default a tenth of the run, at most 10 million."""
    auxk_after_tokens: int | None = None
    """Rows of silence after which the auxiliary loss (`auxk_alpha`) takes up a latent; default a two-hundredth of the
    run, at least two batches, and never later than the latent counts as dead."""
    resample_fracs: list[float] = field(default_factory=list)
    """Points of the run at which dead latents start anew from badly explained rows (Bricken et al. 2023)."""
    init_from: str | None = None
    """Folder of an SAE (any format) whose weights the training starts from."""
    objective: Literal["reconstruction", "kl", "ce"] = "reconstruction"
    """What is learned: to reconstruct, or (end to end) that the model reading the reconstruction predicts as before
    (kl) or predicts its text (ce)."""
    reconstruction_weight: float = 0.0
    """Weight of the reconstruction loss beside an end-to-end objective."""
    downstream_weight: float = 0.0
    """Weight of the reconstruction error in the residual stream of all later layers, beside an end-to-end objective."""
    divide: Literal["rows", "latents"] = "rows"
    """What several processes divide: the rows of each batch, or the latents (top-k family)."""
    checkpoint_every_steps: int = 1000
    """Steps between checkpoints of the exact-resume state."""
    log_every_steps: int = 50
    """Steps between lines of `metrics.jsonl`."""
    trackers: list[str] = field(default_factory=list)
    """Where metrics go besides `metrics.jsonl`, through accelerate: tensorboard, wandb, trackio."""

    def __post_init__(self) -> None:
        for name in ("batch_rows", "checkpoint_every_steps", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1: raise it")
        for name in ("dead_after_tokens", "auxk_after_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be positive: leave it out for its default")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr={self.lr} must be positive: leave it out for its default")
        for name in ("warmup_frac", "decay_frac"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1: it is a share of the run")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1: try 0.999")
        if any(not 0 < point < 1 for point in self.resample_fracs):
            raise ValueError(
                f"resample_fracs={self.resample_fracs} must lie between 0 and 1: they are points of the run"
            )
        for name in ("reconstruction_weight", "downstream_weight"):
            if getattr(self, name) < 0 or (getattr(self, name) and self.objective == "reconstruction"):
                raise ValueError(
                    f"{name}={getattr(self, name)} with objective={self.objective}, expected a positive weight beside "
                    "objective kl or ce: leave it out, or choose one of these"
                )
        if self.schedule_free and self.ema_decay is not None:
            raise ValueError("schedule_free averages the weights already, got ema_decay too: leave one of them out")


def check_divide(sae: SAEConfig, train: TrainSettings) -> None:
    """ValueError where the latents of an SAE cannot be divided between processes as `train.divide` asks."""
    if train.divide == "rows":
        return
    refused = [
        (sae.mechanism not in TOP_K_FAMILY or sae.architecture == "clt", f"architecture `{sae.architecture}`"),
        (train.objective != "reconstruction", f"objective={train.objective}"),
        (train.optimizer == "muon", "optimizer=muon"),
        (bool(train.resample_fracs), f"resample_fracs={train.resample_fracs}"),
    ]
    for is_refused, what in refused:
        if is_refused:
            raise ValueError(
                f"divide=latents got {what}, which needs all latents in one place, expected the top-k family with adam "
                "or signum on rows: divide rows instead"
            )


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
        check_divide(self.sae, self)
        if self.total_rows < self.batch_rows:
            raise ValueError(
                f"total_rows={self.total_rows} is less than one batch of batch_rows={self.batch_rows}: raise the first "
                "or lower the second"
            )

    @property
    def peak_lr(self) -> float:
        """Peak learning rate, the default one resolved."""
        if self.lr is not None:
            return self.lr
        fresh = min(0.01, 0.25 * self.sae.d_sae**-0.5)
        return fresh if self.init_from is None else 0.1 * fresh

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

    @property
    def auxk_after_rows(self) -> int:
        """Rows without an activation after which the auxiliary loss takes up a latent."""
        if self.auxk_after_tokens is not None:
            return self.auxk_after_tokens
        return min(self.dead_after_rows, max(2 * self.batch_rows, self.total_rows // 200))
