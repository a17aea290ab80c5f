"""Other projects' SAEs, written file by file as their own code lays them out, each with the reconstruction that code
computes from those files: the formulas here are written out in plain torch and share nothing with `sae`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, F, K, N = 12, 40, 5, 64


@dataclass
class Foreign:
    """A written SAE: where it is, rows to put through it, what its own project makes of them, what must be known."""

    path: Path
    x: Tensor
    expected: Tensor
    architecture: str
    site: str | None = None
    known: dict[str, Any] = field(default_factory=dict)
    """Metadata that must have been understood."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `SAE.load`."""


def rand(*shape: int, scale: float = 0.5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator) * scale


def rows(*shape: int) -> Tensor:
    return rand(*(shape or (N, D)), scale=3.0, seed=7) + 0.5


def top(pre: Tensor, k: int = K) -> Tensor:
    best = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())


def jump(pre: Tensor, threshold: Tensor) -> Tensor:
    return pre.relu() * (pre > threshold)


def json_file(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def tensor_file(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def torch_file(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


# ---- SAELens ---------------------------------------------------------------------------------------------------------

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


# ---- dictionary_learning ---------------------------------------------------------------------------------------------


def dictionary_learning(
    root: Path, name: str, state: Any, expected: Tensor, x: Tensor, ours: str, **more: Any
) -> Foreign:
    trainer = {
        "trainer_class": "Trainer", "dict_class": name, "activation_dim": D, "dict_size": F, "layer": 8, "lr": 1e-4,
        "lm_name": "EleutherAI/pythia-160m-deduped", "submodule_name": "resid_post_layer_8", **more,
    }  # fmt: skip
    json_file(root / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 1024, "d_submodule": D, "io": "out"}})
    torch_file(root / "ae.pt", state)
    known = {"model_name": "EleutherAI/pythia-160m-deduped", "data": {"context_tokens": 1024}}
    return Foreign(root, x, expected, ours, "resid_post.8", known)


def linear_state(**biases: Tensor) -> dict[str, Tensor]:
    return {"encoder.weight": rand(F, D), "decoder.weight": rand(D, F, seed=1), **biases}


def dl_autoencoder(root: Path) -> Foreign:
    s, x = linear_state(**{"encoder.bias": rand(F, seed=1), "bias": rand(D, seed=2)}), rows()
    acts = ((x - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return dictionary_learning(root, "AutoEncoder", s, acts @ s["decoder.weight"].T + s["bias"], x, "standard")


def dl_autoencoder_new(root: Path) -> Foreign:
    s, x = linear_state(**{"encoder.bias": rand(F, seed=1), "decoder.bias": rand(D, seed=2)}), rows()
    acts = (x @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return dictionary_learning(
        root, "AutoEncoderNew", s, acts @ s["decoder.weight"].T + s["decoder.bias"], x, "standard"
    )


def dl_gated(root: Path) -> Foreign:
    s = linear_state(
        decoder_bias=rand(D, seed=2), r_mag=rand(F, seed=3), gate_bias=rand(F, seed=4), mag_bias=rand(F, seed=5)
    )
    x = rows()
    enc = (x - s["decoder_bias"]) @ s["encoder.weight"].T
    acts = (enc + s["gate_bias"] > 0) * (s["r_mag"].exp() * enc + s["mag_bias"]).relu()
    out = acts @ s["decoder.weight"].T + s["decoder_bias"]
    return dictionary_learning(root, "GatedAutoEncoder", s, out, x, "gated")


def topk_state(threshold: float) -> dict[str, Tensor]:
    scalars = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}
    return linear_state(**{"encoder.bias": rand(F, seed=1), "b_dec": rand(D, seed=2), **scalars})


def dl_topk(root: Path) -> Foreign:
    s, x = topk_state(-1.0), rows()
    acts = top(((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu())
    return dictionary_learning(root, "AutoEncoderTopK", s, acts @ s["decoder.weight"].T + s["b_dec"], x, "topk", k=K)


def dl_batchtopk(root: Path) -> Foreign:
    s, x = topk_state(2.5), rows()
    acts = jump((x - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"], s["threshold"])
    made = dictionary_learning(root, "BatchTopKSAE", s, acts @ s["decoder.weight"].T + s["b_dec"], x, "jumprelu", k=K)
    made.known["training_architecture"] = "batchtopk"
    return made


def matrix_state(**more: Tensor) -> dict[str, Tensor]:
    return {"W_enc": rand(D, F), "W_dec": rand(F, D), "b_enc": rand(F, seed=1), "b_dec": rand(D, seed=2), **more}


def dl_matryoshka(root: Path) -> Foreign:
    sizes = {"k": torch.tensor(K), "threshold": torch.tensor(2.5), "group_sizes": torch.tensor([10, 30])}
    s, x = matrix_state(**sizes), rows()
    acts = jump((x - s["b_dec"]) @ s["W_enc"] + s["b_enc"], s["threshold"])
    out = acts @ s["W_dec"] + s["b_dec"]
    return dictionary_learning(root, "MatryoshkaBatchTopKSAE", s, out, x, "jumprelu", k=K)


def dl_jumprelu(root: Path) -> Foreign:
    s, x = matrix_state(threshold=rand(F, seed=6).abs() * 4), rows()
    acts = jump(x @ s["W_enc"] + s["b_enc"], s["threshold"])
    out = acts @ s["W_dec"] + s["b_dec"]
    return dictionary_learning(root, "JumpReluAutoEncoder", s, out, x, "jumprelu")


def dl_backup(root: Path) -> Foreign:
    s, x, norm = topk_state(2.5), rows(), 4.2
    scaled = x / norm
    acts = jump((scaled - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"], s["threshold"])
    out = (acts @ s["decoder.weight"].T + s["b_dec"]) * norm
    backup = {"step": 10, "ae": s, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "norm_factor": norm}
    return dictionary_learning(root, "BatchTopKSAE", backup, out, x, "jumprelu", k=K)


def dl_checkpoint(root: Path) -> Foreign:
    made = dl_topk(root)
    torch_file(root / "checkpoints" / "ae_1000.pt", torch.load(root / "ae.pt"))
    (root / "ae.pt").unlink()
    made.path = root / "checkpoints" / "ae_1000.pt"
    return made


# ---- sparsify --------------------------------------------------------------------------------------------------------


def sparsify(root: Path, hookpoint: str, **settings: Any) -> tuple[Path, dict[str, Tensor]]:
    run = {"model": "EleutherAI/pythia-70m", "dataset": "EleutherAI/the_pile_deduplicated", "ctx_len": 2048}
    json_file(root / "config.json", {**run, "sae": {"k": K}, "hookpoints": [hookpoint]})
    config = {"expansion_factor": 32, "normalize_decoder": True, "num_latents": F, "k": K, "d_in": D, **settings}
    json_file(root / hookpoint / "cfg.json", config)
    tensors = {"encoder.weight": rand(F, D), "encoder.bias": rand(F, seed=1), "W_dec": rand(F, D, seed=2),
               "b_dec": rand(D, seed=3)}  # fmt: skip
    if settings.get("skip_connection"):
        tensors["W_skip"] = rand(D, D, seed=4)
    tensor_file(root / hookpoint / "sae.safetensors", tensors)
    return root / hookpoint, tensors


SPARSIFY_KNOWN = {
    "model_name": "EleutherAI/pythia-70m",
    "data": {"source": "EleutherAI/the_pile_deduplicated", "context_tokens": 2048},
}


def sparsify_topk(root: Path) -> Foreign:
    path, t = sparsify(root, "layers.3", activation="topk", multi_topk=False, skip_connection=False, transcode=False)
    x = rows()
    acts = top(((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu())
    return Foreign(path, x, acts @ t["W_dec"] + t["b_dec"], "topk", "resid_post.3", SPARSIFY_KNOWN)


def sparsify_root(root: Path) -> Foreign:
    made = sparsify_topk(root)
    sparsify(root, "layers.4", signed=False)
    made.path, made.options = root, {"subfolder": "layers.3"}
    return made


def sparsify_signed(root: Path) -> Foreign:
    path, t = sparsify(root, "layers.0.mlp", signed=True)
    x = rows()
    pre = (x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
    index = pre.abs().topk(K, dim=-1).indices
    acts = torch.zeros_like(pre).scatter(-1, index, pre.gather(-1, index))
    return Foreign(path, x, acts @ t["W_dec"] + t["b_dec"], "abstopk", "mlp_out.0", SPARSIFY_KNOWN)


def sparsify_transcoder(root: Path) -> Foreign:
    path, t = sparsify(root, "layers.5.mlp", transcode=True, num_latents=0, expansion_factor=F // D + 1)
    wide = (F // D + 1) * D
    t |= {"encoder.weight": rand(wide, D), "encoder.bias": rand(wide, seed=1), "W_dec": rand(wide, D, seed=2)}
    tensor_file(path / "sae.safetensors", t)
    x = rows()
    acts = top((x @ t["encoder.weight"].T + t["encoder.bias"]).relu())
    known = {**SPARSIFY_KNOWN, "target_sites": ["mlp_out.5"]}
    return Foreign(path, x, acts @ t["W_dec"] + t["b_dec"], "transcoder", "mlp_in.5", known)


def sparsify_skip(root: Path) -> Foreign:
    path, t = sparsify(root, "layers.5.mlp", transcode=True, skip_connection=True)
    x = rows()
    acts = top((x @ t["encoder.weight"].T + t["encoder.bias"]).relu())
    out = acts @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T
    return Foreign(path, x, out, "skip_transcoder", "mlp_in.5", {**SPARSIFY_KNOWN, "target_sites": ["mlp_out.5"]})


def sparsify_skip_older(root: Path) -> Foreign:
    path, t = sparsify(root, "layers.5.mlp", skip_connection=True)  # no `transcode`: the encoder subtracts b_dec
    x = rows()
    acts = top(((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu())
    out = acts @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T
    return Foreign(path, x, out, "skip_transcoder", "mlp_in.5", SPARSIFY_KNOWN)


# ---- Gemma Scope -----------------------------------------------------------------------------------------------------

GEMMA_DATA = {"context_tokens": 1024, "prepend_bos": True}


def gemma_arrays(lower: bool = False) -> dict[str, Tensor]:
    w = {"W_enc": rand(D, F), "W_dec": rand(F, D), "b_enc": rand(F, seed=1), "b_dec": rand(D, seed=2),
         "threshold": rand(F, seed=3).abs() * 4}  # fmt: skip
    return {name.lower(): value for name, value in w.items()} if lower else w


def gemma_scope(root: Path, repo: str, place: str, lower: bool = False, fold: float = 1.0) -> Foreign:
    w, x = gemma_arrays(), rows()
    folder = root / repo / place
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in gemma_arrays(lower).items()})
    acts = jump(x @ (w["W_enc"] / fold) + w["b_enc"], w["threshold"])
    out = acts @ (w["W_dec"] * fold) + w["b_dec"]
    return Foreign(folder, x, out, "jumprelu", None, {"model_name": "google/gemma-2-2b", "data": GEMMA_DATA})


def gemma_residual(root: Path) -> Foreign:
    made = gemma_scope(root, "gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82")
    made.site = "resid_post.12"
    return made


def gemma_repository(root: Path) -> Foreign:
    gemma_scope(root, "gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_22")
    made = gemma_residual(root)
    made.path, made.site = root / "gemma-scope-2b-pt-res", "resid_post.12"
    made.options = {"subfolder": "layer_12/width_16k/average_l0_82"}
    return made


def gemma_attention(root: Path) -> Foreign:
    made = gemma_scope(root, "gemma-scope-9b-it-att", "layer_3/width_16k/average_l0_10", lower=True)
    made.site, made.known = "head_out.3", {"model_name": "google/gemma-2-9b-it", "data": GEMMA_DATA}
    return made


def gemma_embedding(root: Path) -> Foreign:
    made = gemma_scope(root, "gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", fold=D**0.5)
    made.site = "embed"
    return made


def gemma_transcoder(root: Path) -> Foreign:
    made = gemma_scope(root, "gemma-scope-2b-pt-transcoders", "layer_5/width_16k/average_l0_41")
    made.architecture, made.site = "transcoder", "blocks.5.ln2.hook_normalized"
    made.known = {**made.known, "target_sites": ["mlp_out.5"]}
    return made


def gemma_2(root: Path, kind: str, source: str, target: str, **more: Tensor) -> tuple[Path, dict[str, Tensor]]:
    config = {
        "hf_hook_point_in": source, "hf_hook_point_out": target, "width": F, "model_name": "gemma-v3-1b-pt",
        "architecture": "jump_relu", "l0": 60, "affine_connection": bool(more), "type": kind,
    }  # fmt: skip
    json_file(root / "config.json", config)
    tensors = gemma_arrays(lower=True) | more
    tensor_file(root / "params.safetensors", tensors)
    return root, tensors


GEMMA_2_KNOWN = {"model_name": "google/gemma-3-1b-pt", "data": GEMMA_DATA}


def gemma_2_sae(root: Path) -> Foreign:
    path, t = gemma_2(root, "sae", "model.layers.17.output", "model.layers.17.output")
    x = rows()
    acts = jump(x @ t["w_enc"] + t["b_enc"], t["threshold"])
    return Foreign(path, x, acts @ t["w_dec"] + t["b_dec"], "jumprelu", "resid_post.17", GEMMA_2_KNOWN)


def gemma_2_skip_transcoder(root: Path) -> Foreign:
    hooks = ("model.layers.5.pre_feedforward_layernorm.output", "model.layers.5.post_feedforward_layernorm.output")
    path, t = gemma_2(root, "transcoder", *hooks, affine_skip_connection=rand(D, D, seed=8))
    x = rows()
    acts = jump(x @ t["w_enc"] + t["b_enc"], t["threshold"])
    out = acts @ t["w_dec"] + t["b_dec"] + x @ t["affine_skip_connection"]
    known = {**GEMMA_2_KNOWN, "target_sites": ["mlp_out.5"]}
    return Foreign(path, x, out, "skip_transcoder", "mlp_in.5", known)


def gemma_2_clt(root: Path) -> Foreign:
    layers, x = 3, rows(N, 3, D)
    hooks = {f"hf_hook_point_{side}": f"model.layers.{{all}}.{place}_feedforward_layernorm.output"
             for side, place in (("in", "pre"), ("out", "post"))}  # fmt: skip
    config = {**hooks, "width": layers * F, "model_name": "google/gemma-3-270m-pt", "architecture": "jump_relu"}
    json_file(root / "config.json", {**config, "type": "clt"})
    out = torch.zeros(N, layers, D)
    for i in range(layers):
        w_dec = rand(F, layers, D, seed=i)
        w_dec[:, :i] = 0
        t = {"w_enc": rand(D, F, seed=i), "w_dec": w_dec, "b_enc": rand(F, seed=i), "b_dec": rand(D, seed=i),
             "threshold": rand(F, seed=9 + i).abs()}  # fmt: skip
        tensor_file(root / f"params_layer_{i}.safetensors", t)
        acts = jump(x[:, i] @ t["w_enc"] + t["b_enc"], t["threshold"])
        out += torch.einsum("nf,fld->nld", acts, w_dec)
        out[:, i] += t["b_dec"]
    known = {"model_name": "google/gemma-3-270m-pt", "sites": [f"mlp_in.{i}" for i in range(3)],
             "target_sites": [f"mlp_out.{i}" for i in range(3)]}  # fmt: skip
    return Foreign(root, x, out, "clt", "mlp_in.0", known)


# ---- OpenAI, OpenMOSS, Goodfire, Qwen --------------------------------------------------------------------------------


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


# ---- circuit-tracer --------------------------------------------------------------------------------------------------


def circuit_tracer(
    root: Path, settings: str = "", turned: bool = False, **more: Tensor
) -> tuple[Path, dict[str, Tensor]]:
    root.mkdir(parents=True, exist_ok=True)
    lines = ["model_name: \"Qwen/Qwen3-4B\"", "feature_input_hook: mlp.hook_in  # after the norm",
             "feature_output_hook: hook_mlp_out", "model_kind: transcoder_set", settings]  # fmt: skip
    (root / "config.yaml").write_text("\n".join(lines))
    t = {"W_enc": rand(F, D), "W_dec": rand(F, D, seed=2), "b_enc": rand(F, seed=1), "b_dec": rand(D, seed=3), **more}
    stored = {**t, "W_enc": t["W_enc"].T} if turned else t
    for layer in (0, 7):
        tensor_file(root / f"layer_{layer}.safetensors", stored)
    return root / "layer_7.safetensors", t


CIRCUIT_KNOWN = {"model_name": "Qwen/Qwen3-4B", "target_sites": ["mlp_out.7"]}


def circuit_relu(root: Path) -> Foreign:
    path, t = circuit_tracer(root)
    x = rows()
    acts = (x @ t["W_enc"].T + t["b_enc"]).relu()
    return Foreign(path, x, acts @ t["W_dec"] + t["b_dec"], "transcoder", "mlp_in.7", CIRCUIT_KNOWN)


def circuit_turned(root: Path) -> Foreign:
    path, t = circuit_tracer(root, turned=True)
    x = rows()
    acts = (x @ t["W_enc"].T + t["b_enc"]).relu()
    out = acts @ t["W_dec"] + t["b_dec"]
    return Foreign(path.parent, x, out, "transcoder", "mlp_in.7", CIRCUIT_KNOWN, {"subfolder": "layer_7"})


def circuit_skip_jumprelu(root: Path) -> Foreign:
    path, t = circuit_tracer(
        root, W_skip=rand(D, D, seed=8), **{"activation_function.threshold": rand(F, seed=4).abs()}
    )
    x = rows()
    acts = jump(x @ t["W_enc"].T + t["b_enc"], t["activation_function.threshold"])
    out = acts @ t["W_dec"] + t["b_dec"] + x @ t["W_skip"].T
    return Foreign(path, x, out, "skip_transcoder", "mlp_in.7", CIRCUIT_KNOWN)


def circuit_topk(root: Path) -> Foreign:
    path, t = circuit_tracer(root, settings=f"activation: topk\nk: {K}")
    x = rows()
    acts = top(x @ t["W_enc"].T + t["b_enc"])
    return Foreign(path, x, acts @ t["W_dec"] + t["b_dec"], "transcoder", "mlp_in.7", CIRCUIT_KNOWN)


def circuit_clt(root: Path, jumps: bool = False) -> Foreign:
    layers = 3
    x, out = rows(N, layers, D), torch.zeros(N, layers, D)
    root.mkdir(parents=True, exist_ok=True)
    lines = ["model_name: google/gemma-2-2b", "feature_input_hook: hook_resid_mid", "feature_output_hook: hook_mlp_out"]
    (root / "config.yaml").write_text("\n".join(lines))
    for i in range(layers):
        t = {f"W_enc_{i}": rand(F, D, seed=i), f"b_enc_{i}": rand(F, seed=i), f"b_dec_{i}": rand(D, seed=i)}
        pre = x[:, i] @ t[f"W_enc_{i}"].T + t[f"b_enc_{i}"]
        acts = pre.relu()
        if jumps:
            t[f"threshold_{i}"] = rand(F, seed=9 + i).abs()
            acts = jump(pre, t[f"threshold_{i}"])
        w_dec = rand(F, layers - i, D, seed=i)
        tensor_file(root / f"W_enc_{i}.safetensors", t)
        tensor_file(root / f"W_dec_{i}.safetensors", {f"W_dec_{i}": w_dec})
        for j in range(i, layers):
            out[:, j] += acts @ w_dec[:, j - i]
        out[:, i] += t[f"b_dec_{i}"]
    known = {"model_name": "google/gemma-2-2b", "sites": [f"resid_mid.{i}" for i in range(3)],
             "target_sites": [f"mlp_out.{i}" for i in range(3)]}  # fmt: skip
    return Foreign(root, x, out, "clt", "resid_mid.0", known)


def circuit_clt_jumprelu(root: Path) -> Foreign:
    return circuit_clt(root, jumps=True)


# ---- crosscoders -----------------------------------------------------------------------------------------------------


def stacked(root: Path) -> tuple[Path, dict[str, Tensor]]:
    folder = root / "blocks.14.hook_resid_pre"
    config = {"seed": 49, "d_in": D, "dict_size": F, "seq_len": 1024, "enc_dtype": "fp32", "model_name": "gemma-2-2b",
              "site": "resid_pre", "hook_point": "blocks.14.hook_resid_pre", "dec_init_norm": 0.08}  # fmt: skip
    json_file(folder / "cfg.json", config)
    t = {"W_enc": rand(2, D, F), "W_dec": rand(F, 2, D), "b_enc": rand(F, seed=1), "b_dec": rand(2, D, seed=2)}
    torch_file(folder / "cc_weights.pt", t)
    return folder, t


def crosscoder_stacked(root: Path) -> Foreign:
    path, t = stacked(root)
    x = rows(N, 2, D)
    acts = (torch.einsum("nmd,mdf->nf", x, t["W_enc"]) + t["b_enc"]).relu()
    out = torch.einsum("nf,fmd->nmd", acts, t["W_dec"]) + t["b_dec"]
    known = {"sites": ["resid_pre.14", "compare:resid_pre.14"], "model_name": "google/gemma-2-2b",
             "compare_model_name": "google/gemma-2-2b-it"}  # fmt: skip
    return Foreign(path, x, out, "crosscoder", "resid_pre.14", known)


def crosscoder_stacked_scaled(root: Path) -> Foreign:
    made = crosscoder_stacked(root)
    _, t = stacked(root)
    scales = torch.tensor([0.276, 0.244])[:, None]
    acts = (torch.einsum("nmd,mdf->nf", made.x * scales, t["W_enc"]) + t["b_enc"]).relu()
    made.expected = (torch.einsum("nf,fmd->nmd", acts, t["W_dec"]) + t["b_dec"]) / scales
    made.options = {"input_scale": [0.276, 0.244]}
    return made


def layered(**more: Tensor) -> dict[str, Tensor]:
    return {"encoder.weight": rand(2, D, F), "encoder.bias": rand(F, seed=1), "decoder.weight": rand(2, F, D),
            "decoder.bias": rand(2, D, seed=2), **more}  # fmt: skip


def crosscoder_layered(root: Path) -> Foreign:
    t, x = layered(code_normalization_id=torch.tensor(1)), rows(N, 2, D)
    torch_file(root / "ae_final.pt", {f"_orig_mod.{name}": value for name, value in t.items()})
    acts = (torch.einsum("bld,ldf->bf", x, t["encoder.weight"]) + t["encoder.bias"]).relu()
    out = torch.einsum("bf,lfd->bld", acts, t["decoder.weight"]) + t["decoder.bias"]
    return Foreign(root, x, out, "crosscoder")


def crosscoder_layered_batchtopk(root: Path) -> Foreign:
    mean, std = rand(2, D, seed=5), rand(2, D, seed=6).abs() + 0.5
    scale = 2.0 / torch.sqrt((std**2).sum() + 1e-8)
    t = layered(
        code_normalization_id=torch.tensor(1), k=torch.tensor(K), threshold=torch.tensor(3.0), activation_mean=mean,
        activation_std=std, activation_global_scale=scale, target_rms=torch.tensor(2.0),
    )  # fmt: skip
    tensor_file(root / "model.safetensors", t)
    json_file(root / "config.json", {"activation_dim": D, "dict_size": F, "num_layers": 2, "k": K})
    x = rows(N, 2, D)
    z = (x - mean) * scale
    acts = (torch.einsum("bld,ldf->bf", z, t["encoder.weight"]) + t["encoder.bias"]).relu()
    acts = acts * (acts * t["decoder.weight"].norm(dim=2).sum(dim=0) > 3.0)
    out = (torch.einsum("bf,lfd->bld", acts, t["decoder.weight"]) + t["decoder.bias"]) / (scale + 1e-8) + mean
    return Foreign(root, x, out, "crosscoder", None, {"training_architecture": "batchtopk"})


CASES: dict[str, Callable[[Path], Foreign]] = {
    made.__name__: made
    for made in (
        saelens_standard, saelens_standard_without_subtraction, saelens_half_precision, saelens_gated, saelens_topk,
        saelens_topk_rescaled, saelens_abstopk, saelens_jumprelu, saelens_log_threshold, saelens_batchtopk_checkpoint,
        saelens_matryoshka_checkpoint, saelens_scaled_checkpoint, saelens_scale_given, saelens_layer_norm,
        saelens_constant_norm, saelens_hook_z, saelens_matching_pursuit, saelens_transcoder, saelens_skip_transcoder,
        saelens_jumprelu_transcoder, saelens_jumprelu_skip_transcoder, saelens_5_standard, saelens_5_finetuned,
        saelens_5_topk, saelens_5_jumprelu, dl_autoencoder, dl_autoencoder_new, dl_gated, dl_topk, dl_batchtopk,
        dl_matryoshka, dl_jumprelu, dl_backup, dl_checkpoint, sparsify_topk, sparsify_root, sparsify_signed,
        sparsify_transcoder, sparsify_skip, sparsify_skip_older, gemma_residual, gemma_repository, gemma_attention,
        gemma_embedding, gemma_transcoder, gemma_2_sae, gemma_2_skip_transcoder, gemma_2_clt, openai_topk, openai_relu,
        openmoss_jumprelu, openmoss_jumprelu_plain, openmoss_topk, openmoss_relu, openmoss_transcoder,
        openmoss_token_wise, openmoss_scale_given,
        llama_scope, goodfire, qwen_scope, qwen_scope_with_config, circuit_relu, circuit_turned,
        circuit_skip_jumprelu, circuit_topk, circuit_clt, circuit_clt_jumprelu, crosscoder_stacked,
        crosscoder_stacked_scaled, crosscoder_layered, crosscoder_layered_batchtopk,
    )
}  # fmt: skip


# ---- their forward passes, over files that we wrote ------------------------------------------------------------------


SAELENS_NAMES = {
    "standard", "gated", "topk", "abstopk", "jumprelu", "transcoder", "skip_transcoder", "jumprelu_transcoder",
    "jumprelu_skip_transcoder", "matching_pursuit",
}  # fmt: skip


def saelens_forward(folder: Path, x: Tensor) -> Tensor:
    """What SAELens computes from a folder, refusing what it would refuse: unknown names and other tensors."""
    from safetensors.torch import load_file

    config, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    name = config["architecture"]
    keys = {"W_enc", "W_dec", "b_enc", "b_dec"}
    keys |= {"threshold"} if "jumprelu" in name else set()
    keys |= {"W_skip"} if "skip" in name else set()
    if name == "gated":
        keys = {"W_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag"}
    if name == "matching_pursuit":
        keys = {"W_dec", "b_dec"}
    assert set(w) == keys, "SAELens loads weights strictly"
    assert name in SAELENS_NAMES, "SAELens knows no other"
    shift, scale = torch.zeros(len(x), 1), torch.ones(len(x), 1)
    z = x
    if config["normalize_activations"] == "layer_norm":
        shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        z = (x - shift) / (scale + 1e-5)
    elif config["normalize_activations"] == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / x.shape[1] ** 0.5
        z = x / scale
    if config["apply_b_dec_to_input"]:
        assert "transcoder" not in name, "SAELens refuses it"
        z = z - w["b_dec"]
    if name == "gated":
        gate = z @ w["W_enc"] + w["b_gate"] > 0
        acts = gate * (z @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    elif name == "matching_pursuit":
        acts, residual = torch.zeros(len(z), len(w["W_dec"])), z
        done = torch.zeros(len(z), dtype=torch.bool)
        while not done.all():
            value, index = (residual @ w["W_dec"].T).relu().max(dim=1)
            before, value = acts != 0, value * ~done
            acts[torch.arange(len(z)), index] += value
            residual = residual - value[:, None] * w["W_dec"][index]
            done |= ((acts != 0) == before).all(1) | (residual.norm(dim=1) < config["residual_threshold"])
    else:
        pre = z @ w["W_enc"] + w["b_enc"]
        acts = pre.relu()
        if "jumprelu" in name:
            acts = jump(pre, w["threshold"])
        elif name == "topk":
            acts = top(pre, config["k"])
        elif name == "abstopk":
            index = pre.abs().topk(config["k"], dim=-1).indices
            acts = torch.zeros_like(pre).scatter(-1, index, pre.gather(-1, index))
    out = (acts @ w["W_dec"] + w["b_dec"]) * scale + shift
    return out + x @ w["W_skip"].T if "W_skip" in w else out


def dictionary_learning_forward(folder: Path, x: Tensor) -> Tensor:
    """What dictionary_learning computes from a folder."""
    trainer = json.loads((folder / "config.json").read_text())["trainer"]
    s = torch.load(folder / "ae.pt", weights_only=True)
    name = trainer["dict_class"]
    if name == "JumpReluAutoEncoder":
        assert set(s) == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
        return jump(x @ s["W_enc"] + s["b_enc"], s["threshold"]) @ s["W_dec"] + s["b_dec"]
    encoder, decoder = s["encoder.weight"], s["decoder.weight"]
    if name == "GatedAutoEncoder":
        assert set(s) == {"encoder.weight", "decoder.weight", "decoder_bias", "gate_bias", "r_mag", "mag_bias"}
        enc = (x - s["decoder_bias"]) @ encoder.T
        acts = (enc + s["gate_bias"] > 0) * (s["r_mag"].exp() * enc + s["mag_bias"]).relu()
        return acts @ decoder.T + s["decoder_bias"]
    if name == "AutoEncoderNew":
        assert set(s) == {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
        return (x @ encoder.T + s["encoder.bias"]).relu() @ decoder.T + s["decoder.bias"]
    if name == "AutoEncoder":
        assert set(s) == {"encoder.weight", "encoder.bias", "decoder.weight", "bias"}
        return ((x - s["bias"]) @ encoder.T + s["encoder.bias"]).relu() @ decoder.T + s["bias"]
    assert name == "AutoEncoderTopK"
    assert set(s) == {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k", "threshold"}
    assert trainer["k"] == s["k"].item()
    return top((x - s["b_dec"]) @ encoder.T + s["encoder.bias"], s["k"].item()) @ decoder.T + s["b_dec"]


def sparsify_forward(root: Path, x: Tensor) -> Tensor:
    """What sparsify computes from the one hookpoint of a root."""
    from safetensors.torch import load_file

    (folder,) = [item for item in root.iterdir() if item.is_dir()]
    config, t = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    assert config["activation"] == "topk"
    assert set(t) == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"} | (
        {"W_skip"} if config["skip_connection"] else set()
    )
    z = x if config["transcode"] else x - t["b_dec"]
    out = top((z @ t["encoder.weight"].T + t["encoder.bias"]).relu(), config["k"]) @ t["W_dec"] + t["b_dec"]
    return out + x @ t["W_skip"].T if config["skip_connection"] else out
