"""The sparse step where latents are active by a threshold and pay for it: any number of codes a row.

With codes v (all active entries of a batch), u = Σ‖y − ȳ‖² / n, and a penalty P that depends on the codes:

    L = u · (Σ‖x̂ − y‖² / Σ‖y − ȳ‖²  +  α · AuxK)  +  P        ∂v = ⟨W_dec[i], g⟩ + ∂P/∂v

All other gradients follow from these as in `sae.step`. Steps that have more of their own add it to the result
(`sae.jump_step`, `sae.architectures.standard`). On a GPU the same is `sae.kernels.step.penalised_step`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sae.row_pass import row_pass
from sae.selection import latents_above
from sae.shares import batch_rows, over_rows, total_variance
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, Parameters, StepResult, add_auxk

SPARSE_SHARE = 1 / 16  # of all entries, above which the dense step is faster
SAMPLED_ROWS = 64  # of a batch, from which the share is foretold where no L0 is followed


def few_entries(
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    floor: Float[Tensor, "*latents"],
    l0: Float[Tensor, ""] | None,
) -> RaggedCodes | None:
    """Returns, on a CPU, the pre-activations above `floor`; None where they are so many that the dense step is better.

    (`sae.density` decides on a GPU.) `l0` is the L0 that was observed, if any was. It depends on what is given alone,
    so that a resumed run decides alike; and all processes that share a batch do.
    """
    share = SPARSE_SHARE * len(W_enc)
    if centred.device.type != "cpu":
        return None
    if l0 is None:
        sample = centred[:SAMPLED_ROWS]
        count = (torch.addmm(b_enc, sample, W_enc.T) > floor).sum()
        of_sample, rows = over_rows(torch.stack([count, torch.tensor(len(sample))]).double())
        l0 = of_sample / rows
    if float(l0) > share:
        return None
    entries = latents_above(centred, W_enc, b_enc, floor)
    total = over_rows(torch.tensor(float(len(entries.values)), dtype=torch.float64))
    return entries if float(total) <= share * batch_rows(centred) else None


@torch.no_grad()
def ragged_step(
    parameters: Parameters,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    codes: RaggedCodes,
    penalty: Float[Tensor, ""],
    *,
    slopes: Float[Tensor, " nnz"] | None = None,
    subtracts_b_dec: bool = True,
    auxiliary: Auxiliary | None = None,
) -> tuple[StepResult, Float[Tensor, "n d_out"]]:
    """Returns loss and gradients, and ∂L/∂x̂ without AuxK; `codes` are all above 0, `slopes` are ∂P/∂v."""
    W_enc, W_dec, b_dec = parameters["W_enc"], parameters["W_dec"], parameters["b_dec"]
    n = batch_rows(x)
    centred = x - b_dec if subtracts_b_dec else x
    target = y - b_dec
    if "W_skip" in parameters:
        target = target - x @ parameters["W_skip"].T
    variance = total_variance(y)
    unit = variance / n
    done = row_pass(codes, W_dec, target, centred, (-2 * unit / variance)[None], slopes=slopes)
    gradients = {**done.latents, "b_dec": done.grad_shared.sum(0)}
    if subtracts_b_dec:
        gradients["b_dec"] -= gradients["b_enc"] @ W_enc
    if "W_skip" in parameters:
        gradients["W_skip"] = done.grad_shared.T @ x
    loss = unit * done.by_group[0] / variance + penalty
    if auxiliary is not None and auxiliary.alpha > 0:
        weighted = auxiliary._replace(alpha=float(auxiliary.alpha * unit))
        loss = loss + add_auxk(parameters, gradients, centred, done.errors, weighted, False, subtracts_b_dec)
    fired = torch.zeros(len(W_dec), dtype=torch.bool, device=x.device)
    fired[codes.indices] = True
    l0 = torch.tensor(len(codes.values), device=x.device).to(x.dtype) / n
    return StepResult(gradients, loss, done.by_group[0], variance, fired, l0), done.grad_shared
