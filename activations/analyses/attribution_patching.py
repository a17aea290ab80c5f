"""Activation patching by gradients: every place at once, from one backward pass.

    attribute_patches(lm, clean, corrupt, target=None, *, steps=0, …) -> AttributionPatching
    patching_agreement(exact, approximate) -> PatchingAgreement

Enters: two texts of equally many tokens, as for `patch_activations`. Leaves an estimate of the effect of patching each
place, in the same units:

    estimate = (a_source − a_base) · ∂m/∂a |base / (m_source − m_base)                 steps = 0
    estimate = (a_source − a_base) · Σ w_k ∂m/∂a |a_base + α_k (a_source − a_base) / …      steps > 0

The first is a tangent: right where the model is linear between the texts, poor where attention saturates and for whole
residual streams. The integrated form walks one site (all of its positions at once) from base to source by
Gauss-Legendre steps, everything before it unchanged: its estimates at a site sum to the exact effect of patching that
whole site, which `site_effects` holds beside them with the `errors` that are left.

Cost: one backward pass, or `steps` of them for each site, against one pass for each place.

Source: Nanda 2023 (attribution patching); Kramár et al. 2024 (2403.00745); Hanna et al. 2024 (2403.17806).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.correlation import pearson, spearman
from activations.analyses.patching import ActivationPatching
from activations.analyses.plain import plain, to_json
from activations.analyses.targets import Target
from activations.analyses.two_texts import TwoTexts
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel

KINDS = ("resid_pre", "attn_out", "mlp_out", "head_out", "mlp_act")


@dataclass(frozen=True)
class AttributionPatching:
    """Estimated shares of the difference between two texts, by place."""

    model: str
    clean: str
    corrupt: str
    tokens: tuple[str, ...]
    corrupt_tokens: tuple[str, ...]
    target: str
    direction: str
    clean_value: float
    corrupt_value: float
    steps: int
    """Gradients along the way of each site; 0 for the tangent at the base."""
    effects: dict[str, Float[np.ndarray, "layers tokens"]]
    """`resid_pre`, `attn_out`, `mlp_out`, `mlp_act`."""
    heads: Float[np.ndarray, "layers heads"]
    head_positions: Float[np.ndarray, "layers heads tokens"]
    neurons: Float[np.ndarray, "layers neurons"]
    """All positions together; without columns where the model has no dense neurons."""
    site_effects: dict[str, Float[np.ndarray, " layers"]]
    """The exact effect of patching all positions of a site."""
    errors: dict[str, Float[np.ndarray, " layers"]]
    """Sum of a site's estimates less its exact effect."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each layer × position, head and neuron (of these the 100 largest)."""
        records = [
            {"site": f"{kind}.{layer}", "head": None, "position": place, "token": self.tokens[place], "effect": effect}
            for kind, values in self.effects.items()
            for (layer, place), effect in _numbered(values)
        ]
        empty = {"position": None, "token": None}
        records += [
            {"site": f"head_out.{layer}", "head": head, **empty, "effect": effect}
            for (layer, head), effect in _numbered(self.heads)
        ]
        neurons = sorted(_numbered(self.neurons), key=lambda entry: -abs(entry[1]))[:100]
        records += [
            {"site": f"mlp_act.{layer}[{neuron}]", "head": None, **empty, "effect": effect}
            for (layer, neuron), effect in neurons
        ]
        return sorted(records, key=lambda record: -abs(record["effect"]))

    def to_json(self) -> str:
        return to_json(self)


def _numbered(values: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    return [(index, float(values[index])) for index in np.ndindex(values.shape)]


def attribute_patches(
    lm: LanguageModel,
    clean: str,
    corrupt: str,
    target: Target = None,
    *,
    contrast: str | int | None = None,
    direction: str = "denoise",
    position: int | None = None,
    measure: str = "logit",
    steps: int = 0,
) -> AttributionPatching:
    """Estimates the effect of patching each place; `steps` > 0 integrates the gradients of each site.

    Raises:
        ValueError: negative `steps`, and whatever `patch_activations` refuses of texts and target.
    """
    if steps < 0:
        raise ValueError(f"got steps={steps}, expected 0 (the tangent) or more: ask for 16")
    texts = TwoTexts(
        lm, clean, corrupt, target, contrast=contrast, direction=direction, position=position, measure=measure
    )
    kinds = [kind for kind in KINDS if lm.has_site(f"{kind}.0")]
    names = [str(Site(kind, layer)) for kind in kinds for layer in range(lm.n_layers)]
    source = lm.capture(texts.source, None, names)
    values, gradients = site_gradients(texts, names)
    if steps:
        gradients = {name: _integrated(texts, name, values[name], source[name], steps) for name in names}
    parts = {name: ((source[name] - values[name]) * gradients[name])[0].double() / texts.span for name in names}
    exact = {name: float(texts.edited(name, lambda x, name=name: source[name].to(x), 1)[0]) for name in names}

    def stacked(kind: str) -> Tensor:
        return torch.stack([parts[str(Site(kind, layer))] for layer in range(lm.n_layers)]).cpu()

    count = texts.metric.count
    heads = stacked("head_out").sum(-1)  # layers seq heads
    whole = {kind: np.array([exact[str(Site(kind, layer))] for layer in range(lm.n_layers)]) for kind in kinds}
    return AttributionPatching(
        **texts.facts,  # pyright: ignore[reportArgumentType]
        steps=steps,
        effects={kind: stacked(kind).sum(-1)[:, :count].numpy() for kind in kinds if kind != "head_out"},
        heads=heads.sum(1).numpy(),
        head_positions=heads[:, :count].transpose(1, 2).numpy(),
        neurons=stacked("mlp_act").sum(1).numpy() if "mlp_act" in kinds else np.zeros((lm.n_layers, 0)),
        site_effects=whole,
        errors={
            kind: stacked(kind).flatten(1).sum(1).numpy() - whole[kind] if kind in kinds else np.zeros(0)
            for kind in kinds
        },
    )


def site_gradients(texts: TwoTexts, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the activations of the base text at sites, and the target's gradient at each, from one backward pass."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def edit(value: Tensor) -> Tensor:
            # what is returned flows on, so its gradient is that of the site
            value = value if value.requires_grad else value.requires_grad_()
            seen[name] = value
            return value

        return edit

    with torch.enable_grad(), ExitStack() as stack:
        stack.enter_context(texts.lm.intervene({"embed": lambda value: value.detach().requires_grad_()}))
        stack.enter_context(texts.lm.intervene({name: keep(name) for name in names}))
        total = texts.metric(texts.base).sum()
        found = torch.autograd.grad(total, [seen[name] for name in names])
    values = {name: seen[name].detach() for name in names}
    return values, dict(zip(names, found, strict=True))


def _integrated(texts: TwoTexts, name: str, base: Tensor, source: Tensor, steps: int) -> Tensor:
    """The mean gradient at a site while it goes from base to source."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas = torch.tensor((nodes + 1) / 2).to(base)
    weight = torch.tensor(weights / 2).to(base)
    shape = [-1] + [1] * (base.ndim - 1)
    total = torch.zeros_like(base)
    for start in range(0, steps, texts.batch_rows):
        some = slice(start, start + texts.batch_rows)
        with torch.enable_grad():
            leaf = (base + alphas[some].reshape(shape) * (source - base)).detach().requires_grad_()
            with texts.lm.intervene({name: lambda _own, leaf=leaf: leaf}):
                value = texts.metric(texts.base.expand(len(leaf), -1)).sum()
            (gradient,) = torch.autograd.grad(value, leaf)
        total += (weight[some].reshape(shape) * gradient).sum(0, keepdim=True)
    return total


@dataclass(frozen=True)
class PatchingAgreement:
    """How well estimates follow exact effects."""

    steps: int
    kinds: tuple[str, ...]
    pearson: Float[np.ndarray, " kinds"]
    spearman: Float[np.ndarray, " kinds"]
    """Of effects with their sign; NaN where one side is constant."""
    mean_difference: Float[np.ndarray, " kinds"]
    """Mean absolute difference, in shares."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each kind of place."""
        return [
            {
                "kind": kind,
                "pearson": plain(self.pearson[index]),
                "spearman": plain(self.spearman[index]),
                "mean_difference": plain(self.mean_difference[index]),
            }
            for index, kind in enumerate(self.kinds)
        ]

    def to_json(self) -> str:
        return to_json(self)


def patching_agreement(exact: ActivationPatching, approximate: AttributionPatching) -> PatchingAgreement:
    """Correlates estimates with exact effects, kind by kind.

    Raises:
        ValueError: results of other texts, target or direction.
    """
    ours, theirs = (
        (found.clean, found.corrupt, found.target, found.direction, found.model) for found in (exact, approximate)
    )
    if ours != theirs:
        raise ValueError(
            "the two results are about different texts, targets or directions, expected the same: redo one"
        )
    pairs = {
        kind: (exact.effects[kind], approximate.effects[kind]) for kind in exact.effects if kind in approximate.effects
    }
    if exact.heads.size:
        pairs["head_out"] = (exact.heads, approximate.heads)
    if exact.head_positions is not None:
        pairs["head_positions"] = (exact.head_positions, approximate.head_positions)
    flat = {kind: (a.ravel(), b.ravel()) for kind, (a, b) in pairs.items()}
    return PatchingAgreement(
        steps=approximate.steps,
        kinds=tuple(flat),
        pearson=np.array([pearson(a, b) for a, b in flat.values()]),
        spearman=np.array([spearman(a, b) for a, b in flat.values()]),
        mean_difference=np.array([np.abs(a - b).mean() for a, b in flat.values()]),
    )
