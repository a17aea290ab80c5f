"""Gemma Scope and Gemma Scope 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foreign.making import D, F, Foreign, N, json_file, jump, rand, rows, tensor_file

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


CASES = (
    gemma_residual,
    gemma_repository,
    gemma_attention,
    gemma_embedding,
    gemma_transcoder,
    gemma_2_sae,
    gemma_2_skip_transcoder,
    gemma_2_clt,
)
