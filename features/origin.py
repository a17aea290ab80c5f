"""Where an SAE comes from: the model and the text that it records, or those given in their place.

Enters: an SAE and its folder. Leaves: its language model (the same weights, checked by hash), and how its text is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activations import DataConfig
from sae import SAE

if TYPE_CHECKING:
    from activations import LanguageModel


def model_of(sae: SAE, folder: Path, model: str | None, other_model: bool = False) -> LanguageModel:
    """The model an SAE was trained on, or the one given instead; with the second one where the SAE compares two.

    `other_model` admits another model than that of training.
    """
    from activations import LanguageModel

    name = model or sae.metadata.get("model_name")
    if not name:
        raise ValueError(f"the SAE at {folder} names no model, expected its language model: give --model")
    lm = LanguageModel.load(str(name), revision=None if model else sae.metadata.get("model_revision"))
    recorded = sae.metadata.get("model_weight_hash")
    if recorded and lm.weight_hash() != recorded and not other_model:
        raise ValueError(
            f"model {name} has weight hash {lm.weight_hash()[:12]}, the SAE at {folder} was trained on "
            f"{recorded[:12]}: give the same model with --model"
        )
    return with_second_model(sae, folder, lm)


def with_second_model(sae: SAE, folder: Path, lm: LanguageModel) -> LanguageModel:
    """The model that also answers for the SAE's `compare:` sites, where it has any."""
    from activations import LanguageModel, ModelPair

    if isinstance(lm, ModelPair) or not any(site.startswith("compare:") for site in (*sae.sites, *sae.target_sites)):
        return lm
    name = sae.metadata.get("compare_model_name")
    if not name:
        raise ValueError(f"the SAE at {folder} compares two models and names one, expected compare_model_name: add it")
    second = LanguageModel.load(str(name), revision=sae.metadata.get("compare_model_revision"))
    recorded = sae.metadata.get("compare_model_weight_hash")
    if recorded and second.weight_hash() != recorded:
        raise ValueError(
            f"model {name} has weight hash {second.weight_hash()[:12]}, the SAE at {folder} was trained on "
            f"{recorded[:12]}: restore the compared model"
        )
    return ModelPair(lm, second)


def data_of(sae: SAE, folder: Path, data: str | None) -> DataConfig:
    """The text an SAE was trained on, or another source read in the same way."""
    recorded = sae.metadata.get("data") or {}
    known: dict[str, Any] = {name: recorded[name] for name in DataConfig.__dataclass_fields__ if name in recorded}
    if data is None and not known.get("source"):
        raise ValueError(f"the SAE at {folder} names no text, expected its data: give --data")
    if data is not None:
        known["source"] = data
    return DataConfig(**known)


def settled(sae: SAE, lm: LanguageModel) -> SAE:
    """The SAE at sites of the model: one that reads the MLP's norm before its gain is moved behind it, exactly."""
    from sae.formats import fold_input_gain

    found = re.fullmatch(r"blocks\.(\d+)\.ln2\.hook_normalized", sae.metadata.get("site") or "")
    if found is None:
        return sae
    return fold_input_gain(sae, lm.mlp_norm_gain(int(found[1])).cpu(), f"mlp_in.{found[1]}")


def check_site(sae: SAE, lm: LanguageModel, folder: Path) -> None:
    """ValueError if the model lacks a site that the SAE reads or writes, or has another width there."""
    if not sae.metadata.get("target_sites") and sae.config.predicts_target:
        raise ValueError(
            f"the SAE at {folder} does not name what it writes, expected target_sites in its metadata: add it"
        )
    reads = [(site, "d_in", sae.config.d_in, "reads") for site in sae.sites]
    writes = [(site, "d_out", sae.config.output_width, "writes") for site in sae.target_sites]
    for site, key, expected, verb in (*reads, *writes):
        if not lm.has_site(site):
            raise ValueError(f"the SAE at {folder} {verb} {site}, which {lm.name} does not have: give its own model")
        width = lm.site_width(site)
        if width != expected:
            raise ValueError(
                f"the SAE at {folder} has {key}={expected}, {lm.name} has width {width} at {site}: "
                "give the model it was trained on"
            )
