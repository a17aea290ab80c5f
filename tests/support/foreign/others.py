"""OpenAI, OpenMOSS and Llama Scope, Goodfire, Qwen Scope."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreign.making import D, F, Foreign, K, json_file, jump, rand, rows, tensor_file, top, torch_file


def openai(root: Path, activation: dict[str, Any], place: str) -> tuple[Path, dict[str, Any]]:
    state = {
        "pre_bias": rand(D, seed=1), "encoder.weight": rand(F, D), "latent_bias": rand(F, seed=2),
        "decoder.weight": rand(D, F, seed=3), "stats_last_nonzero": torch.zeros(F, dtype=torch.long),
        "latents_activation_frequency": torch.linspace(0, 0.2, F), "latents_mean_square": torch.zeros(F), **activation,
    }  # fmt: skip
    torch_file(root / place / "autoencoders" / "8.pt", state)
    return root / place / "autoencoders" / "8.pt", state


def openai_topk(root: Path) -> Foreign:
    function = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "ReLU"}}
    path, s = openai(root, function, "resid_post_mlp_v5_32k")
    x = rows()
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    acts = top(((x - mean) / (std + 1e-5) - s["pre_bias"]) @ s["encoder.weight"].T + s["latent_bias"])
    out = (acts @ s["decoder.weight"].T + s["pre_bias"]) * std + mean
    known = {"model_name": "gpt2", "data": {"context_tokens": 64}, "density": torch.linspace(0, 0.2, F).tolist()}
    return Foreign(path, x, out, "topk", "resid_post.8", known)


def openai_relu(root: Path) -> Foreign:
    path, s = openai(root, {"activation": "ReLU", "activation_state_dict": {}}, "mlp_post_act")
    x = rows()
    acts = ((x - s["pre_bias"]) @ s["encoder.weight"].T + s["latent_bias"]).relu()
    out = acts @ s["decoder.weight"].T + s["pre_bias"]
    return Foreign(path, x, out, "standard", "mlp_act.8", {"model_name": "gpt2"})


def openmoss(
    root: Path, act_fn: str, by_norm: bool, target: str | None = None, **settings: Any
) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor], float, float]:
    """Returns the weights, the activation (by decoder norm or not), and the scales of input and output."""
    source = "blocks.9.hook_resid_post"
    norms = {"in": 21.0, "out": 21.0 if target is None else 5.0}
    config = {
        "sae_type": "sae", "d_model": D, "expansion_factor": F / D, "use_decoder_bias": True, "act_fn": act_fn,
        "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": by_norm, "top_k": K,
        "hook_point_in": source, "hook_point_out": target or source, "use_glu_encoder": False, **settings,
    }  # fmt: skip
    json_file(root / "config.json", config)
    w = {"W_E": rand(D, F), "b_E": rand(F, seed=1), "W_D": rand(F, D, seed=2), "b_D": rand(D, seed=3)}
    stored = {f"dataset_average_activation_norm.{source}": torch.tensor(norms["in"])}
    stored[f"dataset_average_activation_norm.{target or source}"] = torch.tensor(norms["out"])
    if act_fn == "jumprelu":
        stored["activation_function.log_jumprelu_threshold"] = rand(F, seed=4)
    tensor_file(root / "sae_weights.safetensors", w | stored)
    norm = w["W_D"].norm(dim=1) if by_norm else torch.ones(F)

    def activate(pre: Tensor) -> Tensor:
        if act_fn == "jumprelu":
            return jump(pre * norm, rand(F, seed=4).exp()) / norm
        return (top(pre * norm) if act_fn == "topk" else (pre * norm).relu()) / norm

    return w, activate, D**0.5 / norms["in"], D**0.5 / norms["out"]


def openmoss_case(root: Path, act_fn: str, by_norm: bool, ours: str, target: str | None = None) -> Foreign:
    w, activate, scale_in, scale_out = openmoss(root, act_fn, by_norm, target)
    x = rows()
    acts = activate(x * scale_in @ w["W_E"] + w["b_E"])
    known = {} if target is None else {"target_sites": ["mlp_out.9"]}
    return Foreign(root, x, (acts @ w["W_D"] + w["b_D"]) / scale_out, ours, "resid_post.9", known)


def openmoss_jumprelu(root: Path) -> Foreign:
    return openmoss_case(root, "jumprelu", True, "jumprelu")


def openmoss_jumprelu_plain(root: Path) -> Foreign:
    return openmoss_case(root, "jumprelu", False, "jumprelu")


def openmoss_topk(root: Path) -> Foreign:
    return openmoss_case(root, "topk", True, "topk")


def openmoss_relu(root: Path) -> Foreign:
    return openmoss_case(root, "relu", True, "standard")


def openmoss_transcoder(root: Path) -> Foreign:
    return openmoss_case(root, "jumprelu", True, "transcoder", "blocks.9.hook_mlp_out")


def openmoss_token_wise(root: Path) -> Foreign:
    w, activate, _, _ = openmoss(root, "topk", True, norm_activation="token-wise")
    x = rows()
    scale = D**0.5 / x.norm(dim=-1, keepdim=True)
    acts = activate(x * scale @ w["W_E"] + w["b_E"])
    return Foreign(root, x, (acts @ w["W_D"] + w["b_D"]) / scale, "topk", "resid_post.9")


def openmoss_scale_given(root: Path) -> Foreign:
    """As Llama Scope's distilled models come: linear layers, a threshold each, and norms in no file."""
    made = openmoss_case(root, "jumprelu", True, "jumprelu")
    w, _, scale, _ = openmoss(root, "jumprelu", True)
    names = {"W_E": "encoder.weight", "b_E": "encoder.bias", "W_D": "decoder.weight", "b_D": "decoder.bias"}
    stored = {names[name]: value.T if value.ndim == 2 else value for name, value in w.items()}
    tensor_file(root / "sae_weights.safetensors", {**stored, "log_jumprelu_threshold": rand(F, seed=4)})
    made.options = {"input_scale": scale}
    return made


def llama_scope(root: Path) -> Foreign:
    folder = root / "Llama3_1-8B-Base-L15M-8x"
    config = {
        "device": "cuda:0", "seed": 42, "dtype": "torch.bfloat16", "hook_point_in": "blocks.15.hook_mlp_out",
        "hook_point_out": "blocks.15.hook_mlp_out", "expansion_factor": 8, "d_model": D, "d_sae": F,
        "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "act_fn": "jumprelu", "top_k": 50,
        "jump_relu_threshold": 0.6, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False,
        "dataset_average_activation_norm": {"in": 9.5, "out": 9.5},
    }  # fmt: skip
    json_file(folder / "hyperparams.json", config)
    t = {"encoder.weight": rand(F, D), "encoder.bias": rand(F, seed=1), "decoder.weight": rand(D, F, seed=2),
         "decoder.bias": rand(D, seed=3)}  # fmt: skip
    tensor_file(folder / "checkpoints" / "final.safetensors", t)
    x, s = rows(), D**0.5 / 9.5
    acts = jump(s * x @ t["encoder.weight"].T + t["encoder.bias"], torch.tensor(0.6 * s))
    out = (acts @ t["decoder.weight"].T + t["decoder.bias"]) / s
    return Foreign(folder, x, out, "jumprelu", "mlp_out.15", {"model_name": "meta-llama/Llama-3.1-8B"})


def goodfire(root: Path) -> Foreign:
    s = {"encoder_linear.weight": rand(F, D), "encoder_linear.bias": rand(F, seed=1),
         "decoder_linear.weight": rand(D, F, seed=2), "decoder_linear.bias": rand(D, seed=3)}  # fmt: skip
    path = root / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    torch_file(path, s)
    x = rows()
    acts = (x @ s["encoder_linear.weight"].T + s["encoder_linear.bias"]).relu()
    out = acts @ s["decoder_linear.weight"].T + s["decoder_linear.bias"]
    return Foreign(path, x, out, "standard", "resid_post.19", {"model_name": "meta-llama/Llama-3.1-8B-Instruct"})


def qwen_scope(root: Path, config: bool = False) -> Foreign:
    folder = root / ("weights" if config else f"SAE-Res-Qwen3-8B-Base-W64K-L0_{K}")
    s = {"W_enc": rand(F, D), "W_dec": rand(D, F, seed=2), "b_enc": rand(F, seed=1), "b_dec": rand(D, seed=3)}
    for layer in (5, 10):
        torch_file(folder / f"layer{layer}.sae.pt", s)
    if config:
        content = {"model_type": "topk_sae", "base_model": "Qwen/Qwen3-8B-Base", "d_model": D, "d_sae": F, "k": K}
        json_file(folder / "config.json", {**content, "num_layers": 36, "hook_point": "resid_post"})
    x = rows()
    acts = top(x @ s["W_enc"].T + s["b_enc"])
    known = {"model_name": "Qwen/Qwen3-8B-Base"}
    return Foreign(folder, x, acts @ s["W_dec"].T + s["b_dec"], "topk", "resid_post.5", known, {"subfolder": "layer5"})


def qwen_scope_with_config(root: Path) -> Foreign:
    return qwen_scope(root, config=True)


CASES = (
    openai_topk,
    openai_relu,
    openmoss_jumprelu,
    openmoss_jumprelu_plain,
    openmoss_topk,
    openmoss_relu,
    openmoss_transcoder,
    openmoss_token_wise,
    openmoss_scale_given,
    llama_scope,
    goodfire,
    qwen_scope,
    qwen_scope_with_config,
)
