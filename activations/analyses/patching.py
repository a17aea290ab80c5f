"""Where the difference between two texts is carried: activation patching.

    patch_activations(lm, clean, corrupt, target=None, *, direction="denoise", sites=…, …) -> ActivationPatching

Enters: two texts of equally many tokens that make the model say different things. Leaves, place by place, the share of
the difference that comes back when the activation there is taken from the other text:

    effect = (m_patched − m_base) / (m_source − m_base)

`denoise` runs the corrupt text and takes activations from the clean one (what is enough to restore); `noise` runs the
clean text and takes them from the corrupt one (what is needed). 1 is all of the difference, 0 nothing, and values
outside of 0 to 1 are possible. Places, named in `sites`:

    embed, resid_pre, resid_mid, resid_post, attn_out, mlp_out, mlp_act    layer × position
    head_out                                                              layer × head, at all positions
    head_positions                                                        layer × head × position
    query, key, value, pattern                                            layer × head, at all positions

and single neurons of an MLP, all positions together: the `neurons` that attribution patching ranks first, patched.
Keys and values have one entry for each group of heads that shares them.

By default the target is what the model says on the clean text, less what it says on the corrupt one. It misleads where
the texts differ in more than is asked about, and where parts back each other up.

Source: Vig et al. 2020; Meng et al. 2022 (2202.05262); Heimersheim and Nanda 2024 (2404.15255).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.plain import to_json
from activations.analyses.targets import Target
from activations.analyses.two_texts import TwoTexts
from activations.attention import AttentionCall, attention_as
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel

DEFAULT_SITES = ("resid_pre", "attn_out", "mlp_out", "head_out")
BY_POSITION = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_act")
INSIDE_ATTENTION = ("query", "key", "value", "pattern")
SITES = (*BY_POSITION, "head_out", "head_positions", *INSIDE_ATTENTION)


@dataclass(frozen=True)
class NeuronEffect:
    """One neuron, patched at all positions."""

    layer: int
    neuron: int
    effect: float
    estimate: float
    """What attribution patching expected."""


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
    effects: dict[str, Float[np.ndarray, "_layers tokens"]]
    """By kind of site, of those asked for; `embed` has one row."""
    heads: Float[np.ndarray, "layers _heads"]
    """Without columns where heads were not asked for."""
    head_positions: Float[np.ndarray, "layers heads tokens"] | None = None
    attention: dict[str, Float[np.ndarray, "layers _heads"]] = field(default_factory=dict)
    """`query`, `key`, `value`, `pattern`, of those asked for."""
    neurons: tuple[NeuronEffect, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each place, the largest effect first."""

        def record(site: str, effect: float, head: int | None = None, position: int | None = None) -> dict[str, Any]:
            token = None if position is None else self.tokens[position]
            return {"site": site, "head": head, "position": position, "token": token, "effect": float(effect)}

        records = [
            record("embed" if kind == "embed" else f"{kind}.{layer}", effect, position=position)
            for kind, values in self.effects.items()
            for layer, row in enumerate(values)
            for position, effect in enumerate(row)
        ]
        tables = {"head_out": self.heads, **self.attention}
        records += [
            record(f"{kind}.{layer}", effect, head=head)
            for kind, values in tables.items()
            for layer, row in enumerate(values)
            for head, effect in enumerate(row)
        ]
        if self.head_positions is not None:
            records += [
                record(f"head_out.{layer}", float(self.head_positions[layer, head, position]), head, position)
                for layer, head, position in np.ndindex(self.head_positions.shape)
            ]
        records += [record(f"mlp_act.{each.layer}[{each.neuron}]", each.effect) for each in self.neurons]
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
    sites: Sequence[str] = DEFAULT_SITES,
    neurons: int = 0,
) -> ActivationPatching:
    """Patches every place of `sites`, one at a time, and the `neurons` single neurons that promise most.

    Raises:
        ValueError: texts of different lengths, a target that does not tell them apart, an unknown direction or site,
            a site that the model does not have, and whatever the target refuses.
    """
    unknown = [name for name in sites if name not in SITES]
    if unknown or neurons < 0 or not (sites or neurons):
        got = f"site {unknown[0]!r}" if unknown else f"sites={tuple(sites)} and neurons={neurons}"
        raise ValueError(f"got {got}, expected some of {', '.join(SITES)}: choose among these")
    if "resid_mid" in sites or "mlp_act" in sites:
        for kind in {"resid_mid", "mlp_act"} & set(sites):
            lm.site_map.binding(f"{kind}.0")
    texts = TwoTexts(
        lm, clean, corrupt, target, contrast=contrast, direction=direction, position=position, measure=measure
    )
    kinds = [kind for kind in BY_POSITION if kind in sites]
    has_heads = bool({"head_out", "head_positions"} & set(sites))
    wanted = [name for kind in kinds for name in _names(lm, kind)] + (_names(lm, "head_out") if has_heads else [])
    kept = lm.capture(texts.source, None, wanted) if wanted else {}
    count, heads = texts.metric.count, lm.site_map.stacks[-1].heads
    effects = {kind: _by_position(texts, _names(lm, kind), kept) for kind in kinds}
    by_head = np.zeros((lm.n_layers, heads if "head_out" in sites else 0))
    placed = np.zeros((lm.n_layers, heads, count)) if "head_positions" in sites else None
    for layer, site in enumerate(_names(lm, "head_out") if has_heads else []):
        if "head_out" in sites:
            for group in texts.groups(heads):
                by_head[layer, group] = texts.edited(site, _at_heads(kept[site], group), len(group))
        if placed is not None:
            flat = placed[layer].reshape(-1)
            for group in texts.groups(heads * count):
                edit = _at_heads_and_positions(kept[site], group, count)
                flat[group] = texts.edited(site, edit, len(group))
    inside = [kind for kind in INSIDE_ATTENTION if kind in sites]
    return ActivationPatching(
        **texts.facts,  # pyright: ignore[reportArgumentType]
        effects=effects,
        heads=by_head,
        head_positions=placed,
        attention=_inside_attention(texts, inside) if inside else {},
        neurons=_neurons(texts, neurons) if neurons else (),
    )


def _names(lm: LanguageModel, kind: str) -> list[str]:
    return ["embed"] if kind == "embed" else [str(Site(kind, layer)) for layer in range(lm.n_layers)]


def _by_position(texts: TwoTexts, names: list[str], kept: dict[str, Tensor]) -> Float[np.ndarray, "layers tokens"]:
    found = np.zeros((len(names), texts.metric.count))
    for row, site in enumerate(names):
        for group in texts.groups(texts.metric.count):
            found[row, group] = texts.edited(site, _at_positions(kept[site], group), len(group))
    return found


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


def _at_heads_and_positions(source: Tensor, places: list[int], count: int) -> Callable[[Tensor], Tensor]:
    """`places` count positions within heads."""

    def edit(values: Tensor) -> Tensor:
        for row, place in enumerate(places):
            head, position = divmod(place, count)
            values[row, position, head] = source[0, position, head].to(values)
        return values

    return edit


def attention_of(texts: TwoTexts, tokens: Tensor) -> list[dict[str, Tensor]]:
    """Returns, for each layer, what a text's attention computes: query, key, value (heads second) and pattern."""
    seen: dict[int, dict[str, Tensor]] = {}

    def keep(call: AttentionCall) -> tuple[Tensor, Tensor]:
        out, pattern = call.compute(call.query, call.key, call.value)
        seen[call.layer] = {"query": call.query, "key": call.key, "value": call.value, "pattern": pattern}
        return out, pattern

    with torch.no_grad(), attention_as(texts.lm, keep):
        texts.lm.forward(tokens)
    return [seen[layer] for layer in range(texts.lm.n_layers)]


def _inside_attention(texts: TwoTexts, kinds: list[str]) -> dict[str, Float[np.ndarray, "layers _heads"]]:
    source = attention_of(texts, texts.source)
    found = {kind: np.zeros((texts.lm.n_layers, source[0][kind].shape[1])) for kind in kinds}
    for kind, values in found.items():
        for layer in range(len(values)):
            for group in texts.groups(values.shape[1]):
                with attention_as(texts.lm, _taken(kind, layer, source[layer][kind], group)):
                    values[layer, group] = texts.shares(len(group))
    return found


def _taken(kind: str, layer: int, source: Tensor, heads: list[int]) -> Callable[[AttentionCall], tuple[Tensor, Tensor]]:
    """A handler that takes one part of another head from the source in each row of a batch."""

    def put(values: Tensor) -> Tensor:
        values = values.clone()
        for row, head in enumerate(heads):
            values[row, head] = source[0, head].to(values)
        return values

    def handle(call: AttentionCall) -> tuple[Tensor, Tensor]:
        if call.layer != layer:
            return call.compute(call.query, call.key, call.value)
        parts = {"query": call.query, "key": call.key, "value": call.value}
        if kind != "pattern":
            return call.compute(*(parts | {kind: put(parts[kind])}).values())
        _, pattern = call.compute(*parts.values())
        pattern = put(pattern)
        return (pattern @ call.values_by_head.to(pattern)).transpose(1, 2).contiguous().to(call.value), pattern

    return handle


def _neurons(texts: TwoTexts, count: int) -> tuple[NeuronEffect, ...]:
    """The neurons that attribution patching ranks first, patched one at a time."""
    from activations.analyses.attribution_patching import site_gradients

    names = _names(texts.lm, "mlp_act")
    values, gradients = site_gradients(texts, names)
    kept = texts.lm.capture(texts.source, None, names)
    scores = torch.stack(
        [((kept[name] - values[name]) * gradients[name]).double().sum((0, 1)) / texts.span for name in names]
    )
    chosen = scores.abs().flatten().topk(min(count, scores.numel())).indices
    found = []
    width = scores.shape[1]
    for layer, name in enumerate(names):
        ours = [int(index) % width for index in chosen if int(index) // width == layer]
        for start in range(0, len(ours), texts.batch_rows):
            group = ours[start : start + texts.batch_rows]

            def edit(x: Tensor, group: list[int] = group, name: str = name) -> Tensor:
                for row, neuron in enumerate(group):
                    x[row, :, neuron] = kept[name][0, :, neuron].to(x)
                return x

            effects = texts.edited(name, edit, len(group))
            found += [
                NeuronEffect(layer, neuron, float(effect), float(scores[layer, neuron]))
                for neuron, effect in zip(group, effects, strict=True)
            ]
    return tuple(sorted(found, key=lambda each: -abs(each.effect)))
