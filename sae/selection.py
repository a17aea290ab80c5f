"""The encoder product and the choice of each row's strongest latents, never holding all pre-activations at once.

Enters: centred rows, encoder weights, k. Leaves: the k largest pre-activations of each row, clipped at zero.

Rows go through in chunks whose pre-activations stay in the processor's cache between the product and the selection. On
a CPU with bf16 arithmetic a chunk is screened first:

1. A bf16 product ranks the latents. Group maxima (each group holds every G-th latent) narrow each row to the `m` best
   groups, which must contain the `m` best latents; of these the `m` best are the candidates.
2. Candidates are computed again in float32; the k largest are kept.
3. No latent left out can exceed the smallest candidate's bf16 value by more than the rounding bound
   ‖x − x₁₆‖·max‖w‖ + ‖x₁₆‖·max‖w − w₁₆‖ + (rounding of the bias and of the result). Rows whose k-th value is within
   that bound are computed again in float32 over all latents.

So the latents chosen, and their values, are those of the float32 computation up to ties and float32's own rounding.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import sparse

CHUNK_BYTES = {"cpu": 2 << 20}  # elsewhere 256 MB: a GPU wants large products
GROUP = 8
BF16_HALF_ULP = 2.0**-9
SCREEN_MIN_LATENTS = 1024


class Selection(NamedTuple):
    """The k strongest latents of each row after ReLU; a row with fewer positive ones holds zeros."""

    values: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]


def select(pre: Float[Tensor, "n d_sae"], k: int) -> Selection:
    """Returns the `k` largest pre-activations of every row, clipped at zero; differentiable."""
    values, indices = torch.topk(pre, k, dim=1, sorted=False)
    return Selection(values.relu(), indices)


@cache
def has_bf16_arithmetic() -> bool:
    """Says whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX); the same answer in every process."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@torch.no_grad()
def strongest_latents(
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    k: int,
    *,
    screen: bool | None = None,
) -> Selection:
    """Returns `select(centred W_encᵀ + b_enc, k)`; `screen` overrides the choice of the bf16 screen."""
    n, d_sae = len(centred), len(W_enc)
    if screen is None:
        screen = centred.device.type == "cpu" and centred.dtype == torch.float32 and has_bf16_arithmetic()
    candidates = k + max(16, k // 2)
    if screen and d_sae >= SCREEN_MIN_LATENTS and d_sae % GROUP == 0 and candidates * 2 * GROUP <= d_sae:
        return _screened(centred, W_enc, b_enc, k, candidates)
    chunk_rows = max(64, CHUNK_BYTES.get(centred.device.type, 256 << 20) // (d_sae * centred.element_size()))
    pre = centred.new_empty(min(chunk_rows, n), d_sae)
    values = centred.new_empty(n, k)
    indices = torch.empty(n, k, dtype=torch.int64, device=centred.device)
    for start in range(0, n, chunk_rows):
        part = slice(start, min(start + chunk_rows, n))
        chunk = torch.addmm(b_enc, centred[part], W_enc.T, out=pre[: part.stop - start])
        torch.topk(chunk, k, dim=1, sorted=False, out=(values[part], indices[part]))
    return Selection(values.relu_(), indices)


def _screened(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, m: int) -> Selection:
    n, d_sae = len(centred), len(W_enc)
    x16, W16, b16 = centred.bfloat16(), W_enc.bfloat16(), b_enc.bfloat16()
    rounded = x16.float()
    widest, weight_error = W_enc.norm(dim=1).max(), (W_enc - W16).norm(dim=1).max()
    bias_error = (b_enc - b16).abs().max()
    error = (centred - rounded).norm(dim=1) * widest + rounded.norm(dim=1) * weight_error + bias_error
    chosen = torch.empty(n, m, dtype=torch.int64)
    floor = torch.empty(n)
    chunk_rows = max(64, CHUNK_BYTES["cpu"] // (d_sae * 2))
    for start in range(0, n, chunk_rows):
        part = slice(start, min(start + chunk_rows, n))
        pre = torch.nn.functional.linear(x16[part], W16, b16).view(-1, GROUP, d_sae // GROUP)
        groups = pre.amax(1).topk(m, dim=1, sorted=False).indices[:, None].expand(-1, GROUP, -1)
        ranked = pre.gather(2, groups).flatten(1).topk(m, dim=1, sorted=False)
        floor[part] = ranked.values.amin(1).float()
        member, place = ranked.indices // m, ranked.indices % m
        chosen[part] = member * (d_sae // GROUP) + groups[:, 0].gather(1, place)
    exact = sparse.code_gradients(centred, chosen, W_enc) + b_enc[chosen]
    top = exact.topk(k, dim=1, sorted=False)
    values, indices = top.values, chosen.gather(1, top.indices)
    bound = floor + error * (1 + 1e-3) + floor.abs() * (2 * BF16_HALF_ULP)
    missed = (values.amin(1).clamp(min=0) < bound).nonzero().squeeze(1)
    if len(missed):
        again = strongest_latents(centred[missed], W_enc, b_enc, k, screen=False)
        values[missed], indices[missed] = again
    return Selection(values.relu_(), indices)
