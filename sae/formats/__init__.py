"""SAEs on disk: every project's files in, three formats out.

`load` tells a format from the files, reads it into the one form used in memory and checks every shape on the way;
`save` writes SAELens (native), dictionary_learning or sparsify, and refuses by name what a format cannot express. Each
format has its module, which says what its files hold and where that is written. docs/formats.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae.formats import (
    circuit_tracer,
    crosscoders,
    dictionary_learning,
    finding,
    gemma_scope,
    goodfire,
    hub,
    openai,
    openmoss,
    qwen_scope,
    saelens,
    sparsify,
)
from sae.formats.canonical import Reading, fold_input_scale, site_scales
from sae.formats.files import read_tensors, write_json, write_tensors
from sae.formats.hooks import saelens_hook, site_of

if TYPE_CHECKING:
    from sae.model import SAE

__all__ = [
    "FORMATS",
    "convert",
    "fold_input_gain",
    "load",
    "push",
    "recognise",
    "saelens_hook",
    "save",
    "site_of",
    "write_json",
    "write_tensors",
]

_WRITERS: dict[str, Callable[[SAE, Path], None]] = {
    "saelens": saelens.write,
    "dictionary_learning": dictionary_learning.write,
    "sparsify": sparsify.write,
}
FORMATS = tuple(_WRITERS)
"""The formats that can be written."""


def save(sae: SAE, path: Path, format: str = "saelens") -> Path:
    """Writes `sae` to the folder `path` and returns it.

    Raises:
        ValueError: an unknown format, or one that cannot express this SAE; nothing is written then.
    """
    if format not in FORMATS:
        raise ValueError(f"format `{format}` cannot be written, expected one of {', '.join(FORMATS)}: choose one")
    _WRITERS[format](sae, path)
    return path


def load(
    path: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    input_scale: float | Sequence[float] | None = None,
) -> SAE:
    """Opens the SAE in a local folder, file, or hub repository.

    `subfolder` chooses among several. `input_scale`, one number or one for each site, folds in the factor by which
    activations were multiplied in training, for the formats that leave it to the user.

    Raises:
        FileNotFoundError: nothing there, or no SAE in it.
        OSError: the hub cannot be reached.
        ValueError: a damaged file, shapes that do not fit, an unknown architecture, pickled code, or several SAEs.
    """
    from sae.config import SAEConfig
    from sae.model import SAE

    root, found, origin = _locate(path, subfolder, revision)
    reading = _read(root, found, origin)
    if reading.unscaled and input_scale is None:
        raise ValueError(reading.unscaled)
    config, tensors, metadata = dict(reading.config), dict(reading.tensors), dict(reading.metadata)
    if input_scale is not None:
        scales = site_scales(input_scale, config.get("n_sites", 1), config["d_in"])
        fold_input_scale(config, tensors, scales, scales)
        metadata.pop("expects", None)
    try:
        return SAE.from_tensors(SAEConfig(**config), tensors, metadata)
    except ValueError as error:
        raise ValueError(f"{root / found.path}: {error}") from error


def recognise(path: str | Path, subfolder: str | None = None) -> str:
    """Returns the name of the format of a local folder or file, told by its files' names."""
    return _locate(path, subfolder, None)[1].format


def convert(
    source: str | Path,
    destination: str | Path,
    format: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    input_scale: float | Sequence[float] | None = None,
) -> Path:
    """Reads an SAE of any format and writes it as `format` to the new folder `destination`.

    Raises:
        ValueError: `destination` exists, or `format` cannot express the SAE; see also `load`.
    """
    destination = Path(destination)
    if destination.exists():
        raise ValueError(f"{destination} exists, expected a new folder: choose another name or remove it")
    if format not in FORMATS:
        raise ValueError(f"format `{format}` cannot be written, expected one of {', '.join(FORMATS)}: choose one")
    return save(load(source, subfolder, revision, input_scale), destination, format)


def push(
    sae: SAE,
    name: str,
    *,
    format: str = "saelens",
    subfolder: str | None = None,
    private: bool = False,
    message: str = "Add a sparse autoencoder",
) -> str:
    """Uploads an SAE with a model card to the hub repository `name` and returns the commit's address."""
    return hub.push(sae, name, format=format, subfolder=subfolder, private=private, message=message)


def fold_input_gain(sae: SAE, gain: Tensor, site: str) -> SAE:
    """Returns an SAE that reads `site` where the given one reads the same rows before a norm's gain.

    Some transcoders read the output of an RMS norm before it is multiplied by the norm's weights (`gain`, with any
    offset added), a place with no site. Dividing the encoder by the gain gives the same latents on `mlp_in.L`.
    """
    from sae.model import SAE

    if gain.shape != (sae.config.d_in,) or bool((gain == 0).any()):
        raise ValueError(
            f"gain has shape {tuple(gain.shape)}, expected [{sae.config.d_in}] without zeros: give the norm's weights"
        )
    tensors = {name: value.detach().clone() for name, value in sae.state_dict().items()}
    tensors["W_enc"] = tensors["W_enc"] / gain
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"] / gain
    if sae.config.subtracts_b_dec:
        raise ValueError("this SAE encodes x − b_dec, expected one that reads x as it is: the gain cannot be folded in")
    return SAE.from_tensors(replace(sae.config), tensors, {**sae.metadata, "site": site})


def _locate(path: str | Path, subfolder: str | None, revision: str | None) -> tuple[Path, finding.Find, str]:
    """Returns the local root, what to read in it, and the words (path or hub address) that say what it is."""
    local = Path(path)
    if not local.exists() and hub.is_name(str(path)):
        root, found = hub.fetch(str(path), subfolder, revision)
        return root, found, f"{path}/{found.path}"
    if not local.exists():
        raise FileNotFoundError(f"no SAE folder at {local}: expected a folder or file, or a hub name such as org/name")
    if local.is_file():
        root = local.parent
        finds = [item for item in finding.find([local.name]) if item.path == local.name]
        if not finds:  # a file that has its format only together with others
            together = finding.find(finding.names(root))
            finds = [item for item in together if local.name in item.files[:1]]
        found = finding.choose(finds, None, str(local))
    else:
        root, found = local, _found(local, subfolder)
    origin = (root / found.path).absolute().as_posix().replace("models--", "").replace("--", "/")
    return root, found, origin


def _found(folder: Path, subfolder: str | None) -> finding.Find:
    try:
        return finding.choose(finding.find(finding.names(folder)), subfolder, str(folder))
    except FileNotFoundError as error:
        if subfolder is not None or any(folder.glob("*/*")):
            raise
        held = ", ".join(sorted(file.name for file in folder.iterdir())[:6]) or "nothing"
        raise FileNotFoundError(
            f"{folder} holds {held}, expected {saelens.CONFIG} and {saelens.WEIGHTS}, or the files of another format "
            "(see docs/formats.md): give the folder of one SAE"
        ) from error


def _read(root: Path, found: finding.Find, origin: str) -> Reading:
    place, file = root / found.path, root / found.files[0]
    if found.format == "saelens":
        return saelens.read(place)
    if found.format == "sparsify":
        return sparsify.read(place.resolve() if found.path == "." else place)
    if found.format == "dictionary_learning":
        return _read_pickle(file, origin)
    if found.format == "gemma_scope":
        return gemma_scope.read(place, origin)
    if found.format == "gemma_scope_2":
        return gemma_scope.read_2(place)
    if found.format == "openmoss":
        return openmoss.read(place, origin)
    if found.format == "circuit_tracer":
        return circuit_tracer.read(file)
    if found.format == "circuit_tracer_clt":
        return circuit_tracer.read_clt(place)
    return _read_pickle(file, origin)


def _read_pickle(file: Path, origin: str) -> Reading:
    """Reads a state dict, whose keys tell the format."""
    tensors: dict[str, Any] = read_tensors(file)
    if isinstance(tensors.get("ae"), dict):
        return dictionary_learning.read(file)
    keys = {name.removeprefix("_orig_mod.") for name in tensors}
    if "pre_bias" in keys:
        return openai.read(file, tensors, origin)
    if "encoder_linear.weight" in keys:
        return goodfire.read(file, tensors, origin)
    if getattr(tensors.get("W_enc"), "ndim", 0) == 3:
        return crosscoders.read_stacked(file, tensors)
    if {"encoder.weight", "decoder.weight", "encoder.bias", "decoder.bias"} <= keys and any(
        getattr(value, "ndim", 0) == 3 for value in tensors.values()
    ):
        return crosscoders.read_layered(file, tensors)
    beside = [file.parent / "config.json", file.parent.parent / "config.json"]
    if keys & {"encoder.weight", "group_sizes", "threshold"} and any(config.is_file() for config in beside):
        return dictionary_learning.read(file)
    if {"W_enc", "W_dec", "b_enc", "b_dec"} == keys:
        return qwen_scope.read(file, tensors, origin)
    if "encoder.weight" in keys:
        return dictionary_learning.read(file)
    shown = ", ".join(sorted(keys)[:6]) or "nothing"
    raise ValueError(f"{file} holds {shown}, expected the tensors of a known format: see docs/formats.md")
