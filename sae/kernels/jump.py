"""JumpReLU's element-wise passes: values and active latents forward, straight-through estimates backward.

With z pre-activations, θ thresholds, H the step and K the rectangle of width ε around zero:

    f = z · H(z − θ)        c = Σ H(z − θ)
    ∂f/∂θ = −(θ/ε) K(z − θ)        ∂c/∂θ = −(1/ε) K(z − θ)        ∂f/∂z = H(z − θ)  [+ (θ/ε) K(z − θ) if `both`]

as in `sae.architectures.jumprelu` (Rajamanoharan et al. 2024, arXiv 2407.14435; with `both` Anthropic's January 2025
update). Without `both` z is clipped at zero first, as there. Backward reads z and the gradient once; thresholds'
gradients are summed over slabs of rows and these added in order, so that they do not depend on the run.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels.dispatch import Backend, check_shapes, uses_triton

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=6, d_sae=32, bandwidth=0.5),
    "odd widths": dict(n=7, d_sae=13, bandwidth=0.5),
    "one row": dict(n=1, d_sae=5, bandwidth=0.5),
    "one latent": dict(n=9, d_sae=1, bandwidth=1.0),
    "several slabs of rows": dict(n=150, d_sae=3, bandwidth=0.5),
    "several tiles of latents": dict(n=2, d_sae=300, bandwidth=0.5),
    "a rectangle that reaches zero": dict(n=8, d_sae=11, bandwidth=2.0),
    "nothing active": dict(n=4, d_sae=6, bandwidth=0.1, shift=-50.0),
}


def jump(
    pre: Float[Tensor, "n d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    *,
    both: bool = False,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "n d_sae"], Float[Tensor, ""]]:
    """Returns f and the number of active entries c, both differentiable in `pre` and `threshold`.

    c counts in float32 (float64 for float64). Raises `ValueError` for shapes that do not fit and for a bandwidth that
    is not positive.
    """
    check_shapes("jump", {"pre": (pre, pre.shape), "threshold": (threshold, pre.shape[1:])})
    if not bandwidth > 0:
        raise ValueError(f"jump got bandwidth={bandwidth}, expected more than 0: set sae.bandwidth")
    return _Jump.apply(pre, threshold, bandwidth, both, uses_triton(backend, pre))  # pyright: ignore


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, both: bool, runs_kernel: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold)
        ctx.options = bandwidth, both, runs_kernel
        if not runs_kernel:
            return reference_forward(pre, threshold, both)
        from sae.kernels import jump_triton

        return jump_triton.forward(pre, threshold, both)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        bandwidth, both, runs_kernel = ctx.options
        pre, threshold = ctx.saved_tensors
        grad, count_grad = grads[0].contiguous(), grads[1]
        if not runs_kernel:
            return *reference_backward(pre, threshold, grad, count_grad, bandwidth, both), None, None, None
        from sae.kernels import jump_triton

        return *jump_triton.backward(pre, threshold, grad, count_grad, bandwidth, both), None, None, None


def reference_forward(pre: Tensor, threshold: Tensor, both: bool) -> tuple[Tensor, Tensor]:
    """The forward pass in plain torch."""
    z = pre if both else pre.relu()
    active = z > threshold
    return z * active, active.sum().to(torch.promote_types(pre.dtype, torch.float32))


def reference_backward(
    pre: Tensor, threshold: Tensor, grad: Tensor, count_grad: Tensor, bandwidth: float, both: bool
) -> tuple[Tensor, Tensor]:
    """The backward pass in plain torch."""
    z = pre if both else pre.relu()
    near = (z - threshold).abs() < bandwidth / 2
    edge = near * (threshold / bandwidth) * grad
    through = (z > threshold) * grad
    from_count = near.sum(0).to(edge) * (count_grad / bandwidth)
    return through + edge if both else through * (pre > 0), -(edge.sum(0) + from_count)
