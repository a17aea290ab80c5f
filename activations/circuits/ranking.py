"""Which components matter on a task, with how sure that is: exact patching over many pairs.

    critical_components(lm, pairs, *, direction="denoise", draws=1000) -> CriticalComponents

Enters: a task's pairs. Leaves, for each head, attention layer and MLP, the mean effect of taking its activations (all
positions) from the other text, an interval over resampled pairs, the interval of its rank, and how often it is among
the first `top` when pairs are drawn again. One pass a component over all pairs.

It misleads where pairs are few or alike: the interval is over the pairs that were given, not over texts as such.

Source: Efron 1979 on the bootstrap; Wang et al. 2022 (2211.00593) for patching over a set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.plain import to_json
from activations.circuits.graph import ComponentGraph
from activations.circuits.pairs import PairSet
from activations.circuits.prepared import Prepared
from activations.progress import progress
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class CriticalComponents:
    """Components by how much of the task they carry."""

    model: str
    task: str
    direction: str
    pairs: int
    draws: int
    top: int
    components: tuple[str, ...]
    effects: Float[np.ndarray, "components pairs"]
    """Of each pair, in shares of the mean difference between the texts."""
    low: Float[np.ndarray, " components"]
    high: Float[np.ndarray, " components"]
    """95 % interval of the mean effect over resampled pairs."""
    rank_low: Float[np.ndarray, " components"]
    rank_high: Float[np.ndarray, " components"]
    """95 % interval of the rank by absolute effect, 1 the largest."""
    in_top: Float[np.ndarray, " components"]
    """Share of draws in which it is among the first `top`."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each component, the largest absolute mean effect first."""
        means = self.effects.mean(1)
        return [
            {
                "component": self.components[index],
                "effect": float(means[index]),
                "low": float(self.low[index]),
                "high": float(self.high[index]),
                "rank_low": int(self.rank_low[index]),
                "rank_high": int(self.rank_high[index]),
                "in_top": float(self.in_top[index]),
            }
            for index in np.argsort(-np.abs(means), kind="stable")
        ]

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def critical_components(
    lm: LanguageModel,
    pairs: PairSet,
    *,
    direction: str = "denoise",
    top: int = 5,
    draws: int = 1000,
    seed: int = 0,
) -> CriticalComponents:
    """Patches every head, attention layer and MLP over all pairs, and resamples the pairs.

    Raises:
        ValueError: an unknown direction, fewer than two pairs, a model without a graph of components.
    """
    if direction not in ("denoise", "noise") or len(pairs) < 2 or top < 1 or draws < 1:
        raise ValueError(
            f"got direction={direction!r}, {len(pairs)} pairs, top={top}, draws={draws}, expected denoise or noise, "
            "two pairs or more, and numbers of at least 1: choose others"
        )
    graph = ComponentGraph(lm)
    prepared = Prepared(graph, pairs)
    is_denoise = direction == "denoise"
    places = [
        (f"head {layer}.{head}", "head_out", layer, head)
        for layer in range(graph.layers)
        for head in range(graph.heads)
    ]
    places += [(f"attention {layer}", "attn_out", layer, None) for layer in range(graph.layers)]
    places += [(f"mlp {layer}", "mlp_out", layer, None) for layer in range(graph.layers)]
    start = prepared.corrupt if is_denoise else prepared.clean
    span = prepared.span if is_denoise else -prepared.span
    sites = list(dict.fromkeys(str(Site(kind, layer)) for _, kind, layer, _ in places))
    parts = []
    with progress("Patch components", len(places) * len(prepared.batches), "passes") as advance:
        for batch in prepared.batches:
            base, source = (batch.corrupt, batch.clean) if is_denoise else (batch.clean, batch.corrupt)
            kept = lm.capture(source, None, sites)
            rows = []
            for name, kind, layer, head in places:
                site = str(Site(kind, layer))

                def edit(x: Tensor, site: str = site, head: int | None = head, kept: Any = kept) -> Tensor:
                    if head is None:
                        return kept[site].clone()
                    x[:, :, head] = kept[site][:, :, head]
                    return x

                with lm.intervene({site: edit}):
                    rows.append(prepared.value(batch, lm.capture(base, None, [lm.final_site])[lm.final_site]))
                advance(1, name)
            parts.append(np.stack(rows))
    effects = (np.concatenate(parts, axis=1) - start) / span
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(draws, len(pairs)))
    means = effects[:, drawn].mean(2)
    ranks = np.argsort(np.argsort(-np.abs(means), axis=0, kind="stable"), axis=0) + 1.0
    return CriticalComponents(
        model=lm.name,
        task=pairs.name,
        direction=direction,
        pairs=len(pairs),
        draws=draws,
        top=top,
        components=tuple(name for name, *_ in places),
        effects=effects,
        low=np.quantile(means, 0.025, axis=1),
        high=np.quantile(means, 0.975, axis=1),
        rank_low=np.quantile(ranks, 0.025, axis=1),
        rank_high=np.quantile(ranks, 0.975, axis=1),
        in_top=(ranks <= top).mean(1),
    )
