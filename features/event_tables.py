"""Everything that is counted over events: from the sorted events of a range of features to rows of tables.

Enters: `features.events` in the order of the features. Leaves: the Parquet files events, features, histograms,
examples, feature_tokens, position_profiles, boundaries and coactivations. Ranges are tabulated side by side in threads
and written in order.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import schema
from features.coactivation import Coactivations
from features.event_loops import statistics, strongest_tokens
from features.events import EventRange, EventSpill
from features.examples import choose_examples
from features.token_places import TokenPlaces

if TYPE_CHECKING:
    from features.index import Corpus, IndexConfig

BINS_PER_OCTAVE = 4
N_BINS = 40 * BINS_PER_OCTAVE  # from 2⁻²⁰ to 2²⁰
_BIN_SHIFT = 21  # of a float32's 23 bits of mantissa, two stay
_FIRST_BIN = (127 - 20) << (23 - _BIN_SHIFT)
EVENT_ROW_GROUP = 65_536
RANGE_EVENTS = 1_500_000
TABLE_THREADS = 2


def write_table(build: Path, name: str, table: pa.Table, row_group: int = 131_072) -> None:
    pq.write_table(table, build / f"{name}.parquet", compression="zstd", row_group_size=row_group)


def write_event_tables(
    build: Path, spill: EventSpill, corpus: Corpus, config: IndexConfig, sae: Any, lm: Any, advance: Any
) -> int:
    """Writes all tables that are counted over events; returns the number of live features."""
    window_key = corpus.documents.astype(np.int64) << 32 | (corpus.positions // config.window_tokens)
    windows = np.concatenate(([0], np.cumsum(window_key[1:] != window_key[:-1])))
    norms = sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
    vocab = max(int(lm.vocab_size), int(corpus.tokens.max()) + 1)
    counted = ("features", "examples", "histograms", "feature_tokens", "position_profiles", "boundaries")
    parts: dict[str, list[pa.Table]] = {name: [] for name in counted}
    places = TokenPlaces(corpus)
    together = Coactivations(corpus.is_indexed, len(norms), spill.n_events, config.coactivation_tokens, config.seed)
    live = 0
    first_event = 0
    event_schema = schema.TABLES["events"].arrow_schema()
    writer = pq.ParquetWriter(
        build / "events.parquet",
        event_schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        column_encoding={
            "feature": "DELTA_BINARY_PACKED",
            "document": "DELTA_BINARY_PACKED",
            "position": "DELTA_BINARY_PACKED",
            "activation": "BYTE_STREAM_SPLIT",
        },
    )

    def tabulate(events: EventRange, first_event: int) -> dict[str, pa.Table]:
        documents = corpus.documents[events.ordinals]
        together.take(events)
        chosen = choose_examples(
            events,
            windows=windows,
            documents=corpus.documents,
            top=config.examples,
            per_document=config.per_document,
            strata=config.strata,
            stratum_examples=config.stratum_examples,
            seed=config.seed,
        )
        return {
            "events": pa.table(
                [events.features, documents, corpus.positions[events.ordinals], events.activations],
                schema=event_schema,
            ),
            "features": _feature_rows(events, documents, corpus.n_indexed, norms, first_event),
            "histograms": _histogram_rows(events, config.histogram_bins),
            "examples": pa.table(
                [
                    chosen.features,
                    chosen.strata,
                    chosen.ranks.astype(np.int32),
                    corpus.documents[chosen.ordinals],
                    corpus.positions[chosen.ordinals],
                    chosen.activations,
                ],
                schema=schema.TABLES["examples"].arrow_schema(),
            ),
            "feature_tokens": _token_rows(events, corpus.tokens, vocab, config.feature_tokens),
            **places.tables(events),
        }

    def keep(made: dict[str, pa.Table]) -> None:
        writer.write_table(made["events"], row_group_size=EVENT_ROW_GROUP)
        for name, pieces in parts.items():
            pieces.append(made[name])
        advance(made["events"].num_rows)

    # loops and sorts let go of the interpreter: ranges are tabulated side by side, written in order
    with writer, ThreadPoolExecutor(TABLE_THREADS) as pool:
        waiting: deque[Future[dict[str, pa.Table]]] = deque()
        for events in spill.ranges(RANGE_EVENTS):
            waiting.append(pool.submit(tabulate, events, first_event))
            first_event += events.features.size
            live += int((events.counts > 0).sum())
            while len(waiting) > TABLE_THREADS:
                keep(waiting.popleft().result())
        while waiting:
            keep(waiting.popleft().result())
    tables = {name: pa.concat_tables(pieces) for name, pieces in parts.items()}
    tables["feature_tokens"] = tables["feature_tokens"].sort_by([("token_id", "ascending"), ("mass", "descending")])
    tables["coactivations"] = together.table(config.coactivations)
    for name, table in tables.items():
        write_table(build, name, table)
    return live


def _feature_rows(
    events: EventRange, documents: np.ndarray, n_indexed: int, norms: np.ndarray, first_event: int
) -> pa.Table:
    n = events.last - events.first
    mean, deviation, largest = (np.empty(n, dtype=np.float32) for _ in range(3))
    document_counts = np.empty(n, dtype=np.int32)
    statistics(events.starts, events.counts, documents, events.activations, mean, deviation, largest, document_counts)
    return pa.table(
        [
            np.arange(events.first, events.last, dtype=np.int32),
            events.counts.astype(np.int64),
            events.counts / n_indexed,
            mean,
            deviation,
            largest,
            document_counts,
            events.counts == 0,
            norms[events.first : events.last].astype(np.float32),
            (events.starts + first_event).astype(np.int64),
        ],
        schema=schema.TABLES["features"].arrow_schema(),
    )


def histogram_bins(activations: np.ndarray) -> np.ndarray:
    """Bin of each activation, four to an octave; what is zero, negative or tiny joins bin 0.

    The bins are the upper bits of the float32 itself (exponent and two bits of mantissa), which rise with the value.
    """
    bits = np.ascontiguousarray(activations, dtype=np.float32).view(np.int32) >> _BIN_SHIFT
    return np.clip(bits - _FIRST_BIN, 0, N_BINS - 1)


def histogram_edge(bins: np.ndarray) -> np.ndarray:
    """Lower edges of bins."""
    return ((np.asarray(bins, dtype=np.int32) + _FIRST_BIN) << _BIN_SHIFT).view(np.float32)


def _histogram_rows(events: EventRange, max_bins: int) -> pa.Table:
    n_bins = N_BINS
    n = events.last - events.first
    local = (events.features - events.first).astype(np.int64)
    bins = histogram_bins(np.abs(events.activations))
    counts = np.bincount(local * n_bins + bins, minlength=n * n_bins).reshape(n, n_bins)
    highest = n_bins - 1 - np.argmax(counts[:, ::-1] > 0, axis=1)
    lowest_kept = np.maximum(highest - max_bins + 1, 0)
    column = np.arange(n_bins)
    below = (counts * (column < lowest_kept[:, None])).sum(axis=1)
    counts = counts * (column >= lowest_kept[:, None])
    counts[np.arange(n), lowest_kept] += below
    feature, bins = np.nonzero(counts)
    return pa.table(
        [
            (feature + events.first).astype(np.int32),
            bins.astype(np.int32),
            histogram_edge(bins),
            histogram_edge(bins + 1),
            counts[feature, bins].astype(np.int64),
        ],
        schema=schema.TABLES["histograms"].arrow_schema(),
    )


def _token_rows(events: EventRange, tokens: np.ndarray, vocab: int, limit: int) -> pa.Table:
    most = int(np.minimum(events.counts, min(limit, vocab)).sum())
    found, times, shares = np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.float32)
    rows = strongest_tokens(
        events.starts, events.counts, events.ordinals, events.activations, tokens, vocab, limit, found, times, shares
    )
    n = int(rows.sum())
    features = np.repeat(np.arange(events.first, events.last, dtype=np.int32), rows)
    return pa.table(
        [found[:n], features, times[:n], shares[:n]],
        schema=schema.TABLES["feature_tokens"].arrow_schema(),
    )
