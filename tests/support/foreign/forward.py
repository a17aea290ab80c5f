"""What each project computes from files that we wrote."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from foreign.making import jump, top

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
