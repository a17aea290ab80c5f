"""SAELens: `cfg.json` with `sae_weights.safetensors`, the native layout.

Version 6 and later nest what is known of model and data under `metadata`; earlier ones are flat. Tensors are `W_enc
[d_in, d_sae]`, `W_dec [d_sae, d_out]`, `b_enc`, `b_dec`, and by architecture `threshold`, `b_gate`, `r_mag`, `b_mag`,
`W_skip [d_out, d_in]`; matching pursuit is tied and has `W_dec` and `b_dec` alone. Training checkpoints are read as
what SAELens exports them as: `topk_threshold` and `log_threshold` become JumpReLU's, decoder norms and the scale of
`activation_scaler.json` are folded in. `sparsity.safetensors` holds log10 of each latent's density.

What SAELens lacks (top-k transcoders, crosscoders, cross-layer transcoders) is written in the same layout under a name
of its own, which SAELens refuses. Source: decoderesearch/SAELens 6.54, `sae_lens/saes/`, `sae_lens/loading/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.formats import hooks
from sae.formats.canonical import Reading, fold_decoder_norm, fold_input_scale, known
from sae.formats.files import (
    number,
    read_json,
    read_tensors,
    real,
    scalar,
    section,
    take,
    text,
    write_json,
    write_tensors,
)

if TYPE_CHECKING:
    from sae.config import SAEConfig
    from sae.model import SAE

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
SCALER = "activation_scaler.json"

# name in cfg.json → (our architecture, activation)
_NAMES: dict[str, tuple[str, str | None]] = {
    "standard": ("standard", None),
    "gated": ("gated", None),
    "topk": ("topk", None),
    "abstopk": ("abstopk", None),
    "jumprelu": ("jumprelu", None),
    "batchtopk": ("jumprelu", None),
    "matryoshka_batchtopk": ("jumprelu", None),
    "matching_pursuit": ("matching_pursuit", None),
    "transcoder": ("transcoder", "relu"),
    "jumprelu_transcoder": ("transcoder", "jumprelu"),
    "topk_transcoder": ("transcoder", "topk"),
    "skip_transcoder": ("skip_transcoder", "relu"),
    "jumprelu_skip_transcoder": ("skip_transcoder", "jumprelu"),
    "topk_skip_transcoder": ("skip_transcoder", "topk"),
    "crosscoder": ("crosscoder", None),
    "clt": ("clt", None),
}
_STORED = {value: name for name, value in _NAMES.items() if name not in ("batchtopk", "matryoshka_batchtopk")}
_ACTIVATIONS = ("topk", "relu", "jumprelu")
_NORMALIZATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_FACTS = (
    "model_name", "hook_name", "hook_name_out", "hook_head_index", "context_size", "prepend_bos", "dataset_path",
    "exclude_special_tokens", "neuronpedia_id", "seqpos_slice", "model_from_pretrained_kwargs", "sae_lens_version",
    "sae_lens_training_version",
)  # fmt: skip


def read(folder: Path) -> Reading:
    """Reads a SAELens folder of any version."""
    where = folder / CONFIG
    content = read_json(where)
    tensors = read_tensors(folder / WEIGHTS)
    if "metadata" not in content:
        content = _modernize(content, tensors, where)
    architecture, activation = _names(content, where)
    if architecture in ("crosscoder", "clt"):
        activation = str(content.get("activation", "relu"))
    config = _config(content, architecture, activation, where)
    trained = str(content["architecture"]) in ("batchtopk", "matryoshka_batchtopk")
    taken = _tensors(tensors, config, trained, folder / WEIGHTS)
    if "finetuning_scaling_factor" in tensors:
        shape = {"finetuning_scaling_factor": (config["d_sae"],)}
        factor = take(tensors, shape, folder / WEIGHTS, CONFIG)["finetuning_scaling_factor"]
        taken["W_dec"] = taken["W_dec"] * factor[:, None]
    if content.get("rescale_acts_by_decoder_norm") and "b_enc" in taken:
        fold_decoder_norm(taken)
    unscaled = ""
    if config["normalize_activations"] == "expected_average_only_in":
        config["normalize_activations"] = "none"
        unscaled = _fold_scaler(folder, config, taken)
    return Reading(config, taken, _metadata(folder, content, config), unscaled)


def _modernize(content: dict[str, Any], tensors: dict[str, Any], where: Path) -> dict[str, Any]:
    """Brings a flat `cfg.json` of SAELens < 6 (and its weights, in place) into the fields of SAELens 6."""
    new = {_OLD_NAMES.get(name, name): value for name, value in content.items()}
    function = new.get("activation_fn") or "relu"
    settings = section(new, "activation_fn_kwargs", where)
    if function == "topk" and settings.get("k") is not None:
        new["architecture"], new["k"] = "topk", settings["k"]
    elif function != "relu":
        raise ValueError(
            f"{where} says activation_fn={function!r}, expected relu or topk with its k: such SAEs cannot be opened"
        )
    new.setdefault("architecture", "standard")
    new.setdefault("apply_b_dec_to_input", True)
    new.setdefault("prepend_bos", True)
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in str(new.get("hook_name")) else "none")
    normalize = new.get("normalize_activations")
    if isinstance(normalize, bool) or normalize is None:
        new["normalize_activations"] = "expected_average_only_in" if normalize else "none"
    factor = None
    if "scaling_factor" in tensors:
        shape = {"scaling_factor": (number(new, "d_sae", where),)}
        factor = take(tensors, shape, where.with_name(WEIGHTS), CONFIG)["scaling_factor"]
        del tensors["scaling_factor"]
    if factor is not None and not torch.allclose(factor, torch.ones(factor.shape)):
        if not new.get("finetuning_scaling_factor"):
            raise ValueError(
                f"{where} says finetuning_scaling_factor=false, expected true: the weights hold a scaling_factor that "
                "is not one"
            )
        tensors["finetuning_scaling_factor"] = factor
    new["metadata"] = {name: new[name] for name in _FACTS if new.get(name) is not None}
    return new


def _names(content: dict[str, Any], where: Path) -> tuple[str, str | None]:
    if "architecture" not in content:
        raise ValueError(f"{where} lacks 'architecture', expected a SAELens cfg.json: convert the SAE")
    name = str(content["architecture"])
    if name not in _NAMES:
        raise ValueError(
            f"{where}: architecture `{name}` is not available, expected one of {', '.join(_NAMES)}: it cannot be opened"
        )
    return _NAMES[name]


def _config(content: dict[str, Any], architecture: str, activation: str | None, where: Path) -> dict[str, Any]:
    normalize = content.get("normalize_activations") or "none"
    if normalize not in _NORMALIZATIONS:
        raise ValueError(
            f"{where} says normalize_activations={normalize!r}, expected one of {', '.join(_NORMALIZATIONS)}: such "
            "SAEs cannot be opened"
        )
    wired = architecture in ("transcoder", "skip_transcoder", "crosscoder", "clt")
    if wired and normalize in ("constant_norm_rescale", "layer_norm"):
        raise ValueError(
            f"{where} says normalize_activations={normalize!r} for a {content['architecture']}, expected none: how its "
            "output is scaled back is not defined"
        )
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": number(content, "d_in", where),
        "d_sae": number(content, "d_sae", where),
        "apply_b_dec_to_input": bool(content.get("apply_b_dec_to_input", not wired)),
        "normalize_activations": normalize,
    }
    if activation:
        config["activation"] = activation
    if "topk" in (architecture, activation) or architecture == "abstopk":
        config["k"] = number(content, "k", where)
    elif architecture == "matching_pursuit":
        config["k"] = number(content, "k", where) if content.get("k") is not None else None
        config["residual_threshold"] = real(content, "residual_threshold", where, default=1e-2)
    if architecture in ("transcoder", "skip_transcoder", "clt"):
        config["d_out"] = number(content, "d_out", where) if "d_out" in content else config["d_in"]
    if architecture in ("crosscoder", "clt"):
        config["n_sites"] = number(content, "n_sites", where)
    return config


def _tensors(tensors: dict[str, Any], config: dict[str, Any], trained: bool, where: Path) -> dict[str, Tensor]:
    d_in, d_sae, n_sites = config["d_in"], config["d_sae"], config.get("n_sites", 1)
    d_out = config.get("d_out", d_in)
    reads = d_in if config["architecture"] == "clt" else d_in * n_sites
    tensors = dict(tensors)
    thresholded = "jumprelu" in (config["architecture"], config.get("activation"))
    if trained and "topk_threshold" in tensors:
        threshold = scalar(tensors, "topk_threshold", where)
        tensors = {name: value for name, value in tensors.items() if name != "topk_threshold"}
        tensors["threshold"] = torch.full((d_sae,), threshold)
    if thresholded and "log_threshold" in tensors:
        tensors["threshold"] = take(tensors, {"log_threshold": (d_sae,)}, where, CONFIG)["log_threshold"].exp()
        del tensors["log_threshold"]
    shapes: dict[str, tuple[int, ...]] = {"W_dec": (d_sae, d_out * n_sites), "b_dec": (d_out * n_sites,)}
    if config["architecture"] != "matching_pursuit":
        shapes = {"W_enc": (reads, d_sae), **shapes}
        latents = ("b_gate", "r_mag", "b_mag") if config["architecture"] == "gated" else ("b_enc",)
        shapes |= dict.fromkeys((*latents, *(("threshold",) if thresholded else ())), (d_sae,))
    if config["architecture"] == "skip_transcoder":
        shapes["W_skip"] = (d_out, d_in)
    besides = ("finetuning_scaling_factor", "W_enc")
    by = f"architecture `{config['architecture']}` of {CONFIG}"
    taken = take(tensors, shapes, where, by, besides)
    if "W_enc" in taken:
        taken["W_enc"] = taken["W_enc"].T.contiguous()
    else:  # tied
        taken["W_enc"], taken["b_enc"] = taken["W_dec"].clone(), torch.zeros(d_sae)
    return taken


def _fold_scaler(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Folds the scale that SAELens keeps beside training checkpoints; returns what is missing where there is none."""
    if (folder / SCALER).is_file():
        scale = read_json(folder / SCALER).get("scaling_factor")
        if isinstance(scale, (int, float)) and scale > 0:
            fold_input_scale(config, tensors, float(scale), float(scale))
            return ""
    return (
        f"{folder / CONFIG} says normalize_activations='expected_average_only_in', but no {SCALER} gives the scale: "
        "give input_scale=√d_in divided by the mean norm of the activations"
    )


def _metadata(folder: Path, content: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    where = folder / CONFIG
    metadata = {name: value for name, value in section(content, "metadata", where).items() if value is not None}
    model = hooks.hub_model(text(metadata, "model_name", where))
    hook, out = text(metadata, "hook_name", where), text(metadata, "hook_name_out", where)
    if metadata.get("hook_head_index") is None:
        metadata.setdefault("site", hooks.site_of(hook, model))
    else:  # one head alone is no site
        metadata.setdefault("site", f"{hook}[{metadata['hook_head_index']}]")
    if out and config["architecture"] in ("transcoder", "skip_transcoder"):
        metadata.setdefault("target_sites", [hooks.site_of(out, model)])
    data = known(
        source=metadata.get("dataset_path"),
        context_tokens=metadata.get("context_size"),
        prepend_bos=metadata.get("prepend_bos"),
    )
    metadata.setdefault("data", data)
    metadata.setdefault("training_architecture", content["architecture"])
    metadata["model_name"] = model
    if (folder / SPARSITY).is_file():
        density = (
            10
            ** take(read_tensors(folder / SPARSITY), {"sparsity": (config["d_sae"],)}, folder / SPARSITY, CONFIG)[
                "sparsity"
            ]
        )
        metadata["density"] = density.where(density > 1e-9, 0.0).tolist()
    return known(**metadata)


def stored_name(config: SAEConfig) -> str:
    """The architecture's name in `cfg.json`.

    Raises:
        ValueError: a kind of training, which ends as another kind of SAE: nothing tells which codes it would have.
    """
    wired = config.architecture in ("transcoder", "skip_transcoder")
    several = config.architecture in ("crosscoder", "clt")
    activation = (config.activation or "topk") if wired or several else None
    name = _STORED.get((config.architecture, activation if wired else None))
    if name is None or (several and activation not in _ACTIVATIONS):
        kind = config.architecture if activation is None else f"{config.architecture} with activation {activation}"
        raise ValueError(
            f"`{kind}` is a kind of training, which ends as another kind of SAE (batchtopk as jumprelu, p_anneal as "
            "standard), expected a finished one: take the SAE that training wrote"
        )
    return name


def write(sae: SAE, folder: Path) -> None:
    """Writes the native layout; `cfg.json` comes last, so that a folder is whole or none."""
    stored_name(sae.config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    tensors = {name: value.detach() for name, value in sae.state_dict().items()}
    if sae.config.architecture == "matching_pursuit":
        tensors = {name: tensors[name] for name in ("W_dec", "b_dec")}
    else:
        tensors["W_enc"] = tensors["W_enc"].T
    write_tensors(folder / WEIGHTS, tensors)
    density = sae.metadata.get("density")
    if density is not None:
        write_tensors(folder / SPARSITY, {"sparsity": torch.tensor(density).clamp(min=1e-10).log10()})
    else:
        (folder / SPARSITY).unlink(missing_ok=True)
    write_json(folder / CONFIG, _content(sae))


def _content(sae: SAE) -> dict[str, Any]:
    config = sae.config
    extra = {key: value for key, value in sae.metadata.items() if key != "density"}
    data = extra.get("data") or {}
    targets = extra.get("target_sites") or [None]
    metadata = {
        "neuronpedia_id": None,
        "seqpos_slice": [None],
        "model_from_pretrained_kwargs": {},
        "exclude_special_tokens": data.get("exclude_special_tokens"),
        "training_architecture": config.architecture,
        "l0": config.k,
        **extra,
        "model_name": extra.get("model_name"),
        "hook_name": hooks.saelens_hook(extra.get("site")),
        "hook_name_out": hooks.saelens_hook(targets[0]),
        "hook_head_index": None,
        "hf_hook_name": extra.get("module_path", extra.get("hf_hook_name")),
        "context_size": data.get("context_tokens"),
        "prepend_bos": data.get("prepend_bos"),
        "dataset_path": data.get("source"),
        "sae_lens_version": "6.0.0",
    }
    wired = config.architecture in ("transcoder", "skip_transcoder")
    several = config.architecture in ("crosscoder", "clt")
    activation = (config.activation or "topk") if wired or several else None
    content: dict[str, Any] = {
        "architecture": stored_name(config),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": config.subtracts_b_dec,
        "normalize_activations": _run_time_normalization(config.normalize_activations),
        "reshape_activations": "hook_z" if str(extra.get("site")).startswith("head_out.") else "none",
    }
    if "topk" in (config.architecture, activation) or config.architecture == "abstopk":
        content["k"] = config.k
    if config.architecture in ("topk", "abstopk"):
        content["rescale_acts_by_decoder_norm"] = False
    if config.architecture == "matching_pursuit":
        content["residual_threshold"] = 1e-2 if config.residual_threshold is None else config.residual_threshold
        content["k"] = config.k
    if wired or config.architecture == "clt":
        content["d_out"] = config.output_width
    if several:
        content |= {"n_sites": config.n_sites, "activation": activation}
    return {**content, "metadata": metadata}


def _run_time_normalization(name: str) -> str:
    return name if name in ("constant_norm_rescale", "layer_norm") else "none"
