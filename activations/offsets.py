"""Tokens of texts with the characters that they stand for.

Enters: a language model and texts. Leaves: for each text its tokens' ids, and where each begins and ends in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class PlacedTokens(NamedTuple):
    """One text's tokens."""

    ids: list[int]
    starts: np.ndarray
    """int64 [tokens]: first character of each token."""
    ends: np.ndarray
    """int64 [tokens]: character behind its last; a special token has none and ends where it starts."""


def encode_with_places(lm: Any, texts: Sequence[str]) -> list[PlacedTokens]:
    """Tokenises as `LanguageModel.encode` does and tells the characters of each token.

    Raises:
        ValueError: a tokenizer that does not know them.
    """
    if not lm.tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer of {lm.name} does not tell which characters a token stands for, expected a fast one: use a "
            "model with a tokenizer.json"
        )
    encoded = lm.tokenizer(
        list(texts),
        add_special_tokens=True,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
        truncation=False,
    )
    found = []
    for ids, places in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        columns = np.array(places, dtype=np.int64).reshape(-1, 2)
        found.append(PlacedTokens(list(ids), columns[:, 0], columns[:, 1]))
    return found
