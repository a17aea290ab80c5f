"""How tests load a foreign SAE and make one of our own of every kind, and what an error may look like."""

from __future__ import annotations

from typing import Any

import torch
from foreign.making import D, F, Foreign, N, rows

from sae import SAE, SAEConfig


def load(made: Foreign) -> SAE:
    return SAE.load(made.path, **made.options)


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message
    assert "\n" not in message, message
    return message


OURS: dict[str, dict[str, Any]] = {
    "standard": {},
    "standard_plain": {"architecture": "standard", "apply_b_dec_to_input": False},
    "gated": {},
    "gated_plain": {"architecture": "gated", "apply_b_dec_to_input": False},
    "topk": {"k": 4},
    "topk_plain": {"architecture": "topk", "k": 4, "apply_b_dec_to_input": False},
    "topk_layer_norm": {"architecture": "topk", "k": 4, "normalize_activations": "layer_norm"},
    "standard_constant_norm": {"architecture": "standard", "normalize_activations": "constant_norm_rescale"},
    "abstopk": {"k": 4},
    "jumprelu": {},
    "jumprelu_plain": {"architecture": "jumprelu", "apply_b_dec_to_input": False},
    "matching_pursuit": {"residual_threshold": 0.2},
    "transcoder": {"activation": "relu", "d_out": 8},
    "jumprelu_transcoder": {"architecture": "transcoder", "activation": "jumprelu", "d_out": 8},
    "topk_transcoder": {"architecture": "transcoder", "activation": "topk", "k": 4},
    "skip_transcoder": {"activation": "relu", "d_out": 8},
    "jumprelu_skip_transcoder": {"architecture": "skip_transcoder", "activation": "jumprelu", "d_out": 8},
    "topk_skip_transcoder": {"architecture": "skip_transcoder", "activation": "topk", "k": 4},
    "crosscoder": {"activation": "relu", "n_sites": 2},
    "jumprelu_crosscoder": {"architecture": "crosscoder", "activation": "jumprelu", "n_sites": 2},
    "clt": {"activation": "topk", "k": 4, "n_sites": 2},
}
"""Every kind of SAE that we have, by name."""


def ours(name: str) -> tuple[SAE, torch.Tensor]:
    """An SAE of ours with random weights, and rows for it."""
    settings = {"architecture": name, "normalize_activations": "none", **OURS[name]}
    config = SAEConfig(d_in=D, d_sae=F, **settings)
    data = {"source": "corpus.txt", "context_tokens": 64, "prepend_bos": False}
    metadata: dict[str, Any] = {"site": "resid_post.3", "model_name": "EleutherAI/pythia-70m", "data": data}
    if config.predicts_target and config.n_sites == 1:
        metadata |= {"site": "mlp_in.3", "target_sites": ["mlp_out.3"]}
    sae = SAE(config, metadata)
    generator = torch.Generator().manual_seed(0)
    for tensor_name, value in sae.named_parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.5
        if tensor_name == "threshold":
            value.data = value.data.abs() * 3
    if name == "matching_pursuit":
        sae.W_dec.data = torch.nn.functional.normalize(sae.W_dec.data, dim=1)
        sae.W_enc.data = sae.W_dec.data.clone()
    if name == "clt":
        sae.W_dec.data[F // 2 :, :D] = 0
    return sae, rows(N, 2, D) if config.n_sites == 2 else rows()
