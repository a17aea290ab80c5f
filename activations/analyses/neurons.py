"""Neurons: what each writes into the logits, and how much each makes of one prediction.

    neuron_logits(lm, layer, neurons=None, top=10) -> NeuronLogits
    neuron_attribution(lm, text, target=None, method="integrated_gradients") -> NeuronAttribution

A neuron is an input of an MLP's down projection (`mlp_act.L`); its activation times its row w of that projection is
what it adds to the residual stream. Its direct effect on the logits is D·w, with D the unembedding rows with the final
norm's gain folded in: exact up to the norm's scale, which depends on the text. Where a layer norms what it writes
(Gemma 2, 3, OLMo 2), that norm's gain is folded into w too. Variance, kurtosis and skew over the vocabulary tell
neurons that speak about few tokens (large kurtosis; skew > 0 raises them, < 0 suppresses them) from those that speak
about none.

Attribution of a number m (`activations.analyses.targets`) to neuron i of layer L, with a its activations at all tokens:

    gradient_x_activation   Σ_t a_t · ∂m/∂a_t                        one backward pass for all layers
    integrated_gradients    Σ_t a_t · Σ_k w_k ∂m/∂a_t at α_k·a_L     a layer's own neurons scaled from 0 together

Integrated gradients of a layer sum to m − m(all neurons of the layer at 0): `errors` is what is missing to that. The
first are also taken out one by one (`ablated`: m − m without), which is what a single neuron does alone.

Direct effects say nothing of what later layers make of a neuron. Neurons of a layer can cancel. Contexts in which a
neuron is most active come from a dictionary of neurons (`glassbox index … --neurons mlp_act.L`), where each neuron is a
feature with examples.

Sources: Geva et al. 2022 (arXiv 2203.14680); Dai et al. 2022, "Knowledge neurons"; Gurnee et al. 2024, "Universal
neurons".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from activations.analyses.inputs import read_ids
from activations.analyses.plain import to_json
from activations.analyses.targets import Metric, Target
from activations.loading import weights_of
from activations.progress import progress
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel

METHODS = ("integrated_gradients", "gradient_x_activation")
STEPS = 16
BATCH_TOKENS = 2048
CHUNK_VALUES = 1 << 24


@dataclass(frozen=True)
class NeuronLogits:
    """The tokens that chosen neurons of one layer raise and lower when they are positive."""

    model: str
    layer: int
    neurons: tuple[int, ...]
    norms: Float[np.ndarray, " neurons"]
    """Length of what a neuron writes at activation 1."""
    top_tokens: tuple[tuple[str, ...], ...]
    top_effects: Float[np.ndarray, "neurons top"]
    """Logits up to the final norm's scale, largest first."""
    bottom_tokens: tuple[tuple[str, ...], ...]
    bottom_effects: Float[np.ndarray, "neurons top"]
    variances: Float[np.ndarray, " neurons"]
    """Over the vocabulary, as are `kurtoses` (3 for a normal distribution) and `skews`."""
    kurtoses: Float[np.ndarray, " neurons"]
    skews: Float[np.ndarray, " neurons"]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each neuron."""
        return [
            {"layer": self.layer, "neuron": neuron, "norm": float(self.norms[place])}
            | {"top": list(self.top_tokens[place]), "bottom": list(self.bottom_tokens[place])}
            | {"variance": float(self.variances[place]), "kurtosis": float(self.kurtoses[place])}
            | {"skew": float(self.skews[place])}
            for place, neuron in enumerate(self.neurons)
        ]

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def neuron_logits(
    lm: LanguageModel, layer: int, neurons: Sequence[int] | None = None, *, top: int = 10
) -> NeuronLogits:
    """Reads the output weights of `neurons` (default: all of the layer) as tokens.

    Raises:
        ValueError: a layer or neuron that does not exist, a model without dense neurons or without an unembedding.
    """
    directions = lm.logit_directions()
    written = neuron_outputs(lm, layer)
    chosen = list(range(len(written))) if neurons is None else list(neurons)
    for neuron in chosen:
        if not 0 <= neuron < len(written):
            raise ValueError(f"neuron {neuron} does not exist, expected 0 to {len(written) - 1}: choose one of these")
    if not chosen or top < 1:
        raise ValueError(f"got {len(chosen)} neurons and top={top}, expected at least one of each: ask for some")
    top = min(top, len(directions))
    found: dict[str, list[Tensor]] = {}
    for part in torch.tensor(chosen).split(max(1, CHUNK_VALUES // len(directions))):
        effects = written[part].to(directions) @ directions.T
        high, low = effects.topk(top, dim=1), effects.topk(top, dim=1, largest=False)
        centred = effects.double() - effects.double().mean(1, keepdim=True)
        variance = centred.square().mean(1)
        scale = variance.clamp(min=1e-300).sqrt()
        values = {
            "top": high.indices, "top_effects": high.values, "bottom": low.indices, "bottom_effects": low.values,
            "variances": variance, "kurtoses": (centred / scale[:, None]).pow(4).mean(1),
            "skews": (centred / scale[:, None]).pow(3).mean(1),
        }  # fmt: skip
        for name, value in values.items():
            found.setdefault(name, []).append(value.cpu())
    joined = {name: torch.cat(value).numpy() for name, value in found.items()}
    strings = lm.token_strings(range(lm.vocab_size))
    return NeuronLogits(
        model=lm.name,
        layer=layer,
        neurons=tuple(chosen),
        norms=written[chosen].double().norm(dim=1).cpu().numpy(),
        top_tokens=tuple(tuple(strings[each] for each in row) for row in joined.pop("top").tolist()),
        bottom_tokens=tuple(tuple(strings[each] for each in row) for row in joined.pop("bottom").tolist()),
        **joined,
    )


def neuron_outputs(lm: LanguageModel, layer: int) -> Float[Tensor, "neurons d_model"]:
    """Returns what each neuron of a layer adds to the residual stream at activation 1 (up to the scale of a norm behind
    the MLP, where a family has one), in float32.

    Raises:
        ValueError: a layer that does not exist, a model without dense neurons.
    """
    stack = lm.site_map.stacks[-1].architecture
    down = lm.site_map.binding(str(Site("mlp_act", layer, stack.stack))).module
    with weights_of(down):
        weight: Any = down.weight
        rows = weight.detach().float()
        rows = rows.T if isinstance(down, nn.Linear) else rows  # GPT-2's own layer holds the transpose
    behind: Any = lm.site_map.binding(str(Site("mlp_out", layer, stack.stack))).module
    gain = getattr(behind, "weight", None)
    if isinstance(gain, Tensor) and gain.ndim == 1:
        rows = rows * (gain.detach().float() + stack.norm_gain_offset)
    return rows.to(lm.device)


@dataclass(frozen=True)
class AttributedNeuron:
    """One neuron's part in a prediction."""

    layer: int
    neuron: int
    effect: float
    """By the method, over all tokens."""
    ablated: float
    """m − m with this neuron at 0 at all tokens."""
    position: int
    """The token at which the effect is largest."""
    token: str
    activation: float
    """There."""


@dataclass(frozen=True)
class NeuronAttribution:
    """How much each neuron makes of a number."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    target: str
    method: str
    layers: tuple[int, ...]
    value: float
    """m(text)."""
    effects: Float[np.ndarray, "layers neurons"]
    errors: Float[np.ndarray, " layers"] | None
    """Integrated gradients: m − m(layer's neurons at 0) − their sum."""
    top: tuple[AttributedNeuron, ...]
    """Largest absolute effects first."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each of the neurons in `top`."""
        return [dict(vars(effect)) for effect in self.top]

    def to_json(self) -> str:
        """Returns the first neurons, and every neuron's effect."""
        return to_json(self)


def neuron_attribution(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    target: Target = None,
    *,
    contrast: str | int | None = None,
    position: int | None = None,
    measure: str = "logit",
    method: str = "integrated_gradients",
    layers: Sequence[int] | None = None,
    steps: int = STEPS,
    top: int = 20,
) -> NeuronAttribution:
    """Scores all neurons of `layers` (default: all) for the target's number.

    Raises:
        ValueError: an unknown method, a model without dense neurons, and whatever the target refuses.
    """
    if method not in METHODS or steps < 1 or top < 1:
        raise ValueError(
            f"got method={method!r}, steps={steps} and top={top}, expected one of {', '.join(METHODS)} and at least 1: "
            "choose among these"
        )
    metric = Metric(lm, text, target, contrast=contrast, position=position, measure=measure)
    stack = lm.site_map.stacks[-1].architecture.stack
    chosen = list(range(lm.n_layers)) if layers is None else list(layers)
    sites = [str(Site("mlp_act", layer, stack)) for layer in chosen]
    for site in sites:
        lm.site_map.binding(site)
    value, held, gradients = _backward(lm, metric, sites)
    if method == "integrated_gradients":
        errors = np.zeros(len(sites))
        with progress("Neurons", len(sites), "layers") as advance:
            for place, site in enumerate(sites):
                gradients[place], without = _integrated(lm, metric, site, held[place], steps)
                errors[place] = value - without - float((gradients[place] * held[place]).sum())
                advance(1)
    else:
        errors = None
    by_token = [(gradient * activation).cpu().numpy() for gradient, activation in zip(gradients, held, strict=True)]
    effects = np.stack([each.sum(0) for each in by_token])
    order = np.argsort(-np.abs(effects), axis=None, kind="stable")[:top]
    picked = [(int(each) // effects.shape[1], int(each) % effects.shape[1]) for each in order]
    ablated = _ablated(lm, metric, sites, picked, value)
    ids = metric.tokens if metric.tokens.shape[1] == metric.count else metric.tokens[:, : metric.count]
    tokens = tuple(lm.token_strings(read_ids(lm, ids)))
    found = []
    for (place, neuron), alone in zip(picked, ablated, strict=True):
        where = int(np.abs(by_token[place][:, neuron]).argmax())
        # a continuation's own tokens come behind the text's
        shown = tokens[where] if where < len(tokens) else lm.token_strings([int(metric.tokens[0, where])])[0]
        found.append(
            AttributedNeuron(
                layer=chosen[place], neuron=neuron, effect=float(effects[place, neuron]), ablated=alone, position=where,
                token=shown, activation=float(held[place][where, neuron]),
            )
        )  # fmt: skip
    return NeuronAttribution(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tokens,
        target=metric.name,
        method=method,
        layers=tuple(chosen),
        value=value,
        effects=effects,
        errors=errors,
        top=tuple(found),
    )


def _backward(lm: LanguageModel, metric: Metric, sites: Sequence[str]) -> tuple[float, list[Tensor], list[Tensor]]:
    """m, and each site's activations and gradients, Float[seq, neurons]."""
    held: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}

    def edit(site: str) -> Any:
        def add_zero(values: Tensor) -> Tensor:
            held[site], leaves[site] = values.detach(), torch.zeros_like(values, requires_grad=True)
            return values + leaves[site]

        return add_zero

    with torch.enable_grad(), lm.intervene({site: edit(site) for site in sites}):
        number = metric(metric.tokens).sum()
        gradients = torch.autograd.grad(number, [leaves[site] for site in sites])
    return float(number.detach()), [held[site][0].double() for site in sites], [each[0].double() for each in gradients]


def _integrated(
    lm: LanguageModel, metric: Metric, site: str, activations: Float[Tensor, "seq neurons"], steps: int
) -> tuple[Float[Tensor, "seq neurons"], float]:
    """The gradients' mean along the path from 0, by Gauss-Legendre, and m at 0."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    shares = torch.tensor([0.0, *((nodes + 1) / 2)], dtype=torch.float64)
    total = torch.zeros_like(activations)
    numbers: list[float] = []
    chunk = max(1, BATCH_TOKENS // metric.tokens.shape[1])
    for start in range(0, len(shares), chunk):
        part = shares[start : start + chunk].to(activations.device)
        leaves: list[Tensor] = []

        def scaled(values: Tensor, part: Tensor = part, leaves: list[Tensor] = leaves) -> Tensor:
            leaves.append((part.to(values)[:, None, None] * activations.to(values)).requires_grad_(True))
            return leaves[-1]

        with torch.enable_grad(), lm.intervene({site: scaled}):
            found = metric(metric.tokens.expand(len(part), -1))
            (gradient,) = torch.autograd.grad(found.sum(), leaves[-1])
        numbers += found.detach().double().tolist()
        weight = torch.tensor([0.0, *(weights / 2)], dtype=torch.float64)[start : start + chunk].to(gradient.device)
        total += torch.einsum("k,ktn->tn", weight, gradient.double())
    return total, numbers[0]


@torch.no_grad()
def _ablated(
    lm: LanguageModel, metric: Metric, sites: Sequence[str], picked: Sequence[tuple[int, int]], value: float
) -> list[float]:
    """m − m without each of these neurons, in their order."""
    found = [0.0] * len(picked)
    chunk = max(1, BATCH_TOKENS // metric.tokens.shape[1])
    for place, site in enumerate(sites):
        members = [number for number, (layer, _) in enumerate(picked) if layer == place]
        for start in range(0, len(members), chunk):
            part = members[start : start + chunk]
            neurons = torch.tensor([picked[number][1] for number in part])

            def without(values: Tensor, neurons: Tensor = neurons) -> Tensor:
                values[torch.arange(len(neurons)), :, neurons] = 0
                return values

            with lm.intervene({site: without}):
                left = metric(metric.tokens.expand(len(part), -1))
            for number, each in zip(part, left.tolist(), strict=True):
                found[number] = value - each
    return found
