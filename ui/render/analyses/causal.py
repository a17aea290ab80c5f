"""What changes when a part is taken out or put in from another text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ui.render.analyses.drawing import Drawing, component_map, head_map, map_cards, matrix
from ui.render.figures import short
from ui.render.heatmap import Heatmap
from ui.render.html import escape

if TYPE_CHECKING:
    from activations.analyses import ActivationPatching, ComponentAblation


def _ablation_map(found: ComponentAblation) -> list[Heatmap]:
    title = f"Fall of the {found.target} ({found.how} ablation)"
    return [component_map(title, found.heads, found.mlp, "logits", found.attention)]


def _patching_map(found: ActivationPatching) -> list[Heatmap]:
    titles = {
        "resid_pre": "Residual stream entering the layer",
        "attn_out": "Attention's output",
        "mlp_out": "MLP's output",
    }
    # words that differ are named by both texts
    columns = [
        ours if ours == theirs else f"{ours.strip()}/{theirs.strip()}"
        for ours, theirs in zip(found.tokens, found.corrupt_tokens, strict=True)
    ]
    maps = [
        Heatmap(
            title=titles[kind],
            x_label="token",
            y_label="layer",
            unit="of the difference",
            columns=columns,
            rows=[f"layer {layer}" for layer in range(len(values))],
            values=matrix(values),
        )
        for kind, values in found.effects.items()
    ]
    heads = head_map("Heads, at all positions", found.heads, range(len(found.heads)), "of the difference")
    return [*maps, heads]


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
}
