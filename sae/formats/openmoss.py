"""OpenMOSS (`config.json`, `sae_weights.safetensors`) and Llama Scope (`hyperparams.json`, `checkpoints/`).

`W_E [d_model, d_sae]`, `b_E`, `W_D [d_sae, d_model]`, `b_D` (or, in Llama Scope, `encoder.weight` and `decoder.weight`
as linear layers hold them). Nothing is subtracted before encoding. Inputs are scaled to mean norm √d_model and outputs
scaled back by the norms that the files record (`dataset_average_activation_norm`, with one entry for each side), which
is folded in. With `sparsity_include_decoder_norm` latents are chosen by pre-activation times decoder norm. An SAE whose
two hook points differ is a transcoder. Llama Scope's one `jump_relu_threshold` is in units of raw activations, so it is
scaled like the input, as SAELens does. Source: OpenMOSS/Language-Model-SAEs, `models/sae.py`,
`models/sparse_dictionary.py`, `activation_functions.py`; SAELens's Llama Scope loaders.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.formats import hooks
from sae.formats.canonical import Reading, fold_decoder_norm, fold_input_scale, known
from sae.formats.files import number, read_json, read_tensors, real, scalar, section, take, text

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
SCOPE_CONFIG, SCOPE_WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_NORMS = "dataset_average_activation_norm"
_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")


def read(folder: Path, origin: str) -> Reading:
    """Reads an OpenMOSS or Llama Scope folder."""
    is_scope = (folder / SCOPE_CONFIG).is_file()
    where, file = (folder / SCOPE_CONFIG, folder / SCOPE_WEIGHTS) if is_scope else (folder / CONFIG, folder / WEIGHTS)
    content, tensors = read_json(where), read_tensors(file)
    _refuse(content, where)
    d_in = number(content, "d_model", where)
    d_sae = (
        number(content, "d_sae", where)
        if content.get("d_sae")
        else round(d_in * real(content, "expansion_factor", where))
    )
    taken = _take(tensors, content, d_in, d_sae, file)
    source, target = text(content, "hook_point_in", where), text(content, "hook_point_out", where)
    predicts = target is not None and target != source
    function = str(content.get("act_fn", "relu")).lower()
    gated_by_norm = bool(content.get("sparsity_include_decoder_norm", True))
    if function == "topk" and gated_by_norm:
        fold_decoder_norm(taken)
    (scale_in, scale_out), unscaled = _scales(content, tensors, source, target, d_in, where)
    if unscaled and (predicts or is_scope):
        raise ValueError(unscaled)
    if function == "jumprelu":
        threshold = _threshold(content, tensors, d_sae, scale_in if is_scope else 1.0, file)
        if gated_by_norm:
            threshold = threshold / taken["W_dec"].norm(dim=1).clamp(min=1e-30)
        taken["threshold"] = threshold
    activation = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk"}[function]
    names = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
    config: dict[str, Any] = {
        "architecture": names[function],
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": False,
        "normalize_activations": "constant_norm_rescale" if content.get("norm_activation") == "token-wise" else "none",
    }
    if predicts:
        config |= {"architecture": "transcoder", "activation": activation, "d_out": d_in}
        if config["normalize_activations"] != "none":
            raise ValueError(f"{where} says norm_activation='token-wise' for a transcoder, expected dataset-wise")
    if function == "topk":
        config["k"] = number(content, "top_k", where)
    if (scale_in, scale_out) != (1.0, 1.0):
        fold_input_scale(config, taken, scale_in, scale_out)
    model = text(content, "model_name", where) or (
        "meta-llama/Llama-3.1-8B" if re.search(r"Llama-?3[._]1-8B", origin) else None
    )
    model = "meta-llama/Llama-3.1-8B" if model is None and "Llama-Scope" in origin else model
    metadata = known(
        site=hooks.site_of(source, model),
        target_sites=[hooks.site_of(target, model)] if predicts else None,
        model_name=hooks.hub_model(model),
        data={"context_tokens": 1024, "prepend_bos": True} if is_scope else None,
    )
    return Reading(config, taken, metadata, unscaled)


def _refuse(content: dict[str, Any], where: Path) -> None:
    """Refuses by name what has no exact form here."""
    expected: dict[str, tuple[Any, ...]] = {
        "sae_type": ("sae", None),
        "use_glu_encoder": (False, None),
        "apply_decoder_bias_to_pre_encoder": (False, None),
        "act_fn": ("relu", "jumprelu", "topk"),
        "norm_activation": ("dataset-wise", "inference", "token-wise", None),
    }
    for name, allowed in expected.items():
        value = content.get(name, "relu" if name == "act_fn" else None)
        if (value.lower() if isinstance(value, str) else value) not in allowed:
            shown = ", ".join(repr(item) for item in allowed if item is not None)
            raise ValueError(f"{where} says {name}={value!r}, expected {shown}: such SAEs cannot be opened")


def _take(tensors: dict[str, Any], content: dict[str, Any], d_in: int, d_sae: int, file: Path) -> dict[str, Tensor]:
    if "encoder.weight" in tensors:
        shapes = {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "decoder.weight": (d_in, d_sae)}
        bias = "decoder.bias"
    else:
        shapes, bias = {"W_E": (d_in, d_sae), "b_E": (d_sae,), "W_D": (d_sae, d_in)}, "b_D"
    uses_bias = content.get("use_decoder_bias", True)
    norms = [name for name in tensors if name.startswith(f"{_NORMS}.")]
    shapes |= {bias: (d_in,)} if uses_bias else {}
    taken = take(tensors, shapes, file, "its config", besides=(*_THRESHOLDS, *norms))
    b_dec = taken[bias] if uses_bias else torch.zeros(d_in)
    if "encoder.weight" in taken:
        encoder, decoder = taken["encoder.weight"], taken["decoder.weight"].T.contiguous()
        return {"W_enc": encoder, "W_dec": decoder, "b_enc": taken["encoder.bias"], "b_dec": b_dec}
    return {"W_enc": taken["W_E"].T.contiguous(), "W_dec": taken["W_D"], "b_enc": taken["b_E"], "b_dec": b_dec}


def _threshold(content: dict[str, Any], tensors: dict[str, Any], d_sae: int, scale: float, file: Path) -> Tensor:
    for name in _THRESHOLDS:
        if name in tensors:
            return take(tensors, {name: (d_sae,)}, file, "its config")[name].exp()
    value = content.get("jump_relu_threshold")
    if not isinstance(value, (int, float)) or value < 0:
        raise ValueError(
            f"{file} holds none of {', '.join(_THRESHOLDS)} and its config no jump_relu_threshold, expected one of "
            "them: copy the whole folder"
        )
    return torch.full((d_sae,), float(value) * scale)


def _scales(
    content: dict[str, Any], tensors: dict[str, Any], source: Any, target: Any, d_in: int, where: Path
) -> tuple[tuple[float, float], str]:
    """Returns what inputs are multiplied and outputs divided by, and what is missing where the files do not say."""
    if content.get("norm_activation", "dataset-wise") != "dataset-wise":
        return (1.0, 1.0), ""
    recorded = section(content, _NORMS, where)
    norms: list[float] = []
    for side, hook in (("in", source), ("out", target if target is not None else source)):
        name = f"{_NORMS}.{hook}"
        value = scalar(tensors, name, where) if name in tensors else recorded.get(str(hook), recorded.get(side))
        if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            return (1.0, 1.0), (
                f"{where} says norm_activation='dataset-wise', expected one number in {_NORMS} for {hook}: give "
                "input_scale=√d_model divided by the mean norm of the activations"
            )
        norms.append(float(value))
    return (d_in**0.5 / norms[0], d_in**0.5 / norms[1]), ""
