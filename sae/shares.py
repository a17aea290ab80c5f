"""Figures of a whole batch and of a whole dictionary, of which this process may hold a part.

A loss that is normalised by the batch's variance, or keeps the largest values of a batch, couples its rows; a
reconstruction, or the k largest of a row, couples the latents. Where several processes hold a part of the rows
(`rows_divided`) or of the latents (`latents_divided`), the functions here give the figures of all parts together, for
the length of a step. Divided rows: losses and gradients add up over the processes to those of the whole batch. Divided
latents: losses are the whole ones, gradients those of the latents at hand. Alone, each function is what it says of
what is at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae import selection
from sae.sparse import RaggedCodes

SURPLUS, SPARE = 1.3, 64  # of the largest values that a share gives before it is asked for more


@runtime_checkable
class Sharers(Protocol):
    """Processes that hold shares of one batch (`activations.processes.Processes`)."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def sum(self, *tensors: Tensor) -> None: ...

    def gather(self, tensor: Tensor) -> list[Tensor]: ...


class _Sharing(NamedTuple):
    sharers: Sharers
    rows: int | None
    """Rows of the whole batch; None where they must be counted."""
    first_latent: int | None
    """The first of the latents that this process holds; None where it holds all."""


_sharing: ContextVar[_Sharing | None] = ContextVar("sharing", default=None)


@contextmanager
def rows_divided(sharers: Sharers, rows: int | None) -> Iterator[None]:
    """Within the block, rows are part of a batch of `rows`; None where they must be counted."""
    token = _sharing.set(_Sharing(sharers, rows, None))
    try:
        yield
    finally:
        _sharing.reset(token)


@contextmanager
def latents_divided(sharers: Sharers, first: int) -> Iterator[None]:
    """Within the block, latents are those from `first` on of a larger dictionary, and batches are whole."""
    token = _sharing.set(_Sharing(sharers, None, first))
    try:
        yield
    finally:
        _sharing.reset(token)


def _of_rows() -> _Sharing | None:
    sharing = _sharing.get()
    return sharing if sharing is not None and sharing.first_latent is None else None


def _of_latents() -> _Sharing | None:
    sharing = _sharing.get()
    return sharing if sharing is not None and sharing.first_latent is not None else None


def first_latent() -> int | None:
    """Returns the first of the latents that this process holds; None where it holds all."""
    sharing = _of_latents()
    return None if sharing is None else sharing.first_latent


def over_rows(figure: Tensor) -> Tensor:
    """Returns the sum of a figure over all parts of the rows; it takes the place of the figure given."""
    if (sharing := _of_rows()) is not None:
        sharing.sharers.sum(figure)
    return figure


def over_latents(figure: Tensor) -> Tensor:
    """Returns the sum of a figure over all parts of the latents; it takes the place of the figure given."""
    if (sharing := _of_latents()) is not None:
        sharing.sharers.sum(figure)
    return figure


def batch_rows(share: Float[Tensor, "n ..."]) -> int:
    """Returns how many rows the whole batch has."""
    sharing = _of_rows()
    if sharing is None:
        return len(share)
    if sharing.rows is not None:
        return sharing.rows
    return int(over_rows(torch.tensor(len(share), device=share.device)))


def share_of_mean(of_rows: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Returns what these rows add to the mean over the whole batch; differentiable."""
    if _of_rows() is None:
        return of_rows.mean()
    return of_rows.sum() / batch_rows(of_rows)


def batch_mean(y: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Returns the mean row of the whole batch."""
    return y.mean(0) if _of_rows() is None else over_rows(y.sum(0)) / batch_rows(y)


def total_variance(y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Returns Σ‖y − ȳ‖² over the whole batch, kept above zero: a constant batch has no variance to explain, and its
    loss stays finite.
    """
    limits = torch.finfo(y.dtype)
    about_mean, about_zero = over_rows(torch.stack([_squares(y - batch_mean(y)), _squares(y)]))
    return torch.maximum(about_mean, limits.eps * about_zero + limits.tiny)


def _squares(y: Tensor) -> Float[Tensor, ""]:
    return torch.linalg.vector_norm(y).square()


@torch.no_grad()
def strongest_of_rows(
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    is_signed: bool = False,
) -> RaggedCodes:
    """Returns the `k` strongest latents of every row, as far as this process holds them.

    Each part of the latents gives its own k strongest, among which the k of all are.
    """
    choose = selection.largest_latents if is_signed else selection.strongest_latents
    sharing = _of_latents()
    if sharing is None:
        return RaggedCodes.of(*choose(centred, W_enc, b_enc, k))
    given = min(k, len(W_enc))
    values, indices = choose(centred, W_enc, b_enc, given) if given else (centred.new_empty(len(centred), 0),) * 2
    sizes = torch.nn.functional.pad(values.abs(), (0, k - given))
    every = torch.cat(sharing.sharers.gather(sizes), dim=1)
    chosen = torch.zeros_like(every, dtype=torch.bool).scatter_(1, every.topk(k, dim=1, sorted=False).indices, True)
    own = chosen[:, sharing.sharers.rank * k :][:, :given] & (values != 0)
    rows, places = own.nonzero(as_tuple=True)
    return RaggedCodes.of_rows(rows, len(centred), indices[rows, places].long(), values[rows, places])


class Chosen(NamedTuple):
    """Codes of this process's rows and latents, and the smallest value of all that were kept (None of none)."""

    codes: RaggedCodes
    smallest: Float[Tensor, ""] | None


@torch.no_grad()
def strongest_of_batch(
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    guess: Float[Tensor, ""] | None = None,
) -> Chosen:
    """Returns this process's part of the `k` largest positive pre-activations a row that the whole batch has on
    average; as `selection.strongest_of_batch` on the whole batch, where `guess` is explained.

    Each share gives a little more than its part. Where one had nothing to spare it may have kept back a value that
    belongs to the largest, and all give as much as the whole batch may take.
    """
    count = k * batch_rows(centred)
    sharing = _sharing.get()
    if sharing is None:
        codes = selection.strongest_of_batch(centred, W_enc, b_enc, count, guess)
        # places to spare hold 0; infinity says that all are spare
        kept = torch.where(codes.values > 0, codes.values, torch.inf)
        return Chosen(codes, kept.min() if len(kept) else None)
    tried = min(count, math.ceil(SURPLUS * count / sharing.sharers.world) + SPARE)
    while True:
        codes = _without_spare(selection.strongest_of_batch(centred, W_enc, b_enc, tried, guess))
        every = _every(codes.values, tried, sharing.sharers)
        smallest = _smallest(every, count)
        if tried == count or not bool((every.amin(1) > smallest).any()):
            return _kept(codes, every, smallest, count, sharing.sharers.rank)
        tried = count


def _without_spare(codes: RaggedCodes) -> RaggedCodes:
    """Returns codes without the places that a GPU's selection leaves at the end."""
    end = int(codes.starts[-1])
    return RaggedCodes(codes.starts, codes.indices[:end], codes.values[:end])


def _every(values: Tensor, count: int, sharers: Sharers) -> Float[Tensor, "world count"]:
    """Returns the values of all shares, each filled up with zeros to `count`."""
    return torch.stack(sharers.gather(torch.nn.functional.pad(values, (0, count - len(values)))))


def _smallest(every: Tensor, count: int) -> Float[Tensor, ""]:
    return every.flatten().topk(min(count, every.numel()), sorted=False).values.min()


def _kept(codes: RaggedCodes, every: Tensor, smallest: Tensor, count: int, rank: int) -> Chosen:
    level = (codes.values == smallest) & (codes.values > 0)
    # of ties those in the first rows are kept, and the first process has the first rows
    room = count - (every > smallest).sum() - (every[:rank] == smallest).sum()
    kept = (codes.values > smallest) | (level & (level.cumsum(0) <= room))
    chosen = RaggedCodes.of_rows(codes.rows()[kept], codes.n_rows, codes.indices[kept], codes.values[kept])
    positive = every[(every >= smallest) & (every > 0)]
    return Chosen(chosen, positive.min() if len(positive) else None)


def smallest_of_largest(pre: Float[Tensor, "n latents"], k: int) -> Float[Tensor, ""]:
    """Returns the smallest of the `k` largest values a row that the whole batch has on average."""
    count, flat = k * batch_rows(pre), pre.detach().flatten()
    if (sharing := _sharing.get()) is None:
        return flat.topk(count, sorted=False).values.min()
    largest = flat.topk(min(count, flat.numel()), sorted=False).values
    return _smallest(_every(largest.clamp(min=0), count, sharing.sharers), count)
