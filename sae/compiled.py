"""Selection, decoding and latents' gradients on a CPU by loops that numba compiles, where it is installed.

Enters: tensors on the CPU. Leaves: what `sae.selection`, `sae.sparse` and `sae.step` give without it, up to rounding
and to which of equal values is taken. Rows (or latents) are divided among as many threads as torch uses; each result
is written by one thread, so that it does not depend on their number.

The loops are compiled at their first use, some seconds each, and kept in a cache on disk. `GLASSBOX_COMPILED=0`
switches them off.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.sparse import RaggedCodes, RowPass

GROUP = 16
"""Latents of a group, of which the largest is looked at first."""
FLOAT32_SLACK, BF16_SLACK = 1e-3, 2.0**-8
"""Shares by which bounds on the rounding of float32 sums and of bf16 results are widened."""
_LOCK = threading.Lock()
MIN_SHARE = 16
"""Rows or latents below which a second thread does not pay."""


@cache
def _is_loaded() -> bool:
    """Says whether the loops are there: numba is installed, and has a folder to keep them in."""
    if find_spec("numba") is None:
        return False
    try:
        import sae.compiled_kernels  # noqa: F401
    except RuntimeError as error:
        warnings.warn(
            f"numba keeps no compiled loops here ({error}), so torch's slower sparse products are used: set "
            "NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
        return False
    return True


def is_compiled(tensor: Tensor) -> bool:
    """Says whether the compiled loops work on tensors like this one."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.float64)
        and os.environ.get("GLASSBOX_COMPILED") != "0"
        and _is_loaded()
    )


def strongest_in_rows(pre: Float[Tensor, "n d_sae"], k: int, values: Tensor, indices: Tensor) -> None:
    """Writes the k largest of every row, clipped at zero, with their columns, to `values` and `indices`."""
    from sae import compiled_kernels as kernels

    stride = _stride(pre.shape[1], k)
    divide(
        kernels.strongest_in_rows,
        kernels.divided_strongest_in_rows,
        len(pre),
        pre.numpy(),
        k,
        stride,
        values.numpy(),
        indices.numpy(),
    )


class Screen:
    """Encoder products in bf16, with a bound on how far each may lie from that of the float32 numbers.

    With e the row's share of the bound and u the relative rounding of the result, |p − q| ≤ u |q| and |q − v| ≤ e for
    the bf16 result p, the product q of rounded inputs, and the wanted value v. So v > θ > e implies p ≥ (θ − e)(1 − u);
    and where k results are at least t > 0, the k largest v are at least t (1 − u) − e.
    """

    def __init__(self, centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> None:
        self.centred, self.W_enc, self.b_enc = centred.contiguous(), W_enc.contiguous(), b_enc.contiguous()
        self._x16, self._W16, self._b16 = centred.bfloat16(), W_enc.bfloat16(), b_enc.bfloat16()
        rounded = self._x16.float()
        widest, weight_error = W_enc.norm(dim=1).max(), (W_enc - self._W16).norm(dim=1).max()
        bias_error = (b_enc - self._b16).abs().max()
        error = (centred - rounded).norm(dim=1) * widest + rounded.norm(dim=1) * weight_error + bias_error
        self.error = error * (1 + FLOAT32_SLACK)
        """e of every row."""

    def strongest(self, k: int, rows: int, values: Tensor, indices: Tensor) -> None:
        """Writes what `strongest_in_rows` would, from float32 values; works on `rows` rows at a time."""
        from sae import compiled_kernels as kernels

        stride = _stride(len(self.W_enc), k)
        for part, bits, rest in self._chunks(rows):
            out = values[part].numpy(), indices[part].numpy()
            divide(kernels.screened_in_rows, kernels.divided_screened_in_rows, len(bits), bits, k, stride, *rest, *out)

    def above(self, threshold: Tensor, rows: int) -> RaggedCodes:
        """Returns what `entries_above` would, from float32 values; thresholds must exceed `error`."""
        from sae import compiled_kernels as kernels

        pieces = _Pieces(len(self.centred), (rows, len(self.W_enc)), np.dtype(np.float32))
        stride, edges = _stride(len(self.W_enc), 1), threshold.reshape(-1).numpy()
        for part, bits, rest in self._chunks(rows):
            divide(
                kernels.screened_above,
                kernels.divided_screened_above,
                len(bits),
                bits,
                edges,
                stride,
                *rest,
                *pieces.room(part),
            )
            pieces.take(part)
        return pieces.codes()

    def _chunks(self, rows: int) -> Iterator[tuple[slice, np.ndarray, tuple[Any, ...]]]:
        weights = self.W_enc.numpy(), self.b_enc.numpy()
        for start in range(0, len(self.centred), rows):
            part = slice(start, min(start + rows, len(self.centred)))
            product = torch.nn.functional.linear(self._x16[part], self._W16, self._b16)
            given = _bf16_numbers(), self.error[part].numpy(), BF16_SLACK, self.centred[part].numpy()
            yield part, product.view(torch.int16).numpy(), (*given, *weights)


@cache
def _bf16_numbers() -> np.ndarray:
    """Returns what each pattern of sixteen bits stands for."""
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)


class _Pieces:
    """Entries found in consecutive chunks of rows, gathered to codes."""

    def __init__(self, n: int, chunk: tuple[int, int], dtype: np.dtype) -> None:
        self._starts = np.zeros(n + 1, np.int64)
        self._values, self._indices = np.empty(chunk, dtype), np.empty(chunk, np.int64)
        self._found: list[tuple[np.ndarray, np.ndarray]] = []

    def room(self, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns where a chunk's values and indices go, at the front of their rows, and the rows' counts."""
        n = part.stop - part.start
        return self._values[:n], self._indices[:n], self._starts[part.start + 1 : part.stop + 1]

    def take(self, part: slice) -> None:
        """Packs what was written."""
        from sae import compiled_kernels as kernels

        values, indices, counts = self.room(part)
        ends = np.concatenate([[0], counts.cumsum()])
        packed = np.empty(ends[-1], values.dtype), np.empty(ends[-1], np.int64)
        kernels.pack(values, indices, ends, *packed)
        self._found.append(packed)

    def codes(self) -> RaggedCodes:
        values, indices = (torch.from_numpy(np.concatenate(part)) for part in zip(*self._found, strict=True))
        return RaggedCodes(torch.from_numpy(self._starts.cumsum()), indices, values)


def entries_above(chunks: Iterator[tuple[slice, Tensor]], n: int, threshold: Tensor) -> RaggedCodes:
    """Returns, of chunks of consecutive rows (n in all), the entries above one threshold, or above their column's."""
    from sae import compiled_kernels as kernels

    pieces = None
    for part, chunk in chunks:
        pre = chunk.numpy()
        pieces = pieces or _Pieces(n, pre.shape, pre.dtype)
        if threshold.ndim:
            divide(
                kernels.entries_above_each,
                kernels.divided_entries_above_each,
                len(pre),
                pre,
                threshold.contiguous().numpy(),
                *pieces.room(part),
            )
        else:
            edge, stride = pre.dtype.type(threshold.item()), _stride(pre.shape[1], 1)
            divide(
                kernels.entries_above, kernels.divided_entries_above, len(pre), pre, edge, stride, *pieces.room(part)
            )
        pieces.take(part)
    assert pieces is not None
    return pieces.codes()


def keep_largest(codes: RaggedCodes, count: int) -> RaggedCodes:
    """Returns the `count` largest of more than `count` positive codes; of equal ones those in the first rows."""
    from sae import compiled_kernels as kernels

    values = codes.values.numpy()
    smallest = np.partition(values, len(values) - count)[len(values) - count]
    room = count - int(np.count_nonzero(values > smallest))
    starts = np.empty(len(codes.starts), np.int64)
    kept = np.empty(count, values.dtype), np.empty(count, np.int64)
    kernels.keep_largest(codes.starts.numpy(), values, codes.indices.numpy(), smallest, room, starts, *kept)
    return RaggedCodes(torch.from_numpy(starts), torch.from_numpy(kept[1]), torch.from_numpy(kept[0]))


def row_pass(
    codes: RaggedCodes,
    W_dec: Float[Tensor, "d_sae d"],
    target: Float[Tensor, "n d"],
    centred: Float[Tensor, "n d_in"],
    scales: Float[Tensor, " groups"],
    blocks: Int[Tensor, " d_sae"] | None,
    is_signed: bool,
    slopes: Float[Tensor, " nnz"] | None,
) -> RowPass:
    """Does what `sae.row_pass.row_pass` says, rows first, then latents."""
    from sae import compiled_kernels as kernels

    (n, width), groups, d_sae = target.shape, len(scales), len(W_dec)
    starts, indices, values = codes.starts.numpy(), codes.indices.numpy(), codes.values.numpy()
    places = np.zeros(d_sae, np.int64) if blocks is None else blocks.numpy()
    suffix, squared = target.new_empty(groups, n, width), target.new_empty(n, groups)
    errors, dvalues = torch.empty_like(target, memory_format=torch.contiguous_format), np.empty_like(values)
    rows: tuple[Any, ...] = (starts, indices, values, places, W_dec.numpy(), target.contiguous().numpy())
    rows += (scales.numpy(), is_signed, errors.numpy(), suffix.numpy(), squared.numpy(), dvalues)
    divide(kernels.decode_backward, kernels.divided_decode_backward, n, *rows)
    if slopes is not None:
        dvalues += slopes.numpy()

    latent_starts, by_latent = np.zeros(d_sae + 1, np.int64), np.empty((2, len(indices)), np.int64)
    kernels.order_by_latent(starts, indices, latent_starts, by_latent[0], by_latent[1])
    shapes = {"W_enc": (d_sae, centred.shape[1]), "W_dec": (d_sae, width), "b_enc": (d_sae,)}
    gradients = {name: target.new_empty(shape) for name, shape in shapes.items()}
    sums: tuple[Any, ...] = (latent_starts, by_latent[0], by_latent[1], values, dvalues, places, suffix.numpy())
    sums += (centred.contiguous().numpy(), *(gradient.numpy() for gradient in gradients.values()))
    divide(kernels.latent_gradients, kernels.divided_latent_gradients, d_sae, *sums)
    return RowPass(errors, squared.sum(0), suffix[0], gradients)


def _stride(d_sae: int, k: int) -> int:
    """Returns the number of groups: enough that looking at the k best of them leaves out most of the row."""
    size = GROUP
    while size > 1 and -(-d_sae // size) < 2 * k:
        size //= 2
    return -(-d_sae // size)


def divide(loop: Callable[..., None], divided: Callable[..., None], n: int, *arguments: Any) -> None:
    """Runs a loop on all of range(n), divided among as many threads as torch uses where that pays."""
    threads = min(torch.get_num_threads(), n // MIN_SHARE)
    if threads <= 1:
        loop(0, n, *arguments)
    else:
        in_parts(divided, threads, n, *arguments)


def in_parts(divided: Callable[..., None], parts: int, n: int, *arguments: Any) -> None:
    """Runs a loop on `parts` ranges that make up range(n), on no more threads than torch uses."""
    import numba

    with _LOCK:  # not every threading layer of numba lets two callers in
        most = numba.config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
        numba.set_num_threads(min(parts, torch.get_num_threads(), most))
        divided(parts, n, *arguments)
