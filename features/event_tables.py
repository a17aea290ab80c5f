"""Everything that is counted over events: from the sorted events of a range of features to rows of tables.

Enters: `features.events` in the order of the features. Leaves: the Parquet files events, features, histograms,
examples, feature_tokens, position_profiles, boundaries and coactivations. Ranges are read and tabulated side by side in
threads and written in order. Where only examples are kept, the table events holds what is shown around them and nothing
else; everything is counted over all events still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import schema
from features.coactivation import Coactivations
from features.event_loops import HISTOGRAM_SHIFT, mark_shown, statistics, strongest_tokens
from features.events import EventRange, EventSpill
from features.examples import ExampleRows, choose_examples
from features.store import SHOWN_AFTER, SHOWN_BEFORE
from features.token_facts import pack_facts
from features.token_places import TokenPlaces

if TYPE_CHECKING:
    from features.corpus import Corpus
    from features.index import IndexConfig

BINS_PER_OCTAVE = 4
N_BINS = 40 * BINS_PER_OCTAVE  # from 2⁻²⁰ to 2²⁰
_FIRST_BIN = (127 - 20) << (23 - HISTOGRAM_SHIFT)
EVENT_ROW_GROUP = 32_768
RANGE_EVENTS = 24 * EVENT_ROW_GROUP
"""Events of a range; so many that the facts of a token, once read, serve several of them."""
FEATURE_ROW_GROUP = 8_192
"""Rows read at a time for one feature's page: small, since the page needs a handful."""
PAGE_TOKENS = 20
"""Tokens of each feature in the file page_tokens, which holds the first rows of feature_tokens by feature."""
TABLE_THREADS = 2


class EventFacts(NamedTuple):
    """What was written."""

    live: int
    """Features that are ever active."""
    events: int
    """Non-zero activations in all."""
    kept_events: int
    """Rows of the table events."""


def write_table(build: Path, name: str, table: pa.Table, row_group: int = 131_072) -> None:
    """Writes a table; numbers by their differences or bytes, which costs less time than a dictionary of them."""
    numbers = [
        field for field in table.schema if not pa.types.is_string(field.type) and not pa.types.is_boolean(field.type)
    ]
    pq.write_table(
        table,
        build / f"{name}.parquet",
        compression="zstd",
        row_group_size=row_group,
        use_dictionary=[  # pyright: ignore[reportArgumentType]  (its stub knows the boolean only)
            field.name for field in table.schema if pa.types.is_string(field.type)
        ],
        column_encoding={
            field.name: "BYTE_STREAM_SPLIT" if pa.types.is_floating(field.type) else "DELTA_BINARY_PACKED"
            for field in numbers
        },
    )


def write_event_tables(
    build: Path,
    spill: EventSpill,
    corpus: Corpus,
    config: IndexConfig,
    norms: np.ndarray,
    vocab: int,
    advance: Callable[[int], object],
    *,
    keeps_all: bool = True,
) -> EventFacts:
    """Writes all tables that are counted over events.

    `norms` are the lengths of the rows of W_dec, `vocab` the number of the model's tokens. Unless `keeps_all`, the
    table events holds only what is shown around examples.
    """
    vocab = max(vocab, int(corpus.tokens.max()) + 1)
    counted = ("features", "examples", "histograms", "feature_tokens", "position_profiles", "boundaries")
    parts: dict[str, list[pa.Table]] = {name: [] for name in counted}
    places = TokenPlaces(corpus)
    together = Coactivations(corpus.is_indexed, len(norms), spill.n_events, config.coactivation_tokens, config.seed)
    windows, n_documents = _windows(corpus, config), int(corpus.documents.max()) + 1
    facts = pack_facts(windows, corpus.tokens, places.codes, together.is_sampled)
    window_documents = corpus.documents[np.flatnonzero(np.diff(windows, prepend=-1))]
    kept_counts: list[np.ndarray] = []
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

    def tabulate(read: Callable[[], EventRange]) -> tuple[dict[str, pa.Table], np.ndarray]:
        events = read()
        together.take(events)
        features, histograms = _feature_rows(events, window_documents, corpus.n_indexed, norms, config.histogram_bins)
        chosen = choose_examples(
            events,
            corpus.documents,
            n_documents=n_documents,
            top=config.examples,
            per_document=config.per_document,
            strata=config.strata,
            stratum_examples=config.stratum_examples,
            seed=config.seed,
        )
        numbers = np.arange(events.first, events.last, dtype=np.int32)
        ordinals, activations, kept = events.ordinals, events.activations.copy(), events.counts
        if not keeps_all:
            shown = _shown(events, chosen, corpus)
            kept = np.diff(np.searchsorted(shown, np.append(events.starts, ordinals.size)))
            ordinals, activations = ordinals[shown], activations[shown]
        columns = [np.repeat(numbers, kept), corpus.documents[ordinals], corpus.positions[ordinals], activations]
        at = events.ordinals[chosen.events]
        tables = {
            "events": pa.table(columns, schema=event_schema),
            "features": features,
            "histograms": histograms,
            "examples": pa.table(
                [
                    np.repeat(numbers, chosen.counts),
                    chosen.strata,
                    chosen.ranks,
                    corpus.documents[at],
                    corpus.positions[at],
                    events.activations[chosen.events],
                ],
                schema=schema.TABLES["examples"].arrow_schema(),
            ),
            "feature_tokens": _token_rows(events, vocab, config.feature_tokens),
            **places.tables(events),
        }
        return tables, kept

    def keep(made: dict[str, pa.Table], kept: np.ndarray) -> None:
        writer.write_table(made["events"], row_group_size=EVENT_ROW_GROUP)
        kept_counts.append(kept)
        for name, pieces in parts.items():
            pieces.append(made[name])
        advance(int(made["features"]["count"].to_numpy().sum()))

    # loops and sorts let go of the interpreter: ranges are tabulated side by side, written in order
    with writer, ThreadPoolExecutor(TABLE_THREADS) as pool:
        waiting: deque[Future[tuple[dict[str, pa.Table], np.ndarray]]] = deque()
        for read in spill.ranges(facts, RANGE_EVENTS):
            waiting.append(pool.submit(tabulate, read))
            while len(waiting) > TABLE_THREADS:
                keep(*waiting.popleft().result())
        while waiting:
            keep(*waiting.popleft().result())
    tables = {name: pa.concat_tables(pieces) for name, pieces in parts.items()}
    kept = np.concatenate(kept_counts)
    first_event = pa.array(np.cumsum(kept) - kept, pa.int64())
    features = tables["features"]
    tables["features"] = features.set_column(features.schema.get_field_index("first_event"), "first_event", first_event)
    by_feature = tables.pop("feature_tokens")
    tables["page_tokens"] = first_of_each(by_feature, PAGE_TOKENS)
    with ThreadPoolExecutor(TABLE_THREADS) as pool:
        # the longest first, and the many small parts of the last fill what is left of either thread's time
        written = [pool.submit(lambda: write_table(build, "feature_tokens", by_token(by_feature)))]
        write = partial(write_table, build, row_group=FEATURE_ROW_GROUP)
        written += [pool.submit(write, name, table) for name, table in tables.items()]
        write("coactivations", together.table(config.coactivations, pool))
        for each in written:
            each.result()
    counts = features["count"].to_numpy()
    return EventFacts(int((counts > 0).sum()), int(counts.sum()), int(kept.sum()))


def _shown(events: EventRange, chosen: ExampleRows, corpus: Corpus) -> np.ndarray:
    """int64 [n]: numbers of the events that are shown around the examples."""
    mark = np.zeros(events.ordinals.size, dtype=np.bool_)
    mark_shown(
        events.starts,
        events.counts,
        events.ordinals,
        corpus.documents,
        corpus.positions,
        chosen.counts,
        chosen.events,
        SHOWN_BEFORE,
        SHOWN_AFTER,
        mark,
    )
    return np.flatnonzero(mark)


def _windows(corpus: Corpus, config: IndexConfig) -> np.ndarray:
    """int32 [n]: the number of each token's window."""
    key = corpus.documents.astype(np.int64) << 32 | (corpus.positions // config.window_tokens)
    return np.concatenate(([0], np.cumsum(key[1:] != key[:-1]))).astype(np.int32)


def first_of_each(table: pa.Table, most: int) -> pa.Table:
    """The first rows of every feature in a table that is ordered by feature."""
    features = table["feature"].to_numpy()
    starts = np.searchsorted(features, np.arange(features.max(initial=-1) + 1))
    rank = np.arange(features.size) - starts[features]
    return table.filter(pa.array(rank < most))


def by_token(table: pa.Table) -> pa.Table:
    """Rows of feature_tokens ordered by token, then from the largest share, then by feature."""
    token, mass = table["token_id"].to_numpy(), table["mass"].to_numpy()
    # shares are positive: the bits of a float32 rise with it
    falling = np.int32(0x7FFFFFFF) - mass.view(np.int32)
    order = np.arange(token.size)
    # digits of two bytes, the last ones first: NumPy sorts these without comparing
    for key in (falling, token):
        for digit in (key.astype(np.uint16), (key >> 16).astype(np.uint16)):
            if digit.any():
                order = order[np.argsort(digit[order], kind="stable")]
    return table.take(order)


def _feature_rows(
    events: EventRange,
    window_documents: np.ndarray,
    n_indexed: int,
    norms: np.ndarray,
    max_bins: int,
) -> tuple[pa.Table, pa.Table]:
    """Rows of features and histograms."""
    n = events.last - events.first
    mean, deviation, largest = (np.empty(n, dtype=np.float32) for _ in range(3))
    document_counts, histogram = np.empty(n, dtype=np.int32), np.zeros((n, N_BINS), dtype=np.int64)
    statistics(
        events.starts,
        events.counts,
        events.activations,
        events.activations.view(np.int32),
        events.facts,
        _FIRST_BIN,
        window_documents,
        mean,
        deviation,
        largest.view(np.int32),
        document_counts,
        histogram,
    )
    features = pa.table(
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
            np.zeros(n, dtype=np.int64),
        ],
        schema=schema.TABLES["features"].arrow_schema(),
    )
    return features, histogram_rows(histogram, events.first, max_bins)


def histogram_bins(activations: np.ndarray) -> np.ndarray:
    """Bin of each activation, four to an octave; what is zero, negative or tiny joins bin 0.

    The bins are the upper bits of the float32 itself (exponent and two bits of mantissa), which rise with the value.
    """
    bits = np.ascontiguousarray(activations, dtype=np.float32).view(np.int32) >> HISTOGRAM_SHIFT
    return np.clip(bits - _FIRST_BIN, 0, N_BINS - 1)


def histogram_edge(bins: np.ndarray) -> np.ndarray:
    """Lower edges of bins."""
    return ((np.asarray(bins, dtype=np.int32) + _FIRST_BIN) << HISTOGRAM_SHIFT).view(np.float32)


def histogram_rows(counts: np.ndarray, first: int, max_bins: int) -> pa.Table:
    """The highest `max_bins` bins of each feature of `counts` [features, bins]; what lies below joins the lowest."""
    n, n_bins = counts.shape
    highest = n_bins - 1 - np.argmax(counts[:, ::-1] > 0, axis=1)
    lowest_kept = np.maximum(highest - max_bins + 1, 0)
    column = np.arange(n_bins)
    below = (counts * (column < lowest_kept[:, None])).sum(axis=1)
    counts = counts * (column >= lowest_kept[:, None])
    counts[np.arange(n), lowest_kept] += below
    feature, bins = np.nonzero(counts)
    return pa.table(
        [
            (feature + first).astype(np.int32),
            bins.astype(np.int32),
            histogram_edge(bins),
            histogram_edge(bins + 1),
            counts[feature, bins].astype(np.int64),
        ],
        schema=schema.TABLES["histograms"].arrow_schema(),
    )


def _token_rows(events: EventRange, vocab: int, limit: int) -> pa.Table:
    most = int(np.minimum(events.counts, min(limit, vocab)).sum())
    found, times, shares = np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.float32)
    rows = strongest_tokens(
        events.starts, events.counts, events.activations, events.facts, vocab, limit, found, times, shares
    )
    n = int(rows.sum())
    features = np.repeat(np.arange(events.first, events.last, dtype=np.int32), rows)
    return pa.table(
        [found[:n], features, times[:n], shares[:n]],
        schema=schema.TABLES["feature_tokens"].arrow_schema(),
    )
