"""Other projects' SAEs, written file by file as their own code lays them out, each with the reconstruction that code
computes from those files: the formulas here are written out in plain torch and share nothing with `sae`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foreign import circuit_tracer, crosscoders, dictionary_learning, gemma_scope, others, saelens, sparsify
from foreign.making import Foreign

CASES: dict[str, Callable[[Path], Foreign]] = {
    made.__name__: made
    for project in (saelens, dictionary_learning, sparsify, gemma_scope, others, circuit_tracer, crosscoders)
    for made in project.CASES
}
