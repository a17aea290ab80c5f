"""Circuits: which components of a model do a task, by which edges, and what a stated hypothesis is worth.

Enters: a `LanguageModel` and pairs of clean and corrupt texts. Leaves: frozen results with `.rows()` and `.to_json()`.
Names are imported from their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activations.circuits.circuit import Circuit as Circuit
    from activations.circuits.circuit import find_circuit as find_circuit
    from activations.circuits.circuit import measure_circuit as measure_circuit
    from activations.circuits.export import dot as dot
    from activations.circuits.export import graphml as graphml
    from activations.circuits.graph import ComponentGraph as ComponentGraph
    from activations.circuits.pairs import Pair as Pair
    from activations.circuits.pairs import PairSet as PairSet
    from activations.circuits.pairs import prepare_pairs as prepare_pairs
    from activations.circuits.pairs import read_pairs as read_pairs
    from activations.circuits.paths import PathPatching as PathPatching
    from activations.circuits.paths import patch_paths as patch_paths
    from activations.circuits.ranking import CriticalComponents as CriticalComponents
    from activations.circuits.ranking import critical_components as critical_components
    from activations.circuits.scrubbing import Claim as Claim
    from activations.circuits.scrubbing import Scrubbing as Scrubbing
    from activations.circuits.scrubbing import scrub as scrub
    from activations.circuits.tasks import builtin_tasks as builtin_tasks
    from activations.circuits.tasks import task_pairs as task_pairs

_HOMES = {
    "Circuit": "circuit",
    "Claim": "scrubbing",
    "ComponentGraph": "graph",
    "CriticalComponents": "ranking",
    "Pair": "pairs",
    "PairSet": "pairs",
    "PathPatching": "paths",
    "Scrubbing": "scrubbing",
    "builtin_tasks": "tasks",
    "critical_components": "ranking",
    "dot": "export",
    "find_circuit": "circuit",
    "graphml": "export",
    "measure_circuit": "circuit",
    "patch_paths": "paths",
    "prepare_pairs": "pairs",
    "read_pairs": "pairs",
    "scrub": "scrubbing",
    "task_pairs": "tasks",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'activations.circuits' has no attribute {name!r}")
    return getattr(importlib.import_module(f"activations.circuits.{_HOMES[name]}"), name)
