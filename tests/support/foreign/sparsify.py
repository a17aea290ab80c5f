"""sparsify's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreign.making import D, F, Foreign, K, json_file, rand, rows, tensor_file, top


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


CASES = (
    sparsify_topk,
    sparsify_root,
    sparsify_signed,
    sparsify_transcoder,
    sparsify_skip,
    sparsify_skip_older,
)
