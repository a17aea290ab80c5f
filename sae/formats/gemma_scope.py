"""Gemma Scope (`params.npz`) and Gemma Scope 2 (`config.json` with `params.safetensors`): JumpReLU throughout.

`w_enc [d_in, d_sae]`, `w_dec [d_sae, d_out]`, `b_enc`, `b_dec`, `threshold`; nothing is subtracted before encoding. The
first release says where an SAE belongs in its path alone (`gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`),
the second in its config. Its transcoders may have `affine_skip_connection [d_in, d_out]`; its cross-layer transcoders
come as one `params_layer_i.safetensors` for each layer, whose `w_dec [d_sae, layers, d_out]` holds zeros for the layers
before its own. SAEs of the embeddings were trained before Gemma's scaling by √d_in, which is folded in, as SAELens
does. Source: google/gemma-scope-2b-pt-res and google/gemma-scope-2-*; SAELens's and circuit-tracer's loaders.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.formats import hooks
from sae.formats.canonical import Reading, known
from sae.formats.files import number, read_json, read_tensors, take, text, width_of

WEIGHTS, CONFIG, WEIGHTS_2 = "params.npz", "config.json", "params.safetensors"
_STREAMS = {"res": "resid_post", "mlp": "mlp_out", "att": "head_out"}


def read(folder: Path, origin: str) -> Reading:
    """Reads one folder of the first release; `origin` is the path or hub address that says what it is."""
    file = folder / WEIGHTS
    tensors = {("W_" + name[2:] if name[:2] == "w_" else name): value for name, value in read_tensors(file).items()}
    found = re.search(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|att|mlp|transcoders)", origin)
    layer = re.search(r"layer_(\d+)", origin)
    is_transcoder = found is not None and found[3] == "transcoders"
    taken = _take(tensors, file, None)
    d_in = taken["W_enc"].shape[1]
    metadata: dict[str, Any] = {}
    if found:
        metadata["model_name"] = f"google/gemma-2-{found[1]}{'-it' if found[2] == 'it' else ''}"
        if re.search(r"(?:^|/)embedding(?:/|$)", origin):
            metadata["site"] = "embed"
            taken["W_enc"], taken["W_dec"] = taken["W_enc"] / d_in**0.5, taken["W_dec"] * d_in**0.5
        elif layer and is_transcoder:  # before the norm's gain: see hooks.site_of
            metadata |= {"site": f"blocks.{layer[1]}.ln2.hook_normalized", "target_sites": [f"mlp_out.{layer[1]}"]}
        elif layer:
            metadata["site"] = f"{_STREAMS[found[3]]}.{layer[1]}"
    config: dict[str, Any] = {"architecture": "jumprelu"}
    if is_transcoder:
        config = {"architecture": "transcoder", "activation": "jumprelu", "d_out": taken["b_dec"].shape[0]}
    return _reading(config, taken, metadata)


def read_2(folder: Path) -> Reading:
    """Reads one folder of the second release: an SAE, a transcoder, or a cross-layer transcoder."""
    content = read_json(folder / CONFIG)
    kind = text(content, "type", folder / CONFIG) or ("clt" if not (folder / WEIGHTS_2).is_file() else "sae")
    if content.get("architecture") != "jump_relu" or kind not in ("sae", "transcoder", "clt"):
        raise ValueError(
            f"{folder / CONFIG} says type={kind!r}, architecture={content.get('architecture')!r}, expected a sae, "
            "transcoder or clt with jump_relu: such files cannot be opened"
        )
    model = (text(content, "model_name", folder / CONFIG) or "").replace("-v3", "-3")
    model = model if "/" in model or not model else f"google/{model}"
    where = folder / CONFIG
    source, target = text(content, "hf_hook_point_in", where), text(content, "hf_hook_point_out", where)
    if kind == "clt":
        return _read_clt(folder, known(model_name=model), source, target)
    file = folder / WEIGHTS_2
    tensors = {("W_" + name[2:] if name[:2] == "w_" else name): value for name, value in read_tensors(file).items()}
    taken = _take(tensors, file, number(content, "width", where) if "width" in content else None)
    config: dict[str, Any] = {"architecture": "jumprelu"}
    metadata: dict[str, Any] = {"model_name": model, "site": hooks.site_of(source, model)}
    if kind == "transcoder" or "affine_skip_connection" in tensors or source != target:
        d_out = taken["b_dec"].shape[0]
        config = {"architecture": "transcoder", "activation": "jumprelu", "d_out": d_out}
        metadata["target_sites"] = [hooks.site_of(target, model)]
        if "affine_skip_connection" in tensors or content.get("affine_connection"):
            config["architecture"] = "skip_transcoder"
            shape = {"affine_skip_connection": (taken["W_enc"].shape[1], d_out)}
            taken["W_skip"] = take(tensors, shape, file)["affine_skip_connection"].T.contiguous()
    return _reading(config, taken, metadata)


def _take(tensors: dict[str, Any], file: Path, width: int | None) -> dict[str, Tensor]:
    d_sae, d_out = width_of(tensors, "b_enc", file), width_of(tensors, "b_dec", file)
    if width is not None and width != d_sae:
        raise ValueError(
            f"{file} holds {d_sae} latents, expected {width} by {CONFIG}: the files do not belong together"
        )
    d_in = d_out  # in all releases, transcoders too
    vectors = {"b_enc": (d_sae,), "b_dec": (d_out,), "threshold": (d_sae,)}
    taken = take(
        tensors, {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), **vectors}, file, besides=("affine_skip_connection",)
    )
    taken["W_enc"] = taken["W_enc"].T.contiguous()
    return taken


def _reading(config: dict[str, Any], tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Reading:
    d_sae, d_in = tensors["W_enc"].shape
    config |= {"d_in": d_in, "d_sae": d_sae, "apply_b_dec_to_input": False, "normalize_activations": "none"}
    return Reading(config, tensors, known(**metadata, data={"context_tokens": 1024, "prepend_bos": True}))


def _read_clt(folder: Path, metadata: dict[str, Any], source: str | None, target: str | None) -> Reading:
    files = sorted(folder.glob("params_layer_*.safetensors"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))
    n_sites = len(files)
    if [file.stem.rsplit("_", 1)[1] for file in files] != [str(layer) for layer in range(n_sites)] or n_sites < 2:
        raise ValueError(
            f"{folder} holds {', '.join(file.name for file in files) or 'no layers'}, expected params_layer_0 and on "
            "without gaps: copy all layers"
        )
    parts: list[dict[str, Tensor]] = []
    for layer, file in enumerate(files):
        tensors = read_tensors(file)
        d_sae, d_out = width_of(tensors, "b_enc", file), width_of(tensors, "b_dec", file)
        skip = tensors.get("affine_skip_connection")
        if isinstance(skip, Tensor) and bool(skip.any()):
            raise ValueError(
                f"{file} holds affine_skip_connection, expected a cross-layer transcoder without: take the variant "
                "whose name lacks `affine`"
            )
        shapes = {"w_enc": (d_out, d_sae), "w_dec": (d_sae, n_sites, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
        taken = take(tensors, {**shapes, "threshold": (d_sae,)}, file, besides=("affine_skip_connection",))
        taken["w_dec"][:, :layer] = 0
        parts.append(taken)
        take(parts[0], {name: tuple(value.shape) for name, value in taken.items()}, files[0], file.name)
    tensors = {
        "W_enc": torch.cat([part["w_enc"].T for part in parts]),
        "W_dec": torch.cat([part["w_dec"].flatten(1) for part in parts]),
        **{name: torch.cat([part[name] for part in parts]) for name in ("b_enc", "b_dec", "threshold")},
    }
    config: dict[str, Any] = {
        "architecture": "clt",
        "activation": "jumprelu",
        "d_in": tensors["W_enc"].shape[1],
        "d_sae": tensors["W_enc"].shape[0],
        "d_out": tensors["b_dec"].shape[0] // n_sites,
        "n_sites": n_sites,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    model = metadata.get("model_name")
    sites = [[hooks.site_of((name or "").replace("{all}", str(layer)), model) for layer in range(n_sites)]
             for name in (source, target)]  # fmt: skip
    if source and target:
        metadata |= {"site": sites[0][0], "sites": sites[0], "target_sites": sites[1]}
    return Reading(config, tensors, known(**metadata, data={"context_tokens": 1024, "prepend_bos": True}))
