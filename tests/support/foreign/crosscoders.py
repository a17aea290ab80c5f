"""Two layouts of crosscoders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from foreign.making import D, F, Foreign, K, N, json_file, rand, rows, tensor_file, torch_file


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


CASES = (
    crosscoder_stacked,
    crosscoder_stacked_scaled,
    crosscoder_layered,
    crosscoder_layered_batchtopk,
)
