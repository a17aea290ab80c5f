"""One of two dictionaries that are compared: its figures by feature, its directions, its events on the shared text."""

from __future__ import annotations

import numpy as np

from features.comparison_records import Side
from features.dictionary import Dictionary
from features.shared_text import SharedEvents


class Compared:
    """One of the two dictionaries, with what the comparison needs of it."""

    def __init__(self, dictionary: Dictionary, side: Side) -> None:
        facts = dictionary.store.query(
            "select density, mean_activation, count, max_activation, decoder_norm from features order by feature"
        )
        density, mean, count, maximum, norm = (column.to_numpy() for column in facts.columns)
        self.dictionary = dictionary
        self.side: Side = side
        self.density, self.maximum = density, maximum
        self.live = count > 0
        weight = mean.astype(np.float64) * count * norm
        self.share = weight / max(weight.sum(), 1e-30)
        self.directions: np.ndarray | None = None
        self.events: SharedEvents | None = None

    @property
    def n(self) -> int:
        return self.live.size

    def cosine(self, feature: int, other: Compared, partner: int) -> float | None:
        """Cosine of two features' directions; None where these cannot be compared."""
        if self.directions is None or other.directions is None:
            return None
        return float(self.directions[feature] @ other.directions[partner])
