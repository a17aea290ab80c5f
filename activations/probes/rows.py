"""Texts as rows for probes: what a model holds of each text at several sites, from one pass.

Enters: a model, texts, sites. Leaves: Float[n, d] by site, on the CPU, in float32 at least.

A text is its mean over tokens (`mean`), its last token (`last`) or, for each element, its largest value (`max`).
Special tokens are left out of all three. Texts are cut to `context_tokens`; those of one length are read together, so
that nothing is padded. Heads (`head_out.L`) stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.buckets import length_groups
from activations.progress import progress
from activations.state_cache import StateCache

if TYPE_CHECKING:
    from activations.model import LanguageModel

POOLINGS = ("mean", "last", "max")
CONTEXT_TOKENS = 128
BATCH_TOKENS = 4096


def text_rows(
    lm: LanguageModel,
    texts: Sequence[str],
    sites: Sequence[str],
    *,
    pooling: str = "mean",
    context_tokens: int = CONTEXT_TOKENS,
    cache: StateCache | None = None,
) -> dict[str, Float[Tensor, "n d"]]:
    """Reads `texts` at `sites`; with a `cache`, texts that it knows are not read again.

    Raises:
        ValueError: no texts or sites, a text without tokens, an unknown pooling or site.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling={pooling!r} is unknown, expected one of {', '.join(POOLINGS)}: choose one of these")
    if not texts or not sites:
        what = "texts" if not texts else "sites"
        raise ValueError(f"got no {what}, expected at least one: give some")
    if context_tokens < 1:
        raise ValueError(f"context_tokens={context_tokens}, expected at least 1: raise it")
    for site in sites:
        lm.site_map.binding(site)
    limit = min(context_tokens, lm.context_tokens)
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    ids = [row[:limit] for row in lm.encode(clean)]
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.long)
    for number, row in enumerate(ids):
        if not any(each not in lm.special_ids for each in row):
            raise ValueError(f"text {number} ({texts[number][:20]!r}) has no tokens, expected some: leave it out")
    names = {site: [(site, pooling, tuple(row)) for row in ids] for site in sites}
    shelf = None if cache is None else cache.of(lm)
    found = {site: [None if shelf is None else shelf.recall(name) for name in names[site]] for site in sites}
    missing = [number for number in range(len(ids)) if any(found[site][number] is None for site in sites)]
    with progress("Read", len(missing), "texts") as advance:
        for _, members in length_groups([len(ids[number]) for number in missing], BATCH_TOKENS):
            chosen = [missing[place] for place in members.tolist()]
            tokens = torch.tensor([ids[number] for number in chosen])
            kept = ~torch.isin(tokens, special)
            for site, values in lm.capture(tokens, None, list(sites)).items():
                pooled = _pooled(values.flatten(2), kept.to(values.device), pooling).cpu()
                for number, row in zip(chosen, pooled, strict=True):
                    found[site][number] = row
                    if shelf is not None:
                        shelf.keep(names[site][number], row)
            advance(len(chosen))
    return {site: torch.stack([row for row in rows if row is not None]) for site, rows in found.items()}


def _pooled(
    values: Float[Tensor, "batch seq d"], kept: Bool[Tensor, "batch seq"], pooling: str
) -> Float[Tensor, "batch d"]:
    values = values if values.dtype == torch.float64 else values.float()
    if pooling == "mean":
        weights = kept.to(values.dtype)[:, :, None]
        return (values * weights).sum(1) / weights.sum(1)
    if pooling == "max":
        return values.masked_fill(~kept[:, :, None], -torch.inf).amax(1)
    place = torch.where(kept, torch.arange(kept.shape[1], device=kept.device), -1).amax(1)
    return values[torch.arange(len(values), device=values.device), place]
