"""SAE folders on disk: the SAELens ≥ 6 layout, which is the native one.

`cfg.json` and `sae_weights.safetensors` (`W_enc [d_in, d_sae]`, `W_dec [d_sae, d_in]`, `b_enc`, `b_dec`), optionally
`sparsity.safetensors` (log10 of each latent's density). Our extra facts stand under `metadata`. Every shape is checked
against `cfg.json` on loading. Source: decoderesearch/SAELens, `sae_lens/saes/sae.py`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.config import SAEConfig

if TYPE_CHECKING:
    from sae.model import SAE

CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
FORMATS = ("saelens",)


def save(sae: SAE, path: Path, format: str) -> Path:
    """Writes `sae` to the folder `path`."""
    if format not in FORMATS:
        raise ValueError(f"format `{format}` cannot be written, expected one of {', '.join(FORMATS)}: choose one")
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG).unlink(missing_ok=True)
    weights = {
        "W_enc": sae.W_enc.detach().T,
        "W_dec": sae.W_dec.detach(),
        "b_enc": sae.b_enc.detach(),
        "b_dec": sae.b_dec.detach(),
    }
    write_tensors(path / WEIGHTS, weights)
    density = sae.metadata.get("density")
    if density is not None:
        write_tensors(path / SPARSITY, {"sparsity": torch.tensor(density).clamp(min=1e-10).log10()})
    write_json(path / CONFIG, _saelens_config(sae))
    return path


def _saelens_config(sae: SAE) -> dict[str, Any]:
    config = sae.config
    extra = {key: value for key, value in sae.metadata.items() if key != "density"}
    data = extra.get("data") or {}
    metadata = {
        "model_name": extra.get("model_name"),
        "hook_name": saelens_hook(extra.get("site")),
        "hook_head_index": None,
        "hf_hook_name": extra.get("module_path"),
        "context_size": data.get("context_tokens"),
        "prepend_bos": data.get("prepend_bos"),
        "seqpos_slice": [None],
        "dataset_path": data.get("source"),
        "model_from_pretrained_kwargs": {},
        "exclude_special_tokens": data.get("exclude_special_tokens"),
        "neuronpedia_id": None,
        "sae_lens_version": "6.0.0",
        "training_architecture": config.architecture,
        "l0": config.k,
        **extra,
    }
    return {
        "architecture": config.architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "k": config.k,
        "dtype": str(sae.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": metadata,
    }


def saelens_hook(site: str | None) -> str | None:
    """Translates a site into the hook name that SAELens uses; a raw module path or None stays as it is."""
    if site is None:
        return None
    kind, _, layer = site.partition(".")
    place = {
        "resid_pre": "hook_resid_pre",
        "resid_mid": "hook_resid_mid",
        "resid_post": "hook_resid_post",
        "attn_out": "hook_attn_out",
        "mlp_out": "hook_mlp_out",
        "head_out": "attn.hook_z",
        "mlp_act": "mlp.hook_post",
    }.get(kind)
    if kind == "embed":
        return "hook_embed"
    return f"blocks.{layer}.{place}" if place and layer.isdigit() else site


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file so that `path` holds the old content or the whole new one.

    Raises:
        OSError: it cannot be written; the message is one line, and nothing half-written is left.
    """
    from safetensors.torch import save

    data = save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{path} could not be written ({error.strerror}; {len(data) / 1e6:.0f} MB): free space or make the folder "
            "writable, then run again with --resume"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that `path` holds the old content or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def load(path: Path) -> SAE:
    """Opens the SAE in the folder `path`."""
    if not path.is_dir():
        raise FileNotFoundError(f"no SAE folder at {path}: expected a folder with {CONFIG} and {WEIGHTS}")
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        found = ", ".join(sorted(file.name for file in path.iterdir())[:6]) or "nothing"
        raise FileNotFoundError(
            f"{path} holds {found}, expected {CONFIG} and {WEIGHTS}: give the folder of one SAE in SAELens format"
        )
    try:
        content = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG} is no JSON ({error}): the file is damaged, restore it") from error
    return _from_saelens(path, content)


def _from_saelens(path: Path, content: dict[str, Any]) -> SAE:
    from sae.model import SAE

    for key, supported in {
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }.items():
        if content.get(key, supported) != supported:
            raise ValueError(
                f"{path / CONFIG} says {key}={content[key]!r}, expected {supported!r}: such SAEs cannot be opened yet"
            )
    try:
        config = SAEConfig(
            architecture=content["architecture"],
            d_in=content["d_in"],
            d_sae=content["d_sae"],
            k=content.get("k"),
            normalize_activations="none",
        )
    except KeyError as error:
        raise ValueError(f"{path / CONFIG} lacks {error}, expected a SAELens ≥ 6 cfg.json: convert the SAE") from error
    weights = _read_tensors(path / WEIGHTS)
    metadata = {key: value for key, value in content.get("metadata", {}).items() if value is not None}
    sae = SAE(config, metadata)
    expected = {
        "W_enc": (config.d_in, config.d_sae),
        "W_dec": (config.d_sae, config.d_in),
        "b_enc": (config.d_sae,),
        "b_dec": (config.d_in,),
    }
    for name, shape in expected.items():
        got = tuple(weights[name].shape) if name in weights else None
        if got != shape:
            raise ValueError(
                f"{path / WEIGHTS} holds {name} of shape {got}, expected {shape} by {CONFIG}: the two files "
                "do not belong together"
            )
        value = weights[name].T if name == "W_enc" else weights[name]
        if not torch.isfinite(value).all():
            raise ValueError(f"{path / WEIGHTS} holds non-finite values in {name}: train the SAE again")
        setattr(sae, name, torch.nn.Parameter(value.float().contiguous()))
    if (path / SPARSITY).is_file():
        density = 10 ** _read_tensors(path / SPARSITY)["sparsity"].float()
        sae.metadata["density"] = density.where(density > 1e-9, 0.0).tolist()
    return sae


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}): copy or train it again") from error
