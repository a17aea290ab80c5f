"""Texts as single rows: what a model and an SAE hold of each text, averaged over its tokens.

Enters: a language model, SAEs, texts. Leaves: for each SAE every text's mean activation and mean codes, sparse.

Special tokens and padding are left out of the means. Decoding is linear in codes, so removing a latent from every token
and averaging is the same as removing its mean code from the mean activation (`Pooled.without`): what SAEBench computes
token by token for SCR and TPP takes no pass over tokens here. Values include the scale of SAEs that normalise each row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.buckets import length_groups
from activations.progress import progress
from sae.model import SAE

CONTEXT_TOKENS = 128


@dataclass(frozen=True)
class Pooled:
    """Texts as rows: mean activations, and mean codes as entries sorted by text."""

    x: Float[Tensor, "n d"]
    """Mean activation (of all sites side by side, where the SAE reads several)."""
    texts: Int[Tensor, " entries"]
    """Text of each entry."""
    latents: Int[Tensor, " entries"]
    """Latent of each entry."""
    values: Float[Tensor, " entries"]
    """Mean over the text's tokens of what the latent holds."""
    d_sae: int

    def columns(self, latents: Int[Tensor, " k"]) -> Float[Tensor, "n k"]:
        """Returns the mean codes of some latents as dense columns."""
        place = torch.full((self.d_sae,), -1, dtype=torch.int64)
        place[latents] = torch.arange(len(latents))
        at = place[self.latents]
        kept = at >= 0
        dense = torch.zeros(len(self.x), len(latents))
        dense[self.texts[kept], at[kept]] = self.values[kept]
        return dense

    def dense(self, chosen: Bool[Tensor, " n"]) -> Float[Tensor, "chosen d_sae"]:
        """Returns all mean codes of a few texts."""
        few = self[chosen]
        dense = torch.zeros(len(few.x), self.d_sae)
        dense[few.texts, few.latents] = few.values
        return dense

    def mean(self, chosen: Bool[Tensor, " n"]) -> Float[Tensor, " d_sae"]:
        """Returns each latent's mean over some texts."""
        kept = chosen[self.texts]
        sums = torch.zeros(self.d_sae, dtype=torch.float64)
        sums.index_add_(0, self.latents[kept], self.values[kept].double())
        return sums / max(1, int(chosen.sum()))

    def without(self, latents: Int[Tensor, " k"], W_dec: Float[Tensor, "d_sae d"]) -> Float[Tensor, "n d"]:
        """Returns the mean activations with some latents taken out of the reconstruction, its error kept."""
        return self.x - self.columns(latents) @ W_dec[latents].to(self.x)

    def __getitem__(self, chosen: Bool[Tensor, " n"]) -> Pooled:
        kept = chosen[self.texts]
        number = chosen.cumsum(0) - 1
        return Pooled(self.x[chosen], number[self.texts[kept]], self.latents[kept], self.values[kept], self.d_sae)


@torch.no_grad()
def pool_texts(
    lm: Any,
    saes: Mapping[str, SAE],
    texts: Sequence[str],
    *,
    context_tokens: int = CONTEXT_TOKENS,
    batch_texts: int = 32,
    pooling: Literal["mean", "max"] = "mean",
) -> dict[str, Pooled]:
    """Reads texts (each cut to `context_tokens`) once for all SAEs; returns them pooled, on the CPU.

    Texts of one length are read together, as many as have the tokens of `batch_texts` whole ones: nothing is padded.
    `pooling` says what a text holds of a latent: its mean over tokens, or its largest value (by size).
    `lm` is an `activations.LanguageModel`. A BOS stands before each text where the SAEs were trained with one.

    Raises:
        ValueError: SAEs that differ in whether a BOS stands before texts.
    """
    sites = sorted({site for sae in saes.values() for site in sae.sites})
    leads = {bool((sae.metadata.get("data") or {}).get("prepend_bos", False)) for sae in saes.values()}
    if len(leads) > 1:
        raise ValueError(
            "some of the SAEs were trained with a BOS and some without, expected one kind: pool them apart"
        )
    bos = lm.tokenizer.bos_token_id if leads == {True} else None
    gathered: dict[str, list[Pooled]] = {name: [] for name in saes}
    limit = min(context_tokens, lm.context_tokens)
    ids = [_with_bos(row, bos)[:limit] for row in lm.encode(list(texts))]
    order: list[int] = []
    with progress("labelled text", len(texts), "texts") as advance:
        for _, members in length_groups([len(row) for row in ids], batch_texts * limit):
            tokens = torch.tensor([ids[place] for place in members])
            at = lm.capture(tokens, None, sites)
            kept = ~torch.isin(tokens, torch.tensor(sorted(lm.special_ids)))
            for name, sae in saes.items():
                gathered[name].append(_pooled(sae, [at[site].flatten(2) for site in sae.sites], kept, pooling))
            order += members.tolist()
            advance(len(members))
    if not order:
        raise ValueError(f"the {len(ids)} texts hold no tokens, expected some: give texts that are not empty")
    return {name: _in_order(_joined(parts), order, len(ids)) for name, parts in gathered.items()}


@torch.no_grad()
def encoded_rows(sae: SAE, x: Float[Tensor, "n d_in"], batch_rows: int = 4096) -> Pooled:
    """Returns single rows in the same form: every row is a text of its own."""
    parts = []
    for part in x.split(batch_rows):
        alone = torch.ones(len(part), 1, dtype=torch.bool)
        parts.append(_pooled(sae, [part[:, None]], alone))
    return _joined(parts)


def _with_bos(ids: list[int], bos: int | None) -> list[int]:
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _pooled(sae: SAE, at: list[Tensor], kept: Tensor, pooling: str = "mean") -> Pooled:
    device = sae.W_dec.device
    rows = [value.float().to(device)[kept.to(device)] for value in at]
    owner = kept.nonzero()[:, 0].to(device)
    x = torch.stack(rows, 1) if sae.config.n_sites > 1 else rows[0]
    codes = sae.encode(x)
    counts = kept.sum(1).clamp(min=1).to(device)
    means = torch.zeros(len(kept), x[0].numel() if len(x) else sae.b_dec.numel(), device=device)
    means.index_add_(0, owner, x.flatten(1))
    row, slot = codes.active.nonzero(as_tuple=True)
    values = codes.values[row, slot]
    if codes.scale is not None:
        values = values * codes.scale[row]
    pairs, inverse = torch.unique(owner[row] * codes.d_sae + codes.indices[row, slot].long(), return_inverse=True)
    texts = pairs // codes.d_sae
    if pooling == "max":
        # of negative values the one of largest size counts, as everywhere
        highest = torch.zeros(len(pairs), device=device).scatter_reduce(0, inverse, values, "amax")
        lowest = torch.zeros(len(pairs), device=device).scatter_reduce(0, inverse, values, "amin")
        held = torch.where(-lowest > highest, lowest, highest)
    else:
        held = torch.zeros(len(pairs), device=device).index_add_(0, inverse, values) / counts[texts]
    return Pooled(
        (means / counts[:, None]).cpu(),
        texts.cpu(),
        (pairs % codes.d_sae).cpu(),
        held.cpu(),
        codes.d_sae,
    )


def _joined(parts: list[Pooled]) -> Pooled:
    starts = torch.tensor([0, *(len(part.x) for part in parts)]).cumsum(0).tolist()
    return Pooled(
        torch.cat([part.x for part in parts]),
        torch.cat([part.texts + start for part, start in zip(parts, starts, strict=False)]),
        torch.cat([part.latents for part in parts]),
        torch.cat([part.values for part in parts]),
        parts[0].d_sae,
    )


def _in_order(pooled: Pooled, order: list[int], n_texts: int) -> Pooled:
    """Puts texts that were read as `order` says where they were given; a text without tokens holds nothing."""
    number = torch.tensor(order)
    x = pooled.x.new_zeros(n_texts, pooled.x.shape[1])
    x[number] = pooled.x
    texts, entries = number[pooled.texts].sort(stable=True)
    return Pooled(x, texts, pooled.latents[entries], pooled.values[entries], pooled.d_sae)
