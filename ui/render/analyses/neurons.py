"""Which neurons made the number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ui.render.analyses.drawing import Drawing, matrix
from ui.render.heatmap import Heatmap

if TYPE_CHECKING:
    from activations.analyses import NeuronAttribution

COLUMNS = 16
"""Neurons of each layer on the map: those of the largest effect."""


def _map(found: NeuronAttribution) -> list[Heatmap]:
    """The largest effects of each layer, strongest first; the list below names them."""
    order = np.argsort(-np.abs(found.effects), axis=1, kind="stable")[:, :COLUMNS]
    return [
        Heatmap(
            title=f"Largest effects of each layer on the {found.target}",
            x_label="rank within the layer",
            y_label="layer",
            unit="of the target's number",
            columns=[f"{rank + 1}." for rank in range(order.shape[1])],
            rows=[f"layer {layer}" for layer in found.layers],
            values=matrix(np.take_along_axis(found.effects, order, axis=1)),
            is_token_axis=False,
        )
    ]


DRAWINGS = {
    "neurons": Drawing(
        heading="Neurons",
        what=(
            "How much each neuron makes of the target, over all tokens; token is where it does most, ablated what the "
            "target loses without it. Neurons of a layer may cancel; contexts in which one is most active are in a "
            "dictionary of neurons."
        ),
        maps=_map,
        columns=("layer", "neuron", "effect", "ablated", "token", "activation"),
    ),
}
