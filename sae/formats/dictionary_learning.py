"""dictionary_learning: `ae.pt` (a state dict) with `config.json {trainer, buffer}`.

Six classes: AutoEncoder and GatedAutoEncoder (which read x − bias), AutoEncoderNew and JumpReluAutoEncoder (which do
not), AutoEncoderTopK, BatchTopKSAE and MatryoshkaBatchTopKSAE (which do, and of which the last two compare activations
with one threshold at inference). Final files have the norm of the activations folded in; the backup of a running
training (`{step, ae, optimizer, config, norm_factor}`) does not, so it is folded here, as that project's `scale_biases`
does. Source: saprmarks/dictionary_learning, `dictionary.py`, `trainers/`, `training.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.formats import hooks
from sae.formats.canonical import Reading, known, move_b_dec
from sae.formats.files import (
    Shapes,
    number,
    read_json,
    read_tensors,
    real,
    scalar,
    section,
    take,
    text,
    write_json,
    write_pickle,
)

if TYPE_CHECKING:
    from sae.model import SAE

CONFIG, WEIGHTS = "config.json", "ae.pt"

# class → (our architecture, whether the encoder reads x − bias, {our tensor: theirs})
_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_CLASSES: dict[str, tuple[str, bool, dict[str, str]]] = {
    "AutoEncoder": ("standard", True, {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "bias"}),
    "AutoEncoderNew": ("standard", False, {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "decoder.bias"}),
    "GatedAutoEncoder": (
        "gated",
        True,
        {**_LINEAR, "b_dec": "decoder_bias", "b_gate": "gate_bias", "r_mag": "r_mag", "b_mag": "mag_bias"},
    ),
    "AutoEncoderTopK": ("topk", True, {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}),
    "BatchTopKSAE": ("jumprelu", True, {**_LINEAR, "b_enc": "encoder.bias", "b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": (
        "jumprelu",
        True,
        {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"},
    ),
    "JumpReluAutoEncoder": (
        "jumprelu",
        False,
        {"W_enc": "W_enc", "W_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"},
    ),
}
_TRAINERS = {
    "standard": "StandardTrainer",
    "gated": "GatedSAETrainer",
    "topk": "TopKTrainer",
    "jumprelu": "JumpReluTrainer",
}


def read(file: Path) -> Reading:
    """Reads `ae.pt` (or a checkpoint below it) with the `config.json` beside or above it."""
    folder = file.parent if (file.parent / CONFIG).is_file() else file.parent.parent
    where = folder / CONFIG
    if not where.is_file():
        raise ValueError(f"{file} has no {CONFIG} beside it, expected one that names its class: copy both files")
    content = read_json(where)
    trainer = section(content, "trainer", where)
    if "dict_class" not in trainer:
        raise ValueError(
            f"{where} names no trainer.dict_class, expected dictionary_learning's config: copy its own file"
        )
    name = str(trainer["dict_class"]).rsplit(".", 1)[-1].strip("'<>")
    if name not in _CLASSES:
        raise ValueError(f"{where}: class `{name}` is not available, expected one of {', '.join(_CLASSES)}")
    architecture, subtracts, names = _CLASSES[name]
    state, factor = read_tensors(file), 1.0
    if isinstance(state.get("ae"), dict):
        state, factor = state["ae"], real(state, "norm_factor", file, default=1.0)
    d_in, d_sae = number(trainer, "activation_dim", where), number(trainer, "dict_size", where)
    tensors = _take(state, names, d_in, d_sae, file)
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "apply_b_dec_to_input": subtracts,
        "normalize_activations": "none",
    }
    if architecture == "topk":
        config["k"] = _k(state, trainer, where)
        scalar(state, "threshold", file, default=-1.0)
    elif architecture == "jumprelu" and "threshold" not in tensors:
        tensors["threshold"] = torch.full((d_sae,), _threshold(state, file))
    if factor != 1.0:
        for bias in {"b_enc", "b_dec", "threshold", "b_gate", "b_mag"} & set(tensors):
            tensors[bias] = tensors[bias] * factor
    return Reading(config, tensors, _metadata(trainer, section(content, "buffer", where), name, where))


def _take(state: dict[str, Any], names: dict[str, str], d_in: int, d_sae: int, file: Path) -> dict[str, Tensor]:
    linear = names["W_enc"] == "encoder.weight"
    sizes: Shapes = {
        "W_enc": (d_sae, d_in) if linear else (d_in, d_sae),
        "W_dec": (d_in, d_sae) if linear else (d_sae, d_in),
        "b_dec": (d_in,),
    }
    shapes = {their: sizes.get(our, (d_sae,)) for our, their in names.items()}
    taken = take(state, shapes, file, f"the class in {CONFIG}", besides=("k", "threshold", "group_sizes"))
    tensors = {our: taken[their] for our, their in names.items()}
    turned = "W_dec" if linear else "W_enc"
    tensors[turned] = tensors[turned].T.contiguous()
    return tensors


def _k(state: dict[str, Any], trainer: dict[str, Any], where: Path) -> int:
    if "k" not in state:
        return number(trainer, "k", where)
    stored = scalar(state, "k", where)
    if trainer.get("k") not in (None, stored):
        raise ValueError(f"{where} says k={trainer['k']}, expected {stored:g} by the weights: the files do not match")
    return number({"k": stored}, "k", where)


def _threshold(state: dict[str, Any], file: Path) -> float:
    threshold = scalar(state, "threshold", file)
    if threshold < 0:
        raise ValueError(
            f"{file} holds threshold={threshold:g}, expected one that training has set: give a file of a longer run"
        )
    return threshold


def _metadata(trainer: dict[str, Any], buffer: dict[str, Any], name: str, where: Path) -> dict[str, Any]:
    model, submodule = text(trainer, "lm_name", where), text(trainer, "submodule_name", where)
    layer = trainer.get("layer")
    site = hooks.site_of(submodule, model) if submodule else None
    if site is None and isinstance(layer, int):
        site = f"resid_post.{layer}"
    training = {"BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "matryoshka_batchtopk"}.get(name)
    if trainer.get("trainer_class") == "PAnnealTrainer":
        training = "p_anneal"
    return known(
        site=site,
        model_name=hooks.hub_model(model),
        data=known(context_tokens=buffer.get("ctx_len")),
        training_architecture=training,
        train_settings={key: value for key, value in trainer.items() if isinstance(value, (int, float, str))},
    )


def write(sae: SAE, folder: Path) -> None:
    """Writes `ae.pt` and `config.json`, the class chosen by architecture; ValueError names what has no class there."""
    config, name = sae.config, sae.config.architecture
    if name not in _TRAINERS:
        raise ValueError(
            f"dictionary_learning has no class for architecture `{name}`, expected one of {', '.join(_TRAINERS)}: "
            "write the SAE as saelens"
        )
    if config.normalize_activations in ("constant_norm_rescale", "layer_norm"):
        raise ValueError(
            f"dictionary_learning cannot express normalize_activations={config.normalize_activations!r}, expected "
            "none: write the SAE as saelens"
        )
    tensors = {key: value.detach().cpu() for key, value in sae.state_dict().items()}
    kept = {"standard": "AutoEncoder" if config.subtracts_b_dec else "AutoEncoderNew", "gated": "GatedAutoEncoder"}
    dict_class = kept.get(name, {"topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"}.get(name, ""))
    _, wanted, names = _CLASSES[dict_class]
    tensors = move_b_dec(tensors, config.subtracts_b_dec, wanted)
    turned = "W_dec" if names["W_enc"] == "encoder.weight" else "W_enc"
    state = {their: tensors[our].T if our == turned else tensors[our] for our, their in names.items()}
    if name == "topk":
        state |= {"k": torch.tensor(config.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / WEIGHTS, state)
    metadata, data = sae.metadata, sae.metadata.get("data") or {}
    site = metadata.get("site")
    kind, _, layer = str(site or "").partition(".")
    trainer = {
        "trainer_class": _TRAINERS[name],
        "dict_class": dict_class,
        "activation_dim": config.d_in,
        "dict_size": config.d_sae,
        **({"k": config.k} if name == "topk" else {}),
        "layer": hooks.layer_of(site),
        "lm_name": metadata.get("model_name"),
        "submodule_name": f"{kind}_layer_{layer}" if kind in hooks.KINDS and layer else site,
    }
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": known(ctx_len=data.get("context_tokens"))})
