"""Reading and writing the files of SAEs, safely: no pickled code is ever run, and a damaged file is one line.

Enters: a path. Leaves: named tensors, JSON objects, the flat top of a YAML file; or a `ValueError` that names the file,
what is wrong with it and what to do. Writers replace a file as a whole or leave the old one.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file so that `path` holds the old content or the whole new one.

    Raises:
        OSError: it cannot be written; the message is one line, and nothing half-written is left.
    """
    from safetensors.torch import save

    _write(path, save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata))


def write_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a `.pt` file of tensors alone, for projects that read no other kind; otherwise as `write_tensors`."""
    from io import BytesIO

    buffer = BytesIO()
    torch.save({name: value.cpu().contiguous() for name, value in tensors.items()}, buffer)
    _write(path, buffer.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that `path` holds the old content or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _write(path: Path, data: bytes) -> None:
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


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; ValueError where the file is no JSON or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): the file is damaged, restore it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object: restore the file")
    return content


def read_settings(path: Path) -> dict[str, str]:
    """Reads the `key: value` lines at the top level of a YAML file, all that other projects' `config.yaml` need."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error}): the file is damaged, restore it") from error
    pairs = (line.partition(":") for line in lines if line[:1] not in ("", " ", "\t", "#", "-"))
    return {key.strip(): value.split(" #")[0].strip().strip("'\"") for key, colon, value in pairs if colon}


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads a file of named tensors: `.safetensors`, `.npz`, or torch's `.pt` and `.pth` (which may nest plain values).

    Raises:
        ValueError: the file is cut off, is of another kind, or would need to run pickled code.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty, expected tensors: copy or download it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected named tensors: give an SAE's own file")
    return content


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({_one_line(error)}): copy or train it again") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # numpy leaves its own open
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error):
            raise _needs_pickle(path, "an array of Python objects") from error
        raise ValueError(f"{path} is no whole .npz file ({_one_line(error)}): copy or download it again") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no whole .npz file ({_one_line(error)}): copy or download it again") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)|Unsupported operand", str(error)):
            raise _needs_pickle(path, found[1] or "an unknown operation") from error
        raise ValueError(f"{path} is no whole file of tensors ({_one_line(error)}): copy it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is no whole file of tensors ({_one_line(error)}): copy it again") from error


def _needs_pickle(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} holds pickled code ({what}), expected tensors alone: it is not opened; ask for a safetensors copy"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def take(
    tensors: Mapping[str, Any],
    shapes: Shapes,
    where: Path,
    by: str = "the other tensors",
    besides: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Returns the named tensors as float32, each of exactly the expected shape.

    `besides` names what else the file may hold; None leaves that open.

    Raises:
        ValueError: one is missing, is no tensor of real numbers, or has another shape than `by` says; or the file holds
            what it should not.
    """
    extra = sorted(set(tensors) - set(shapes) - set(besides)) if besides is not None else []
    if extra:
        raise ValueError(
            f"{where} holds {', '.join(extra[:6])}, expected only {', '.join(shapes)} by {by}: the files do not belong "
            "together"
        )
    taken: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        value = tensors.get(name)
        got = tuple(value.shape) if isinstance(value, Tensor) else None
        if not isinstance(value, Tensor) or got != shape:
            raise ValueError(
                f"{where} holds {name} of shape {got}, expected {shape} by {by}: the files do not belong together"
            )
        if value.is_complex() or value.dtype == torch.bool:
            raise ValueError(f"{where} holds {name} of type {value.dtype}, expected real numbers: give an SAE's file")
        taken[name] = value.float().contiguous()
    return taken


def scalar(tensors: Mapping[str, Any], name: str, where: Path, default: float | None = None) -> float:
    """Returns a single finite number of a file; ValueError where it is something else, or missing without a default."""
    value = tensors.get(name)
    if value is None and default is not None:
        return default
    single = float(take(tensors, {name: ()}, where, "its meaning")[name].item())
    if single != single or abs(single) == float("inf"):
        raise ValueError(f"{where} holds {name}={single}, expected a number: the file is damaged")
    return single


def width_of(tensors: Mapping[str, Any], name: str, where: Path) -> int:
    """Returns the length of a vector that says how large the others must be."""
    value = tensors.get(name)
    if not isinstance(value, Tensor) or value.ndim != 1 or not len(value):
        got = tuple(value.shape) if isinstance(value, Tensor) else None
        raise ValueError(f"{where} holds {name} of shape {got}, expected a vector: give the file of one SAE")
    return len(value)


def number(content: Mapping[str, Any], name: str, where: Path) -> int:
    """Returns a positive whole number of a config; ValueError where it is missing or something else."""
    value = content.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        got = f"says {name}={value!r}" if name in content else f"lacks '{name}'"
        raise ValueError(f"{where} {got}, expected a positive whole number: restore the file or convert the SAE again")
    return int(value)


def real(content: Mapping[str, Any], name: str, where: Path, default: float | None = None) -> float:
    """Returns a positive number of a config; ValueError where it is something else, or missing without a default."""
    value = content.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        got = f"says {name}={value!r}" if name in content else f"lacks '{name}'"
        raise ValueError(f"{where} {got}, expected a positive number: restore the file or convert the SAE again")
    return float(value)


def text(content: Mapping[str, Any], name: str, where: Path) -> str | None:
    """Returns a string of a config, or None where there is none; ValueError where it is something else."""
    value = content.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where} says {name}={value!r}, expected a string: restore the file")
    return value or None


def section(content: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    """Returns an object within a config, empty where there is none; ValueError where it is something else."""
    value = content.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{where} says {name}={value!r}, expected an object: restore the file")
    return dict(value or {})
