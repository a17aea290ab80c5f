# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernels of `sae.kernels.latent_reduce` and the pass that they share with `sae.kernels.latent_adam`."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.tiles import accumulator, next_power, row_tile


@no_type_check
@triton.jit
def sum_codes(
    first,
    last,
    places,
    rows,
    values,
    dvalues,
    gradient,
    centred,
    d_out,
    d_in,
    GROUPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Returns Σ v g, Σ ∂v x, Σ ∂v and the number of codes over the codes from `first` to `last`."""
    steps = tl.arange(0, BLOCK_N)
    out_columns = tl.arange(0, BLOCK_OUT)
    in_columns = tl.arange(0, BLOCK_IN)
    decoder = tl.zeros([BLOCK_OUT], dtype=ACC)
    encoder = tl.zeros([BLOCK_IN], dtype=ACC)
    bias = tl.zeros([BLOCK_N], dtype=ACC)
    fired = tl.zeros([BLOCK_N], dtype=tl.int32)
    for at in range(first, last, BLOCK_N):
        live = at + steps < last
        place = tl.load(places + at + steps, mask=live, other=0).to(tl.int64)
        row = tl.load(rows + at + steps, mask=live, other=0).to(tl.int64)
        coded = tl.load(values + place, mask=live, other=0.0).to(ACC)  # [BLOCK_N]
        slopes = tl.load(dvalues + place, mask=live, other=0.0).to(ACC)
        grads = tl.load(
            gradient + row[:, None] * d_out + out_columns[None, :],
            mask=live[:, None] & (out_columns < d_out)[None, :],
            other=0.0,
        ).to(ACC)  # [BLOCK_N, BLOCK_OUT]
        decoder += tl.sum(coded[:, None] * grads, axis=0)
        inputs = tl.load(
            centred + (row // GROUPS)[:, None] * d_in + in_columns[None, :],
            mask=live[:, None] & (in_columns < d_in)[None, :],
            other=0.0,
        ).to(ACC)  # [BLOCK_N, BLOCK_IN]
        encoder += tl.sum(slopes[:, None] * inputs, axis=0)
        bias += slopes
        fired += live.to(tl.int32)
    return decoder, encoder, tl.sum(bias, axis=0), tl.sum(fired, axis=0)


@no_type_check
@triton.jit
def sum_segments(
    starts,
    places,
    rows,
    segment_starts,
    segment_latents,
    values,
    dvalues,
    gradient,
    centred,
    scratch_out,
    scratch_in,
    scratch_bias,
    scratch_fired,
    d_sae,
    d_out,
    d_in,
    SEGMENT: tl.constexpr,
    GROUPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Sums one segment beyond a latent's first into scratch memory."""
    piece = tl.program_id(0).to(tl.int64)
    latent = tl.load(segment_latents + piece).to(tl.int64)
    if latent < d_sae:
        part = piece - tl.load(segment_starts + latent) + 1
        first = tl.load(starts + latent) + part * SEGMENT
        last = tl.minimum(first + SEGMENT, tl.load(starts + latent + 1))
        decoder, encoder, bias, fired = sum_codes(
            first, last, places, rows, values, dvalues, gradient, centred, d_out, d_in,
            GROUPS, ACC, BLOCK_N, BLOCK_OUT, BLOCK_IN,
        )  # fmt: skip
        out_columns = tl.arange(0, BLOCK_OUT)
        in_columns = tl.arange(0, BLOCK_IN)
        tl.store(scratch_out + piece * d_out + out_columns, decoder, mask=out_columns < d_out)
        tl.store(scratch_in + piece * d_in + in_columns, encoder, mask=in_columns < d_in)
        tl.store(scratch_bias + piece, bias)
        tl.store(scratch_fired + piece, fired)


@no_type_check
@triton.jit
def sum_latent(
    latent,
    starts,
    places,
    rows,
    segment_starts,
    values,
    dvalues,
    gradient,
    centred,
    scratch_out,
    scratch_in,
    scratch_bias,
    scratch_fired,
    d_out,
    d_in,
    SEGMENT: tl.constexpr,
    GROUPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Returns the sums over all codes of one latent: its first segment, then the others in order."""
    first = tl.load(starts + latent)
    last = tl.minimum(first + SEGMENT, tl.load(starts + latent + 1))
    decoder, encoder, bias, fired = sum_codes(
        first, last, places, rows, values, dvalues, gradient, centred, d_out, d_in,
        GROUPS, ACC, BLOCK_N, BLOCK_OUT, BLOCK_IN,
    )  # fmt: skip
    out_columns = tl.arange(0, BLOCK_OUT)
    in_columns = tl.arange(0, BLOCK_IN)
    for piece in range(tl.load(segment_starts + latent), tl.load(segment_starts + latent + 1)):
        decoder += tl.load(scratch_out + piece * d_out + out_columns, mask=out_columns < d_out, other=0.0)
        encoder += tl.load(scratch_in + piece * d_in + in_columns, mask=in_columns < d_in, other=0.0)
        bias += tl.load(scratch_bias + piece)
        fired += tl.load(scratch_fired + piece)
    return decoder, encoder, bias, fired


@no_type_check
@triton.jit
def _latent_reduce(
    starts,
    places,
    rows,
    segment_starts,
    values,
    dvalues,
    gradient,
    centred,
    scratch_out,
    scratch_in,
    scratch_bias,
    scratch_fired,
    to_decoder,
    to_encoder,
    to_bias,
    to_fired,
    d_out,
    d_in,
    SEGMENT: tl.constexpr,
    GROUPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    latent = tl.program_id(0).to(tl.int64)
    decoder, encoder, bias, fired = sum_latent(
        latent, starts, places, rows, segment_starts, values, dvalues, gradient, centred,
        scratch_out, scratch_in, scratch_bias, scratch_fired, d_out, d_in,
        SEGMENT, GROUPS, ACC, BLOCK_N, BLOCK_OUT, BLOCK_IN,
    )  # fmt: skip
    out_columns = tl.arange(0, BLOCK_OUT)
    in_columns = tl.arange(0, BLOCK_IN)
    tl.store(to_decoder + latent * d_out + out_columns, decoder, mask=out_columns < d_out)
    tl.store(to_encoder + latent * d_in + in_columns, encoder, mask=in_columns < d_in)
    tl.store(to_bias + latent, bias)
    tl.store(to_fired + latent, fired)


def run_segments(
    starts: Tensor,
    places: Tensor,
    rows: Tensor,
    segment_starts: Tensor,
    segment_latents: Tensor,
    values: Tensor,
    dvalues: Tensor,
    gradient: Tensor,
    centred: Tensor,
    groups: int,
    segment: int,
) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
    """Sums the further segments; returns the launch sizes of the latents' own pass and the scratch memory."""
    d_out, d_in = gradient.shape[1], centred.shape[1]
    wide = torch.promote_types(gradient.dtype, torch.float32)
    widest = next_power(max(d_out, d_in))
    BLOCK_N, num_warps = row_tile(widest)
    sizes: dict[str, Any] = dict(
        SEGMENT=segment,
        GROUPS=groups,
        ACC=accumulator(wide),
        BLOCK_N=BLOCK_N,
        BLOCK_OUT=next_power(d_out),
        BLOCK_IN=next_power(d_in),
        num_warps=num_warps,
    )
    most = len(segment_latents)
    scratch = (
        torch.empty(most, d_out, dtype=wide, device=gradient.device),
        torch.empty(most, d_in, dtype=wide, device=gradient.device),
        torch.empty(most, dtype=wide, device=gradient.device),
        torch.empty(most, dtype=torch.int32, device=gradient.device),
    )
    if most:
        sum_segments[(most,)](
            starts,
            places,
            rows,
            segment_starts,
            segment_latents,
            values,
            dvalues,
            gradient,
            centred,
            *scratch,
            len(starts) - 1,
            d_out,
            d_in,
            **sizes,
        )
    return sizes, scratch


def latent_reduce(
    starts: Tensor,
    places: Tensor,
    rows: Tensor,
    segment_starts: Tensor,
    segment_latents: Tensor,
    values: Tensor,
    dvalues: Tensor,
    gradient: Tensor,
    centred: Tensor,
    groups: int,
    segment: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launches one program a latent after those of the further segments; returns the fields of `LatentSums`."""
    sizes, scratch = run_segments(
        starts, places, rows, segment_starts, segment_latents, values, dvalues, gradient, centred, groups, segment
    )
    d_sae, d_out, d_in = len(starts) - 1, gradient.shape[1], centred.shape[1]
    wide = torch.promote_types(gradient.dtype, torch.float32)
    sums = (
        torch.empty(d_sae, d_out, dtype=wide, device=gradient.device),
        torch.empty(d_sae, d_in, dtype=wide, device=gradient.device),
        torch.empty(d_sae, dtype=wide, device=gradient.device),
        torch.empty(d_sae, dtype=torch.int32, device=gradient.device),
    )
    _latent_reduce[(d_sae,)](
        starts,
        places,
        rows,
        segment_starts,
        values,
        dvalues,
        gradient,
        centred,
        *scratch,
        *sums,
        d_out,
        d_in,
        **sizes,
    )
    return sums
