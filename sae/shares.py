"""Figures of a whole batch, of which this process may hold a share.

A loss that is normalised by the batch's variance, or keeps the largest values of a batch, couples its rows. Where
several processes hold a share of the rows each, `shared` says so for the length of a step, and the figures here are
those of all shares together. Losses and gradients then add up over the processes to those of the whole batch. Alone,
each function is what it says of the rows at hand.
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


_sharing: ContextVar[_Sharing | None] = ContextVar("sharing", default=None)


@contextmanager
def shared(sharers: Sharers, rows: int | None) -> Iterator[None]:
    """Within the block, rows are a share of a batch of `rows`; None where shares must be counted."""
    token = _sharing.set(_Sharing(sharers, rows))
    try:
        yield
    finally:
        _sharing.reset(token)


def over_shares(figure: Tensor) -> Tensor:
    """Returns the sum of a figure over all shares; it takes the place of the figure given."""
    if (sharing := _sharing.get()) is not None:
        sharing.sharers.sum(figure)
    return figure


def batch_rows(share: Float[Tensor, "n ..."]) -> int:
    """Returns how many rows the whole batch has."""
    sharing = _sharing.get()
    if sharing is None:
        return len(share)
    if sharing.rows is not None:
        return sharing.rows
    return int(over_shares(torch.tensor(len(share), device=share.device)))


def share_of_mean(of_rows: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Returns what these rows add to the mean over the whole batch; differentiable."""
    if _sharing.get() is None:
        return of_rows.mean()
    return of_rows.sum() / batch_rows(of_rows)


def batch_mean(y: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Returns the mean row of the whole batch."""
    return y.mean(0) if _sharing.get() is None else over_shares(y.sum(0)) / batch_rows(y)


def total_variance(y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Returns Σ‖y − ȳ‖² over the whole batch, kept above zero: a constant batch has no variance to explain, and its
    loss stays finite.
    """
    limits = torch.finfo(y.dtype)
    about_mean, about_zero = over_shares(torch.stack([(y - batch_mean(y)).pow(2).sum(), y.pow(2).sum()]))
    return torch.maximum(about_mean, limits.eps * about_zero + limits.tiny)


class Chosen(NamedTuple):
    """Codes of this process's rows, and the smallest value that the whole batch kept (None where it kept none)."""

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
        return Chosen(codes, codes.values.min() if len(codes.values) else None)
    tried = min(count, math.ceil(SURPLUS * count / sharing.sharers.world) + SPARE)
    while True:
        codes = selection.strongest_of_batch(centred, W_enc, b_enc, tried, guess)
        every = _every(codes.values, tried, sharing.sharers)
        smallest = _smallest(every, count)
        if tried == count or not bool((every.amin(1) > smallest).any()):
            return _kept(codes, every, smallest, count, sharing.sharers.rank)
        tried = count


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
