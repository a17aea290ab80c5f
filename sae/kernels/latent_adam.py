"""Adam on W_dec, W_enc and b_enc inside the pass that sums their gradients: gradients are never stored.

For every latent, also those without codes (their moments decay, as with dense gradients):

    g = sums of `latent_reduce` (+ those of `revive`)  g_dec ← g_dec − ⟨g_dec, w⟩ w      (unit decoder rows w)
    m ← m + (1 − β₁)(g − m)                           v ← β₂ v + (1 − β₂) g²
    p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)     w ← w / ‖w‖

as in `torch.optim.Adam` (Kingma and Ba 2015, arXiv 1412.6980) between `Architecture.project` and
`Architecture.constrain`. The gradient of b_dec needs Σ_i ∂b_enc[i] W_enc[i] with weights from before the step; the pass
that overwrites them returns it.

Moments of the matrices may be smaller than float32. All are rounded at random, up with the probability of the part cut
off: with β₂ = 0.999 what is nearest to a decayed v is v itself, which would never fall.

* bf16: m and v.
* int8: m in 1/127 of its row's largest, √v in 1/255 of its row's largest and never below one such unit, so that no
  element moves further than its gradients warrant. A row is a latent, its two units are float32 (block-wise moments as
  in Dettmers et al. 2022, arXiv 2110.02861; the code and the random rounding are ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels import latent_reduce as reduction
from sae.kernels.dispatch import Backend, check_shapes, check_width, uses_triton
from sae.kernels.encode import FP8, FP8_SCALE
from sae.kernels.latent_order import LatentOrder
from sae.kernels.latent_reduce import SEGMENT, LatentSums, segments

MOVED = ("W_dec", "W_enc", "b_enc")

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=9, d_out=16, d_in=8, d_sae=12, most=4),
    "odd widths": dict(n=11, d_out=5, d_in=13, d_sae=7, most=5),
    "more latents than a program's": dict(n=11, d_out=3, d_in=3, d_sae=21, most=5),
    "one latent of every row": dict(n=20, d_out=5, d_in=6, d_sae=9, most=2, frequent=3, segment=4, spare=6),
    "decoder rows of any norm": dict(n=8, d_out=5, d_in=6, d_sae=9, most=4, is_unit=False),
    "no codes at all": dict(n=4, d_out=6, d_in=6, d_sae=10, most=0),
    "nested, with dead latents": dict(n=6, d_out=5, d_in=7, d_sae=12, most=3, groups=2, dead=4),
}


class Moments(NamedTuple):
    """Adam's running means of one parameter's gradient and of its square, updated in place."""

    mean: Tensor
    square: Tensor
    """In int8 moments uint8, and of the root."""
    units: Float[Tensor, "rows 2"] | None = None
    """What a step of each row's int8 moments stands for."""

    @classmethod
    def zeros(cls, parameter: Tensor, dtype: torch.dtype | None = None) -> Moments:
        """Returns the moments before the first step."""
        if dtype != torch.int8:
            return cls(torch.zeros_like(parameter, dtype=dtype), torch.zeros_like(parameter, dtype=dtype))
        units = torch.zeros(len(parameter), 2, dtype=torch.float32, device=parameter.device)
        mean, root = (torch.zeros_like(parameter, dtype=kind) for kind in (torch.int8, torch.uint8))
        return cls(mean, root, units)

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns mean and mean square as numbers."""
        if self.units is None:
            return self.mean.to(dtype), self.square.to(dtype)
        mean, root = (stored.to(dtype) * unit for stored, unit in zip(self[:2], self._columns(dtype), strict=True))
        return mean, root.square()

    def write(self, mean: Tensor, square: Tensor) -> None:
        """Stores numbers, rounded at random where there are fewer bits."""
        if self.units is None:
            for stored, moment in ((self.mean, mean), (self.square, square)):
                stored.copy_(moment if stored.dtype != torch.bfloat16 else randomly_rounded(moment))
            return
        root = square.sqrt()
        self.units.copy_(torch.stack([mean.abs().amax(1) / 127, root.amax(1) / 255], dim=1))
        for stored, moment, unit, least in zip(
            self[:2], (mean, root), self._columns(mean.dtype), (-127, 1), strict=True
        ):
            steps = moment / unit.clamp(min=torch.finfo(torch.float32).tiny)
            steps = (steps + torch.rand_like(steps)).floor()
            stored.copy_(steps.clamp(least, 127 if least < 0 else 255))

    def _columns(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        assert self.units is not None
        return self.units.to(dtype).split(1, dim=1)


class Adam(NamedTuple):
    """What stays the same in all steps of a run."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    is_unit: bool = True
    """Decoder rows have norm 1 before and after a step."""


class Added(NamedTuple):
    """Gradients of a few latents that join the sums: those of the auxiliary loss."""

    slots: Int[Tensor, " d_sae"]
    """Row of each latent in the matrices below; −1 where it has none."""
    W_dec: Float[Tensor, "listed d_out"]
    W_enc: Float[Tensor, "listed d_in"]
    b_enc: Float[Tensor, " listed"]

    def join(self, sums: LatentSums) -> LatentSums:
        """Returns the sums with these gradients."""
        at, has = self.slots.clamp(min=0).long(), self.slots >= 0
        named = {name: torch.where(_wide(has, getattr(self, name)), getattr(self, name)[at], 0) for name in MOVED}
        return sums._replace(**{name: getattr(sums, name) + value for name, value in named.items()})


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask if like.ndim == 1 else mask[:, None]


class Moved(NamedTuple):
    """What is left of the gradients after the weights have moved."""

    centre: Float[Tensor, " d_in"]
    """Σ_i ∂b_enc[i] · W_enc[i], with the weights before the step."""
    fired: Int[Tensor, " d_sae"]
    """As in `LatentSums`."""


def latent_adam(
    order: LatentOrder,
    values: Float[Tensor, " nnz"],
    dvalues: Float[Tensor, " nnz"],
    gradient: Float[Tensor, "virtual d_out"],
    centred: Float[Tensor, "n d_in"],
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    lr: Float[Tensor, ""],
    step: Int[Tensor, ""],
    adam: Adam,
    *,
    added: Added | None = None,
    copies: Mapping[str, Tensor] | None = None,
    groups: int = 1,
    segment: int = SEGMENT,
    backend: Backend = "auto",
) -> Moved:
    """Moves `W_dec`, `W_enc` and `b_enc` of `parameters`, and their moments, by one step, in place.

    `step` counts from 1; it and `lr` are scalars on the device, so that a captured graph can be replayed with others.
    `copies` are bf16 twins of `W_dec` and `W_enc` that the products read, that of `W_enc` possibly in fp8 (times
    `FP8_SCALE`); they are rewritten too. The rest is as in `latent_reduce`. Raises `ValueError` for shapes that do not
    fit, and for moments of W_dec and W_enc that are not alike; those of b_enc have its own dtype.
    """
    reduction.check("latent_adam", order, values, dvalues, gradient, centred, groups, segment)
    d_sae = len(order.starts) - 1
    shapes = {"W_dec": (d_sae, gradient.shape[1]), "W_enc": (d_sae, centred.shape[1]), "b_enc": (d_sae,)}
    for name, shape in shapes.items():
        check_shapes(
            f"latent_adam for {name}",
            {
                "weights": (parameters[name], shape),
                "mean": (moments[name].mean, shape),
                "square": (moments[name].square, shape),
                "copy": ((copies or {}).get(name, parameters[name]), shape),
            },
        )
    dtypes = {moments[name].mean.dtype for name in ("W_dec", "W_enc")}
    if len(dtypes) > 1:
        raise ValueError(
            f"latent_adam got moments of {' and '.join(sorted(map(str, dtypes)))}, expected one dtype: make them alike"
        )
    passed = (order, values, dvalues, gradient, centred)
    if not uses_triton(backend, gradient):
        return reference(*passed, parameters, moments, lr, step, adam, added, copies or {}, groups)
    for width in (gradient.shape[1], centred.shape[1]):
        check_width("latent_adam", width)
    from sae.kernels import latent_adam_triton

    return Moved(
        *latent_adam_triton.latent_adam(
            *order,
            *segments(order, segment),
            *passed[1:],
            parameters,
            moments,
            factors(lr, step, adam, gradient.dtype),
            step,
            adam,
            added,
            copies or {},
            groups,
            segment,
        )
    )


def factors(lr: Tensor, step: Tensor, adam: Adam, dtype: torch.dtype) -> Float[Tensor, " 2"]:
    """Returns lr / (1 − β₁ᵗ) and √(1 − β₂ᵗ); the powers are taken in float64, as torch does."""
    count = step.double()
    size = lr.double() / (1 - adam.beta1**count)
    return torch.stack([size, (1 - adam.beta2**count).sqrt()]).to(torch.promote_types(dtype, torch.float32))


def reference(
    order: LatentOrder,
    values: Tensor,
    dvalues: Tensor,
    gradient: Tensor,
    centred: Tensor,
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    lr: Tensor,
    step: Tensor,
    adam: Adam,
    added: Added | None,
    copies: Mapping[str, Tensor],
    groups: int,
) -> Moved:
    """The same in plain torch, gradients stored."""
    sums = reduction.reference(order, values, dvalues, gradient, centred, groups)
    if added is not None:
        sums = added.join(sums)
    centre = sums.b_enc @ parameters["W_enc"].to(sums.b_enc)
    pace = factors(lr, step, adam, gradient.dtype)
    for name in MOVED:
        parameter, slope = parameters[name], getattr(sums, name)
        is_unit = name == "W_dec" and adam.is_unit
        if is_unit:
            slope = slope - (slope * parameter).sum(1, keepdim=True) * parameter
        move(parameter, slope, moments[name], pace, adam)
        if is_unit:
            parameter.div_(parameter.norm(dim=1, keepdim=True).clamp(min=1e-12))
        if name in copies:
            copy_into(copies[name], parameter)
    return Moved(centre, sums.fired)


def move(parameter: Tensor, slope: Tensor, moments: Moments, pace: Float[Tensor, " 2"], adam: Adam) -> None:
    """Moves one parameter and its moments by Adam, in place; `pace` are `factors`."""
    mean, square = moments.read(slope.dtype)
    mean = mean.lerp(slope, 1 - adam.beta1)
    square = square * adam.beta2 + (1 - adam.beta2) * slope.square()
    parameter.sub_(pace[0] * mean / (square.sqrt() / pace[1] + adam.epsilon))
    moments.write(mean, square)


def copy_into(copy: Tensor, parameter: Tensor) -> None:
    """Writes weights into their twin of fewer bits."""
    if copy.dtype == FP8:
        limit = torch.finfo(FP8).max
        parameter = (parameter * FP8_SCALE).clamp(-limit, limit)
    copy.copy_(parameter)


def randomly_rounded(values: Tensor) -> Tensor:
    """Returns float32 values as bf16, each rounded up with the probability of what is cut off."""
    bits = values.float().view(torch.int32)
    return ((bits + torch.randint_like(bits, 1 << 16)) & -(1 << 16)).view(torch.float32).bfloat16()
