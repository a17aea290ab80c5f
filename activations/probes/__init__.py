"""Probes: what can be read from a model's activations, whether the model uses it, and how to take it out.

Enters: a `LanguageModel`, texts and labels. Leaves: frozen results with `.rows()` and `.to_json()`, probes that are
saved and loaded, directions and erasers for `lm.intervene`. Names are imported from their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activations.probes.causal import ProbeCheck as ProbeCheck
    from activations.probes.causal import check_probe as check_probe
    from activations.probes.concepts import ConceptTest as ConceptTest
    from activations.probes.concepts import concept_test as concept_test
    from activations.probes.erasure import Eraser as Eraser
    from activations.probes.erasure import erasing as erasing
    from activations.probes.erasure import fit_eraser as fit_eraser
    from activations.probes.fitting import fit_probe as fit_probe
    from activations.probes.fitting import principal_directions as principal_directions
    from activations.probes.rows import text_rows as text_rows
    from activations.probes.saving import TrainedProbe as TrainedProbe
    from activations.probes.saving import load_probe as load_probe
    from activations.probes.splits import Split as Split
    from activations.probes.splits import split_examples as split_examples
    from activations.probes.training import ProbeReport as ProbeReport
    from activations.probes.training import ProbeScore as ProbeScore
    from activations.probes.training import train_probes as train_probes

_HOMES = {
    "ConceptTest": "concepts",
    "Eraser": "erasure",
    "ProbeCheck": "causal",
    "ProbeReport": "training",
    "ProbeScore": "training",
    "Split": "splits",
    "TrainedProbe": "saving",
    "check_probe": "causal",
    "concept_test": "concepts",
    "erasing": "erasure",
    "fit_eraser": "erasure",
    "fit_probe": "fitting",
    "load_probe": "saving",
    "principal_directions": "fitting",
    "split_examples": "splits",
    "text_rows": "rows",
    "train_probes": "training",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'activations.probes' has no attribute {name!r}")
    return getattr(importlib.import_module(f"activations.probes.{_HOMES[name]}"), name)
