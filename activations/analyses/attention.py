"""Where heads look: attention patterns of any supported model, and what can be said of them.

    attention_patterns(lm, text, layers=None) -> AttentionPatterns
        .value_weighted()                what each source position contributes, not just how much it is looked at
        .rollout(residual=0.5)           attention through all layers, as if values were left alone
        .flow(position=-1)               the same as the largest flow through the layers' attention
    attention_routes(patterns, position=-1) -> AttentionRoutes       both at once
    compare_attention(a, b) -> AttentionComparison     two texts, by aligned tokens

Patterns are α[layer, head, query, key]; rows sum to 1, and a decoder's are 0 above the diagonal. They are those of the
model's reference attention (`activations.attention`), whatever kernel it otherwise runs.

* Value-weighted: α_qk ‖v_k W_O‖, with v_k W_O what the head would write if it looked at k alone (before a norm on
  attention's output, where the family has one), rows divided by their sum. Source: Kobayashi et al. 2020 (2004.10102).
* Rollout: Ā_l = (1−r) mean_h α_l + r I, R = Ā_L … Ā_1. Flow: the maximum flow from an output position to each input
  position, edges of capacity Ā. Source: Abnar and Zuidema 2020 (2005.00928).

They mislead: a high weight on a token whose value is near zero moves nothing (many heads rest on the first token);
rollout and flow know nothing of values, MLPs or signs. For what a head causes, patch or ablate it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import read_ids, tokens_of
from activations.analyses.plain import plain, to_json
from activations.attention import AttentionCall, attention_as
from activations.sites import submodule

if TYPE_CHECKING:
    from activations.model import LanguageModel

MAX_VALUES = 1 << 28
"""A gibibyte of float32: more patterns than that are asked for layer by layer."""
FLOW_EDGES = 25_000


@dataclass(frozen=True)
class AttentionPatterns:
    """Patterns of chosen layers. Axes: layers, heads, queries (the reader), keys (what is read)."""

    model: str
    text: str | None
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    patterns: Float[np.ndarray, "layers heads query key"]
    written_norms: Float[np.ndarray, "layers heads key"]
    """‖v_k W_O‖: the length of what a head would write if it looked at this token alone."""

    @property
    def entropies(self) -> Float[np.ndarray, "layers heads query"]:
        """Nats: 0 where a head looks at one token."""
        safe = np.where(self.patterns > 0, self.patterns, 1.0)
        return -(safe * np.log(safe)).sum(-1)

    def value_weighted(self) -> Float[np.ndarray, "layers heads query key"]:
        """Returns each source's share of what a head writes, by length; rows sum to 1."""
        weighted = self.patterns * self.written_norms[:, :, None, :]
        return weighted / np.maximum(weighted.sum(-1, keepdims=True), np.finfo(weighted.dtype).tiny)

    def rollout(self, residual: float = 0.5, value_weighted: bool = False) -> Float[np.ndarray, "layers query key"]:
        """Returns attention through all layers up to each: [-1] is that of the whole model; rows sum to 1.

        `residual` is the share of the stream that passes each layer by.
        """
        mixed = self._mixed(residual, value_weighted)
        through, found = np.eye(len(self.tokens)), []
        for layer in mixed:
            through = layer @ through
            found.append(through)
        return np.stack(found)

    def flow(
        self, position: int = -1, residual: float = 0.5, value_weighted: bool = False
    ) -> Float[np.ndarray, " key"]:
        """Returns how much could flow from each token to the last layer's `position`, normalised to sum to 1.

        Every layer from the first must be there. Exact maximum flow of a layered graph, one for each source.

        Raises:
            ValueError: a position outside of the text, patterns of some layers alone, or too long a text.
        """
        count = len(self.tokens)
        if not -count <= position < count:
            raise ValueError(f"position {position} is outside of a text of {count} tokens: choose one in it")
        edges = len(self.layers) * count * count
        if edges > FLOW_EDGES:
            raise ValueError(
                f"the flow through {len(self.layers)} layers of {count} tokens has {edges:,} edges, expected at most "
                f"{FLOW_EDGES:,}: take a shorter text, or rollout"
            )
        raw = self.raw_flow(position % count, residual, value_weighted)
        return raw / raw.sum()

    def raw_flow(self, position: int, residual: float, value_weighted: bool) -> Float[np.ndarray, " key"]:
        """Returns the maximum flows before they are normalised (each at least the rollout)."""
        import networkx
        from networkx.algorithms.flow import build_residual_network, preflow_push

        if self.layers != tuple(range(len(self.layers))):
            raise ValueError(f"got layers {self.layers}, expected all from the first: ask for patterns of every layer")
        graph = networkx.DiGraph()
        mixed = self._mixed(residual, value_weighted)
        for layer, weights in enumerate(mixed, start=1):
            for query, key in zip(*np.nonzero(weights), strict=True):
                graph.add_edge((layer, int(query)), (layer - 1, int(key)), capacity=float(weights[query, key]))
        top = (len(mixed), position)
        network = build_residual_network(graph, "capacity")
        return np.array(
            [
                networkx.maximum_flow_value(graph, top, (0, key), flow_func=preflow_push, residual=network)
                if graph.has_node((0, key))
                else 0.0
                for key in range(len(self.tokens))
            ]
        )

    def _mixed(self, residual: float, value_weighted: bool) -> Float[np.ndarray, "layers query key"]:
        if not 0 <= residual < 1:
            raise ValueError(f"got residual={residual}, expected 0 up to 1: the share that passes a layer by")
        patterns = (self.value_weighted() if value_weighted else self.patterns).astype(np.float64)
        return (1 - residual) * patterns.mean(1) + residual * np.eye(len(self.tokens))

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each head: what it looks at most over the text, and how sharply."""
        count = len(self.tokens)
        distances = np.arange(count)[:, None] - np.arange(count)[None, :]
        records = []
        for place, layer in enumerate(self.layers):
            for head, pattern in enumerate(self.patterns[place]):
                favourite = int(pattern.mean(0).argmax())
                records.append(
                    {
                        "layer": layer,
                        "head": head,
                        "entropy": plain(self.entropies[place, head].mean()),
                        "mean_distance": plain((pattern * distances).sum(1).mean()),
                        "on_itself": plain(np.diagonal(pattern).mean()),
                        "on_previous": plain(np.diagonal(pattern, -1).mean()) if count > 1 else None,
                        "on_first": plain(pattern[:, 0].mean()),
                        "most_read": self.tokens[favourite],
                        "most_read_position": favourite,
                    }
                )
        return records

    def to_json(self) -> str:
        """Returns all fields, patterns included."""
        return to_json(self)


@torch.no_grad()
def attention_patterns(
    lm: LanguageModel, text: str | Int[Tensor, "1 seq"], *, layers: Sequence[int] | None = None
) -> AttentionPatterns:
    """Reads the patterns of all heads (of T5's decoder: its self-attention) of `layers`, or of all.

    Raises:
        ValueError: empty or too long text, a layer that does not exist, more than a gibibyte of patterns, or a model
            that forms none.
    """
    tokens = tokens_of(lm, text)
    chosen = range(lm.n_layers) if layers is None else sorted(set(layers))
    for layer in chosen:
        if not 0 <= layer < lm.n_layers:
            raise ValueError(f"layer {layer} does not exist, expected 0 to {lm.n_layers - 1}: choose one of these")
    stack = lm.site_map.stacks[-1]
    values = len(chosen) * stack.heads * tokens.shape[1] ** 2
    if values > MAX_VALUES:
        raise ValueError(
            f"the patterns of {len(chosen)} layers hold {values:,} numbers, expected at most {MAX_VALUES:,}: "
            "name fewer layers, or shorten the text"
        )
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(call: AttentionCall) -> tuple[Tensor, Tensor]:
        out, pattern = call.compute(call.query, call.key, call.value)
        if call.layer in chosen:
            found[call.layer] = (pattern[0].float().cpu(), call.values_by_head[0])
        return out, pattern

    with attention_as(lm, keep):
        lm.forward(tokens)
    norms = [_written_norms(lm, layer, found[layer][1]) for layer in chosen]
    read = read_ids(lm, tokens)
    return AttentionPatterns(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        token_ids=tuple(read),
        tokens=tuple(lm.token_strings(read)),
        layers=tuple(chosen),
        patterns=torch.stack([found[layer][0] for layer in chosen]).numpy(),
        written_norms=torch.stack(norms).cpu().numpy(),
    )


def _written_norms(lm: LanguageModel, layer: int, values: Tensor) -> Float[Tensor, "heads key"]:
    """The lengths of what each head writes of each token alone, in float32."""
    stack = lm.site_map.stacks[-1]
    project = submodule(stack.layers[layer], stack.architecture.heads)
    heads, count, width = values.shape
    lengths = torch.empty(heads, count)
    nothing = project.forward(values.new_zeros(1, 1, heads * width))
    for head in range(heads):
        alone = values.new_zeros(1, count, heads * width)
        alone[0, :, head * width : (head + 1) * width] = values[head]
        # `forward`, not a call: hooks of sites have no business here
        lengths[head] = (project.forward(alone) - nothing)[0].float().norm(dim=-1).cpu()
    return lengths


@dataclass(frozen=True)
class AttentionRoutes:
    """Rollout and flow to one position of the last layer."""

    model: str
    tokens: tuple[str, ...]
    position: int
    rollout: Float[np.ndarray, " key"]
    flow: Float[np.ndarray, " key"]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each token."""
        return [
            {"position": place, "token": token, "rollout": float(self.rollout[place]), "flow": float(self.flow[place])}
            for place, token in enumerate(self.tokens)
        ]

    def to_json(self) -> str:
        return to_json(self)


def attention_routes(patterns: AttentionPatterns, position: int = -1, residual: float = 0.5) -> AttentionRoutes:
    """Follows attention from `position` of the last layer back to the tokens, by rollout and by flow.

    Raises:
        ValueError: as `AttentionPatterns.flow`.
    """
    flow = patterns.flow(position, residual)
    return AttentionRoutes(
        model=patterns.model,
        tokens=patterns.tokens,
        position=position % len(patterns.tokens),
        rollout=patterns.rollout(residual)[-1, position],
        flow=flow,
    )


@dataclass(frozen=True)
class AttentionComparison:
    """How differently each head looks at what two texts share."""

    first: str
    second: str
    pairs: tuple[tuple[int, int], ...]
    """Aligned positions: the same token in both texts, in order (longest common blocks)."""
    layers: tuple[int, ...]
    distances: Float[np.ndarray, "layers heads"]
    """Mean over aligned queries of half the absolute difference of attention, to aligned tokens and to all others
    together: 0 looks alike, 1 looks elsewhere."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each head, the most different first."""
        records = [
            {"layer": layer, "head": head, "distance": float(self.distances[place, head])}
            for place, layer in enumerate(self.layers)
            for head in range(self.distances.shape[1])
        ]
        return sorted(records, key=lambda record: -record["distance"])

    def to_json(self) -> str:
        return to_json(self)


def compare_attention(first: AttentionPatterns, second: AttentionPatterns) -> AttentionComparison:
    """Compares two texts in one model, head by head, at the tokens that they share.

    Raises:
        ValueError: patterns of other layers or models, or texts that share no token.
    """
    if first.layers != second.layers or first.patterns.shape[1] != second.patterns.shape[1]:
        raise ValueError(
            f"got layers {first.layers} and {second.layers}, expected the same of one model: read both alike"
        )
    blocks = difflib.SequenceMatcher(None, first.token_ids, second.token_ids, autojunk=False).get_matching_blocks()
    pairs = [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]
    if not pairs:
        raise ValueError("the two texts share no token, expected some: compare texts that differ in a few words")
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    ours = first.patterns[:, :, left][..., left]
    theirs = second.patterns[:, :, right][..., right]
    elsewhere = np.abs(ours.sum(-1) - theirs.sum(-1))
    distances = 0.5 * (np.abs(ours - theirs).sum(-1) + elsewhere).mean(-1)
    return AttentionComparison(
        first="".join(first.tokens),
        second="".join(second.tokens),
        pairs=tuple(pairs),
        layers=first.layers,
        distances=distances,
    )
