"""Where an SAE comes from: the model and the text that it records, or those given in their place.

Enters: an SAE and its folder. Leaves: its language model (the same weights, checked by hash), and how its text is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from activations import DataConfig
from sae import SAE

if TYPE_CHECKING:
    from activations import LanguageModel


def model_of(sae: SAE, folder: Path, model: str | None) -> LanguageModel:
    """The model an SAE was trained on, or the one given instead."""
    from activations import LanguageModel

    name = model or sae.metadata.get("model_name")
    if not name:
        raise ValueError(f"the SAE at {folder} names no model, expected its language model: give --model")
    lm = LanguageModel.load(str(name), revision=None if model else sae.metadata.get("model_revision"))
    recorded = sae.metadata.get("model_weight_hash")
    if recorded and lm.weight_hash() != recorded:
        raise ValueError(
            f"model {name} has weight hash {lm.weight_hash()[:12]}, the SAE at {folder} was trained on "
            f"{recorded[:12]}: give the same model with --model"
        )
    return lm


def data_of(sae: SAE, folder: Path, data: str | None) -> DataConfig:
    """The text an SAE was trained on, or another source read in the same way."""
    recorded = sae.metadata.get("data") or {}
    known: dict[str, Any] = {name: recorded[name] for name in DataConfig.__dataclass_fields__ if name in recorded}
    if data is None and not known.get("source"):
        raise ValueError(f"the SAE at {folder} names no text, expected its data: give --data")
    if data is not None:
        known["source"] = data
    return DataConfig(**known)


def check_site(sae: SAE, lm: LanguageModel, folder: Path) -> None:
    if not lm.has_site(sae.site):
        raise ValueError(f"the SAE at {folder} reads {sae.site}, which {lm.name} does not have: give its own model")
    width = lm.site_width(sae.site)
    if width != sae.config.d_in:
        raise ValueError(
            f"the SAE at {folder} has d_in={sae.config.d_in}, {lm.name} has width {width} at {sae.site}: "
            "give the model it was trained on"
        )
