"""What a model loses without a component: every head, attention layer and MLP taken out by itself.

    ablate_components(lm, text, target=None, *, how="mean") -> ComponentAblation

Enters: a model, a text, a target (`activations.analyses.targets`). Leaves, for each component, m(text) − m(text with
the component replaced at all positions): positive where it helped the target. A head's values before the output
projection are set to their mean over the text's positions (`mean`: what varies with the token is lost, what is
constant stays), or to zero (`zero`: also what later parts rely on as a constant); attention layers and MLPs likewise
in what they write.

It misleads where others take over: a model that has two heads for one thing misses neither. One pass a component, heads
of a layer side by side in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.plain import to_json
from activations.analyses.targets import Metric, Target
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel

BATCH_TOKENS = 2048


@dataclass(frozen=True)
class ComponentAblation:
    """How much of the target's number each component makes."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    target: str
    how: str
    value: float
    """m(text), nothing taken out."""
    heads: Float[np.ndarray, "layers heads"]
    attention: Float[np.ndarray, " layers"]
    mlp: Float[np.ndarray, " layers"]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each component, the largest effect first."""
        records = [
            {"component": f"head {layer}.{head}", "kind": "head", "layer": layer, "effect": float(effect)}
            for layer, row in enumerate(self.heads)
            for head, effect in enumerate(row)
        ]
        for kind, effects in (("attention", self.attention), ("mlp", self.mlp)):
            records += [
                {"component": f"{kind} {layer}", "kind": kind, "layer": layer, "effect": float(effect)}
                for layer, effect in enumerate(effects)
            ]
        return sorted(records, key=lambda record: -abs(record["effect"]))

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def ablate_components(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    target: Target = None,
    *,
    how: str = "mean",
    contrast: str | int | None = None,
    position: int | None = None,
    measure: str = "logit",
) -> ComponentAblation:
    """Takes out each head, attention layer and MLP by itself.

    Raises:
        ValueError: an unknown `how`, and whatever the target refuses.
    """
    if how not in ("mean", "zero"):
        raise ValueError(f"how={how!r} is unknown, expected mean or zero: choose one of these")
    metric = Metric(lm, text, target, contrast=contrast, position=position, measure=measure)
    value = float(metric(metric.tokens))
    heads = lm.site_map.stacks[-1].heads
    effects = np.zeros((lm.n_layers, heads))
    whole = {kind: np.zeros(lm.n_layers) for kind in ("attn_out", "mlp_out")}
    size = max(1, BATCH_TOKENS // metric.tokens.shape[1])
    for layer in range(lm.n_layers):
        for start in range(0, heads, size):
            some = list(range(start, min(start + size, heads)))
            edits = {str(Site("head_out", layer)): _without_heads(some, how)}
            with lm.intervene(edits):
                left = metric(metric.tokens.expand(len(some), -1))
            effects[layer, some] = value - left.double().cpu().numpy()
        for kind, found in whole.items():
            with lm.intervene({str(Site(kind, layer)): lambda x: _replaced(x, how)}):
                found[layer] = value - float(metric(metric.tokens))
    ids = metric.tokens[0, : metric.count].tolist()
    return ComponentAblation(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(ids)),
        target=metric.name,
        how=how,
        value=value,
        heads=effects,
        attention=whole["attn_out"],
        mlp=whole["mlp_out"],
    )


def _without_heads(heads: list[int], how: str) -> Callable[[Tensor], Tensor]:
    """An edit that takes another head out of each row of a batch."""

    def edit(values: Tensor) -> Tensor:
        for row, head in enumerate(heads):
            values[row, :, head] = _replaced(values[row : row + 1, :, head], how)[0]
        return values

    return edit


def _replaced(values: Float[Tensor, "batch seq width"], how: str) -> Float[Tensor, "batch seq width"]:
    return torch.zeros_like(values) if how == "zero" else values.mean(1, keepdim=True).expand_as(values).clone()
