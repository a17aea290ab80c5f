"""Where the difference between two texts is carried: activation patching.

    patch_activations(lm, clean, corrupt, target=None, *, contrast=None, direction="denoise") -> ActivationPatching

Enters: two texts of equally many tokens that make the model say different things. Leaves, for each layer and position,
the share of the difference that comes back when the activation there is taken from the other text:

    effect = (m_patched − m_base) / (m_source − m_base)

`denoise` runs the corrupt text and takes activations from the clean one (what is enough to restore); `noise` runs the
clean text and takes them from the corrupt one (what is needed). 1 is all of the difference, 0 nothing, and values
outside of 0 to 1 are possible. Places: the stream that enters a layer, what its attention and its MLP write (layer ×
position), and each head at all positions.

By default the target is what the model says on the clean text, less what it says on the corrupt one. It misleads where
the texts differ in more than is asked about, and where parts back each other up.

Source: Vig et al. 2020; Meng et al. 2022 (2202.05262); Heimersheim and Nanda 2024 (2404.15255).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.inputs import tokens_of
from activations.analyses.plain import to_json
from activations.analyses.targets import Metric, Target
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel

KINDS = ("resid_pre", "attn_out", "mlp_out")
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class ActivationPatching:
    """Shares of the difference between two texts, by place."""

    model: str
    clean: str
    corrupt: str
    tokens: tuple[str, ...]
    """Of the clean text."""
    corrupt_tokens: tuple[str, ...]
    target: str
    direction: str
    clean_value: float
    corrupt_value: float
    effects: dict[str, Float[np.ndarray, "layers tokens"]]
    """By kind of site: `resid_pre`, `attn_out`, `mlp_out`."""
    heads: Float[np.ndarray, "layers heads"]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each place, the largest effect first."""
        records = [
            {
                "site": f"{kind}.{layer}",
                "head": None,
                "position": position,
                "token": token,
                "effect": float(values[layer, position]),
            }
            for kind, values in self.effects.items()
            for layer in range(len(values))
            for position, token in enumerate(self.tokens)
        ]
        records += [
            {"site": f"head_out.{layer}", "head": head, "position": None, "token": None, "effect": float(effect)}
            for layer, row in enumerate(self.heads)
            for head, effect in enumerate(row)
        ]
        return sorted(records, key=lambda record: -abs(record["effect"]))

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def patch_activations(
    lm: LanguageModel,
    clean: str,
    corrupt: str,
    target: Target = None,
    *,
    contrast: str | int | None = None,
    direction: str = "denoise",
    position: int | None = None,
    measure: str = "logit",
) -> ActivationPatching:
    """Patches every layer and position, and every head.

    Raises:
        ValueError: texts of different lengths, a target that does not tell them apart, an unknown direction, and
            whatever the target refuses.
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction {direction!r} is unknown, expected denoise or noise: choose one of these")
    other = tokens_of(lm, corrupt)
    metric = Metric(
        lm,
        clean,
        target,
        contrast=_contrast(lm, clean, corrupt, target, contrast, position),
        position=position,
        measure=measure,
    )
    if other.shape[1] != metric.count:
        raise ValueError(
            f"the texts have {metric.count} and {other.shape[1]} tokens, expected equally many: change words for words "
            "of as many tokens"
        )
    swapped = torch.cat([other, metric.tokens[:, metric.count :]], dim=1)
    values = [float(metric(tokens)) for tokens in (metric.tokens, swapped)]
    if abs(values[0] - values[1]) <= 1e-6 * (1 + abs(values[0])):
        raise ValueError(
            f"the {metric.name} is {values[0]:.4g} for both texts, expected a difference to explain: choose another "
            "target, or other texts"
        )
    base, source = (swapped, metric.tokens) if direction == "denoise" else (metric.tokens, swapped)
    start, span = (values[1], values[0] - values[1]) if direction == "denoise" else (values[0], values[1] - values[0])
    sites = [str(Site(kind, layer)) for layer in range(lm.n_layers) for kind in (*KINDS, "head_out")]
    kept = lm.capture(source, None, sites)
    heads = lm.site_map.stacks[-1].heads
    effects = {kind: np.zeros((lm.n_layers, metric.count)) for kind in KINDS}
    by_head = np.zeros((lm.n_layers, heads))

    def measured(site: str, edit: Callable[[Tensor], Tensor], rows: int) -> np.ndarray:
        with lm.intervene({site: edit}):
            return (metric(base.expand(rows, -1)).double().cpu().numpy() - start) / span

    size = max(1, BATCH_TOKENS // base.shape[1])
    for layer in range(lm.n_layers):
        for kind in KINDS:
            site = str(Site(kind, layer))
            for group in _groups(metric.count, size):
                edit = _at_positions(kept[site], group)
                effects[kind][layer, group] = measured(site, edit, len(group))
        site = str(Site("head_out", layer))
        for group in _groups(heads, size):
            by_head[layer, group] = measured(site, _at_heads(kept[site], group), len(group))
    return ActivationPatching(
        model=lm.name,
        clean=clean,
        corrupt=corrupt,
        tokens=tuple(lm.token_strings(metric.tokens[0, : metric.count])),
        corrupt_tokens=tuple(lm.token_strings(other[0])),
        target=metric.name,
        direction=direction,
        clean_value=values[0],
        corrupt_value=values[1],
        effects=effects,
        heads=by_head,
    )


def _contrast(
    lm: LanguageModel, clean: str, corrupt: str, target: Target, contrast: str | int | None, position: int | None
) -> str | int | None:
    """What the model says on the corrupt text, where nobody says what to ask for and it says something else."""
    if contrast is not None or target is not None or Metric(lm, clean, position=position).is_classifier:
        return contrast
    said = [Metric(lm, text, position=position).token for text in (clean, corrupt)]
    return said[1] if said[0] != said[1] else None


def _groups(count: int, size: int) -> list[list[int]]:
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def _at_positions(source: Tensor, positions: list[int]) -> Callable[[Tensor], Tensor]:
    """An edit that puts another position of the source into each row of a batch."""

    def edit(values: Tensor) -> Tensor:
        values[range(len(positions)), positions] = source[0, positions].to(values)
        return values

    return edit


def _at_heads(source: Tensor, heads: list[int]) -> Callable[[Tensor], Tensor]:
    def edit(values: Tensor) -> Tensor:
        for row, head in enumerate(heads):
            values[row, :, head] = source[0, :, head].to(values)
        return values

    return edit
