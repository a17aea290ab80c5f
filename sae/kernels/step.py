"""The sparse training step made of the fused operations; the formulas are in `sae.step`.

1. Codes are cut into one virtual row for every row and nested dictionary.
2. `decode_loss`: errors, losses, gradients of the reconstructions and of the codes.
3. `revive`: the auxiliary loss of the dead latents that are listed, whose gradients join the others by latent.
4. `latent_order`, then `latent_reduce` (`fused_step`, `penalised_step`), or `latent_adam`, which moves the weights
   (`fused_update`).

Nothing waits for the device: codes may have places to spare, the number of dead latents stays in its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels.decode_loss import decode_loss
from sae.kernels.dispatch import Backend, rows_of
from sae.kernels.latent_adam import Adam, Added, Moments, latent_adam
from sae.kernels.latent_order import LatentOrder, latent_order
from sae.kernels.latent_reduce import latent_reduce
from sae.kernels.revive import revive
from sae.shares import batch_rows, total_variance
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, Parameters, StepResult

CASES: dict[str, dict[str, Any]] = {
    "plain": dict(n=9, d=8, d_sae=24, most=4),
    "spare places": dict(n=7, d=5, d_sae=20, most=4, spare=9, silent_frac=0.2),
    "nested": dict(n=8, d=6, d_sae=24, most=5, widths=(5, 12, 24)),
    "nested by rank, weighted": dict(n=6, d=7, d_sae=20, most=5, widths=(4, 20), weights=(0.3, 0.7), is_ranked=True),
    "few dead": dict(n=8, d=6, d_sae=20, most=4, dead=3, k=5),
    "few dead in little room": dict(n=8, d=6, d_sae=20, most=4, dead=3, k=5, capacity=4),
    "many dead, one room for all": dict(n=8, d=6, d_sae=20, most=4, dead=12, k=3, capacity=14),
    "none dead": dict(n=6, d=6, d_sae=20, most=4, dead=0, k=3),
    "nested with dead": dict(n=6, d=6, d_sae=24, most=4, widths=(6, 24), dead=7, k=3, spare=5),
    "signed with dead": dict(n=7, d=6, d_sae=20, most=4, dead=6, k=4, is_signed=True),
    "other output with a skip": dict(n=8, d=6, d_out=5, d_sae=16, most=4, has_skip=True),
}
"""Settings of `random_codes`, with rows of `d` columns and a target of `d_out`."""


class Backward(NamedTuple):
    """A batch's loss and what the weights' gradients are summed from."""

    order: LatentOrder
    values: Float[Tensor, " nnz"]
    dvalues: Float[Tensor, " nnz"]
    gradient: Float[Tensor, "virtual d_out"]
    centred: Float[Tensor, "n d_in"]
    added: Added | None
    groups: int
    variance: Float[Tensor, ""]
    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]

    def sums(self) -> tuple[LatentOrder, Tensor, Tensor, Tensor, Tensor]:
        """Returns the arguments of the pass over latents."""
        return self.order, self.values, self.dvalues, self.gradient, self.centred

    def of_outputs(self) -> Float[Tensor, "n d_out"]:
        """Returns the main loss's gradient with respect to b_dec and the skip term, row by row."""
        n = len(self.centred)
        return self.gradient.view(n, self.groups, -1)[:, 0]

    def result(self, gradients: dict[str, Tensor], fired: Int[Tensor, " d_sae"]) -> StepResult:
        """Returns the step's result with these gradients."""
        l0 = fired.sum().to(self.loss.dtype) / batch_rows(self.centred)
        return StepResult(gradients, self.loss, self.squared_error, self.variance, fired > 0, l0)


@torch.no_grad()
def fused_step(
    parameters: Parameters,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    codes: RaggedCodes,
    *,
    is_signed: bool = False,
    subtracts_b_dec: bool = True,
    widths: Sequence[int] = (),
    weights: Float[Tensor, " groups"] | None = None,
    ranks: Int[Tensor, " d_sae"] | None = None,
    auxiliary: Auxiliary | None = None,
    backend: Backend = "auto",
) -> StepResult:
    """Returns what `sae.step.sparse_step` returns.

    `codes` may have places to spare. Raises `ValueError` as the operations it consists of do.
    """
    back = _backward(
        parameters, parameters, x, y, codes, is_signed, subtracts_b_dec, widths, weights, ranks, auxiliary, backend
    )
    return _summed(parameters, back, x, subtracts_b_dec, backend)


@torch.no_grad()
def penalised_step(
    parameters: Parameters,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    codes: RaggedCodes,
    penalty: Float[Tensor, ""],
    *,
    slopes: Float[Tensor, " nnz"] | None = None,
    subtracts_b_dec: bool = True,
    auxiliary: Auxiliary | None = None,
    backend: Backend = "auto",
) -> tuple[StepResult, Float[Tensor, " nnz"]]:
    """Returns what `sae.ragged_step.ragged_step` returns, but ∂L/∂v without the penalty in place of ∂L/∂x̂.

    `codes` may have places to spare and silent ones: these have value 0, are in no sum, and only their ∂v is given.
    Raises `ValueError` as the operations it consists of do.
    """
    back = _backward(
        parameters, parameters, x, y, codes, False, subtracts_b_dec, (), None, None, auxiliary, backend, is_charged=True
    )
    charged = back if slopes is None else back._replace(dvalues=back.dvalues + slopes)
    result = _summed(parameters, charged, x, subtracts_b_dec, backend)
    return result._replace(loss=result.loss + penalty), back.dvalues


def _summed(parameters: Parameters, back: Backward, x: Tensor, subtracts_b_dec: bool, backend: Backend) -> StepResult:
    """Returns the result of a pass, its gradients summed by latent."""
    sums = latent_reduce(*back.sums(), groups=back.groups, backend=backend)
    if back.added is not None:
        sums = back.added.join(sums)
    gradients = {"W_enc": sums.W_enc, "W_dec": sums.W_dec, "b_enc": sums.b_enc}
    gradients |= _output_gradients(parameters, back, x)
    if subtracts_b_dec:
        gradients["b_dec"] -= sums.b_enc @ parameters["W_enc"].to(sums.b_enc)
    return back.result(gradients, sums.fired)


@torch.no_grad()
def fused_update(
    parameters: Parameters,
    moments: Mapping[str, Moments],
    lr: Float[Tensor, ""],
    step: Int[Tensor, ""],
    adam: Adam,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_out"],
    codes: RaggedCodes,
    *,
    copies: Mapping[str, Tensor] | None = None,
    is_signed: bool = False,
    subtracts_b_dec: bool = True,
    widths: Sequence[int] = (),
    weights: Float[Tensor, " groups"] | None = None,
    ranks: Int[Tensor, " d_sae"] | None = None,
    auxiliary: Auxiliary | None = None,
    backend: Backend = "auto",
) -> StepResult:
    """Moves W_enc, W_dec and b_enc in place by `latent_adam`; the result's gradients are those of the other parameters.

    Products read `copies` where there are any, and in their dtype; `lr`, `step` and `moments` are those of
    `latent_adam`, the rest is as in `fused_step`.
    """
    read = {**parameters, **(copies or {})}
    back = _backward(
        parameters, read, x, y, codes, is_signed, subtracts_b_dec, widths, weights, ranks, auxiliary, backend, step
    )
    gradients = _output_gradients(parameters, back, x)
    moved = latent_adam(
        *back.sums(),
        parameters,
        moments,
        lr,
        step,
        adam,
        added=back.added,
        copies=copies,
        groups=back.groups,
        backend=backend,
    )
    if subtracts_b_dec:
        gradients["b_dec"] -= moved.centre
    return back.result(gradients, moved.fired)


def _output_gradients(parameters: Parameters, back: Backward, x: Tensor) -> dict[str, Tensor]:
    outputs = back.of_outputs()
    wide = torch.promote_types(outputs.dtype, torch.float32)
    gradients = {"b_dec": outputs.sum(0, dtype=wide)}
    if "W_skip" in parameters:
        gradients["W_skip"] = outputs.to(x).T @ x
    return gradients


def _backward(
    parameters: Parameters,
    read: Parameters,
    x: Tensor,
    y: Tensor,
    codes: RaggedCodes,
    is_signed: bool,
    subtracts_b_dec: bool,
    widths: Sequence[int],
    weights: Tensor | None,
    ranks: Tensor | None,
    auxiliary: Auxiliary | None,
    backend: Backend,
    turn: Int[Tensor, ""] | int = 0,
    is_charged: bool = False,
) -> Backward:
    """`read` are the weights that gathers take, possibly of fewer bits; what the sums read is then stored in these.

    With `is_charged` losses are multiplied by Σ‖y − ȳ‖² / n, as where latents pay, and silent codes have gradients.
    """
    groups, low = max(1, len(widths)), read["W_dec"].dtype
    if weights is None:
        weights = torch.full((groups,), 1 / groups, dtype=x.dtype, device=x.device)
    centred = (x - parameters["b_dec"].to(x) if subtracts_b_dec else x).to(low)
    blocked = codes if groups == 1 else by_block(codes, tuple(widths), ranks)
    target = y - x @ parameters["W_skip"].T if "W_skip" in parameters else y
    variance = total_variance(y)
    unit = variance / batch_rows(x) if is_charged else None
    decoded = decode_loss(
        blocked,
        read["W_dec"],
        parameters["b_dec"],
        target,
        -2 / variance if unit is None else -2 * unit / variance,
        weights,
        is_signed=is_signed,
        has_silent=is_charged,
        gradient_dtype=low,
        backend=backend,
    )
    by_group = decoded.squared_error.sum(0)
    loss = (weights * by_group).sum() / variance
    loss = loss if unit is None else unit * loss
    added = None
    if auxiliary is not None and auxiliary.alpha > 0 and auxiliary.capacity != 0:
        added, revival_loss = revive(
            parameters,
            centred,
            decoded.error,
            auxiliary,
            unit=unit,
            is_signed=is_signed,
            dtype=low,
            turn=turn,
            backend=backend,
        )
        loss = loss + revival_loss
    order = latent_order(blocked, len(parameters["W_dec"]))
    values, dvalues, gradient = blocked.values, decoded.dvalues, decoded.gradient
    return Backward(order, values, dvalues, gradient, centred, added, groups, variance, loss, by_group[-1])


def by_block(codes: RaggedCodes, widths: tuple[int, ...], ranks: Int[Tensor, " d_sae"] | None) -> RaggedCodes:
    """Returns the codes with one virtual row for every row and block of latents; spare places stay at the end."""
    n, groups, capacity = codes.n_rows, len(widths), len(codes.indices)
    places = codes.indices if ranks is None else ranks[codes.indices]
    blocks = torch.bucketize(places, _ends(widths, codes.indices.device), right=True)
    virtual, order = torch.sort(rows_of(codes.starts, capacity) * groups + blocks, stable=True)
    starts = torch.searchsorted(virtual, torch.arange(n * groups + 1, device=virtual.device))
    return RaggedCodes(starts, codes.indices[order], codes.values[order])


@cache
def _ends(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """Returns the widths on the device; copied there once, as a copy from the host would wait."""
    return torch.tensor(widths, device=device)
