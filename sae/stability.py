"""Stability: how much of one dictionary is found again in another of the same site.

Enters: two SAEs (other seeds, architectures, sizes). Leaves: `Stability`.

Latents are matched one to one by the cosine of their decoder rows: exactly (`sae.matching`, the assignment with the
largest sum) up to 4,096 latents on the smaller side; beyond, pairs that are each other's nearest row are taken out,
round after round, and what is left after 20 rounds counts 0. MCC is the mean of matched cosines over the smaller
dictionary (Paulo & Belrose 2025, "Sparse autoencoders trained on the same data learn different features", count the
share above 0.7). Dead latents keep the directions they started from: give `live` to leave them out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.evaluation import SIGNED_VALUES
from sae.geometry import nearest_rows, unit_rows
from sae.matching import assign
from sae.model import SAE

EXACT_LATENTS = 4096
ROUNDS = 20
EDGES = tuple(0.05 * step for step in range(21))


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How two dictionaries agree."""

    mcc: float
    """Mean cosine of matched decoder rows, unmatched ones counting 0."""
    encoder_mcc: float | None
    """Mean cosine of the encoder rows of the same pairs; None where their widths differ."""
    above_07: float
    """Share of matched pairs with a cosine above 0.7."""
    above_09: float
    """Share of matched pairs with a cosine above 0.9."""
    nearest: float
    """Mean cosine of a row of the smaller dictionary with its nearest in the other: an upper bound of MCC."""
    matched: int
    """Latents of the smaller dictionary that were to be matched."""
    method: Literal["assignment", "mutual nearest"]
    histogram: tuple[int, ...]
    """Pairs by cosine, in bins of 0.05 from 0 to 1 (the first takes what is below)."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record a figure: `metric`, `value`."""
        return [{"metric": name, "value": value} for name, value in asdict(self).items() if name != "histogram"]

    def to_json(self) -> dict[str, Any]:
        """Returns all figures, ready for JSON."""
        return asdict(self)


@torch.no_grad()
def compare(
    first: SAE,
    second: SAE,
    *,
    live: tuple[Bool[Tensor, " first"], Bool[Tensor, " second"]] | None = None,
    exact_latents: int = EXACT_LATENTS,
) -> Stability:
    """Matches the latents of two SAEs; `live` marks those that take part.

    Raises:
        ValueError: decoder rows of different width, or no live latent.
    """
    if first.W_dec.shape[1] != second.W_dec.shape[1]:
        raise ValueError(
            f"decoder rows are {first.W_dec.shape[1]} and {second.W_dec.shape[1]} wide, expected one width: compare "
            "SAEs of the same site"
        )
    masks = live or tuple(torch.ones(sae.config.d_sae, dtype=torch.bool) for sae in (first, second))
    pairs = sorted(zip((first, second), masks, strict=True), key=lambda pair: int(pair[1].sum()))
    (small, small_live), (large, large_live) = pairs
    if not small_live.any():
        raise ValueError("one of the SAEs has no live latent, expected some: evaluate it on more rows")
    signed = not {first.config.architecture, second.config.architecture} & set(SIGNED_VALUES)
    device = small.W_dec.device
    a, b = small.W_dec[small_live.to(device)], large.W_dec.to(device)[large_live.to(device)]
    is_exact = len(a) <= exact_latents
    partner = _assigned(a, b, signed) if is_exact else mutual_nearest(a, b, signed)
    matched = partner >= 0
    cosines = torch.zeros(len(a), device=device)
    cosines[matched] = (unit_rows(a)[matched] * unit_rows(b)[partner[matched]]).sum(1)
    encoders = None
    if small.W_enc.shape[1] == large.W_enc.shape[1]:
        left = unit_rows(small.W_enc[small_live.to(device)])
        right = unit_rows(large.W_enc.to(device)[large_live.to(device)])
        between = torch.zeros(len(a), device=device)
        between[matched] = (left[matched] * right[partner[matched]]).sum(1)
        encoders = float((between if signed else between.abs()).double().mean())
    cosines = cosines if signed else cosines.abs()
    inner = torch.tensor(EDGES[1:-1], device=device)
    return Stability(
        mcc=float(cosines.double().mean()),
        encoder_mcc=encoders,
        above_07=float((cosines > 0.7).double().mean()),
        above_09=float((cosines > 0.9).double().mean()),
        nearest=float(nearest_rows(a, b, signed=signed)[0].double().mean()),
        matched=len(a),
        method="assignment" if is_exact else "mutual nearest",
        histogram=tuple(torch.bincount(torch.bucketize(cosines, inner, right=True), minlength=20).tolist()),
    )


def _assigned(a: Tensor, b: Tensor, signed: bool) -> Tensor:
    cosines = unit_rows(a) @ unit_rows(b).T
    return assign(cosines if signed else cosines.abs()).to(a.device)


@torch.no_grad()
def mutual_nearest(a: Float[Tensor, "small d"], b: Float[Tensor, "large d"], signed: bool = True) -> Tensor:
    """Returns for each row of `a` its partner in `b` (−1 for none): mutual nearest pairs, found round after round."""
    partner = torch.full((len(a),), -1, dtype=torch.int64, device=a.device)
    left, right = torch.arange(len(a), device=a.device), torch.arange(len(b), device=a.device)
    for _ in range(ROUNDS):
        if not len(left) or not len(right):
            break
        forth = nearest_rows(a[left], b[right], signed=signed)[1]
        back = nearest_rows(b[right], a[left], signed=signed)[1]
        mutual = back[forth] == torch.arange(len(left), device=a.device)
        if not mutual.any():
            break
        partner[left[mutual]] = right[forth[mutual]]
        taken = torch.ones(len(right), dtype=torch.bool, device=a.device)
        taken[forth[mutual]] = False
        left, right = left[~mutual], right[taken]
    return partner
