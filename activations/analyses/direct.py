"""Direct logit attribution: which layer, head and MLP wrote the logit.

    direct_logit_attribution(lm, text, target=None, contrast=None, position=-1) -> DirectAttribution

Enters: a model, a text, a token to explain (default: the model's own first choice), perhaps a token to hold against it.
Leaves: the logit (or the difference of two logits) as a sum over what was written into the residual stream.

    logit = Σ_c u · x_c + b,   u = the gradient of the logit at the final residual stream with the norm's scale frozen

where x_c are the embeddings and what each attention layer (each of its heads) and each MLP wrote. The final norm is
linear once its scale is frozen at what it is on this text, so the sum is exact; `error` is what rounding left. In
families whose layers norm what they write (Gemma 2, 3, OLMo 2), the scale of that norm is frozen too where a layer is
divided into heads. A softcap (Gemma 2) comes after the sum: `logit` is the value before it.

It misleads where a component acts through later layers: only the direct path is counted. Components that cancel each
other both look important, and u depends on all of them through the frozen scale.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; nostalgebraist 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from activations.analyses.inputs import read_ids, token_id, tokens_of
from activations.analyses.plain import to_json
from activations.readout import after_norm, check_readout, final_norm, softcap
from activations.sites import Site, submodule

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class DirectAttribution:
    """A logit as a sum of what components wrote, at one position."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    position: int
    target: str
    target_id: int
    contrast: str | None
    """The token whose logit was subtracted, or None."""
    logit: float
    """Of the target (less the contrast's), before a softcap."""
    softcap: float | None
    embedding: float
    """The stream that enters the first layer: token embedding and, where added, position."""
    attention: Float[np.ndarray, " layers"]
    heads: Float[np.ndarray, "layers heads"]
    """The parts of `attention`; what is missing to it is the output projection's bias (and, under an edit of
    attention's output, the edit)."""
    cross_attention: Float[np.ndarray, " layers"] | None
    """T5's decoder only."""
    mlp: Float[np.ndarray, " layers"]
    bias: float
    """Of the final norm and the head."""
    error: float
    """logit − sum of all parts: rounding."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each component, the largest effect first; heads stand in place of their layer."""
        records: list[dict[str, Any]] = [
            {"component": "embedding", "layer": None, "head": None, "effect": self.embedding}
        ]
        for layer, whole in enumerate(self.attention):
            records += [
                {"component": f"head {layer}.{head}", "layer": layer, "head": head, "effect": float(effect)}
                for head, effect in enumerate(self.heads[layer])
            ]
            rest = float(whole - self.heads[layer].sum())
            records.append({"component": f"attention bias {layer}", "layer": layer, "head": None, "effect": rest})
            if self.cross_attention is not None:
                effect = float(self.cross_attention[layer])
                records.append({"component": f"cross {layer}", "layer": layer, "head": None, "effect": effect})
            records.append(
                {"component": f"mlp {layer}", "layer": layer, "head": None, "effect": float(self.mlp[layer])}
            )
        records.append({"component": "bias", "layer": None, "head": None, "effect": self.bias})
        return sorted(records, key=lambda record: -abs(record["effect"]))

    def to_json(self) -> str:
        return to_json(self)


def direct_logit_attribution(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    *,
    target: str | int | None = None,
    contrast: str | int | None = None,
    position: int = -1,
) -> DirectAttribution:
    """Divides the logit of `target` at `position` (what the model expects to come next) among components.

    Raises:
        ValueError: empty or too long text, a position outside of it, a target of several tokens, or a model whose
            logits are no sum of what its layers write (BERT, RoBERTa, post-norm OPT).
    """
    tokens = tokens_of(lm, text)
    stack = lm.site_map.stacks[-1]
    family, name = stack.architecture, stack.architecture.stack
    if family.residual == "post_norm" or final_norm(lm) is None:
        raise ValueError(
            f"{lm.name} norms its residual stream in every layer, expected a stream that adds up to the logits: use a "
            "pre-norm decoder"
        )
    check_readout(lm)
    count = tokens.shape[1]
    if not -count <= position < count:
        raise ValueError(f"position {position} is outside of a text of {count} tokens: choose one in it")
    position %= count

    def site(kind: str, layer: int) -> str:
        return str(Site(kind, layer, name))

    layers = range(lm.n_layers)
    wanted = [site(kind, layer) for layer in layers for kind in ("head_out", "attn_out", "mlp_out")]
    wanted += [site("resid_pre", 0), lm.final_site]
    if family.cross is not None:
        wanted += [site(kind, layer) for layer in layers for kind in ("resid_pre", "resid_mid")]
    if family.attn != family.heads:
        # Gemma 2, 3 and OLMo 2: the projection's output, before its norm
        paths = {layer: _path(lm, submodule(stack.layers[layer], family.heads)) for layer in layers}
        wanted += paths.values()
    captured = {key: value[0, position] for key, value in lm.capture(tokens, None, list(dict.fromkeys(wanted))).items()}
    final = captured[lm.final_site]
    norm = FrozenNorm(lm, final_norm(lm), final)
    with torch.no_grad():
        normed = norm.module(final)
        asked = int(after_norm(lm, normed).argmax()) if target is None else token_id(lm, target)
    against = None if contrast is None else token_id(lm, contrast)

    def score(normed: Tensor) -> Tensor:
        logits = after_norm(lm, normed.to(lm.dtype)).to(final.device)
        return logits[asked] - (0 if against is None else logits[against])

    at_head = _gradient(score, torch.zeros_like(final))
    with torch.no_grad():
        bias = float(score(torch.zeros_like(final)).double()) + float((at_head.double() * norm.bias).sum())
        logit = float(score(normed).double())
    direction = norm.pulled(at_head)

    def effect(row: Tensor) -> float:
        return float(row.double() @ direction)

    heads = np.zeros((lm.n_layers, stack.heads))
    for layer in layers:
        pulled = direction
        if family.attn != family.heads:
            after = FrozenNorm(lm, submodule(stack.layers[layer], family.attn), captured[paths[layer]])  # pyright: ignore
            pulled = after.pulled(direction)
        project = submodule(stack.layers[layer], family.heads)
        values = captured[site("head_out", layer)]
        at_values = _gradient(
            lambda z, project=project, pulled=pulled: _dot(project.forward(z), pulled), values.flatten()
        )
        heads[layer] = (values.double() * at_values.double().view_as(values)).sum(-1).cpu().numpy()
    attention = np.array([effect(captured[site("attn_out", layer)]) for layer in layers])
    mlp = np.array([effect(captured[site("mlp_out", layer)]) for layer in layers])
    cross = None
    if family.cross is not None:
        mids = [captured[site("resid_mid", layer)] - captured[site("resid_pre", layer)] for layer in layers]
        cross = np.array([effect(mid) for mid in mids]) - attention
    embedding = effect(captured[site("resid_pre", 0)])
    total = embedding + attention.sum() + mlp.sum() + bias + (0 if cross is None else cross.sum())
    strings = lm.token_strings([asked, *([] if against is None else [against])])
    return DirectAttribution(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(read_ids(lm, tokens))),
        position=position,
        target=strings[0],
        target_id=asked,
        contrast=None if against is None else strings[1],
        logit=logit,
        softcap=softcap(lm),
        embedding=embedding,
        attention=attention,
        heads=heads,
        cross_attention=cross,
        mlp=mlp,
        bias=bias,
        error=float(logit - total),
    )


class FrozenNorm:
    """A norm as the affine map that it is when its scale stays what it was at one row: y = g (x − m) / s + b.

    m is the row's mean for LayerNorm and 0 for RMS norms. In float64.
    """

    def __init__(self, lm: LanguageModel, module: nn.Module | None, row: Float[Tensor, " d_model"]) -> None:
        assert module is not None
        self.module = module
        weight: Any = getattr(module, "weight", None)
        bias: Any = getattr(module, "bias", None)
        offset = lm.site_map.stacks[-1].architecture.norm_gain_offset
        self.gain = 1.0 if weight is None else weight.detach().to(row.device).double() + offset
        self.bias = torch.zeros_like(row).double() if bias is None else bias.detach().to(row.device).double()
        self.is_centred = isinstance(module, nn.LayerNorm)
        with torch.no_grad():
            out = module.forward(row.detach()[None])[0].to(row.device).double() - self.bias
        unscaled = self._centred(row.detach().double()) * self.gain
        # whatever the family adds under the root, the output is `unscaled` divided by one number
        self.scale = float(unscaled.square().sum() / (unscaled * out).sum())

    def pulled(self, gradient: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        """Returns the gradient at the norm's input of a gradient at its output, in float64."""
        return self._centred(gradient.double() * self.gain) / self.scale

    def _centred(self, row: Tensor) -> Tensor:
        return row - row.mean() if self.is_centred else row


def _gradient(function: Any, at: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(function(leaf), leaf)
    return found


def _dot(row: Tensor, direction: Tensor) -> Tensor:
    return (row.double().to(direction.device) * direction).sum()


def _path(lm: LanguageModel, module: nn.Module) -> str:
    return next(name for name, each in lm.model.named_modules() if each is module)
