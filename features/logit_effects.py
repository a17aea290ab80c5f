"""Which tokens a feature makes the model expect, by the direct path from what it writes to the logits.

Enters: what the features write into the residual stream, the language model, and the corpus. Leaves: two tables.

* `logit_ids`: the logit lens on a direction, up to the final norm's scale. It needs no text, and holds what the whole
  text shares: a direction along the stream's mean promotes whatever the model expects anyway.
* `normed_logit_ids`: through the final norm, as the derivative of the logits at the final residual stream, averaged
  over tokens of the text (`LanguageModel.normed_logit_directions`). The norm's scale makes it logits, and the norm
  takes out what the direction adds along the stream itself. The tokens: of evenly spaced rows of the corpus as many as
  hold `NORM_TOKENS` tokens, all indexed ones in them.

Both leave out what later layers make of the feature. Both are empty where the SAE does not write into the residual
stream, or the model has no linear map from it to logits.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from activations.buckets import capture_tokens
from features import geometry, schema, wiring

if TYPE_CHECKING:
    from features.corpus import Corpus

NORM_TOKENS = 8192


class Readout:
    """A model's ways from the residual stream to the logits on a text, the same for all SAEs; computed at first use."""

    def __init__(self, lm: Any, corpus: Corpus, batch_tokens: int) -> None:
        self.lm = lm
        self._corpus, self._batch_tokens = corpus, batch_tokens

    @cached_property
    def raw(self) -> Float[Tensor, "vocab d_model"]:
        """The logits of a direction, up to the final norm's scale."""
        return self.lm.logit_directions()

    @cached_property
    def normed(self) -> Float[Tensor, "vocab d_model"]:
        """Through the final norm, averaged over the text, which the model reads for it."""
        return self.lm.normed_logit_directions(final_rows(self.lm, self._corpus, self._batch_tokens))


def tables(sae: Any, readout: Readout, most: int) -> dict[str, pa.Table]:
    """The rows of `logit_ids` and `normed_logit_ids`, `most` tokens for each side of a feature."""
    written = wiring.residual_directions(sae)
    lm = readout.lm
    if written is None or most < 1 or not lm.has_unembedding or written.shape[1] != lm.d_model:
        names = ("logit_ids", "normed_logit_ids")
        return {name: schema.TABLES[name].arrow_schema().empty_table() for name in names}
    return {
        "logit_ids": geometry.logits(written, readout.raw, most),
        "normed_logit_ids": geometry.logits(written, readout.normed, most),
    }


def final_rows(lm: Any, corpus: Corpus, batch_tokens: int) -> Float[Tensor, "n d_model"]:
    """The residual stream that the final norm reads at indexed tokens of evenly spaced rows, about `NORM_TOKENS`."""
    indexed = np.zeros(corpus.ordinal_of.shape, dtype=bool)
    indexed[corpus.ordinal_of >= 0] = corpus.is_indexed
    rows = np.flatnonzero(indexed.any(1))
    wanted_rows = min(rows.size, max(1, NORM_TOKENS // corpus.ordinal_of.shape[1]))
    rows = rows[np.arange(wanted_rows) * rows.size // wanted_rows]
    at_once = max(1, batch_tokens // corpus.ordinal_of.shape[1])
    tokens = np.asarray(corpus.rows.tokens)
    parts = []
    for first in range(0, rows.size, at_once):
        some = rows[first : first + at_once]
        captured = capture_tokens(lm, tokens[some], corpus.ordinal_of[some] >= 0, indexed[some], [lm.final_site])
        parts.append(captured[lm.final_site].float())
    return torch.cat(parts)
