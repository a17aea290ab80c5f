"""SAELens's layouts, of all its versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreign.making import D, F, Foreign, K, N, json_file, jump, rand, rows, tensor_file, top

METADATA = {
    "sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12", "model_name": "pythia-70m-deduped",
    "hook_name": "blocks.3.hook_resid_pre", "hook_head_index": None, "context_size": 128, "prepend_bos": True,
    "dataset_path": "monology/pile-uncopyrighted", "seqpos_slice": [None], "model_from_pretrained_kwargs": {},
}  # fmt: skip
KNOWN = {
    "model_name": "EleutherAI/pythia-70m-deduped",
    "data": {"source": "monology/pile-uncopyrighted", "context_tokens": 128, "prepend_bos": True},
}


def saelens_weights() -> dict[str, Tensor]:
    return {"W_enc": rand(D, F), "W_dec": rand(F, D), "b_enc": rand(F, seed=1) * 0.2, "b_dec": rand(D, seed=2)}


def saelens(
    root: Path, architecture: str, weights: dict[str, Tensor], expected: Tensor, x: Tensor, ours: str, **settings: Any
) -> Foreign:
    config = {
        "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none", "architecture": architecture,
        "metadata": METADATA, **settings,
    }  # fmt: skip
    json_file(root / "cfg.json", config)
    tensor_file(root / "sae_weights.safetensors", weights)
    return Foreign(root, x, expected, ours, "resid_pre.3", KNOWN)


def saelens_standard(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    acts = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    tensor_file(root / "sparsity.safetensors", {"sparsity": torch.linspace(-5, -1, F)})
    made = saelens(root, "standard", w, acts @ w["W_dec"] + w["b_dec"], x, "standard")
    made.known = {**KNOWN, "density": (10 ** torch.linspace(-5, -1, F)).tolist()}
    return made


def saelens_standard_without_subtraction(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    acts = (x @ w["W_enc"] + w["b_enc"]).relu()
    return saelens(root, "standard", w, acts @ w["W_dec"] + w["b_dec"], x, "standard", apply_b_dec_to_input=False)


def saelens_half_precision(root: Path) -> Foreign:
    w, x = {name: value.bfloat16() for name, value in saelens_weights().items()}, rows()
    f = {name: value.float() for name, value in w.items()}
    acts = ((x - f["b_dec"]) @ f["W_enc"] + f["b_enc"]).relu()
    return saelens(root, "standard", w, acts @ f["W_dec"] + f["b_dec"], x, "standard", dtype="bfloat16")


def saelens_gated(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    del w["b_enc"]
    w |= {"b_gate": rand(F, seed=3), "r_mag": rand(F, seed=4), "b_mag": rand(F, seed=5)}
    centred = x - w["b_dec"]
    gate = centred @ w["W_enc"] + w["b_gate"] > 0
    magnitude = (centred @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    return saelens(root, "gated", w, (gate * magnitude) @ w["W_dec"] + w["b_dec"], x, "gated")


def saelens_topk(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    acts = top((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    return saelens(root, "topk", w, acts @ w["W_dec"] + w["b_dec"], x, "topk", k=K, rescale_acts_by_decoder_norm=False)


def saelens_topk_rescaled(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    norm = w["W_dec"].norm(dim=-1)
    acts = top(((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm)
    out = (acts / norm) @ w["W_dec"] + w["b_dec"]
    return saelens(root, "topk", w, out, x, "topk", k=K, rescale_acts_by_decoder_norm=True)


def saelens_abstopk(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    index = pre.abs().topk(K, dim=-1).indices
    acts = torch.zeros_like(pre).scatter(-1, index, pre.gather(-1, index))
    return saelens(
        root, "abstopk", w, acts @ w["W_dec"] + w["b_dec"], x, "abstopk", k=K, rescale_acts_by_decoder_norm=False
    )


def saelens_jumprelu(root: Path) -> Foreign:
    w, x = saelens_weights() | {"threshold": rand(F, seed=6).abs() * 4}, rows()
    acts = jump((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"])
    return saelens(root, "jumprelu", w, acts @ w["W_dec"] + w["b_dec"], x, "jumprelu")


def saelens_log_threshold(root: Path) -> Foreign:
    w, x = saelens_weights() | {"log_threshold": rand(F, seed=6)}, rows()
    acts = jump((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["log_threshold"].exp())
    return saelens(root, "jumprelu", w, acts @ w["W_dec"] + w["b_dec"], x, "jumprelu")


def saelens_batchtopk_checkpoint(root: Path, architecture: str = "batchtopk") -> Foreign:
    w, x = saelens_weights() | {"topk_threshold": torch.tensor(1.7, dtype=torch.float64)}, rows()
    norm = w["W_dec"].norm(dim=-1)
    acts = jump(((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norm, torch.tensor(1.7))
    out = (acts / norm) @ w["W_dec"] + w["b_dec"]
    made = saelens(root, architecture, w, out, x, "jumprelu", k=5.0, rescale_acts_by_decoder_norm=True)
    made.known = {**KNOWN, "training_architecture": architecture}
    return made


def saelens_matryoshka_checkpoint(root: Path) -> Foreign:
    return saelens_batchtopk_checkpoint(root, "matryoshka_batchtopk")


def saelens_scaled_checkpoint(root: Path) -> Foreign:
    w, x, s = saelens_weights() | {"threshold": rand(F, seed=6).abs()}, rows(), 0.37
    acts = jump((s * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"])
    json_file(root / "activation_scaler.json", {"scaling_factor": s})
    out = (acts @ w["W_dec"] + w["b_dec"]) / s
    return saelens(root, "jumprelu", w, out, x, "jumprelu", normalize_activations="expected_average_only_in")


def saelens_scale_given(root: Path) -> Foreign:
    made = saelens_scaled_checkpoint(root)
    (root / "activation_scaler.json").unlink()
    made.options = {"input_scale": 0.37}
    return made


def saelens_layer_norm(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    acts = top(((x - mean) / (std + 1e-5) - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    out = (acts @ w["W_dec"] + w["b_dec"]) * std + mean
    return saelens(root, "topk", w, out, x, "topk", k=K, normalize_activations="layer_norm")


def saelens_constant_norm(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    scale = D**0.5 / x.norm(dim=-1, keepdim=True)
    acts = ((x * scale - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    out = (acts @ w["W_dec"] + w["b_dec"]) / scale
    return saelens(root, "standard", w, out, x, "standard", normalize_activations="constant_norm_rescale")


def saelens_hook_z(root: Path) -> Foreign:
    made = saelens_standard(root)
    config = json.loads((root / "cfg.json").read_text())
    config |= {"reshape_activations": "hook_z", "metadata": {**METADATA, "hook_name": "blocks.3.attn.hook_z"}}
    json_file(root / "cfg.json", config)
    made.site = "head_out.3"
    return made


def saelens_matching_pursuit(root: Path) -> Foreign:
    dictionary = torch.nn.functional.normalize(rand(F, D), dim=1)
    w, x = {"W_dec": dictionary, "b_dec": rand(D, seed=2)}, rows()
    residual, acts = x - w["b_dec"], torch.zeros(N, F)
    done = torch.zeros(N, dtype=torch.bool)
    while not done.all():
        value, index = (residual @ dictionary.T).relu().max(dim=1)
        value = value * ~done
        before = acts != 0
        acts[torch.arange(N), index] += value
        residual = residual - value[:, None] * dictionary[index]
        done |= ((acts != 0) == before).all(1) | (residual.norm(dim=1) < 0.3)
    out = acts @ dictionary + w["b_dec"]
    return saelens(root, "matching_pursuit", w, out, x, "matching_pursuit", residual_threshold=0.3)


def saelens_transcoder(root: Path, kind: str = "transcoder") -> Foreign:
    d_out, x = 8, rows()
    w = {"W_enc": rand(D, F), "W_dec": rand(F, d_out), "b_enc": rand(F, seed=1), "b_dec": rand(d_out, seed=2)}
    pre = x @ w["W_enc"] + w["b_enc"]
    acts = pre.relu()
    if "jumprelu" in kind:
        w["threshold"] = rand(F, seed=6).abs() * 4
        acts = jump(pre, w["threshold"])
    out = acts @ w["W_dec"] + w["b_dec"]
    if "skip" in kind:
        w["W_skip"] = rand(d_out, D, seed=9)
        out = out + x @ w["W_skip"].T
    hooks = {"hook_name": "blocks.3.hook_mlp_in", "hook_name_out": "blocks.3.hook_mlp_out"}
    ours = "skip_transcoder" if "skip" in kind else "transcoder"
    made = saelens(root, kind, w, out, x, ours, d_out=d_out, apply_b_dec_to_input=False, metadata={**METADATA, **hooks})
    made.site, made.known = "mlp_in.3", {**KNOWN, "target_sites": ["mlp_out.3"]}
    return made


def saelens_skip_transcoder(root: Path) -> Foreign:
    return saelens_transcoder(root, "skip_transcoder")


def saelens_jumprelu_transcoder(root: Path) -> Foreign:
    return saelens_transcoder(root, "jumprelu_transcoder")


def saelens_jumprelu_skip_transcoder(root: Path) -> Foreign:
    return saelens_transcoder(root, "jumprelu_skip_transcoder")


def saelens_5(root: Path, expected: Tensor, x: Tensor, w: dict[str, Tensor], ours: str, **settings: Any) -> Foreign:
    config = {
        "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8,
        "hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "context_size": 128, "d_in": D,
        "d_sae": F, "dtype": "torch.float32", "device": "cuda", "expansion_factor": 4, "l1_coefficient": 8e-5,
        **settings,
    }  # fmt: skip
    json_file(root / "cfg.json", config)
    tensor_file(root / "sae_weights.safetensors", w)
    data = {"source": "Skylion007/openwebtext", "context_tokens": 128, "prepend_bos": True}
    return Foreign(root, x, expected, ours, "resid_pre.8", {"model_name": "gpt2", "data": data})


def saelens_5_standard(root: Path) -> Foreign:
    w, x = saelens_weights() | {"scaling_factor": torch.ones(F)}, rows()
    acts = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    return saelens_5(root, acts @ w["W_dec"] + w["b_dec"], x, w, "standard", normalize_activations=False)


def saelens_5_finetuned(root: Path) -> Foreign:
    w, x = saelens_weights() | {"scaling_factor": rand(F, seed=8).abs() + 0.5}, rows()
    acts = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu() * w["scaling_factor"]
    return saelens_5(root, acts @ w["W_dec"] + w["b_dec"], x, w, "standard", finetuning_scaling_factor=True)


def saelens_5_topk(root: Path) -> Foreign:
    w, x = saelens_weights(), rows()
    acts = top((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    return saelens_5(
        root, acts @ w["W_dec"] + w["b_dec"], x, w, "topk", activation_fn_str="topk", activation_fn_kwargs={"k": K}
    )


def saelens_5_jumprelu(root: Path) -> Foreign:
    w, x = saelens_weights() | {"threshold": rand(F, seed=6).abs() * 4}, rows()
    acts = jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])
    out = acts @ w["W_dec"] + w["b_dec"]
    return saelens_5(root, out, x, w, "jumprelu", architecture="jumprelu", apply_b_dec_to_input=False, prepend_bos=True)


CASES = (
    saelens_standard,
    saelens_standard_without_subtraction,
    saelens_half_precision,
    saelens_gated,
    saelens_topk,
    saelens_topk_rescaled,
    saelens_abstopk,
    saelens_jumprelu,
    saelens_log_threshold,
    saelens_batchtopk_checkpoint,
    saelens_matryoshka_checkpoint,
    saelens_scaled_checkpoint,
    saelens_scale_given,
    saelens_layer_norm,
    saelens_constant_norm,
    saelens_hook_z,
    saelens_matching_pursuit,
    saelens_transcoder,
    saelens_skip_transcoder,
    saelens_jumprelu_transcoder,
    saelens_jumprelu_skip_transcoder,
    saelens_5_standard,
    saelens_5_finetuned,
    saelens_5_topk,
    saelens_5_jumprelu,
)
