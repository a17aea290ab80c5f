"""Two layouts of crosscoders over several layers or two models.

`cc_weights.pt` with `cfg.json` (ckkissane; the second model is the first one's chat variant): `W_enc [sites, d_in,
d_sae]`, `W_dec [d_sae, sites, d_in]`, `b_enc`, `b_dec [sites, d_in]`, ReLU. It was trained on rows scaled to mean norm
√d_in, each model by its own factor, which the files do not hold: give them as `input_scale`.

A `.pt` state dict or `model.safetensors` (jkminder): `encoder.weight [sites, d_in, d_sae]`, `encoder.bias`,
`decoder.weight [sites, d_sae, d_in]`, `decoder.bias [sites, d_in]`. With a `threshold` (BatchTopK) a latent is active
where its activation times the norm named by `code_normalization_id` exceeds it. `activation_mean` and `activation_std`
(NaN where unused) standardise the input; all of it is folded in. Source: ckkissane/crosscoder-model-diff-replication,
`crosscoder.py`, `buffer.py`; jkminder/dictionary_learning, `dictionary.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.formats import hooks
from sae.formats.canonical import Reading, known
from sae.formats.files import number, read_json, scalar, section, take, text, width_of

_NORMALIZERS = ("activation_mean", "activation_std", "activation_global_scale", "target_rms")
_CODE_NORMS = {1: "crosscoder", 2: "sae", 3: "mixed", 4: "none", 5: "decoupled"}


def read_stacked(file: Path, tensors: dict[str, Any]) -> Reading:
    """Reads ckkissane's layout."""
    own = file.with_name(f"{file.stem}_cfg.json")
    where = own if own.is_file() else file.parent / "cfg.json"
    content = read_json(where) if where.is_file() else {}
    encoder, d_sae = tensors.get("W_enc"), width_of(tensors, "b_enc", file)
    if not isinstance(encoder, Tensor) or encoder.ndim != 3:
        raise ValueError(f"{file} holds no W_enc [sites, d_in, d_sae], expected a crosscoder's weights: give its file")
    n_sites, d_in = encoder.shape[0], encoder.shape[1]
    for name, width in (("dict_size", d_sae), ("d_in", d_in)):
        if name in content and number(content, name, where) != width:
            raise ValueError(
                f"{file} is {width} wide, expected {name}={content[name]} by {where.name}: they do not match"
            )
    shapes = {"W_enc": (n_sites, d_in, d_sae), "W_dec": (d_sae, n_sites, d_in), "b_enc": (d_sae,),
              "b_dec": (n_sites, d_in)}  # fmt: skip
    taken = take(tensors, shapes, file, besides=())
    canonical = {
        "W_enc": taken["W_enc"].permute(2, 0, 1).reshape(d_sae, n_sites * d_in),
        "W_dec": taken["W_dec"].reshape(d_sae, n_sites * d_in),
        "b_enc": taken["b_enc"],
        "b_dec": taken["b_dec"].reshape(n_sites * d_in),
    }
    model, site = hooks.hub_model(text(content, "model_name", where)), hooks.site_of(text(content, "hook_point", where))
    metadata = known(
        site=site,
        sites=[site, f"compare:{site}"] if site and n_sites == 2 else None,
        model_name=model,
        compare_model_name=f"{model}-it" if model and "gemma" in model and n_sites == 2 else None,
        data=known(context_tokens=content.get("seq_len"), prepend_bos=True),
        expects="rows of each model scaled to mean norm √d_in (give input_scale to fold the factors in)",
    )
    return Reading(_config("relu", d_in, d_sae, n_sites), canonical, metadata)


def read_layered(file: Path, tensors: dict[str, Any]) -> Reading:
    """Reads jkminder's layout."""
    tensors = {name.removeprefix("_orig_mod."): value for name, value in tensors.items()}
    d_sae, encoder = width_of(tensors, "encoder.bias", file), tensors.get("encoder.weight")
    if not isinstance(encoder, Tensor) or encoder.ndim != 3:
        raise ValueError(f"{file} holds no encoder.weight [sites, d_in, d_sae], expected a crosscoder's: give its file")
    n_sites, d_in = encoder.shape[0], encoder.shape[1]
    shapes = {"encoder.weight": (n_sites, d_in, d_sae), "encoder.bias": (d_sae,),
              "decoder.weight": (n_sites, d_sae, d_in), "decoder.bias": (n_sites, d_in)}  # fmt: skip
    taken = take(tensors, shapes, file, besides=(*_NORMALIZERS, "code_normalization_id", "threshold", "k"))
    decoder = taken["decoder.weight"]
    config = _config("relu", d_in, d_sae, n_sites)
    canonical = {
        "W_enc": taken["encoder.weight"].permute(2, 0, 1).reshape(d_sae, n_sites * d_in),
        "W_dec": decoder.permute(1, 0, 2).reshape(d_sae, n_sites * d_in),
        "b_enc": taken["encoder.bias"],
        "b_dec": taken["decoder.bias"].reshape(n_sites * d_in),
    }
    if "threshold" in tensors:
        config["activation"] = "jumprelu"
        canonical["threshold"] = _threshold(tensors, decoder, file)
    _fold_standardisation(tensors, canonical, (n_sites, d_in), file)
    where = file.parent / "config.json"
    content = read_json(where) if where.is_file() else {}
    trainer = section(content, "trainer", where)
    layer, model = trainer.get("layer"), trainer.get("lm_name")
    site = f"resid_post.{layer}" if isinstance(layer, int) and layer >= 0 else None
    metadata = known(
        site=site,
        sites=[site] * n_sites if site else None,
        model_name=model if isinstance(model, str) and "-" in model else None,
        training_architecture="batchtopk" if "threshold" in tensors else None,
    )
    return Reading(config, canonical, metadata)


def _config(activation: str, d_in: int, d_sae: int, n_sites: int) -> dict[str, Any]:
    return {
        "architecture": "crosscoder",
        "activation": activation,
        "d_in": d_in,
        "d_sae": d_sae,
        "n_sites": n_sites,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }


def _threshold(tensors: dict[str, Any], decoder: Tensor, file: Path) -> Tensor:
    name = _CODE_NORMS.get(int(scalar(tensors, "code_normalization_id", file, default=1)))
    if name not in ("crosscoder", "sae", "none"):
        raise ValueError(
            f"{file} normalises codes as `{name}`, expected crosscoder, sae or none: such crosscoders cannot be opened"
        )
    threshold = scalar(tensors, "threshold", file)
    if threshold < 0:
        raise ValueError(
            f"{file} holds threshold={threshold:g}, expected one that training has set: give a file of a longer run"
        )
    norms = {"crosscoder": decoder.norm(dim=2).sum(dim=0), "sae": decoder.norm(dim=(0, 2))}
    norm = norms.get(name, torch.ones(decoder.shape[1]))
    return threshold / norm.clamp(min=1e-30)


def _fold_standardisation(
    tensors: dict[str, Any], canonical: dict[str, Tensor], shape: tuple[int, int], file: Path
) -> None:
    """Folds x → (x − mean)·scale before encoding and its inverse after decoding."""
    if not {"activation_mean", "activation_std"} & set(tensors):
        return
    taken = take(tensors, {"activation_mean": shape, "activation_std": shape}, file, "the encoder")
    mean, std = taken["activation_mean"], taken["activation_std"]
    if bool(mean.isnan().any()) or bool(std.isnan().any()):  # the file's way to say that none is used
        return
    together = scalar(tensors, "target_rms", file, default=1.0) / ((std**2).sum() + 1e-8).sqrt()
    stored = torch.tensor(scalar(tensors, "activation_global_scale", file, default=together.item()))
    if torch.isclose(stored, together, rtol=1e-4):  # one scale, which keeps relative variances
        factors = together.expand(shape)
    elif stored.item() == 1.0:  # each element its own
        factors = 1 / (std + 1e-8)
    else:
        raise ValueError(
            f"{file} holds activation_global_scale={stored.item():g}, expected {together.item():g} by activation_std: "
            "the file is damaged"
        )
    factors, mean = factors.reshape(-1), mean.reshape(-1)
    canonical["W_enc"] = canonical["W_enc"] * factors
    canonical["b_enc"] = canonical["b_enc"] - canonical["W_enc"] @ mean
    canonical["W_dec"] = canonical["W_dec"] / factors
    canonical["b_dec"] = canonical["b_dec"] / factors + mean
