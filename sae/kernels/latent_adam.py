"""Adam on W_dec, W_enc and b_enc inside the pass that sums their gradients: gradients are never stored.

For every latent, also those without codes (their moments decay, as with dense gradients):

    g = sums of `latent_reduce`                       g_dec ← g_dec − ⟨g_dec, w⟩ w      (unit decoder rows w)
    m ← m + (1 − β₁)(g − m)                           v ← β₂ v + (1 − β₂) g²
    p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)     w ← w / ‖w‖

as in `torch.optim.Adam` (Kingma and Ba 2015, arXiv 1412.6980) between `Architecture.project` and
`Architecture.constrain`. The gradient of b_dec needs Σ_i ∂b_enc[i] W_enc[i] with weights from before the step; the pass
that overwrites them returns it.

Moments may be bf16. They are then rounded at random, up with the probability of the part cut off: with β₂ = 0.999 the
nearest bf16 to a decayed v is v itself, which would never fall.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels import latent_reduce as reduction
from sae.kernels.dispatch import Backend, check_shapes, check_width, uses_triton
from sae.kernels.latent_order import LatentOrder
from sae.kernels.latent_reduce import SEGMENT, segments

MOVED = ("W_dec", "W_enc", "b_enc")

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=9, d_out=16, d_in=8, d_sae=12, most=4),
    "odd widths": dict(n=11, d_out=5, d_in=13, d_sae=7, most=5),
    "more latents than a program's": dict(n=11, d_out=3, d_in=3, d_sae=21, most=5),
    "one latent of every row": dict(n=20, d_out=5, d_in=6, d_sae=9, most=2, frequent=3, segment=4, spare=6),
    "decoder rows of any norm": dict(n=8, d_out=5, d_in=6, d_sae=9, most=4, is_unit=False),
    "no codes at all": dict(n=4, d_out=6, d_in=6, d_sae=10, most=0),
    "nested, with rows of the auxiliary loss": dict(n=6, d_out=5, d_in=7, d_sae=12, most=3, groups=2, extra=True),
}


class Moments(NamedTuple):
    """Adam's running means of one parameter's gradient and of its square, updated in place."""

    mean: Tensor
    square: Tensor

    @classmethod
    def zeros(cls, parameter: Tensor, dtype: torch.dtype | None = None) -> Moments:
        """Returns the moments before the first step."""
        return cls(torch.zeros_like(parameter, dtype=dtype), torch.zeros_like(parameter, dtype=dtype))


class Adam(NamedTuple):
    """What stays the same in all steps of a run."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    is_unit: bool = True
    """Decoder rows have norm 1 before and after a step."""


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
    copies: Mapping[str, Tensor] | None = None,
    groups: int = 1,
    segment: int = SEGMENT,
    backend: Backend = "auto",
) -> Moved:
    """Moves `W_dec`, `W_enc` and `b_enc` of `parameters`, and their moments, by one step, in place.

    `step` counts from 1; it and `lr` are scalars on the device, so that a captured graph can be replayed with others.
    `copies` are bf16 twins of `W_dec` and `W_enc` that the products read; they are rewritten too. The rest is as in
    `latent_reduce`. Raises `ValueError` for shapes that do not fit.
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
    dtypes = {moment.dtype for name in MOVED for moment in moments[name]}
    if len(dtypes) > 1:
        raise ValueError(
            f"latent_adam got moments of {' and '.join(sorted(map(str, dtypes)))}, expected one dtype: make them alike"
        )
    passed = (order, values, dvalues, gradient, centred)
    if not uses_triton(backend, gradient):
        return reference(*passed, parameters, moments, lr, step, adam, copies or {}, groups)
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
    copies: Mapping[str, Tensor],
    groups: int,
) -> Moved:
    """The same in plain torch, gradients stored."""
    sums = reduction.reference(order, values, dvalues, gradient, centred, groups)
    centre = sums.b_enc @ parameters["W_enc"].to(sums.b_enc)
    size, root = factors(lr, step, adam, gradient.dtype)
    for name in MOVED:
        parameter, slope = parameters[name], getattr(sums, name)
        if name == "W_dec" and adam.is_unit:
            slope = slope - (slope * parameter).sum(1, keepdim=True) * parameter
        mean, square = (moment.to(slope) for moment in moments[name])
        mean = mean.lerp(slope, 1 - adam.beta1)
        square = square * adam.beta2 + (1 - adam.beta2) * slope.square()
        parameter.sub_(size * mean / (square.sqrt() / root + adam.epsilon))
        if name == "W_dec" and adam.is_unit:
            parameter.div_(parameter.norm(dim=1, keepdim=True).clamp(min=1e-12))
        for stored, moment in zip(moments[name], (mean, square), strict=True):
            stored.copy_(moment if stored.dtype != torch.bfloat16 else randomly_rounded(moment))
        if name in copies:
            copies[name].copy_(parameter)
    return Moved(centre, sums.fired)


def randomly_rounded(values: Tensor) -> Tensor:
    """Returns float32 values as bf16, each rounded up with the probability of what is cut off."""
    bits = values.float().view(torch.int32)
    return ((bits + torch.randint_like(bits, 1 << 16)) & -(1 << 16)).view(torch.float32).bfloat16()
