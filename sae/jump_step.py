"""The sparse step of JumpReLU: forward and backward over the entries that are active or near their threshold.

With z = W_enc (x − b_dec) + b_enc, thresholds θ, the rectangle K of width ε, and u = Σ‖y − ȳ‖² / n:

    L = u · (Σ‖x̂ − y‖² / Σ‖y − ȳ‖²  +  α · AuxK)  +  λ · mean Σ H(z − θ)
    ∂θ = −Σ K(z − θ) / ε · (θ ⟨W_dec[i], g⟩ + λ / n)

(`sae.architectures.jumprelu`, penalty `step`). All other gradients are those of codes that were chosen, as in
`sae.step`: no entry further than ε/2 below its threshold takes part in any. Where a threshold is below ε/2 every silent
entry is near it, and the dense step is the better one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae import sparse
from sae.row_pass import row_pass
from sae.shares import batch_rows, total_variance
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, Parameters, StepResult, add_auxk


@torch.no_grad()
def jump_step(
    parameters: Parameters,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    entries: RaggedCodes,
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    coefficient: Float[Tensor, ""] | float,
    *,
    subtracts_b_dec: bool = True,
    auxiliary: Auxiliary | None = None,
) -> StepResult:
    """Returns loss and gradients, that of θ as `threshold`; `entries` are all z that exceed θ − ε/2."""
    W_enc, W_dec, b_dec = parameters["W_enc"], parameters["W_dec"], parameters["b_dec"]
    n = batch_rows(x)
    centred = x - b_dec if subtracts_b_dec else x
    target = y - b_dec
    if "W_skip" in parameters:
        target = target - x @ parameters["W_skip"].T
    variance = total_variance(y)
    unit = variance / n
    edge = threshold[entries.indices]
    active = entries.values > edge
    near = (entries.values - edge).abs() < bandwidth / 2
    codes = _kept(entries, active)
    done = row_pass(codes, W_dec, target, centred, (-2 * unit / variance)[None])
    gradients = {**done.latents, "b_dec": done.grad_shared.sum(0)}
    if subtracts_b_dec:
        gradients["b_dec"] -= gradients["b_enc"] @ W_enc
    if "W_skip" in parameters:
        gradients["W_skip"] = done.grad_shared.T @ x
    around = _kept(entries, near)
    slopes = sparse.code_gradients(done.grad_shared, around, W_dec) * threshold[around.indices] + coefficient / n
    gradients["threshold"] = torch.zeros_like(threshold).index_add_(0, around.indices, slopes / -bandwidth)
    l0 = active.sum().to(x.dtype) / n
    loss = unit * done.by_group[0] / variance + coefficient * l0
    if auxiliary is not None and auxiliary.alpha > 0:
        weighted = auxiliary._replace(alpha=float(auxiliary.alpha * unit))
        loss = loss + add_auxk(parameters, gradients, centred, done.errors, weighted, False, subtracts_b_dec)
    fired = torch.zeros(len(W_dec), dtype=torch.bool, device=x.device)
    fired[codes.indices] = True
    return StepResult(gradients, loss, done.by_group[0], variance, fired, l0)


def _kept(codes: RaggedCodes, kept: Tensor) -> RaggedCodes:
    return RaggedCodes.of_rows(codes.rows()[kept], codes.n_rows, codes.indices[kept], codes.values[kept])
