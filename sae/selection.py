"""The encoder product and the choice of active latents, never holding all pre-activations at once.

Enters: centred rows, encoder weights, and k or thresholds. Leaves: the k largest pre-activations of each row clipped at
zero (`strongest_latents`), the n·k largest of the whole batch (`strongest_of_batch`), or those above a threshold
(`latents_above`).

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

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import sparse
from sae.sparse import RaggedCodes

CHUNK_BYTES = {"cpu": 2 << 20}  # elsewhere 256 MB: a GPU wants large products
GROUP = 8
BF16_HALF_ULP = 2.0**-9
SCREEN_MIN_LATENTS = 1024
SAMPLED_ROWS = 128  # of a batch, to guess BatchTopK's threshold from
SAMPLED_SURPLUS = 1.3  # candidates aimed at, as a multiple of what is kept


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
    values = centred.new_empty(n, k)
    indices = torch.empty(n, k, dtype=torch.int64, device=centred.device)
    for part, chunk in _chunks(centred, W_enc, b_enc):
        torch.topk(chunk, k, dim=1, sorted=False, out=(values[part], indices[part]))
    return Selection(values.relu_(), indices)


def _chunks(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields the pre-activations of a few rows at a time, in one buffer that the next ones overwrite."""
    n, d_sae = len(centred), len(W_enc)
    chunk_rows = max(64, CHUNK_BYTES.get(centred.device.type, 256 << 20) // (d_sae * centred.element_size()))
    pre = centred.new_empty(min(chunk_rows, n), d_sae)
    for start in range(0, n, chunk_rows):
        part = slice(start, min(start + chunk_rows, n))
        yield part, torch.addmm(b_enc, centred[part], W_enc.T, out=pre[: part.stop - start])


@torch.no_grad()
def largest_latents(
    centred: Float[Tensor, "n d_in"], W_enc: Float[Tensor, "d_sae d_in"], b_enc: Float[Tensor, " d_sae"], k: int
) -> Selection:
    """Returns the `k` pre-activations of largest absolute value of every row, with their signs."""
    values = centred.new_empty(len(centred), k)
    indices = torch.empty(len(centred), k, dtype=torch.int64, device=centred.device)
    for part, chunk in _chunks(centred, W_enc, b_enc):
        indices[part] = torch.topk(chunk.abs(), k, dim=1, sorted=False).indices
        values[part] = chunk.gather(1, indices[part])
    return Selection(values, indices)


@torch.no_grad()
def latents_above(
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    threshold: Float[Tensor, "*latents"],
    *,
    screen: bool | None = None,
) -> RaggedCodes:
    """Returns the pre-activations that exceed `threshold` (one for all latents or one each).

    `screen` overrides the choice of the bf16 screen, which leaves the entries those of the float32 computation.
    """
    if screen is None:
        screen = centred.device.type == "cpu" and centred.dtype == torch.float32 and has_bf16_arithmetic()
    if screen and len(W_enc) >= SCREEN_MIN_LATENTS:
        return _screened_above(centred, W_enc, b_enc, threshold)
    found = [_entries(part, chunk, threshold) for part, chunk in _chunks(centred, W_enc, b_enc)]
    return _joined(found, centred)


def _joined(found: list[tuple[Tensor, Tensor, Tensor]], centred: Tensor) -> RaggedCodes:
    if not found:
        empty = torch.empty(0, dtype=torch.int64, device=centred.device)
        return RaggedCodes.of_rows(empty, 0, empty, centred.new_empty(0))
    rows, indices, values = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return RaggedCodes.of_rows(rows, len(centred), indices, values)


def _screened_above(centred: Tensor, W_enc: Tensor, b_enc: Tensor, threshold: Tensor) -> RaggedCodes:
    """Computes again in float32 what a bf16 product cannot rule out to exceed the threshold."""
    x16, W16, b16, error = _rounded(centred, W_enc, b_enc)
    # the product's own rounding is relative to its value, which at the edge is the threshold itself
    margin = error * (1 + 1e-3) + threshold.abs().max() * (4 * BF16_HALF_ULP)
    chunk_rows = max(64, CHUNK_BYTES["cpu"] // (len(W_enc) * 2))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(centred), chunk_rows):
        part = slice(start, start + chunk_rows)
        pre = torch.nn.functional.linear(x16[part], W16, b16)
        floor = threshold - margin[part, None]
        found.append(_entries(part, pre, (floor - floor.abs() * (2 * BF16_HALF_ULP)).bfloat16()))
    candidates = _joined(found, centred)
    exact = sparse.code_gradients(centred, candidates._replace(values=centred.new_empty(0)), W_enc)
    exact += b_enc[candidates.indices]
    edge = threshold if threshold.ndim == 0 else threshold[candidates.indices]
    kept = exact > edge
    return RaggedCodes.of_rows(candidates.rows()[kept], len(centred), candidates.indices[kept], exact[kept])


def _rounded(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns inputs of a bf16 product, and for every row a bound on how far rounding them moves a pre-activation."""
    x16, W16, b16 = centred.bfloat16(), W_enc.bfloat16(), b_enc.bfloat16()
    rounded = x16.float()
    widest, weight_error = W_enc.norm(dim=1).max(), (W_enc - W16).norm(dim=1).max()
    bias_error = (b_enc - b16).abs().max()
    error = (centred - rounded).norm(dim=1) * widest + rounded.norm(dim=1) * weight_error + bias_error
    return x16, W16, b16, error


def _entries(part: slice, chunk: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, indices = (chunk > threshold).nonzero(as_tuple=True)
    return rows + part.start, indices, chunk[rows, indices]


@torch.no_grad()
def strongest_of_batch(
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    count: int,
) -> RaggedCodes:
    """Returns the `count` largest positive pre-activations of the whole batch (all positive ones if they are fewer).

    A threshold guessed from a few rows leaves a little more than `count` candidates, of which the largest are kept;
    where the guess leaves too few, all positive ones are candidates, so that the result does not depend on it. Of ties
    at the smallest kept value those in the first rows are kept.
    """
    n = len(centred)
    sampled = torch.arange(0, n, max(1, n // SAMPLED_ROWS), device=centred.device)
    pre = torch.addmm(b_enc, centred[sampled], W_enc.T).flatten()
    expected = count * len(sampled) / n
    wanted = min(pre.numel(), int(SAMPLED_SURPLUS * expected + 4 * expected**0.5) + 1)
    guess = pre.topk(wanted, sorted=False).values.min().clamp(min=0)
    candidates = latents_above(centred, W_enc, b_enc, guess)
    if len(candidates.values) < count and bool(guess > 0):
        candidates = latents_above(centred, W_enc, b_enc, torch.zeros_like(guess))
    if len(candidates.values) <= count:
        return candidates
    smallest = candidates.values.topk(count, sorted=False).values.min()
    above, level = candidates.values > smallest, candidates.values == smallest
    room = count - above.sum()
    kept = above | (level & (level.cumsum(0) <= room))
    return RaggedCodes.of_rows(candidates.rows()[kept], n, candidates.indices[kept], candidates.values[kept])


def _screened(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, m: int) -> Selection:
    n, d_sae = len(centred), len(W_enc)
    x16, W16, b16, error = _rounded(centred, W_enc, b_enc)
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
    pattern = RaggedCodes.of(centred.new_zeros(n, m), chosen)
    exact = sparse.code_gradients(centred, pattern, W_enc).view(n, m) + b_enc[chosen]
    top = exact.topk(k, dim=1, sorted=False)
    values, indices = top.values, chosen.gather(1, top.indices)
    bound = floor + error * (1 + 1e-3) + floor.abs() * (2 * BF16_HALF_ULP)
    missed = (values.amin(1).clamp(min=0) < bound).nonzero().squeeze(1)
    if len(missed):
        again = strongest_latents(centred[missed], W_enc, b_enc, k, screen=False)
        values[missed], indices[missed] = again
    return Selection(values.relu_(), indices)
