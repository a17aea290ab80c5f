"""What the index looks up of the token of every event, in one number.

Enters: what is known of each token of the text. Leaves: uint64 [text], from the highest bits to the lowest:

    31  the token's window (`features.examples`), which tells its document
    23  its id in the vocabulary
     9  its place: the bin of its position, and the boundaries it stands at (`features.token_places`)
     1  whether pairs of features are counted on it (`features.coactivation`)

A feature's events are spread over the text, so that nearly each look into a table of tokens misses the caches: with
one number there is one such look, at a moment when the tokens in question lie close together
(`features.event_loops.merge_chunk`).
"""

from __future__ import annotations

import numpy as np

from features.event_loops import PLACE_SHIFT, TOKEN_SHIFT, WINDOW_SHIFT

MOST_IDS = 1 << (WINDOW_SHIFT - TOKEN_SHIFT)


def pack_facts(windows: np.ndarray, tokens: np.ndarray, places: np.ndarray, is_sampled: np.ndarray) -> np.ndarray:
    """Packs window, id, place and membership in the sample of each token of the text.

    Raises:
        ValueError: an id that the number has no room for.
    """
    largest = int(tokens.max(initial=0))
    if largest >= MOST_IDS:
        raise ValueError(
            f"the text holds token id {largest:,}, expected ids below {MOST_IDS:,}: index with another tokenizer"
        )
    facts = windows.astype(np.uint64) << np.uint64(WINDOW_SHIFT)
    facts |= tokens.astype(np.uint64) << np.uint64(TOKEN_SHIFT)
    facts |= places.astype(np.uint64) << np.uint64(PLACE_SHIFT)
    return facts | is_sampled.astype(np.uint64)
