"""dictionary_learning's state dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreign.making import D, F, Foreign, K, json_file, jump, rand, rows, top, torch_file


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


CASES = (
    dl_autoencoder,
    dl_autoencoder_new,
    dl_gated,
    dl_topk,
    dl_batchtopk,
    dl_matryoshka,
    dl_jumprelu,
    dl_backup,
    dl_checkpoint,
)
