"""circuit-tracer's transcoders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from foreign.making import D, F, Foreign, K, N, jump, rand, rows, tensor_file, top


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


CASES = (
    circuit_relu,
    circuit_turned,
    circuit_skip_jumprelu,
    circuit_topk,
    circuit_clt,
    circuit_clt_jumprelu,
)
