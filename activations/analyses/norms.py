"""How large activations are: norms by place and token, and chosen neurons.

    activation_norms(lm, text, sites=None) -> ActivationNorms
    neuron_activations(lm, text, layer, neurons=None, top=10) -> NeuronActivations

Enters: a model and a text. Leaves: arrays to draw as heat maps. The residual stream grows from layer to layer, and the
first token's norm is often tens of times the others' (a resting place for attention): compare within a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import read_ids, tokens_of
from activations.analyses.plain import to_json
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class ActivationNorms:
    """Euclidean norms of the rows at each place and token."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    sites: tuple[str, ...]
    norms: Float[np.ndarray, "sites tokens"]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each place and token."""
        return [
            {"site": site, "position": position, "token": token, "norm": float(self.norms[place, position])}
            for place, site in enumerate(self.sites)
            for position, token in enumerate(self.tokens)
        ]

    def to_json(self) -> str:
        return to_json(self)


def activation_norms(
    lm: LanguageModel, text: str | Int[Tensor, "1 seq"], *, sites: Sequence[str] | None = None
) -> ActivationNorms:
    """Measures the rows at `sites`; by default what enters, what each layer's attention and MLP write, what leaves.

    Raises:
        ValueError: empty or too long text, unknown site.
    """
    tokens = tokens_of(lm, text)
    stack = lm.site_map.stacks[-1].architecture.stack
    kinds = ("attn_out", "mlp_out", "resid_post")
    default = [("resid_pre", 0), *((kind, layer) for layer in range(lm.n_layers) for kind in kinds)]
    places = [str(Site(kind, layer, stack)) for kind, layer in default] if sites is None else list(dict.fromkeys(sites))
    captured = lm.capture(tokens, None, places)
    return ActivationNorms(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(read_ids(lm, tokens))),
        sites=tuple(places),
        norms=np.stack([captured[site][0].flatten(1).double().norm(dim=1).cpu().numpy() for site in places]),
    )


@dataclass(frozen=True)
class NeuronActivations:
    """What chosen neurons of one layer (inputs of the MLP's down projection) hold at each token."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    layer: int
    neurons: tuple[int, ...]
    values: Float[np.ndarray, "neurons tokens"]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each neuron and token."""
        return [
            {
                "layer": self.layer,
                "neuron": neuron,
                "position": position,
                "token": token,
                "activation": float(self.values[place, position]),
            }
            for place, neuron in enumerate(self.neurons)
            for position, token in enumerate(self.tokens)
        ]

    def to_json(self) -> str:
        return to_json(self)


def neuron_activations(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    layer: int,
    neurons: Sequence[int] | None = None,
    *,
    top: int = 10,
) -> NeuronActivations:
    """Reads `neurons` of a layer, or the `top` whose largest absolute activation on this text is largest.

    Raises:
        ValueError: empty or too long text, a layer or neuron that does not exist, a model without dense neurons.
    """
    tokens = tokens_of(lm, text)
    site = str(Site("mlp_act", layer, lm.site_map.stacks[-1].architecture.stack))
    values = lm.capture(tokens, None, [site])[site][0].double().cpu().numpy()
    width = values.shape[1]
    if neurons is None:
        chosen = np.argsort(-np.abs(values).max(0), kind="stable")[: max(1, top)].tolist()
    else:
        chosen = list(neurons)
        for neuron in chosen:
            if not 0 <= neuron < width:
                raise ValueError(f"neuron {neuron} does not exist, expected 0 to {width - 1}: choose one of these")
    return NeuronActivations(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(read_ids(lm, tokens))),
        layer=layer,
        neurons=tuple(chosen),
        values=values[:, chosen].T,
    )
