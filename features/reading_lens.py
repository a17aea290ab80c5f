"""The logit lens at one token of a reading: a pasted text, or a piece of an indexed document.

Enters: a dictionary, whose model is loaded, a reading of it, and the index of a token. Leaves: `LogitLens` of that one
token, asked about the token that follows in the text. A decoder reads no further than there, and of a piece that is
longer than its context the part that ends there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from activations.analyses import LogitLens
    from features.dictionary import Dictionary
    from features.records import ActiveFeatures


def lens_at(dictionary: Dictionary, reading: ActiveFeatures, token: int, top: int = 3) -> LogitLens:
    """Reads the stream at a token of the reading, layer by layer (`activations.analyses.lens`).

    Raises:
        ValueError: no such token, or a model without a head over tokens.
    """
    import torch

    from activations.analyses import logit_lens

    if not 0 <= token < len(reading.tokens):
        raise ValueError(f"the text has no token {token}, expected 0 to {len(reading.tokens) - 1}: choose one of these")
    lm, part = dictionary.lm, reading.part
    if part is None:
        ids = lm.tokenize(reading.text).tokens[0].tolist()
    else:
        text = dictionary.text
        start = int(text.ordinals(np.array([part.document]), np.array([part.first_position]))[0])
        ids = text.column("token_id", start, start + len(reading.tokens)).tolist()
    first = 0
    if lm.kind == "decoder":  # one token more, which is the one that is asked about
        ids = ids[: token + 2]
        first = max(len(ids) - lm.context_tokens, 0)
    return logit_lens(lm, torch.tensor([ids[first:]]), top=top, positions=[token - first])
