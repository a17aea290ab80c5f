"""Sequences of several lengths, computed without padding.

Enters: the lengths of sequences, or `TokenRows` of which some are padded. Leaves: groups of one length each, so that a
model computes real tokens only, needs no mask (kernels without one are faster), and gives each text what it would give
it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

if TYPE_CHECKING:
    from activations.model import LanguageModel

LengthGroup = tuple[int, Int[np.ndarray, " sequences"]]
"""A length, and the numbers of the sequences that have it."""


def length_groups(lengths: Sequence[int] | np.ndarray, batch_tokens: int) -> Iterator[LengthGroup]:
    """Yields groups of sequences of one length, longest first, each of at most `batch_tokens` tokens (or one sequence).

    Sequences without tokens are in none.
    """
    given = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-given, kind="stable")
    cuts = np.flatnonzero(np.diff(given[order])) + 1
    for members in np.split(order, cuts):
        length = int(given[members[0]]) if len(members) else 0
        if length:
            at_once = max(1, batch_tokens // length)
            for start in range(0, len(members), at_once):
                yield length, members[start : start + at_once]


def capture_tokens(
    lm: LanguageModel,
    tokens: Int[np.ndarray, "rows context"],
    mask: Bool[np.ndarray, "rows context"],
    wanted: Bool[np.ndarray, "rows context"],
    sites: Sequence[str],
) -> dict[str, Tensor]:
    """Returns the activations Float[n, d] of the `wanted` tokens in their order, by site, on the model's device.

    Rows without a wanted token are not run, and padding behind a row's last token is not either. Where `mask` has other
    gaps, rows are run whole and masked.
    """
    lengths = np.where(wanted.any(1), mask.sum(1), 0)
    at_ends = bool((mask == (np.arange(mask.shape[1]) < mask.sum(1)[:, None])).all())
    if not at_ends or bool((lengths == mask.shape[1]).all()):
        everything = torch.from_numpy(tokens.astype(np.int64))
        captured = lm.capture(everything, None if mask.all() else torch.from_numpy(mask), sites)
        return {site: _chosen(value, wanted) for site, value in captured.items()}
    place = wanted.ravel().cumsum().reshape(wanted.shape) - 1
    values: dict[str, Tensor] = {}
    for length, members in length_groups(lengths, mask.size):
        captured = lm.capture(torch.from_numpy(tokens[members, :length].astype(np.int64)), None, sites)
        here = wanted[members, :length]
        places = torch.from_numpy(place[members, :length][here]).to(lm.device)
        for site, value in captured.items():
            read = _chosen(value, here)
            if site not in values:
                values[site] = read.new_empty((int(wanted.sum()), read.shape[1]))
            values[site].index_copy_(0, places, read)
    return values or {site: torch.empty((0, lm.site_width(site)), device=lm.device, dtype=lm.dtype) for site in sites}


def _chosen(value: Tensor, wanted: np.ndarray) -> Tensor:
    flat = value.reshape(wanted.size, -1)
    if wanted.all():
        return flat
    return flat.index_select(0, torch.from_numpy(np.flatnonzero(wanted)).to(flat.device))
