"""What changes when a part is taken out or put in from another text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ui.render.analyses.drawing import Drawing, component_map, head_map, map_cards, matrix
from ui.render.figures import short
from ui.render.heatmap import Heatmap
from ui.render.html import escape

if TYPE_CHECKING:
    from activations.analyses import (
        AblationComparison,
        ActivationPatching,
        AttributionPatching,
        CausalTrace,
        ComponentAblation,
    )


STRONGEST = 24
"""Components in the map of a comparison."""
PLACES = {
    "embed": "Token embeddings",
    "resid_pre": "Residual stream entering the layer",
    "resid_mid": "Residual stream between attention and MLP",
    "resid_post": "Residual stream leaving the layer",
    "attn_out": "Attention's output",
    "mlp_out": "MLP's output",
    "mlp_act": "All neurons of the MLP",
    "query": "Queries of heads, at all positions",
    "key": "Keys of heads, at all positions",
    "value": "Values of heads, at all positions",
    "pattern": "Patterns of heads, at all positions",
}


def _ablation_map(found: ComponentAblation) -> list[Heatmap]:
    title = f"Fall of the {found.target} ({found.how.replace('_', ' ')} ablation)"
    tokens = Heatmap(
        title="Token embeddings, one at a time",
        x_label="token",
        y_label="",
        unit="logits",
        columns=found.tokens,
        rows=["embedding"],
        values=matrix([found.embeddings]),
    )
    return [component_map(title, found.heads, found.mlp, "logits", found.attention), tokens]


def _strategies_map(found: AblationComparison) -> list[Heatmap]:
    rows = found.rows()[:STRONGEST]
    names = [how.replace("_", " ") for how in found.strategies]
    effects = Heatmap(
        title=f"Fall of the {found.target}, the components that matter most",
        x_label="component",
        y_label="in its place",
        unit="logits",
        columns=[row["component"] for row in rows],
        rows=names,
        values=matrix([[row[how] for row in rows] for how in found.strategies]),
        is_token_axis=False,
    )
    alike = Heatmap(
        title="Do the ways rank components alike",
        x_label="in its place",
        y_label="in its place",
        unit="rank correlation",
        columns=names,
        rows=names,
        values=matrix(found.correlations),
        is_token_axis=False,
    )
    return [effects, alike]


def _layers_by_tokens(title: str, columns: Sequence[str], values: Any, unit: str = "of the difference") -> Heatmap:
    return Heatmap(
        title=title,
        x_label="token",
        y_label="layer",
        unit=unit,
        columns=columns,
        rows=[f"layer {layer}" for layer in range(len(values))],
        values=matrix(values),
    )


def _both_tokens(found: ActivationPatching | AttributionPatching) -> list[str]:
    """Words that differ are named by both texts."""
    return [
        ours if ours == theirs else f"{ours.strip()}/{theirs.strip()}"
        for ours, theirs in zip(found.tokens, found.corrupt_tokens, strict=True)
    ]


def _patching_map(found: ActivationPatching) -> list[Heatmap]:
    columns = _both_tokens(found)
    maps = [_layers_by_tokens(PLACES[kind], columns, values) for kind, values in found.effects.items()]
    if found.heads.size:
        maps.append(_heads("Heads, at all positions", found.heads))
    maps += [_heads(PLACES[kind], values) for kind, values in found.attention.items()]
    if found.head_positions is not None:
        layers, heads, _ = found.head_positions.shape
        by_position = found.head_positions
        every = [(layer, head) for layer in range(layers) for head in range(heads)]
        strongest = sorted(every, key=lambda at: -float(abs(by_position[at]).max()))[:STRONGEST]
        maps.append(
            Heatmap(
                title="Heads by position, the strongest",
                x_label="token",
                y_label="head",
                unit="of the difference",
                columns=columns,
                rows=[f"head {layer}.{head}" for layer, head in strongest],
                values=matrix([by_position[at] for at in strongest]),
            )
        )
    return maps


def _heads(title: str, values: Any) -> Heatmap:
    return head_map(title, values, range(len(values)), "of the difference")


def _estimates_map(found: AttributionPatching) -> list[Heatmap]:
    columns = _both_tokens(found)
    maps = [_layers_by_tokens(PLACES[kind], columns, values) for kind, values in found.effects.items()]
    return [*maps, _heads("Heads, at all positions", found.heads)]


def _estimates(found: AttributionPatching) -> str:
    worst = max((float(abs(errors).max()) for errors in found.errors.values() if len(errors)), default=0.0)
    how = f"{found.steps} gradients along each site's way" if found.steps else "one gradient, at the base text"
    said = f"{found.target}: {how}. Whole sites, estimated and patched, differ by at most {short(worst)}."
    return f'<p class="small">{escape(said)}</p>{map_cards(_estimates_map(found))}'


def _trace_map(found: CausalTrace) -> list[Heatmap]:
    columns = [f"{token}*" if place in found.subject_positions else token for place, token in enumerate(found.tokens)]

    def title(kind: str) -> str:
        span = found.windows[kind]
        return TRACED[kind] + (f", {span} layers together" if span > 1 else "")

    return [_layers_by_tokens(title(kind), columns, values, "of probability") for kind, values in found.effects.items()]


TRACED = {
    "resid_post": "Restored stream leaving the layer",
    "mlp_out": "Restored output of MLPs",
    "attn_out": "Restored output of attention",
}


def _trace(found: CausalTrace) -> str:
    said = (
        f"The probability of {found.target!r} is {short(found.probability)}; with noise on the subject "
        f"({found.subject!r}, marked *) it is {short(found.noised_probability)}, the mean of {found.samples} draws."
    )
    return f'<p class="small">{escape(said)}</p>{map_cards(_trace_map(found))}'


def _patching(found: ActivationPatching) -> str:
    said = (
        f"{found.target}: {short(found.clean_value)} on the text, {short(found.corrupt_value)} on the one it is "
        f"compared with ({found.direction})."
    )
    return f'<p class="small">{escape(said)}</p>{map_cards(_patching_map(found))}'


DRAWINGS = {
    "ablation": Drawing(
        heading="Ablation",
        what=(
            "How much the target falls when a component's output is replaced by its mean over the text; orange "
            "helped, blue hindered. Parts that back each other up both look unimportant."
        ),
        maps=_ablation_map,
        columns=("component", "effect"),
    ),
    "patching": Drawing(
        heading="Activation patching",
        what=(
            "The share of the difference between the two texts that comes back when one activation of the other "
            "text is put in its place: 1 is all of it."
        ),
        body=_patching,
        maps=_patching_map,
    ),
    "ablation_strategies": Drawing(
        heading="Ablation in several ways",
        what=(
            "What the target loses by each way of taking a component out. Where the ways disagree, the constant part "
            "of the component matters, or the model was led away from anything it knows."
        ),
        maps=_strategies_map,
        columns=("component", "mean", "zero", "mean_reference", "resample", "spread"),
    ),
    "attribution_patching": Drawing(
        heading="Patching by gradients",
        what=(
            "What patching each place would bring back, estimated from gradients: quick, and wrong where the model "
            "bends between the texts, as in saturated attention and in whole residual streams."
        ),
        body=_estimates,
        maps=_estimates_map,
    ),
    "tracing": Drawing(
        heading="Causal trace",
        what=(
            "How much of the answer's probability comes back when one state is restored, with noise on the subject. "
            "It tells where a state is enough to bring the answer back, not where the fact is stored."
        ),
        body=_trace,
        maps=_trace_map,
    ),
}
