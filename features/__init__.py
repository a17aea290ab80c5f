"""The feature dictionary: index, store, search, explanations, steering.

from features import Dictionary, Steering
"""

import pathlib
import runpy

runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "import_guard.py"))

from features.dictionary import Dictionary  # noqa: E402
from features.index import IndexConfig, build_index, build_indexes  # noqa: E402
from features.records import Example, Feature  # noqa: E402
from features.steering import Steering, SteeringComparison  # noqa: E402
from features.steering_spec import SteeringSpec  # noqa: E402

__all__ = [
    "Dictionary",
    "Example",
    "Feature",
    "IndexConfig",
    "Steering",
    "SteeringComparison",
    "SteeringSpec",
    "build_index",
    "build_indexes",
]
