"""The sparse step of JumpReLU: forward and backward over the entries that are active or near their threshold.

With z = W_enc (x − b_dec) + b_enc, thresholds θ, the rectangle K of width ε, and u = Σ‖y − ȳ‖² / n:

    L = u · (Σ‖x̂ − y‖² / Σ‖y − ȳ‖²  +  α · AuxK)  +  λ · mean Σ H(z − θ)
    ∂θ = −Σ K(z − θ) / ε · (θ ⟨W_dec[i], g⟩ + λ / n)

(`sae.architectures.jumprelu`, penalty `step`). All other gradients are those of codes that were chosen, as in
`sae.ragged_step`: no entry further than ε/2 below its threshold takes part in any. Where a threshold is below ε/2 every
silent entry is near it, and the dense step is the better one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae import sparse
from sae.kernels.dispatch import is_fused
from sae.kernels.latent_reduce import latent_sums
from sae.kernels.step import penalised_step
from sae.ragged_step import ragged_step
from sae.shares import batch_rows
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, Parameters, StepResult


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
    """Returns loss and gradients, that of θ as `threshold`; `entries` are all z that exceed θ − ε/2.

    On a GPU they may have places to spare, of value 0.
    """
    n = batch_rows(x)
    edge = threshold[entries.indices]
    active = entries.values > edge
    near = (entries.values > 0) & ((entries.values - edge).abs() < bandwidth / 2)
    penalty = coefficient * active.sum().to(x.dtype) / n
    if is_fused(x, y):
        # nothing is cut out, as that would wait for the device
        codes = entries._replace(values=torch.where(active, entries.values, 0))
        result, dvalues = penalised_step(
            parameters, x, y, codes, penalty, subtracts_b_dec=subtracts_b_dec, auxiliary=auxiliary
        )
        terms = torch.where(near, (dvalues * edge + coefficient / n) / -bandwidth, 0)
        result.gradients["threshold"] = latent_sums(entries, terms, len(threshold))
        return result
    result, grad = ragged_step(
        parameters, x, y, _kept(entries, active), penalty, subtracts_b_dec=subtracts_b_dec, auxiliary=auxiliary
    )
    around = _kept(entries, near)
    slopes = sparse.code_gradients(grad, around, parameters["W_dec"]) * threshold[around.indices] + coefficient / n
    result.gradients["threshold"] = torch.zeros_like(threshold).index_add_(0, around.indices, slopes / -bandwidth)
    return result


def _kept(codes: RaggedCodes, kept: Tensor) -> RaggedCodes:
    return RaggedCodes.of_rows(codes.rows()[kept], codes.n_rows, codes.indices[kept], codes.values[kept])
