"""The encoder product and the choice of active latents, never holding all pre-activations at once.

Enters: centred rows, encoder weights, and k or thresholds. Leaves: the k largest pre-activations of each row clipped at
zero (`strongest_latents`), the n·k largest of the whole batch (`strongest_of_batch`), or those above a threshold
(`latents_above`).

Rows go through in chunks whose pre-activations stay in the processor's cache between the product and the selection. On
a CPU with bf16 arithmetic a chunk is screened first: bf16 products and a bound on their rounding (`compiled.Screen`)
leave out the latents that cannot be among those wanted; the others are computed again in float32. So the latents
chosen, and their values, are those of the float32 computation up to ties and float32's own rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import compiled
from sae.kernels.dispatch import is_fused
from sae.sparse import RaggedCodes

CHUNK_BYTES = {"cpu": 8 << 20}  # elsewhere 256 MB: a GPU wants large products
CHUNK_MIN_ROWS = 512  # every product packs W_enc anew: with fewer rows that costs as much as it saves in the cache
SCREEN_MIN_LATENTS = 1024
SAMPLED_ROWS = 128  # of a batch, to guess BatchTopK's threshold from
SAMPLED_SURPLUS = 1.3  # candidates aimed at, as a multiple of what is kept
GUESS_MAX_SURPLUS = 4  # of a guess from outside


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
    if is_fused(centred, centred):
        from sae.kernels import encode

        return encode.strongest(centred, W_enc, b_enc, k)
    n, d_sae = len(centred), len(W_enc)
    values = centred.new_empty(n, k)
    indices = torch.empty(n, k, dtype=torch.int64, device=centred.device)
    if _is_screened(centred, d_sae, screen):
        compiled.Screen(centred, W_enc, b_enc).strongest(k, _chunk_rows("cpu", 2 * d_sae), values, indices)
        return Selection(values, indices)
    for part, chunk in _chunks(centred, W_enc, b_enc):
        if compiled.is_compiled(chunk):
            compiled.strongest_in_rows(chunk, k, values[part], indices[part])
        else:
            torch.topk(chunk, k, dim=1, sorted=False, out=(values[part], indices[part]))
    return Selection(values.relu_(), indices)


def _chunks(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields the pre-activations of a few rows at a time, in one buffer that the next ones overwrite."""
    n, d_sae = len(centred), len(W_enc)
    chunk_rows = _chunk_rows(centred.device.type, d_sae * centred.element_size())
    pre = centred.new_empty(min(chunk_rows, n), d_sae)
    for start in range(0, n, chunk_rows):
        part = slice(start, min(start + chunk_rows, n))
        yield part, torch.addmm(b_enc, centred[part], W_enc.T, out=pre[: part.stop - start])


def _chunk_rows(device: str, row_bytes: int) -> int:
    return max(CHUNK_MIN_ROWS, CHUNK_BYTES.get(device, 256 << 20) // row_bytes)


def _is_screened(centred: Tensor, d_sae: int, screen: bool | None) -> bool:
    """Says whether bf16 products choose candidates: asked for, or else worth it on this machine."""
    if screen is None:
        screen = has_bf16_arithmetic() and d_sae >= SCREEN_MIN_LATENTS
    return screen and centred.dtype == torch.float32 and compiled.is_compiled(centred)


@torch.no_grad()
def largest_latents(
    centred: Float[Tensor, "n d_in"], W_enc: Float[Tensor, "d_sae d_in"], b_enc: Float[Tensor, " d_sae"], k: int
) -> Selection:
    """Returns the `k` pre-activations of largest absolute value of every row, with their signs."""
    if is_fused(centred, centred):
        from sae.kernels import encode

        return encode.strongest(centred, W_enc, b_enc, k, is_signed=True)
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
    if len(centred) and bool(threshold.min() > 0) and _is_screened(centred, len(W_enc), screen):
        products = compiled.Screen(centred, W_enc, b_enc)
        if bool(threshold.min() > 2 * products.error.max()):  # else too little is left out
            return products.above(threshold, _chunk_rows("cpu", 2 * len(W_enc)))
    if compiled.is_compiled(centred) and len(centred):
        return compiled.entries_above(_chunks(centred, W_enc, b_enc), len(centred), threshold)
    found = [_entries(part, chunk, threshold) for part, chunk in _chunks(centred, W_enc, b_enc)]
    return _joined(found, centred)


def _joined(found: list[tuple[Tensor, Tensor, Tensor]], centred: Tensor) -> RaggedCodes:
    if not found:
        empty = torch.empty(0, dtype=torch.int64, device=centred.device)
        return RaggedCodes.of_rows(empty, 0, empty, centred.new_empty(0))
    rows, indices, values = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    return RaggedCodes.of_rows(rows, len(centred), indices, values)


def _entries(part: slice, chunk: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, indices = (chunk > threshold).nonzero(as_tuple=True)
    return rows + part.start, indices, chunk[rows, indices]


@torch.no_grad()
def strongest_of_batch(
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    count: int,
    guess: Float[Tensor, ""] | None = None,
) -> RaggedCodes:
    """Returns the `count` largest positive pre-activations of the whole batch (all positive ones if they are fewer).

    A guessed threshold leaves a little more than `count` candidates, of which the largest are kept. It is `guess` (say,
    a little less than the last batch's), and where that leaves too few, it is found from some of the rows; where that
    leaves too few, all positive ones are candidates: the result does not depend on it. Of ties at the smallest kept
    value those in the first rows are kept. On a GPU places to spare hold value 0.
    """
    if is_fused(centred, centred):
        from sae.kernels import encode

        return encode.strongest_of_batch(centred, W_enc, b_enc, count).codes
    n = len(centred)
    if guess is not None:
        candidates = latents_above(centred, W_enc, b_enc, guess.clamp(min=0))
        if count <= len(candidates.values) <= GUESS_MAX_SURPLUS * count:
            return _largest(candidates, count)
    sampled = torch.arange(0, n, max(1, n // SAMPLED_ROWS), device=centred.device)
    pre = torch.addmm(b_enc, centred[sampled], W_enc.T).flatten()
    expected = count * len(sampled) / n
    wanted = min(pre.numel(), int(SAMPLED_SURPLUS * expected + 4 * expected**0.5) + 1)
    guess = pre.topk(wanted, sorted=False).values.min().clamp(min=0)
    candidates = latents_above(centred, W_enc, b_enc, guess)
    if len(candidates.values) < count and bool(guess > 0):
        candidates = latents_above(centred, W_enc, b_enc, torch.zeros_like(guess))
    return _largest(candidates, count)


def _largest(candidates: RaggedCodes, count: int) -> RaggedCodes:
    """Returns the `count` largest codes; of equal ones those in the first rows."""
    n = candidates.n_rows
    if len(candidates.values) <= count:
        return candidates
    if compiled.is_compiled(candidates.values):
        return compiled.keep_largest(candidates, count)
    smallest = candidates.values.topk(count, sorted=False).values.min()
    above, level = candidates.values > smallest, candidates.values == smallest
    room = count - above.sum()
    kept = above | (level & (level.cumsum(0) <= room))
    return RaggedCodes.of_rows(candidates.rows()[kept], n, candidates.indices[kept], candidates.values[kept])
