"""What a demo run reports: figures beside their targets, times, and features to read.

Enters: the results of a run's stages. Leaves: records and JSON; `ui.render` draws them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from features.explain import ExplainReport
from features.records import Feature
from sae import Metrics

TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "explained_variance": ("≥ 0.94", lambda value: value >= 0.94),
    "ce_recovered": ("≥ 0.985", lambda value: value >= 0.985),
    "l0": ("≤ 32", lambda value: value <= 32),
    "dead_frac": ("< 2 %", lambda value: value < 0.02),
}


@dataclass(frozen=True)
class DemoReport:
    """What a demo run reached, how long it took, and features to read."""

    out: str
    dictionary: str
    """Folder of the dictionary."""
    metrics: Metrics
    """On held-out documents."""
    timings: dict[str, float]
    """Seconds of each stage; a stage that was finished before counts what it took then."""
    features: list[Feature]
    """Live features drawn by seed, in the order drawn."""
    explained: ExplainReport | None
    info: dict[str, Any]
    """Facts of the dictionary (its dictionary.json)."""
    recipe: str
    """How it was made, in a sentence."""

    def metrics_rows(self) -> list[dict[str, Any]]:
        """One record a figure: metric, value, and where it has one its target and whether it is met."""
        records = self.metrics.rows()
        for record in records:
            if record["metric"] in TARGETS:
                target, is_met = TARGETS[record["metric"]]
                record |= {"target": target, "met": is_met(record["value"])}
        return records

    def headline(self) -> dict[str, Any]:
        """The facts to show first."""
        return {
            "features": f"{self.info['n_features']:,}",
            "live": f"{self.info['n_live']:,}",
            "tokens indexed": f"{self.info['n_indexed_tokens']:,}",
            "documents": f"{self.info['n_documents']:,}",
            "explained variance": f"{self.metrics.explained_variance:.3f}",
            "minutes": f"{sum(self.timings.values()) / 60:.1f}",
        }

    def rows(self) -> list[dict[str, Any]]:
        """The drawn features: id, density, explanation and its score."""
        return [
            {
                "feature": feature.id,
                "density": feature.density,
                "explanation": feature.explanation,
                "score": feature.explanations[0].score if feature.explanations else None,
            }
            for feature in self.features
        ]

    def to_json(self) -> str:
        content = {
            "out": self.out,
            "dictionary": self.dictionary,
            "metrics": self.metrics_rows(),
            "timings": self.timings,
            "explained": asdict(self.explained) if self.explained else None,
            "recipe": self.recipe,
            "features": [json.loads(feature.to_json()) for feature in self.features],
        }
        return json.dumps(content, ensure_ascii=False, indent=2)
