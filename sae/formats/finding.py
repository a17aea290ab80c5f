"""Which files of a folder or repository make up an SAE, told by their names alone.

Enters: relative file names, so that a hub repository is judged before anything is downloaded. Leaves: `Find`s, each one
SAE with the format its names promise; `sae.formats` then reads the files and holds them to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Find:
    """One SAE: its path below the folder searched (`.` is that folder itself), its format, and the files it needs."""

    path: str
    format: str
    files: tuple[str, ...]


# format, the file that marks it, the others that must lie beside it
_FOLDERS = (
    ("saelens", "sae_weights.safetensors", ("cfg.json",)),
    ("openmoss", "sae_weights.safetensors", ("config.json",)),
    ("sparsify", "sae.safetensors", ("cfg.json",)),
    ("gemma_scope", "params.npz", ()),
    ("gemma_scope_2", "params.safetensors", ("config.json",)),
    ("gemma_scope_2", "params_layer_0.safetensors", ("config.json",)),
    ("openmoss", "checkpoints/final.safetensors", ("hyperparams.json",)),
    ("circuit_tracer_clt", "W_enc_0.safetensors", ("W_dec_0.safetensors",)),
    ("crosscoder", "cc_weights.pt", ("cfg.json",)),
    ("dictionary_learning", "ae.pt", ("config.json",)),
    ("crosscoder", "model.safetensors", ("config.json",)),
)
_FILES = (
    ("circuit_tracer", "layer_*.safetensors"),
    ("qwen_scope", "layer*.sae.pt"),
    ("pickle", "*.pt"),
    ("pickle", "*.pth"),
)
_NOT_WEIGHTS = re.compile(r"(trainer_state|optimizer|scheduler|rng_state|training_args)[^/]*$")
_SHARED = ("config.json", "config.yaml", "activation_scaler.json", "sparsity.safetensors", "cfg.json")
_CLT_PARTS = re.compile(r"(W_enc|W_dec|params_layer)_\d+\.safetensors")


def names(folder: Path) -> list[str]:
    """Returns the files of a local folder, as deep as repositories of SAEs go."""
    return [file.relative_to(folder).as_posix() for depth in range(1, 7) for file in folder.glob("/".join("*" * depth))]


def find(names: Iterable[str]) -> list[Find]:
    """Returns the SAEs among files, in natural order; a training's folder and its checkpoints count each."""
    files = {str(PurePosixPath(name)) for name in names}
    finds: dict[str, Find] = {}
    for format, mark, beside in _FOLDERS:
        for file in sorted(files):
            if file != mark and not file.endswith(f"/{mark}"):
                continue
            folder = file[: -len(mark)].rstrip("/") or "."
            if folder not in finds and all(_join(folder, name) in files for name in beside):
                finds[folder] = Find(folder, format, _needed(folder, mark, files))
    for format, pattern in _FILES:
        for file in sorted(files):
            name = PurePosixPath(file).name
            folder = str(PurePosixPath(file).parent)
            if not fnmatchcase(name, pattern) or _NOT_WEIGHTS.search(name) or file in finds or folder in finds:
                continue
            finds[file] = Find(file, format, _needed(folder, name, files))
    return [finds[path] for path in sorted(finds, key=_natural)]


def choose(finds: list[Find], subfolder: str | None, where: str) -> Find:
    """Returns the SAE that `subfolder` names, or the only one there is, apart from checkpoints inside its folder.

    Raises:
        FileNotFoundError: there is none, or none of that name.
        ValueError: there are several; the message lists them.
    """
    if subfolder is None:
        matching = [item for item in finds if item.path == "."] or _outermost(finds)
    else:
        wanted = str(PurePosixPath(subfolder))
        named = [item for item in finds if wanted in (item.path, item.path.split(".safetensors")[0], _stem(item.path))]
        matching = named or _outermost([item for item in finds if item.path.startswith(f"{wanted}/")])
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise ValueError(f"{where} holds {len(matching)} SAEs, expected one: choose by subfolder={_listed(matching)}")
    if subfolder is not None and finds:
        raise FileNotFoundError(
            f"{where} has no SAE `{subfolder}`, expected one of {_listed(finds)}: correct subfolder"
        )
    raise FileNotFoundError(f"{where} holds no SAE of a known format: give the folder of one (see docs/formats.md)")


def _outermost(finds: list[Find]) -> list[Find]:
    folders = [item.path for item in finds if item.files[0] != item.path]
    return [item for item in finds if not any(item.path.startswith(f"{folder}/") for folder in folders)]


def _needed(folder: str, mark: str, files: set[str]) -> tuple[str, ...]:
    own = _join(folder, mark)
    parts = [
        file
        for file in files
        if str(PurePosixPath(file).parent) == folder and _CLT_PARTS.fullmatch(PurePosixPath(file).name)
    ]
    beside = [f"{own.rsplit('.', 1)[0]}_cfg.json", _join(folder, "hyperparams.json")]
    above = [
        _join(str(parent), name)
        for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)
        for name in _SHARED
    ]
    return tuple(dict.fromkeys([own, *sorted(file for file in {*beside, *above, *parts} if file in files)]))


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _stem(path: str) -> str:
    return re.sub(r"(\.sae)?\.(pt|pth|safetensors)$", "", path)


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _listed(finds: list[Find]) -> str:
    shown = ", ".join(item.path for item in finds[:8])
    return f"{shown}, … ({len(finds)} in all)" if len(finds) > 8 else shown
