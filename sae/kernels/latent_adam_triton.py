# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernel of `sae.kernels.latent_adam`; sums are taken as in `sae.kernels.latent_reduce_triton`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.latent_reduce_triton import run_segments, sum_latent

if TYPE_CHECKING:
    from sae.kernels.latent_adam import Adam, Moments

LATENTS = 8
"""Latents of one program: their share in the gradient of b_dec is added up before it is written."""


@no_type_check
@triton.jit
def store_moment(target, where, inside, moment, seed, stream, IS_BF16: tl.constexpr):
    """Writes a moment; bf16 is rounded at random, the part cut off being the chance of rounding up."""
    if IS_BF16:
        bits = moment.to(tl.float32).to(tl.int32, bitcast=True)
        bits += tl.randint(seed, where * 8 + stream).to(tl.int32) & 0xFFFF
        moment = (bits & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)
    tl.store(target + where, moment, mask=inside)


@no_type_check
@triton.jit
def moved(
    value,
    slope,
    mean,
    square,
    where,
    inside,
    size,
    root,
    seed,
    stream,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    IS_BF16: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns a parameter after one step of Adam, its moments written."""
    first = tl.load(mean + where, mask=inside, other=0.0).to(ACC)
    second = tl.load(square + where, mask=inside, other=0.0).to(ACC)
    first += (slope - first) * (1 - BETA1)
    second = second * BETA2 + slope * slope * (1 - BETA2)
    store_moment(mean, where, inside, first, seed, stream, IS_BF16)
    store_moment(square, where, inside, second, seed, stream + 1, IS_BF16)
    return value - size * first / (tl.sqrt(second) / root + EPSILON)


@no_type_check
@triton.jit
def _latent_adam(
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
    W_dec,
    W_enc,
    b_enc,
    mean_dec,
    square_dec,
    mean_enc,
    square_enc,
    mean_bias,
    square_bias,
    copy_dec,
    copy_enc,
    factors,
    step,
    centre,
    fired,
    d_sae,
    n_virtual,
    d_out,
    d_in,
    LATENTS: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    IS_UNIT: tl.constexpr,
    IS_BF16: tl.constexpr,
    COPY_DEC: tl.constexpr,
    COPY_ENC: tl.constexpr,
    SEGMENT: tl.constexpr,
    GROUPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    out_columns = tl.arange(0, BLOCK_OUT)
    in_columns = tl.arange(0, BLOCK_IN)
    out_inside = out_columns < d_out
    in_inside = in_columns < d_in
    size = tl.load(factors)
    root = tl.load(factors + 1)
    seed = tl.load(step).to(tl.int32)
    shared = tl.zeros([BLOCK_IN], dtype=ACC)
    for place in range(tl.minimum(LATENTS, d_sae - program * LATENTS)):
        latent = program * LATENTS + place
        decoder, encoder, bias, count = sum_latent(
            latent, starts, places, rows, segment_starts, values, dvalues, gradient, centred,
            scratch_out, scratch_in, scratch_bias, scratch_fired, n_virtual, d_out, d_in,
            SEGMENT, GROUPS, ACC, BLOCK_N, BLOCK_OUT, BLOCK_IN,
        )  # fmt: skip
        tl.store(fired + latent, count)

        where = latent * d_out + out_columns
        atom = tl.load(W_dec + where, mask=out_inside, other=0.0).to(ACC)
        if IS_UNIT:
            decoder -= tl.sum(decoder * atom, axis=0) * atom
        atom = moved(
            atom, decoder, mean_dec, square_dec, where, out_inside, size, root, seed, 0,
            BETA1, BETA2, EPSILON, IS_BF16, ACC,
        )  # fmt: skip
        if IS_UNIT:
            # columns beyond the row hold 0 / (0 + ε) and so do not count
            atom = atom / tl.maximum(tl.sqrt(tl.sum(atom * atom, axis=0)), 1e-12)
        tl.store(W_dec + where, atom, mask=out_inside)
        if COPY_DEC:
            tl.store(copy_dec + where, atom, mask=out_inside)

        where = latent * d_in + in_columns
        reader = tl.load(W_enc + where, mask=in_inside, other=0.0).to(ACC)
        shared += bias * reader
        reader = moved(
            reader, encoder, mean_enc, square_enc, where, in_inside, size, root, seed, 2,
            BETA1, BETA2, EPSILON, IS_BF16, ACC,
        )  # fmt: skip
        tl.store(W_enc + where, reader, mask=in_inside)
        if COPY_ENC:
            tl.store(copy_enc + where, reader, mask=in_inside)

        offset = tl.load(b_enc + latent).to(ACC)
        offset = moved(
            offset, bias, mean_bias, square_bias, latent, latent < d_sae, size, root, seed, 4,
            BETA1, BETA2, EPSILON, IS_BF16, ACC,
        )  # fmt: skip
        tl.store(b_enc + latent, offset)
    tl.store(centre + program * d_in + in_columns, shared, mask=in_inside)


def latent_adam(
    starts: Tensor,
    places: Tensor,
    rows: Tensor,
    segment_starts: Tensor,
    segment_latents: Tensor,
    values: Tensor,
    dvalues: Tensor,
    gradient: Tensor,
    centred: Tensor,
    parameters: Mapping[str, Tensor],
    moments: Mapping[str, Moments],
    factors: Tensor,
    step: Tensor,
    adam: Adam,
    copies: Mapping[str, Tensor],
    groups: int,
    segment: int,
) -> tuple[Tensor, Tensor]:
    """Launches one program for `LATENTS` latents; returns the fields of `Moved`."""
    sizes, scratch = run_segments(
        starts, places, rows, segment_starts, segment_latents, values, dvalues, gradient, centred, groups, segment
    )
    d_sae, d_out, d_in = len(starts) - 1, gradient.shape[1], centred.shape[1]
    # weights and moments are held beside the sums: twice the warps keep them in registers
    sizes["num_warps"] = min(16, 2 * sizes["num_warps"])
    programs = -(-d_sae // LATENTS)
    centre = torch.empty(programs, d_in, dtype=factors.dtype, device=gradient.device)
    fired = torch.empty(d_sae, dtype=torch.int32, device=gradient.device)
    W_dec, W_enc, b_enc = (parameters[name] for name in ("W_dec", "W_enc", "b_enc"))
    _latent_adam[(programs,)](
        starts,
        places,
        rows,
        segment_starts,
        values,
        dvalues,
        gradient,
        centred,
        *scratch,
        W_dec,
        W_enc,
        b_enc,
        *moments["W_dec"],
        *moments["W_enc"],
        *moments["b_enc"],
        copies.get("W_dec", W_dec),
        copies.get("W_enc", W_enc),
        factors,
        step,
        centre,
        fired,
        d_sae,
        len(centred) * groups,
        d_out,
        d_in,
        LATENTS=LATENTS,
        BETA1=adam.beta1,
        BETA2=adam.beta2,
        EPSILON=adam.epsilon,
        IS_UNIT=adam.is_unit,
        IS_BF16=moments["W_dec"].mean.dtype == torch.bfloat16,
        COPY_DEC="W_dec" in copies,
        COPY_ENC="W_enc" in copies,
        **sizes,
    )
    return centre.sum(0), fired
