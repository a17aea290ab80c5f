"""The element-wise passes of ReLU latents under a penalty: values and what they are charged forward, slopes backward.

With z pre-activations, ‖d‖ decoder norms and φ one of l1, lp and tanh (`Penalty`):

    f = ReLU(z)        a = f · ‖d‖        C = Σ φ(a)
    ∂z = 1[z > 0] · (∂f + ∂C · φ'(a) · ‖d‖)        ∂‖d‖ = ∂C · Σ_rows φ'(a) · f

as in `sae.architectures.standard`. Backward reads z and the gradient once; C and the norms' gradients are summed over
slabs of rows and these added in order, so that they do not depend on the run.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels.dispatch import Backend, check_shapes, uses_triton

POWER_FLOOR = 1e-3  # keeps the gradient of a^p finite at a = 0

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=6, d_sae=32),
    "odd widths": dict(n=7, d_sae=13),
    "one row": dict(n=1, d_sae=5),
    "one latent": dict(n=9, d_sae=1),
    "several slabs of rows": dict(n=150, d_sae=3),
    "several tiles of latents": dict(n=2, d_sae=300),
    "nothing active": dict(n=4, d_sae=6, shift=-50.0),
    "an entry at zero": dict(n=5, d_sae=9, at_zero=True),
    "a latent that writes nothing": dict(n=5, d_sae=9, silent_norm=True),
}


class Penalty(NamedTuple):
    """φ: what a latent is charged for writing with strength a; 0 at 0."""

    kind: Literal["l1", "lp", "tanh"]
    number: float = 1.0
    """p of lp, (a + ε)^p − ε^p with ε `POWER_FLOOR`; c of tanh(c·a)."""

    def charge(self, written: Tensor) -> Tensor:
        """Returns φ(a) of every entry."""
        if self.kind == "l1":
            return written
        if self.kind == "tanh":
            return (self.number * written).tanh()
        return (written + POWER_FLOOR).pow(self.number) - POWER_FLOOR**self.number

    def slope(self, written: Tensor) -> Tensor:
        """Returns φ'(a) of every entry."""
        if self.kind == "l1":
            return torch.ones_like(written)
        if self.kind == "tanh":
            return self.number * (1 - (self.number * written).tanh().square())
        return self.number * (written + POWER_FLOOR).pow(self.number - 1)


class Shrunk(NamedTuple):
    """What one pass gives. The sums are float32 (float64 for float64)."""

    values: Float[Tensor, "n d_sae"]
    charged: Float[Tensor, ""]
    """Σ φ(a); differentiable as `values` are."""
    written: Float[Tensor, ""]
    """Σ a; not differentiable."""


def shrink(
    pre: Float[Tensor, "n d_sae"], norms: Float[Tensor, " d_sae"], penalty: Penalty, *, backend: Backend = "auto"
) -> Shrunk:
    """Returns ReLU(z) and what it is charged, differentiable in `pre` and `norms`.

    Raises `ValueError` for shapes that do not fit.
    """
    check_shapes("shrink", {"pre": (pre, pre.shape), "norms": (norms, pre.shape[1:])})
    return Shrunk(*_Shrink.apply(pre, norms, penalty, uses_triton(backend, pre)))  # pyright: ignore


class _Shrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, norms: Tensor, penalty: Penalty, runs_kernel: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(pre, norms)
        ctx.options = penalty, runs_kernel
        if runs_kernel:
            from sae.kernels import shrink_triton

            given = shrink_triton.forward(pre, norms, penalty)
        else:
            given = reference_forward(pre, norms, penalty)
        ctx.mark_non_differentiable(given[2])
        return given

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        penalty, runs_kernel = ctx.options
        pre, norms = ctx.saved_tensors
        grad, charge_grad = grads[0].contiguous(), grads[1]
        if not runs_kernel:
            return *reference_backward(pre, norms, grad, charge_grad, penalty), None, None
        from sae.kernels import shrink_triton

        return *shrink_triton.backward(pre, norms, grad, charge_grad, penalty), None, None


def reference_forward(pre: Tensor, norms: Tensor, penalty: Penalty) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass in plain torch."""
    values, wide = pre.relu(), torch.promote_types(pre.dtype, torch.float32)
    written = values.to(wide) * norms
    return values, penalty.charge(written).sum(), written.sum()


def reference_backward(
    pre: Tensor, norms: Tensor, grad: Tensor, charge_grad: Tensor, penalty: Penalty
) -> tuple[Tensor, Tensor]:
    """The backward pass in plain torch."""
    values = pre.relu().to(torch.promote_types(pre.dtype, torch.float32))
    slopes = charge_grad * penalty.slope(values * norms)
    return ((pre > 0) * (grad + slopes * norms)).to(pre.dtype), (slopes * values).sum(0).to(norms.dtype)
