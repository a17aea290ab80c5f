"""Opening language models: the embedded one, local folders, hub names.

Enters: a `ModelConfig`. Leaves: a transformers model in eval mode and its tokenizer. Weights are safetensors only;
a folder that exists is opened without touching the network; checkpoints that lack weights are refused, not filled up
with random ones.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from activations.processes import current
from activations.sites import architectures_of

EMBEDDED = "embedded"
_ENCODER_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*/config.json"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which language model, and how to hold it."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str = EMBEDDED
    """`embedded`, a folder with config, safetensors weights and tokenizer, or a hub name."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; `auto` takes a GPU where there is one."""
    dtype: str = "auto"
    """`float32`, `bfloat16`, `float16`; `auto` is that of the checkpoint, or float32 where a CPU lacks fast
    half-precision arithmetic."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    device_map: str | dict[str, str | int] | None = None
    """Spread the model over several devices through accelerate, instead of `device`: `auto`, `balanced`, `sequential`,
    or a device (a GPU's number, `cpu`, `disk`) for each module's path. Rows come to the first module's device."""
    offload_folder: str | None = None
    """Folder for the weights of modules that `device_map` puts on `disk`."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Quantise the weights while loading, through bitsandbytes, which must be installed. A quantised model is another
    one: its SAEs and dictionaries do not go with the whole one's."""

    def __post_init__(self) -> None:
        if self.device_map is not None and self.device != "auto":
            raise ValueError(
                f"device={self.device} and device_map={self.device_map!r} were given, expected one of them: leave "
                "device=auto beside a device_map"
            )
        on_disk = isinstance(self.device_map, dict) and "disk" in self.device_map.values()
        if on_disk and self.offload_folder is None:
            raise ValueError(
                "device_map puts modules on disk and offload_folder is not given, expected a folder for their weights: "
                "set model.offload_folder"
            )


def pick_device(device: str) -> torch.device:
    """Turns `auto` into a GPU where there is one; ValueError for a device this machine lacks."""
    if device == "auto":
        current()  # several processes take a GPU each
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {device!r} is not usable here ({reason}), expected cpu or an existing GPU: set device=auto"
        ) from error
    return chosen


def embedded_folder() -> Path:
    """Returns the folder of the embedded model; FileNotFoundError where this installation has none."""
    folder = Path(str(importlib.resources.files("activations"))) / "embedded"
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(
            "the embedded model is missing from this installation, expected activations/embedded/model.safetensors: "
            "install the package again, run `glassbox pretrain embedded_lm`, or name another model"
        )
    return folder


def open_model(config: ModelConfig) -> tuple[Any, Any]:
    """Loads model and tokenizer; FileNotFoundError or ValueError says what is wrong with the source."""
    folder = _local_folder(config.name)
    device = pick_device(config.device)
    placed = _placement(config, device)
    with _quiet_library():
        if folder is not None:
            _check_weights(folder)
            source = str(folder)
            extra: dict[str, Any] = {"local_files_only": True}
        else:
            source = config.name
            extra = {"revision": config.revision} if config.revision else {}
        extra["trust_remote_code"] = config.trust_remote_code
        return _load(config.name, source, extra, placed, config.dtype, device)


def _placement(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Returns how transformers is told to spread and quantise the weights; nothing for a whole model in one place."""
    placed: dict[str, Any] = {}
    if config.device_map is not None:
        placed["device_map"] = config.device_map
    if config.offload_folder is not None:
        placed["offload_folder"] = config.offload_folder
    if config.quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError(
                f"model.quantization={config.quantization} needs the package bitsandbytes, which is not installed: "
                "install it (pip install bitsandbytes), or leave model.quantization out"
            )
        from transformers import BitsAndBytesConfig

        is_8bit = config.quantization == "8bit"
        placed["quantization_config"] = BitsAndBytesConfig(load_in_8bit=is_8bit, load_in_4bit=not is_8bit)
        # quantised weights cannot be moved after loading
        placed.setdefault("device_map", {"": str(device)})
    return placed


def _load(
    name: str, source: str, extra: dict[str, Any], placed: dict[str, Any], dtype: str, device: torch.device
) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    try:
        settings = AutoConfig.from_pretrained(source, **extra)
        kind = architectures_of(settings)[0].kind
        model, report = _model_class(settings, kind).from_pretrained(
            source,
            config=settings,
            dtype=_dtype(dtype, settings, device),
            use_safetensors=True,
            output_loading_info=True,
            **placed,
            **extra,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    except SafetensorError as error:
        raise ValueError(
            f"the weights of {name!r} cannot be read ({error}), expected whole safetensors files: copy them again"
        ) from error
    except (OSError, ImportError) as error:
        raise _unopened(name, error) from error
    _check_complete(name, model, report["missing_keys"])
    return (model if placed else model.to(device)).eval(), tokenizer


def _unopened(name: str, error: Exception) -> FileNotFoundError:
    reason = " ".join(str(error).split())[:300]
    return FileNotFoundError(
        f"model {name!r} cannot be opened ({reason}), expected `embedded`, a model folder with safetensors weights "
        "and tokenizer, or a reachable hub name: correct the name or give a local folder"
    )


def _check_complete(name: str, model: Any, missing: Iterable[str]) -> None:
    """Refuses checkpoints that lack weights."""
    if lacking := sorted(missing):
        raise ValueError(
            f"the weights of {name!r} lack {lacking[0]} (and {len(lacking) - 1} others), expected all of "
            f"{type(model).__name__}'s: use a complete checkpoint"
        )


def open_encoder(name: str, device: str = "auto", revision: str | None = None) -> tuple[Any, Any, Path | None]:
    """Loads a model without its head, as embedding models are published; (model, tokenizer, local folder).

    Raises:
        FileNotFoundError, ValueError: as `open_model`.
    """
    from huggingface_hub import snapshot_download
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = _local_folder(name)
    place = pick_device(device)
    with _quiet_library():
        try:
            if folder is None:
                found = snapshot_download(name, revision=revision, allow_patterns=_ENCODER_FILES)
                folder = Path(found)
            _check_weights(folder)
            settings = AutoConfig.from_pretrained(folder, local_files_only=True)
            model, report = AutoModel.from_pretrained(
                folder,
                config=settings,
                dtype=_dtype("auto", settings, place),
                use_safetensors=True,
                output_loading_info=True,
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except SafetensorError as error:
            raise ValueError(
                f"the weights of {name!r} cannot be read ({error}), expected whole safetensors files: copy them again"
            ) from error
        except (OSError, ImportError) as error:
            raise _unopened(name, error) from error
    # what a checkpoint of an encoder lacks is at most a head that embeddings do not pass through
    _check_complete(name, model, [key for key in report["missing_keys"] if "pooler" not in key])
    return model.to(place).eval(), tokenizer, folder


@contextmanager
def weights_of(module: torch.nn.Module) -> Iterator[None]:
    """Lets a module's own parameters be read while the block runs, also where they wait on disk or in host memory."""
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def each_parameter(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a model's parameters under the names that `named_parameters` gives, tied ones once, each as it is."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for prefix, module in model.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        with weights_of(module):
            for name in own:
                path = f"{prefix}.{name}" if prefix else name
                if path not in tied:
                    yield path, getattr(module, name)


def is_spread(model: Any) -> bool:
    """Says whether a model's modules may stand on several devices, or wait elsewhere till they are needed."""
    return len(set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))) > 1


def input_device(model: Any) -> torch.device:
    """Returns the device that a model reads its tokens on."""
    if not is_spread(model):
        return model.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        return model.device
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _model_class(settings: Any, kind: str) -> Any:
    import transformers

    named = (getattr(settings, "architectures", None) or [""])[0]
    if named.endswith(("ForSequenceClassification", "ForTokenClassification")) and hasattr(transformers, named):
        return getattr(transformers, named)
    auto = {
        "decoder": transformers.AutoModelForCausalLM,
        "encoder": transformers.AutoModelForMaskedLM,
        "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    }
    return auto[kind]


def _local_folder(name: str) -> Path | None:
    """Returns the folder that `name` means, or None for a hub name."""
    if name == EMBEDDED:
        return embedded_folder()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"model {name!r} is a file, expected the folder that holds config.json: give the folder")
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name or not name
    if looks_local:
        raise FileNotFoundError(f"no model folder at {name!r}, expected one with config.json: correct the path")
    return None


def _check_weights(folder: Path) -> None:
    """Refuses folders without safetensors, and files that are shorter than their header says."""
    from safetensors import SafetensorError, safe_open

    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder} holds no config.json, expected a transformers model folder: correct the path"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for path in folder.glob("*.bin"))
        found = f"only {others[0]}" if others else "no weights"
        raise FileNotFoundError(
            f"{folder} holds {found}, expected safetensors weights: save the model again with "
            "save_pretrained(…, safe_serialization=True)"
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{file} is truncated or damaged ({error}), expected a whole safetensors file: copy it again"
            ) from error


def _dtype(name: str, settings: Any, device: torch.device) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
    if name != "auto":
        if name.removeprefix("torch.") not in known:
            raise ValueError(f"dtype {name!r} is unknown, expected auto, {', '.join(known)}: choose one of these")
        return known[name.removeprefix("torch.")]
    stored = getattr(settings.get_text_config(), "dtype", None) or getattr(settings, "dtype", None)
    stored = known.get(str(stored).removeprefix("torch."), torch.float32)
    if device.type != "cpu" or stored.itemsize >= 4:
        return stored
    return stored if stored == torch.bfloat16 and has_fast_bfloat16() else torch.float32


def has_fast_bfloat16() -> bool:
    """Tells whether this CPU multiplies bfloat16 in hardware (2.2 times float32's rate on the shape of the embedded
    model); without it, and for float16 on any CPU, the libraries fall back to code that is many times slower."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(value is True for name, value in capabilities.items() if "bf16" in name) or bool(
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    )


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Silences the library's progress bars and notes while a model loads; what matters is checked and raised here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
