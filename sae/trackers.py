"""Metrics to experiment trackers, through accelerate: TensorBoard, Weights & Biases, Trackio.

Only what `TrainSettings.trackers` names is imported; nothing is sent anywhere by default.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from sae.config import TrainConfig
from sae.learner import TrainMetrics


class Trackers:
    """The trackers of one run, open for the length of a `with`.

    Raises:
        ImportError: a tracker's package is not installed.
        ValueError: accelerate knows no tracker of that name.
    """

    def __init__(self, config: TrainConfig, out: Path, name: str) -> None:
        self._trackers: list[Any] = []
        if not config.trackers:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS
        from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available

        is_installed = {
            "tensorboard": is_tensorboard_available,
            "wandb": is_wandb_available,
            "trackio": is_trackio_available,
        }
        for wanted in config.trackers:
            if wanted not in is_installed:
                raise ValueError(
                    f"tracker `{wanted}` is unknown, expected one of {', '.join(is_installed)}: correct trackers"
                )
            if not is_installed[wanted]():
                raise ImportError(f"tracker `{wanted}` is not installed, expected its package: pip install {wanted}")
            tracker_class = LOGGER_TYPE_TO_CLASS[wanted]
            where = {"logging_dir": out} if tracker_class.requires_logging_directory else {}
            tracker = tracker_class(run_name=name, **where)
            tracker.start()
            tracker.store_init_configuration(_plain(asdict(config)))
            self._trackers.append(tracker)

    def log(self, metrics: TrainMetrics) -> None:
        """Hands one line of metrics on."""
        values = asdict(metrics)
        for tracker in self._trackers:
            tracker.log({key: value for key, value in values.items() if key != "step"}, step=metrics.step)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tracker in self._trackers:
            tracker.finish()


def _plain(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns settings as flat names and plain values, which every tracker accepts."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _plain(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
