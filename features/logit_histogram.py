"""What one feature does to all logits at once: a histogram over the vocabulary.

Enters: an opened dictionary and a feature; the model is loaded. Leaves: a `Histogram` of the logit lens on its decoder
direction (`features.logit_effects`), up to the final norm's scale. A feature that speaks of a few tokens has
them far out in a tail; one that shifts everything alike has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from features import wiring
from features.records import Histogram

if TYPE_CHECKING:
    from features.dictionary import Dictionary

BINS = 60


def logit_histogram(dictionary: Dictionary, feature: int) -> Histogram:
    """Counts the vocabulary's tokens by the change of their logit per unit of activation, in `BINS` equal bins.

    Raises:
        ValueError: the SAE does not write into the residual stream, or the model has no linear map from it to logits.
    """
    lm, sae = dictionary.lm, dictionary.sae
    written = wiring.residual_directions(sae)
    if written is None or not lm.has_unembedding or written.shape[1] != lm.d_model:
        raise ValueError(
            f"dictionary {dictionary.name} has features that do not write into the residual stream of a model with an "
            "unembedding, expected such: there are no logit effects to count"
        )
    directions = lm.logit_directions()
    effects = (directions.float() @ written[feature].to(directions.device).float()).detach().cpu().numpy()
    counts, edges = np.histogram(effects, bins=BINS)
    return Histogram(edges.astype(float).tolist(), counts.tolist())
