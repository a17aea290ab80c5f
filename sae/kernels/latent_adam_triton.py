# pyright: reportArgumentType=false, reportCallIssue=false
"""The kernel of `sae.kernels.latent_adam`; sums are taken as in `sae.kernels.latent_reduce_triton`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from sae.kernels.encode import FP8, FP8_SCALE
from sae.kernels.latent_reduce_triton import run_segments, sum_latent

if TYPE_CHECKING:
    from sae.kernels.latent_adam import Adam, Added, Moments

FORMATS = {torch.bfloat16: 1, torch.int8: 2}
"""Of moments, as the kernels number them; 0 is a float of full width."""
LATENTS = 8
"""Latents of one program: their share in the gradient of b_dec is added up before it is written."""


@no_type_check
@triton.jit
def load_moments(mean, square, units, row, where, inside, MOMENTS: tl.constexpr, ACC: tl.constexpr):
    """Returns mean and mean square of a row as numbers."""
    first = tl.load(mean + where, mask=inside, other=0).to(ACC)
    second = tl.load(square + where, mask=inside, other=0).to(ACC)
    if MOMENTS == 2:
        first *= tl.load(units + row * 2).to(ACC)
        second *= tl.load(units + row * 2 + 1).to(ACC)
        second *= second
    return first, second


@no_type_check
@triton.jit
def random_steps(value, unit, seed, where, stream):
    """Returns a value in units, rounded at random."""
    return tl.floor((value / tl.maximum(unit, 1.1754944e-38)).to(tl.float32) + tl.rand(seed, where * 8 + stream))


@no_type_check
@triton.jit
def random_bf16(value, seed, where, stream):
    """Returns a value as bf16 rounded at random, the part cut off being the chance of rounding up."""
    bits = value.to(tl.float32).to(tl.int32, bitcast=True)
    bits += tl.randint(seed, where * 8 + stream).to(tl.int32) & 0xFFFF
    return (bits & -65536).to(tl.float32, bitcast=True).to(tl.bfloat16)


@no_type_check
@triton.jit
def store_moments(mean, square, units, row, where, inside, first, second, seed, stream, MOMENTS: tl.constexpr):
    """Writes a row's moments; columns beyond the row hold 0."""
    if MOMENTS == 2:
        root = tl.sqrt(second)
        unit = tl.max(tl.abs(first), axis=0) / 127
        root_unit = tl.max(root, axis=0) / 255
        steps = random_steps(first, unit, seed, where, stream)
        root_steps = random_steps(root, root_unit, seed, where, stream + 1)
        tl.store(mean + where, tl.minimum(tl.maximum(steps, -127.0), 127.0).to(tl.int8), mask=inside)
        root_steps = tl.minimum(tl.maximum(root_steps, 1.0), 255.0).to(tl.int32)
        tl.store(square + where, root_steps.to(tl.uint8), mask=inside)
        tl.store(units + row * 2, unit.to(tl.float32))
        tl.store(units + row * 2 + 1, root_unit.to(tl.float32))
    elif MOMENTS == 1:
        tl.store(mean + where, random_bf16(first, seed, where, stream), mask=inside)
        tl.store(square + where, random_bf16(second, seed, where, stream + 1), mask=inside)
    else:
        tl.store(mean + where, first, mask=inside)
        tl.store(square + where, second, mask=inside)


@no_type_check
@triton.jit
def moved(
    value,
    slope,
    mean,
    square,
    units,
    row,
    where,
    inside,
    size,
    root,
    seed,
    stream,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    MOMENTS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Returns a row of a parameter after one step of Adam, its moments written."""
    first, second = load_moments(mean, square, units, row, where, inside, MOMENTS, ACC)
    first += (slope - first) * (1 - BETA1)
    second = second * BETA2 + slope * slope * (1 - BETA2)
    store_moments(mean, square, units, row, where, inside, first, second, seed, stream, MOMENTS)
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
    units_dec,
    mean_enc,
    square_enc,
    units_enc,
    mean_bias,
    square_bias,
    copy_dec,
    copy_enc,
    slots,
    added_dec,
    added_enc,
    added_bias,
    factors,
    step,
    centre,
    fired,
    d_sae,
    d_out,
    d_in,
    LATENTS: tl.constexpr,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPSILON: tl.constexpr,
    IS_UNIT: tl.constexpr,
    MOMENTS: tl.constexpr,
    COPY_DEC: tl.constexpr,
    COPY_ENC: tl.constexpr,
    COPY_SCALE: tl.constexpr,
    COPY_LIMIT: tl.constexpr,
    HAS_ADDED: tl.constexpr,
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
            scratch_out, scratch_in, scratch_bias, scratch_fired, d_out, d_in,
            SEGMENT, GROUPS, ACC, BLOCK_N, BLOCK_OUT, BLOCK_IN,
        )  # fmt: skip
        tl.store(fired + latent, count)
        if HAS_ADDED:
            slot = tl.load(slots + latent).to(tl.int64)
            if slot >= 0:
                decoder += tl.load(added_dec + slot * d_out + out_columns, mask=out_inside, other=0.0).to(ACC)
                encoder += tl.load(added_enc + slot * d_in + in_columns, mask=in_inside, other=0.0).to(ACC)
                bias += tl.load(added_bias + slot).to(ACC)

        where = latent * d_out + out_columns
        atom = tl.load(W_dec + where, mask=out_inside, other=0.0).to(ACC)
        if IS_UNIT:
            decoder -= tl.sum(decoder * atom, axis=0) * atom
        atom = moved(
            atom, decoder, mean_dec, square_dec, units_dec, latent, where, out_inside, size, root, seed, 0,
            BETA1, BETA2, EPSILON, MOMENTS, ACC,
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
            reader, encoder, mean_enc, square_enc, units_enc, latent, where, in_inside, size, root, seed, 2,
            BETA1, BETA2, EPSILON, MOMENTS, ACC,
        )  # fmt: skip
        tl.store(W_enc + where, reader, mask=in_inside)
        if COPY_ENC:
            reader = tl.minimum(tl.maximum(reader * COPY_SCALE, -COPY_LIMIT), COPY_LIMIT)
            tl.store(copy_enc + where, reader, mask=in_inside)

        offset = tl.load(b_enc + latent).to(ACC)
        offset = moved(
            offset, bias, mean_bias, square_bias, factors, latent, latent, latent < d_sae, size, root, seed, 4,
            BETA1, BETA2, EPSILON, 0, ACC,
        )  # fmt: skip
        tl.store(b_enc + latent, offset)
    tl.store(centre + program * d_in + in_columns, shared, mask=in_inside)


def _pointers(moments: Moments, spare: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return moments.mean, moments.square, spare if moments.units is None else moments.units


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
    added: Added | None,
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
    is_fp8 = "W_enc" in copies and copies["W_enc"].dtype == FP8
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
        *_pointers(moments["W_dec"], factors),
        *_pointers(moments["W_enc"], factors),
        *moments["b_enc"][:2],
        copies.get("W_dec", W_dec),
        copies.get("W_enc", W_enc),
        *(added or (fired, W_dec, W_enc, b_enc)),
        factors,
        step,
        centre,
        fired,
        d_sae,
        d_out,
        d_in,
        LATENTS=LATENTS,
        BETA1=adam.beta1,
        BETA2=adam.beta2,
        EPSILON=adam.epsilon,
        IS_UNIT=adam.is_unit,
        MOMENTS=FORMATS.get(moments["W_dec"].mean.dtype, 0),
        COPY_DEC="W_dec" in copies,
        COPY_ENC="W_enc" in copies,
        COPY_SCALE=FP8_SCALE if is_fp8 else 1.0,
        COPY_LIMIT=torch.finfo(FP8 if is_fp8 else torch.bfloat16).max,
        HAS_ADDED=added is not None,
        **sizes,
    )
    return centre.sum(0), fired
