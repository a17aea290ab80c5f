"""From any residual stream to logits, exactly as the model does it at its end.

Enters: rows of the residual stream. Leaves: the logits that the model's own final norm, projection, head, scale and
softcap make of them: at `final_site` these are the model's logits. Gradients flow. The way there is checked on a few
tokens of each model before it is first relied on, so that a head this module does not know is refused, not misread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from activations.sites import Site, body_of, submodule

if TYPE_CHECKING:
    from activations.model import LanguageModel


def readout(lm: LanguageModel, rows: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n vocab"]:
    """Returns the logits of rows of the residual stream (of `lm.final_site`, or of an earlier layer: the logit lens),
    in the model's own type.

    Raises:
        ValueError: the model has no head over tokens.
    """
    model: Any = lm.model
    rows = rows.to(lm.dtype)
    if lm.kind == "encoder":
        # BERT's and RoBERTa's heads are whole modules, with a norm of their own
        head = getattr(model, "cls", None) or getattr(model, "lm_head", None)
        if head is None or model.get_output_embeddings() is None:
            raise _headless(lm)
        return head(rows).to(lm.device)
    norm = final_norm(lm)
    logits = after_norm(lm, rows if norm is None else norm(rows))
    cap = softcap(lm)
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits.to(lm.device)


def final_norm(lm: LanguageModel) -> nn.Module | None:
    """Returns the norm that reads `lm.final_site`; None where there is none (post-norm families)."""
    path = lm.site_map.stacks[-1].architecture.final_norm
    return submodule(body_of(lm.model), path) if path else None


def softcap(lm: LanguageModel) -> float | None:
    """Returns the bound c of logits that a model caps by c·tanh(logit / c) (Gemma 2), else None."""
    return getattr(lm.model.config, "final_logit_softcapping", None)


def after_norm(lm: LanguageModel, rows: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n vocab"]:
    """Returns the logits, before a cap on them, of normed rows: an affine map in every family but BERT's.

    Raises:
        ValueError: the model has no such head over tokens.
    """
    model: Any = lm.model
    head = model.get_output_embeddings()
    if head is None or lm.kind == "encoder":
        raise _headless(lm)
    project: Any = getattr(getattr(body_of(model), "decoder", None), "project_out", None)
    if project is not None:
        rows = project(rows)
    if getattr(model.config, "scale_decoder_outputs", False):
        rows = rows * lm.d_model**-0.5
    return head(rows)


@torch.no_grad()
def check_readout(lm: LanguageModel) -> None:
    """ValueError unless `readout` of the last residual stream is what the model itself computes, on a few tokens."""
    if getattr(lm, "_readout_holds", False):
        return
    wide = lm.vocab_size
    tokens = torch.arange(3, device=lm.device)[None] * (wide // 4) + wide // 8
    site = lm.final_site
    rows = lm.capture(tokens, None, [site])[site]
    own = lm.logits(tokens).float()
    got = readout(lm, rows).float()
    worst = float((got - own).abs().max()) if got.shape == own.shape else float("inf")
    # a product of another shape may round in another order, by a few units of the model's type
    if not worst <= 64 * torch.finfo(lm.dtype).eps * float(own.abs().max()):
        raise ValueError(
            f"{lm.name} makes its logits otherwise than its final norm and head do (off by {worst:.3g}), expected a "
            "plain head: this model's lens cannot be read"
        )
    lm.__dict__["_readout_holds"] = True


def stream_sites(lm: LanguageModel) -> list[str]:
    """Returns the names of the residual stream from the input of the first layer to the output of the last."""
    stack = lm.site_map.stacks[-1].architecture.stack
    return [str(Site("resid_pre", 0, stack)), *(str(Site("resid_post", layer, stack)) for layer in range(lm.n_layers))]


def _headless(lm: LanguageModel) -> ValueError:
    return ValueError(
        f"{type(lm.model).__name__} has no logits over tokens, expected a language-model head: load it with one"
    )
