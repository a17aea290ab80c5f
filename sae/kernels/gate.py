"""The element-wise passes of gated latents: values and gates forward, slopes of both backward.

With p the encoder product, and biases and log-scales of each latent:

    π = p + b_gate        m = ReLU(p · exp(r_mag) + b_mag)        f = 1[π > 0] · m
    o = ReLU(π)        C = Σ o · ‖d‖
    s = 1[π > 0, m > 0] · ∂f        t = 1[π > 0] · (∂o + ∂C · ‖d‖)
    ∂p = s · exp(r_mag) + t        ∂b_gate = Σ t        ∂b_mag = Σ s        ∂r_mag = Σ s · p · exp(r_mag)

as in `sae.architectures.gated`, where norms ‖d‖ are held constant. Backward reads p and both gradients once; the three
sums are taken over slabs of rows and added in order, so that they do not depend on the run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels.dispatch import Backend, check_shapes, uses_triton

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=6, d_sae=32),
    "odd widths": dict(n=7, d_sae=13),
    "one row": dict(n=1, d_sae=5),
    "one latent": dict(n=9, d_sae=1),
    "several slabs of rows": dict(n=150, d_sae=3),
    "several tiles of latents": dict(n=2, d_sae=300),
    "closed gates": dict(n=4, d_sae=6, gate=-50.0),
    "open gates without magnitude": dict(n=4, d_sae=6, gate=50.0, magnitude=-50.0),
    "entries at zero": dict(n=5, d_sae=9, at_zero=True),
}


class Gates(NamedTuple):
    """What one pass gives; all three are differentiable."""

    values: Float[Tensor, "n d_sae"]
    opened: Float[Tensor, "n d_sae"]
    """ReLU(π)."""
    charged: Float[Tensor, ""]
    """Σ ReLU(π) · ‖d‖; float32 (float64 for float64)."""


def gate(
    product: Float[Tensor, "n d_sae"],
    b_gate: Float[Tensor, " d_sae"],
    r_mag: Float[Tensor, " d_sae"],
    b_mag: Float[Tensor, " d_sae"],
    norms: Float[Tensor, " d_sae"],
    *,
    backend: Backend = "auto",
) -> Gates:
    """Returns values, gates and their charge, differentiable in all but `norms`.

    Raises `ValueError` for shapes that do not fit.
    """
    width = product.shape[1:]
    given = {"b_gate": (b_gate, width), "r_mag": (r_mag, width), "b_mag": (b_mag, width), "norms": (norms, width)}
    check_shapes("gate", {"product": (product, product.shape), **given})
    runs_kernel = uses_triton(backend, product)
    return Gates(*_Gate.apply(product, b_gate, r_mag, b_mag, norms, runs_kernel))  # pyright: ignore


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, product: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, norms: Tensor, runs_kernel: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        tensors = product, b_gate, r_mag, b_mag, norms
        ctx.save_for_backward(*tensors)
        ctx.runs_kernel = runs_kernel
        if not runs_kernel:
            return reference_forward(*tensors)
        from sae.kernels import gate_triton

        return gate_triton.forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        given = *ctx.saved_tensors, grads[0].contiguous(), grads[1].contiguous(), grads[2]
        if not ctx.runs_kernel:
            return *reference_backward(*given), None, None  # pyright: ignore[reportCallIssue]
        from sae.kernels import gate_triton

        return *gate_triton.backward(*given), None, None  # pyright: ignore[reportCallIssue]


def reference_forward(
    product: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, norms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass in plain torch."""
    opened = (product + b_gate).relu()
    values = torch.where(opened > 0, (product * r_mag.exp() + b_mag).relu(), 0)
    return values.to(product.dtype), opened.to(product.dtype), (opened * norms).sum()


def reference_backward(
    product: Tensor,
    b_gate: Tensor,
    r_mag: Tensor,
    b_mag: Tensor,
    norms: Tensor,
    grad: Tensor,
    opened_grad: Tensor,
    charge_grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass in plain torch."""
    scale = r_mag.exp()
    is_open = product + b_gate > 0
    through = (is_open & (product * scale + b_mag > 0)) * grad.to(scale.dtype)
    opening = is_open * (opened_grad + charge_grad * norms)
    from_scale = (through * product * scale).sum(0)
    return (through * scale + opening).to(product.dtype), opening.sum(0), from_scale, through.sum(0)
