"""Where in the model's context, and at which ends of the text, features are active.

Enters: a corpus, and events in ranges of features. Leaves: the tables `position_profiles` and `boundaries`.

* Profile: positions in the context fall into bins of powers of two (0, 1, 2–3, 4–7, …). Of each bin the events and
  their summed size, divided by all indexed tokens that stand there: rows of the text are seldom all of one length, and
  short bins hold few tokens.
* Boundaries: events at the first and the last indexed token of a document, and of a row that the model reads. Tokens
  that are not indexed (such as a BOS) have no events and are passed over. The share of all indexed tokens that stand
  there tells what a feature without a preference would have.

Both are read off one number per token, in one pass over the events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from features import schema
from features.event_loops import count_places
from features.events import EventRange

if TYPE_CHECKING:
    from features.corpus import Corpus

BOUNDARIES = ("document_first", "document_last", "context_first", "context_last")
_BIN_BITS = 5


class TokenPlaces:
    """The bin and the boundaries of each token, and how many indexed tokens have them."""

    def __init__(self, corpus: Corpus) -> None:
        indexed = corpus.is_indexed
        bins = position_bins(corpus.context_positions)
        # the tokens of a row stand one behind the other in the model's context
        columns = corpus.context_positions.astype(np.int64)
        rows = np.concatenate(([0], np.cumsum(columns[1:] != columns[:-1] + 1)))
        self.codes = bins.astype(np.uint16)
        """uint16 [n]: the bin, and above it a bit for each of `BOUNDARIES`; the place in `features.token_facts`."""
        for place, (first, last) in enumerate((_ends(corpus.documents[indexed]), _ends(rows[indexed]))):
            flags = first.astype(np.uint16) << (_BIN_BITS + 2 * place)
            flags |= last.astype(np.uint16) << (_BIN_BITS + 2 * place + 1)
            self.codes[indexed] |= flags
        self.bin_tokens = np.bincount(bins[indexed])
        """int64 [bins]: indexed tokens in each bin."""
        flags = self.codes[indexed] >> _BIN_BITS
        self.boundary_tokens = np.array([int((flags >> bit & 1).sum()) for bit in range(len(BOUNDARIES))])
        """int64 [4]: indexed tokens at each of `BOUNDARIES`."""
        self.n_indexed = corpus.n_indexed

    def tables(self, events: EventRange) -> dict[str, pa.Table]:
        """The rows of both tables for a range of features; dead ones have none."""
        n, n_bins = events.counts.size, self.bin_tokens.size
        counts = np.zeros((n, n_bins), dtype=np.int64)
        mass = np.zeros((n, n_bins))
        at_ends = np.zeros((n, len(BOUNDARIES)), dtype=np.int64)
        count_places(
            events.starts,
            events.counts,
            events.activations,
            events.facts,
            _BIN_BITS,
            counts,
            mass,
            at_ends,
        )
        live = np.flatnonzero(events.counts)
        used = np.flatnonzero(self.bin_tokens)
        tokens = np.tile(self.bin_tokens[used], live.size)
        found = counts[live][:, used].reshape(-1)
        profile = pa.table(
            [
                np.repeat(live + events.first, used.size).astype(np.int32),
                np.tile(used, live.size).astype(np.int32),
                np.tile((1 << used) >> 1, live.size).astype(np.int32),
                np.tile(1 << used, live.size).astype(np.int32),
                tokens,
                found,
                found / tokens,
                (mass[live][:, used].reshape(-1) / tokens).astype(np.float32),
            ],
            schema=schema.TABLES["position_profiles"].arrow_schema(),
        )
        at_ends = at_ends[live]
        boundaries = pa.table(
            [
                np.repeat(live + events.first, len(BOUNDARIES)).astype(np.int32),
                pa.array(BOUNDARIES).take(np.tile(np.arange(len(BOUNDARIES)), live.size)),
                at_ends.reshape(-1),
                (at_ends / events.counts[live, None]).reshape(-1),
                np.tile(self.boundary_tokens / self.n_indexed, live.size),
            ],
            schema=schema.TABLES["boundaries"].arrow_schema(),
        )
        return {"position_profiles": profile, "boundaries": boundaries}


def position_bins(positions: np.ndarray) -> np.ndarray:
    """Bin of each position: 0 for the first, else the number of its binary digits."""
    return np.frexp(positions.astype(np.float64))[1].astype(np.int64)


def _ends(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For groups that stand together: whether each entry is the first, and whether it is the last of its group."""
    changes = groups[1:] != groups[:-1]
    return np.concatenate(([True], changes)), np.concatenate((changes, [True]))
