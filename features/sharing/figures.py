"""A feature's figures as SAEDashboard counts them, which Neuronpedia shows: bars of activation, intervals, alignment.

Enters: features and an opened dictionary. Leaves: fields of records, under the names that both projects share.

Histograms have `BINS` bars of equal width given by their middles, and an interval's share is that of the activations
inside it, where all events are at hand. Where only those around examples are kept, or a dictionary was imported,
its own histogram stands for them: the bars are given as they are, exact counts of unequal width, and shares are read
off it, spread evenly inside a bar.

Source: jbloomAus/SAEDashboard 0.8, `sae_dashboard/neuronpedia/neuronpedia_dashboard.py`, `neuronpedia_converter.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.dictionary import Dictionary
from features.events import read_events
from features.records import Example, Feature, Histogram
from features.sharing.documents import short

BINS = 50
ALIGNED = 3


@dataclass(frozen=True)
class Sizes:
    """The sizes of a feature's activations: all of them, or their histogram."""

    of: np.ndarray | Histogram
    """float32 [events], or bars."""

    def bars(self) -> tuple[list[float], list[int]]:
        """Middles and heights; none for a dead feature."""
        if isinstance(self.of, Histogram):
            edges = np.array(self.of.edges)
            return [short(x) for x in ((edges[1:] + edges[:-1]) / 2).tolist()], list(self.of.counts)
        if not self.of.size:
            return [], []
        heights, edges = np.histogram(self.of, BINS, (0.0, float(self.of.max())))
        return [short(x) for x in ((edges[1:] + edges[:-1]) / 2).tolist()], heights.astype(int).tolist()

    def share(self, low: float, high: float) -> float:
        """The share of activations from `low` to `high`, both included."""
        if isinstance(self.of, Histogram):
            edges, counts = np.array(self.of.edges), np.array(self.of.counts, dtype=float)
            within = np.clip((np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)) / np.diff(edges), 0, 1)
            return float((within * counts).sum() / max(counts.sum(), 1.0))
        return float(((self.of >= np.float32(low)) & (self.of <= np.float32(high))).mean())


def sizes_of(dictionary: Dictionary, feature: Feature, bounds: np.ndarray) -> Sizes:
    """The sizes of a feature's activations; `bounds` are those of `Store.event_bounds`."""
    if not dictionary.store.keeps_all_events or dictionary.info.get("imported"):
        return Sizes(feature.histogram)
    path, rows = dictionary.store.build / "events.parquet", bounds[feature.id : feature.id + 2]
    return Sizes(np.abs(read_events(path, int(rows[0]), int(rows[1])).activations))


def figures(feature: Feature, sizes: Sizes, aligned: dict[str, list[Any]] | None) -> dict[str, Any]:
    """The fields of a feature that both projects have; what this dictionary does not know is an empty list."""
    middles, heights = sizes.bars()
    return {
        **(aligned or {f"neuron_alignment_{key}": [] for key in ("indices", "values", "l1")}),
        **{f"correlated_{of}_{key}": [] for of in ("neurons", "features") for key in ("indices", "pearson", "l1")},
        "neg_str": [entry.token for entry in feature.bottom_logits],
        "neg_values": [short(entry.logit) for entry in feature.bottom_logits],
        "pos_str": [entry.token for entry in feature.top_logits],
        "pos_values": [short(entry.logit) for entry in feature.top_logits],
        "frac_nonzero": feature.density,
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": middles,
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "decoder_weights_dist": [],
    }


def intervals(examples: Sequence[Example]) -> dict[int, tuple[float, float]]:
    """The smallest and the largest size of each stratum's examples."""
    sizes: dict[int, list[float]] = {}
    for example in examples:
        sizes.setdefault(example.stratum, []).append(abs(example.activation))
    return {stratum: (min(found), max(found)) for stratum, found in sizes.items()}


def interval_of(example: Example, sizes: Sizes, bounds: tuple[float, float]) -> tuple[float, float, float]:
    """Lower end, upper end and share of an example's interval; −1 for both but the upper end of the strongest."""
    low, high = bounds
    if example.stratum == 0:
        return -1, short(high), -1
    return short(low), short(high), round(sizes.share(low, high), 6)


def alignment(dictionary: Dictionary, features: Sequence[int]) -> dict[int, dict[str, list[Any]]]:
    """Coordinates of the decoder row with most of its sum of sizes; none where the dictionary holds no SAE."""
    if not (dictionary.store.build / "sae").is_dir():
        return {}
    rows = dictionary.sae.W_dec.detach().float().cpu().numpy()
    found = {}
    for feature in features:
        row = rows[feature].reshape(-1)
        best = np.argsort(-np.abs(row), kind="stable")[:ALIGNED]
        found[feature] = {
            "neuron_alignment_indices": best.tolist(),
            "neuron_alignment_values": [round(float(row[i]), 5) for i in best],
            "neuron_alignment_l1": [round(float(abs(row[i]) / max(np.abs(row).sum(), 1e-12)), 5) for i in best],
        }
    return found
