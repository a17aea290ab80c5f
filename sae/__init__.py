"""Sparse autoencoders: architectures, training, evaluation, checkpoints.

from sae import SAE, SAEConfig, TrainConfig, train, evaluate
"""

import pathlib
import runpy

runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "import_guard.py"))

from sae.codes import Codes  # noqa: E402
from sae.config import SAEConfig, TrainConfig, TrainSection, TrainSettings  # noqa: E402
from sae.evaluation import Metrics, evaluate  # noqa: E402
from sae.learner import TrainMetrics  # noqa: E402
from sae.model import SAE  # noqa: E402
from sae.trainer import Training, TrainResult, train, train_together  # noqa: E402

__all__ = [
    "SAE",
    "Codes",
    "Metrics",
    "SAEConfig",
    "TrainConfig",
    "TrainMetrics",
    "TrainResult",
    "TrainSection",
    "TrainSettings",
    "Training",
    "evaluate",
    "train",
    "train_together",
]
