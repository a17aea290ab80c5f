"""How the residual stream comes about, layer by layer: what each attention layer and each MLP adds to it.

    stream_flow(lm, text) -> StreamFlow

Enters: a model and a text. Leaves, for each layer and token: the length of what stood there before, the length of what
attention and MLP add, and the cosine between what is added and what it is added to: near 1 it makes more of what is
there, near 0 it writes something new, below 0 it takes away. In families with sequential layers the MLP adds to the
stream behind attention; in parallel ones (GPT-NeoX, GPT-J) both add to the stream that enters.

`error` is the largest part of a row, over its length, that is in the stream that leaves but is none of this: rounding.
BERT, RoBERTa and post-norm OPT norm the sum in every layer, so that nothing adds up there: `error` is None, cosines and
lengths are those of what is added before the norm.

A large addition is not an important one: later layers may not read it. The first token's row is often far longer than
the others': compare along a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import read_ids, tokens_of
from activations.analyses.plain import to_json
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class StreamFlow:
    """Lengths and cosines by layer and token."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    entering: Float[np.ndarray, "layers tokens"]
    """Length of the stream before each layer."""
    leaving: Float[np.ndarray, "layers tokens"]
    """Length of the stream behind each layer."""
    attention: Float[np.ndarray, "layers tokens"]
    """Length of what attention adds."""
    attention_cosine: Float[np.ndarray, "layers tokens"]
    mlp: Float[np.ndarray, "layers tokens"]
    mlp_cosine: Float[np.ndarray, "layers tokens"]
    kept: Float[np.ndarray, "layers tokens"]
    """Cosine between the stream before and behind each layer."""
    error: float | None

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each layer: means over tokens."""
        return [
            {
                "layer": layer,
                "stream": float(self.entering[layer].mean()),
                "attention_adds": float(self.attention[layer].mean()),
                "attention_cosine": float(self.attention_cosine[layer].mean()),
                "mlp_adds": float(self.mlp[layer].mean()),
                "mlp_cosine": float(self.mlp_cosine[layer].mean()),
                "kept": float(self.kept[layer].mean()),
            }
            for layer in range(len(self.entering))
        ]

    def to_json(self) -> str:
        return to_json(self)


def stream_flow(lm: LanguageModel, text: str | Int[Tensor, "1 seq"]) -> StreamFlow:
    """Measures what each layer adds to the stream on one text.

    Raises:
        ValueError: empty or too long text.
    """
    tokens = tokens_of(lm, text)
    architecture = lm.site_map.stacks[-1].architecture

    def site(kind: str, layer: int) -> str:
        return str(Site(kind, layer, architecture.stack))

    layers = range(lm.n_layers)
    kinds = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    wanted = [site(kind, layer) for layer in layers for kind in kinds if lm.has_site(site(kind, layer))]
    captured = {name: value[0].flatten(1).double().cpu() for name, value in lm.capture(tokens, None, wanted).items()}
    found: dict[str, list[np.ndarray]] = {}
    worst = 0.0
    for layer in layers:
        before, after = captured[site("resid_pre", layer)], captured[site("resid_post", layer)]
        middle = captured.get(site("resid_mid", layer), before)
        attention, mlp = captured[site("attn_out", layer)], captured[site("mlp_out", layer)]
        # T5's cross-attention stands between
        between = middle - before - attention if architecture.cross is not None else 0.0
        rest = after - (before + attention + between + mlp)
        worst = max(worst, float((rest.norm(dim=1) / after.norm(dim=1).clamp(min=1e-30)).max()))
        values = {
            "entering": before.norm(dim=1),
            "leaving": after.norm(dim=1),
            "attention": attention.norm(dim=1),
            "attention_cosine": _cosine(attention, before),
            "mlp": mlp.norm(dim=1),
            "mlp_cosine": _cosine(mlp, middle),
            "kept": _cosine(after, before),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value.numpy())
    return StreamFlow(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(read_ids(lm, tokens))),
        error=None if architecture.residual == "post_norm" else worst,
        **{name: np.stack(value) for name, value in found.items()},
    )


def _cosine(a: Float[Tensor, "tokens d"], b: Float[Tensor, "tokens d"]) -> Float[Tensor, " tokens"]:
    return torch.nn.functional.cosine_similarity(a, b, dim=1)
