"""circuit-tracer's transcoders: one `layer_N.safetensors` a layer, or a cross-layer transcoder in pairs of files.

`W_enc [d_sae, d_in]` (some releases turned; the biases tell), `W_dec [d_sae, d_out]`, `b_enc`, `b_dec`, and where they
are there `activation_function.threshold`, `W_skip [d_out, d_in]`, `k`. A cross-layer transcoder has for each layer i
`W_enc_i.safetensors {W_enc_i, b_enc_i, b_dec_i, threshold_i}` and `W_dec_i.safetensors {W_dec_i [d_sae, layers − i,
d_out]}`. `config.yaml` names the model, the hooks read and written, and the activation. Source:
decoderesearch/circuit-tracer, `transcoder/single_layer_transcoder.py`, `transcoder/cross_layer_transcoder.py`,
`utils/hf_utils.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.formats import hooks
from sae.formats.canonical import Reading, known
from sae.formats.files import number, read_settings, read_tensors, scalar, take, width_of

CONFIG = "config.yaml"
_THRESHOLD = "activation_function.threshold"


def read(file: Path) -> Reading:
    """Reads the transcoder of one layer."""
    tensors, settings = read_tensors(file), _settings(file.parent)
    d_sae, d_out = width_of(tensors, "b_enc", file), width_of(tensors, "b_dec", file)
    encoder = tensors.get("W_enc")
    if isinstance(encoder, Tensor) and encoder.shape == (d_out, d_sae) and d_out != d_sae:
        tensors["W_enc"] = encoder.T
    shapes = {"W_enc": (d_sae, d_out), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
    shapes |= {name: shape for name, shape in ((_THRESHOLD, (d_sae,)), ("W_skip", (d_out, d_out))) if name in tensors}
    taken = take(tensors, shapes, file, "its biases", besides=("k",))
    config: dict[str, Any] = {
        "architecture": "skip_transcoder" if "W_skip" in taken else "transcoder",
        "activation": "relu",
        "d_in": d_out,
        "d_sae": d_sae,
        "d_out": d_out,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    if _THRESHOLD in taken:
        config["activation"] = "jumprelu"
        taken["threshold"] = _positive(taken.pop(_THRESHOLD), file)
    elif "k" in tensors or settings.get("activation") == "topk":
        said = settings.get("k", "")
        k = scalar(tensors, "k", file) if "k" in tensors else int(said) if said.isdigit() else None
        config |= {"activation": "topk", "k": number({"k": k}, "k", file.parent / CONFIG)}
    layer = re.search(r"layer_(\d+)", file.name)
    return Reading(config, taken, _metadata(settings, [int(layer[1])] if layer else []))


def read_clt(folder: Path) -> Reading:
    """Reads a cross-layer transcoder."""
    n_sites = len(list(folder.glob("W_enc_*.safetensors")))
    missing = [name for layer in range(n_sites) for name in (f"W_enc_{layer}", f"W_dec_{layer}")
               if not (folder / f"{name}.safetensors").is_file()]  # fmt: skip
    if missing or n_sites < 2:
        raise ValueError(
            f"{folder} lacks {', '.join(missing[:4]) or 'a second layer'}, expected W_enc_i and W_dec_i for each layer "
            "from 0: copy all files"
        )
    parts: list[dict[str, Tensor]] = []
    for layer in range(n_sites):
        enc_file, dec_file = (folder / f"{name}_{layer}.safetensors" for name in ("W_enc", "W_dec"))
        encoder, decoder = read_tensors(enc_file), read_tensors(dec_file)
        d_sae, d_out = width_of(encoder, f"b_enc_{layer}", enc_file), width_of(encoder, f"b_dec_{layer}", enc_file)
        shapes = {f"W_enc_{layer}": (d_sae, d_out), f"b_enc_{layer}": (d_sae,), f"b_dec_{layer}": (d_out,)}
        if f"threshold_{layer}" in encoder:
            shapes[f"threshold_{layer}"] = (d_sae,)
        taken = take(encoder, shapes, enc_file, besides=()) | take(
            decoder, {f"W_dec_{layer}": (d_sae, n_sites - layer, d_out)}, dec_file, enc_file.name, besides=()
        )
        part = {name.removesuffix(f"_{layer}"): value for name, value in taken.items()}
        if "threshold" in part:
            _positive(part["threshold"], enc_file)
        if parts and {name: value.shape for name, value in part.items() if name != "W_dec"} != {
            name: value.shape for name, value in parts[0].items() if name != "W_dec"
        }:
            raise ValueError(f"{enc_file} has other shapes than layer 0, expected the same: the files do not match")
        part["W_dec"] = torch.cat([torch.zeros(d_sae, layer, d_out), part["W_dec"]], dim=1).flatten(1)
        parts.append(part)
    tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    d_in = tensors["W_enc"].shape[1]
    config = {
        "architecture": "clt",
        "activation": "jumprelu" if "threshold" in tensors else "relu",
        "d_in": d_in,
        "d_sae": tensors["W_enc"].shape[0],
        "d_out": d_in,
        "n_sites": n_sites,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    return Reading(config, tensors, _metadata(_settings(folder), list(range(n_sites))))


def _positive(threshold: Tensor, file: Path) -> Tensor:
    if bool((threshold < 0).any()):
        raise ValueError(f"{file} holds negative thresholds, expected none below 0: such transcoders cannot be opened")
    return threshold


def _settings(folder: Path) -> dict[str, str]:
    return read_settings(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _metadata(settings: dict[str, str], layers: list[int]) -> dict[str, Any]:
    model = settings.get("model_name")

    def sites(hook: str | None) -> list[str | None]:
        if not hook:
            return []
        named = [hook.format(layer=layer) if "{layer}" in hook else f"blocks.{layer}.{hook}" for layer in layers]
        return [hooks.site_of(name, model) for name in named]

    source, target = sites(settings.get("feature_input_hook")), sites(settings.get("feature_output_hook"))
    return known(
        site=source[0] if source else None,
        sites=source if len(source) > 1 else None,
        target_sites=target,
        model_name=hooks.hub_model(model),
        data=known(prepend_bos=True if model else None),
    )
