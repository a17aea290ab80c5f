"""The small surface that every architecture has, and what all of them share.

An `Architecture` knows, for one `SAEConfig`: the tensors it trains and their first values, the dense differentiable
forward pass and loss (which is also the reference that hand-written steps are tested against), one training step, the
constraint on its weights, the finished SAE's tensors, and how a finished SAE encodes.

Rows are flat: several sites stand side by side in one row [n, n_sites · d_in]. With y what is to be written (x itself
in an autoencoder), x̂ its prediction and P the penalty of the architecture:

    L = u · (Σ‖x̂ − y‖² / Σ‖y − ȳ‖²  +  α · AuxK)  +  P

u is 1 where nothing is penalised, else Σ‖y − ȳ‖² / n, so that penalties weigh against the squared error of a row, as
published coefficients do. Where `target_l0` is set, the coefficient λ follows the L0 that is observed:

    e = log(L0 / target) + 2 log(L0 / L0_before)        log λ ← log λ + η · clip(e, ±1)        λ_step = λ · exp(e / 2)

L0 is a moving mean and L0_before a slower one: weights follow λ with a lag, and the second term of e looks ahead by it.
λ starts at a² / φ(a), where a is the strength above which the first batch's pre-activations meet the target and φ(a)
what a latent of that strength is charged: among orthogonal latents, those above a then explain more than they cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.architectures.clt import decoder_mask, encoder_product
from sae.architectures.transcoder import linear_map
from sae.config import SAEConfig, default
from sae.density import Density
from sae.kernels.revive import listed
from sae.selection import Selection, select
from sae.shares import batch_rows, total_variance
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, Parameters, StepResult

INITIAL_COEFFICIENT = 1.0  # of a penalty that follows no L0
INITIAL_FLOOR = 0.3  # of the pre-activations' spread: the least strength that a run begins with
CONTROL_GAIN = 20.0  # of the coefficient's logarithm over a whole run, at an L0 that is e times too high
CONTROL_MAX_STEP = 0.02
LOOK_AHEAD = 2.0
L0_MEMORY_STEPS, L0_LONG_MEMORY_STEPS = 10, 50


class Moment(NamedTuple):
    """Where in its run a step stands."""

    step: int
    steps: int
    dead: Bool[Tensor, " d_sae"] | None = None
    """Latents that the auxiliary loss takes up: silent for `TrainConfig.auxk_after_rows`."""
    room: int | None = None
    """On a GPU, room for that many of them (`sae.fused.DeadRoom`)."""
    density: Density | None = None
    """On a GPU, what is known of how many entries are above their floors."""

    @property
    def progress(self) -> float:
        """Share of the run that lies behind this step."""
        return self.step / max(1, self.steps)


class Forward(NamedTuple):
    """A dense forward pass."""

    x_hat: Float[Tensor, "n d_out"]
    activations: Float[Tensor, "n d_sae"]
    penalty: Float[Tensor, ""]
    """Everything the loss holds beside reconstruction and AuxK, weighted."""


class Architecture:
    """One dictionary in training. Subclasses give `activate` or whole passes; `buffers` is kept between steps."""

    resampled_length = 1.0
    """Length of a resampled latent's encoder row, as a multiple of the mean: where k are chosen the weak never fire."""

    def __init__(self, config: SAEConfig) -> None:
        self.config = config
        self.buffers: dict[str, Tensor] = {}
        self.noted: dict[str, Tensor] = {}
        """What a pass leaves for `observe`."""
        if config.l0_goal is not None:
            goal = torch.tensor(float(config.l0_goal))
            self.buffers = {"log_coefficient": torch.tensor(0.0), "l0": goal, "l0_before": goal.clone()}

    def to(self, device: torch.device) -> None:
        self.buffers = {name: value.to(device) for name, value in self.buffers.items()}

    # First values

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Returns the tensors that are trained: unit decoder rows in random directions, the encoder their copy."""
        config = self.config
        directions = self._directions(config.output_width * config.n_sites, generator)
        parameters = {
            "W_enc": directions.clone(),
            "W_dec": directions,
            "b_enc": torch.zeros(config.d_sae),
            "b_dec": torch.zeros(config.output_width * config.n_sites),
        }
        if config.architecture == "clt":
            parameters["W_enc"] = self._directions(config.d_in, generator)
            parameters["W_dec"] = torch.nn.functional.normalize(directions * decoder_mask(config), dim=1)
        elif config.predicts_target:
            parameters["W_enc"] = self._directions(config.d_in, generator)
        if config.architecture == "skip_transcoder":
            parameters["W_skip"] = torch.zeros(config.output_width, config.d_in)
        return parameters

    def _directions(self, width: int, generator: torch.Generator) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(self.config.d_sae, width, generator=generator), dim=1)

    def adopt(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns those of a finished SAE's tensors that training goes on with."""
        return {name: value for name, value in tensors.items() if name != "threshold"}

    def calibrate(self, parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> None:
        """Sets, in place, what starts from the first batch: biases, encoder lengths, and a transcoder's skip term.

        Latents that overlap write each direction many times over. Were encoder rows as long as the decoder's, which
        they copy, the first steps would shrink them all, and those that fell silent would stay so. Multiplied by the
        factor that explains most they start where they can learn. Where a penalty follows an L0, the first batch
        meets it.
        """
        config = self.config
        if "W_skip" in parameters:
            parameters["W_skip"].copy_(linear_map(x, y))
            y = y - x @ parameters["W_skip"].T
        if config.decoder_bias_init == "mean":
            parameters["b_dec"].copy_(y.mean(0))
        elif config.decoder_bias_init == "geometric_median":
            parameters["b_dec"].copy_(geometric_median(y))
        level, copies = None, "W_enc" in parameters and not config.predicts_target
        if config.l0_goal is not None:
            level = strength = self.level(parameters, x)
            self.set_level(parameters, level)
            if copies:
                pre = self.pre_activations(parameters, self.centre(parameters, x))
                kept = self.write(parameters, torch.where(pre > level, pre, 0), x) - parameters["b_dec"]
                strength = level * self._best_factor(parameters, kept, y)
            self.start_penalty(parameters, strength)
        if copies:
            factor = self._best_factor(parameters, self.first_written(parameters, x), y)
            parameters["W_enc"].mul_(factor)
            if level is not None:
                self.set_level(parameters, factor * level)

    def first_written(self, parameters: Parameters, x: Tensor) -> Float[Tensor, "n d_out"]:
        """Returns what the run's first step predicts for a batch, without `b_dec`."""
        return self.forward(parameters, x, Moment(0, 1)).x_hat - parameters["b_dec"]

    def _best_factor(self, parameters: Parameters, written: Tensor, y: Tensor) -> float:
        """Returns by what to multiply what is written so that it explains most of y; 1 where nothing is."""
        factor = float((written * (y - parameters["b_dec"])).sum() / written.pow(2).sum())
        return factor if factor > 0 else 1.0

    def level(self, parameters: Parameters, x: Tensor) -> Float[Tensor, ""]:
        """Returns the strength above which pre-activations of these rows meet the L0 asked for."""
        pre = self.revival_pre_activations(parameters, x).flatten()
        assert self.config.l0_goal is not None
        count = min(pre.numel(), math.ceil(self.config.l0_goal * len(x)))
        return pre.topk(count).values[-1].clamp(min=float(INITIAL_FLOOR * pre.std())).clamp(min=1e-3)

    def set_level(self, parameters: dict[str, Tensor], level: Tensor) -> None:
        """Lets latents be active where the encoder product exceeds `level`, in the first batch."""
        raise NotImplementedError

    def start_penalty(self, parameters: Parameters, level: Tensor) -> None:
        """Sets the first coefficient of a penalty that follows an L0: latents stronger than `level` are to pay."""
        if (given := self.config.sparsity_coefficient) is not None:
            coefficient = level.new_tensor(given)
        else:
            coefficient = level.pow(2) / self.penalty(level * self.decoder_norms(parameters).mean(), Moment(0, 1))
        self.buffers["log_coefficient"] = coefficient.log()

    # The dense pass

    def centre(self, parameters: Parameters, x: Tensor) -> Tensor:
        return x - parameters["b_dec"] if self.config.subtracts_b_dec else x

    def pre_activations(self, parameters: Parameters, centred: Tensor) -> Float[Tensor, "n d_sae"]:
        """Returns the encoder product without bias; in a cross-layer transcoder each latent reads its own site."""
        if self.config.architecture != "clt":
            return centred @ parameters["W_enc"].T
        return encoder_product(self.config, parameters["W_enc"], centred)

    def decoder_norms(self, parameters: Parameters) -> Float[Tensor, " d_sae"]:
        """Returns what one unit of each latent writes, as a norm summed over sites."""
        W_dec = parameters["W_dec"]
        return W_dec.view(len(W_dec), self.config.n_sites, -1).norm(dim=2).sum(1)

    def _decoder(self, parameters: Parameters) -> Float[Tensor, "d_sae d_out"]:
        W_dec = parameters["W_dec"]
        return W_dec if self.config.architecture != "clt" else W_dec * decoder_mask(self.config).to(W_dec)

    def penalty(self, written: Tensor, moment: Moment) -> Tensor:
        """Returns φ of what each latent writes: what it is charged, before the coefficient; here L1."""
        return written

    def write(self, parameters: Parameters, activations: Tensor, x: Tensor) -> Float[Tensor, "n d_out"]:
        """Returns the prediction of activations: decoder, bias and, where there is one, the skip term."""
        x_hat = activations @ self._decoder(parameters) + parameters["b_dec"]
        return x_hat + x @ parameters["W_skip"].T if "W_skip" in parameters else x_hat

    def activate(self, parameters: Parameters, pre: Tensor, moment: Moment) -> tuple[Tensor, Tensor]:
        """Returns activations Float[n, d_sae] and the weighted penalty, for pre-activations with bias."""
        raise NotImplementedError

    def forward(self, parameters: Parameters, x: Float[Tensor, "n d_in"], moment: Moment) -> Forward:
        """Returns the dense, differentiable pass."""
        pre = self.dense_pre_activations(parameters, self.centre(parameters, x))
        activations, penalty = self.activate(parameters, pre, moment)
        return Forward(self.write(parameters, activations, x), activations, penalty)

    def reconstruction_loss(
        self, parameters: Parameters, forward: Forward, x: Tensor, y: Tensor, moment: Moment
    ) -> Float[Tensor, ""]:
        """Returns Σ‖x̂ − y‖² / Σ‖y − ȳ‖²."""
        return (forward.x_hat - y).pow(2).sum() / total_variance(y)

    def loss(self, parameters: Parameters, x: Tensor, y: Tensor, moment: Moment) -> tuple[Float[Tensor, ""], Forward]:
        """Returns the loss of one batch and the pass it came from; differentiable in all parameters."""
        forward = self.forward(parameters, x, moment)
        total = self.reconstruction_loss(parameters, forward, x, y, moment)
        dead, alpha = moment.dead, self.config.auxk_alpha
        if dead is not None and alpha > 0 and (bool(dead.any()) if moment.room is None else moment.room):
            error = (y - forward.x_hat).detach()
            total = total + alpha * self.auxk_loss(parameters, x, error, dead, moment.room)
        unit = total_variance(y) / batch_rows(y) if self.is_penalised else 1.0
        return unit * total + forward.penalty, forward

    def auxk_loss(
        self, parameters: Parameters, x: Tensor, error: Tensor, dead: Tensor, room: int | None = None
    ) -> Float[Tensor, ""]:
        """Returns Σ‖ê − e‖² / Σ‖e − ē‖², ê the dead latents' reconstruction of the error e, which is held constant.

        With `room` for so many nothing waits for the device; where none is dead the loss is then 0.
        """
        pre = self.revival_pre_activations(parameters, x)
        if room is None:
            latents, share = dead.nonzero().squeeze(1), 1.0
            pre = pre.index_select(1, latents)
        else:
            latents, is_used = listed(dead, room)
            pre, share = torch.where(is_used, pre.index_select(1, latents), 0), is_used.any().to(x.dtype)
        chosen = self.strongest(pre, min(self.config.auxk_latents, pre.shape[1]))
        revived = torch.zeros_like(pre).scatter(1, chosen.indices, chosen.values)
        written = revived @ self._decoder(parameters).index_select(0, latents)
        return share * (error - written).pow(2).sum() / total_variance(error)

    def revival_pre_activations(self, parameters: Parameters, x: Tensor) -> Float[Tensor, "n d_sae"]:
        """Returns the pre-activations by which AuxK chooses dead latents."""
        return self.dense_pre_activations(parameters, self.centre(parameters, x))

    def strongest(self, pre: Float[Tensor, "n latents"], k: int) -> Selection:
        """Returns the k strongest of each row as AuxK takes them; differentiable."""
        return select(pre, k)

    # Training

    @property
    def is_penalised(self) -> bool:
        """Whether sparsity comes from a penalty rather than from choosing k."""
        return False

    def step(self, parameters: Parameters, x: Tensor, y: Tensor, moment: Moment) -> StepResult:
        """Returns loss and gradients of one batch; here by automatic differentiation of `loss`."""
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        with torch.enable_grad():
            loss, forward = self.loss(leaves, x, y, moment)
            given = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(value) if gradient is None else gradient
            for (name, value), gradient in zip(leaves.items(), given, strict=True)
        }
        error = (y - forward.x_hat).detach()
        active = forward.activations.detach() != 0
        return StepResult(
            gradients,
            loss.detach(),
            error.pow(2).sum(),
            total_variance(y),
            active.any(0),
            active.sum().to(x.dtype) / batch_rows(x),
        )

    def observe(self, result: StepResult, moment: Moment) -> None:
        """Takes note of a step that was applied: moves the penalty's coefficient towards the L0 asked for."""
        if self.config.l0_goal is None:
            return
        for name, memory in (("l0", L0_MEMORY_STEPS), ("l0_before", L0_LONG_MEMORY_STEPS)):
            self.buffers[name] += (result.l0 - self.buffers[name]) / min(memory, moment.step + 1)
        gain = min(CONTROL_MAX_STEP, CONTROL_GAIN / moment.steps)
        self.buffers["log_coefficient"] += gain * self._excess()

    def _excess(self) -> Tensor:
        """Returns by how much L0 is, and is about to be, above its goal: the logarithm, within ±1."""
        now, before = (self.buffers[name].clamp(min=1e-3).log() for name in ("l0", "l0_before"))
        assert self.config.l0_goal is not None
        return (now - math.log(self.config.l0_goal) + LOOK_AHEAD * (now - before)).clamp(-1, 1)

    def coefficient(self, moment: Moment) -> Tensor | float:
        """Returns the penalty's weight in this step: fixed and warmed up, or controlled."""
        config = self.config
        warmup = config.sparsity_warmup * moment.steps
        warmth = min(1.0, (moment.step + 1) / warmup) if warmup >= 1 else 1.0
        if config.l0_goal is None:
            return warmth * default(config.sparsity_coefficient, INITIAL_COEFFICIENT)
        return warmth * (self.buffers["log_coefficient"] + 0.5 * self._excess()).exp()

    def project(self, parameters: Parameters, gradients: dict[str, Tensor], moment: Moment) -> None:
        """Removes, in place, the part of the decoder's gradient that the unit norm takes back."""
        if self.config.has_unit_decoder:
            W_dec = parameters["W_dec"]
            along = (gradients["W_dec"] * W_dec).sum(1, keepdim=True)
            gradients["W_dec"].addcmul_(along, W_dec, value=-1)

    def constrain(self, parameters: Parameters) -> None:
        """Restores, in place, what must hold of the weights after an update."""
        if self.config.has_unit_decoder:
            W_dec = parameters["W_dec"]
            W_dec.div_(W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12))

    # The finished SAE

    def finished(self, parameters: Parameters) -> tuple[SAEConfig, dict[str, Tensor]]:
        """Returns config and tensors of the finished SAE, in the units of training."""
        return self.config, dict(parameters)

    def fold(
        self, config: SAEConfig, tensors: dict[str, Tensor], scale_in: Tensor, scale_out: Tensor
    ) -> tuple[SAEConfig, dict[str, Tensor]]:
        """Returns the finished SAE for raw rows; training saw x · scale_in and wrote y · scale_out (per column)."""
        read = scale_in if config.architecture != "clt" else _per_latent_scale(config, scale_in)
        folded = {**tensors, "W_enc": tensors["W_enc"] * read}
        folded["W_dec"], folded["b_dec"] = tensors["W_dec"] / scale_out, tensors["b_dec"] / scale_out
        if "W_skip" in tensors:
            folded["W_skip"] = tensors["W_skip"] * scale_in / scale_out[:, None]
        return config, folded

    def encode(self, parameters: Parameters, centred: Float[Tensor, "n d_in"]) -> Selection:
        """Returns the codes of a finished SAE, silent entries with value 0; differentiable if gradients are on."""
        raise NotImplementedError

    def dense_pre_activations(self, parameters: Parameters, centred: Tensor) -> Float[Tensor, "n d_sae"]:
        return self.pre_activations(parameters, centred) + parameters["b_enc"]


def _per_latent_scale(config: SAEConfig, scale: Tensor) -> Float[Tensor, "d_sae d_in"]:
    """Returns each latent's own site's scales."""
    by_site = scale.view(config.n_sites, config.d_in)
    return by_site.repeat_interleave(config.d_sae // config.n_sites, dim=0)


def geometric_median(rows: Float[Tensor, "n d"], iterations: int = 100) -> Float[Tensor, " d"]:
    """Returns the point whose summed distance to the rows is least, by Weiszfeld's iteration."""
    point = rows.mean(0)
    for _ in range(iterations):
        weights = 1 / (rows - point).norm(dim=1).clamp(min=1e-6)
        moved = (weights[:, None] * rows).sum(0) / weights.sum()
        if bool((moved - point).norm() < 1e-6 * (1 + point.norm())):
            return moved
        point = moved
    return point


def auxiliary(config: SAEConfig, moment: Moment) -> Auxiliary | None:
    """Returns the auxiliary loss of a hand-written step."""
    return None if moment.dead is None else Auxiliary(moment.dead, config.auxk_latents, config.auxk_alpha, moment.room)


def strongest_entries(activations: Float[Tensor, "n d_sae"]) -> Selection:
    """Returns the non-zero entries of dense activations, as many columns as the fullest row has (at least one)."""
    width = max(1, int((activations != 0).sum(1).max())) if len(activations) else 1
    indices = activations.abs().topk(width, dim=1, sorted=False).indices
    return Selection(activations.gather(1, indices), indices)


def padded(codes: RaggedCodes) -> Selection:
    """Returns ragged codes as rectangular ones, short rows filled with value 0 at latent 0."""
    counts = codes.starts.diff()
    width = max(1, int(counts.max())) if len(counts) else 1
    rows = codes.rows()
    columns = torch.arange(len(rows), device=rows.device) - codes.starts[rows]
    values = codes.values.new_zeros(len(counts), width)
    indices = codes.indices.new_zeros(len(counts), width)
    values[rows, columns], indices[rows, columns] = codes.values, codes.indices
    return Selection(values, indices)
