"""Dictionaries of one SAE that keep examples only, as one that keeps examples only.

Enters: dictionaries whose documents do not overlap, at least one without all of its events. Leaves: the tables that are
counted over events.

Exact, from the parts' own counts over all their events: statistics, histograms, position profiles, boundaries, and the
strongest examples (a strongest window of all texts is among the strongest of its own). Approximate:

* Tokens: a part lists the tokens with most of a feature's activation; what it left out adds nothing here.
* Samples of weaker examples: the parts' samples are drawn from again. Each stands for as many events as its part has
  for each of its samples; all are cut into strata of equal weight, and drawn from by weight (Efraimidis and Spirakis
  2006).

Left out are co-activations: which features meet on a token is not known where events are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features import schema
from features.corpus import Corpus
from features.dictionary import Dictionary
from features.event_tables import (
    EVENT_ROW_GROUP,
    FEATURE_ROW_GROUP,
    N_BINS,
    PAGE_TOKENS,
    EventFacts,
    by_token,
    first_of_each,
    histogram_rows,
    write_table,
)
from features.events import read_events, split_features
from features.examples import uniform
from features.index import IndexConfig
from features.store import SHOWN_AFTER, SHOWN_BEFORE
from features.token_places import BOUNDARIES, TokenPlaces

SAMPLING = ("examples", "per_document", "window_tokens", "strata", "stratum_examples")
FEATURES_AT_ONCE = 4096
EVENTS_AT_ONCE = 2_000_000
Columns = dict[str, np.ndarray]


def check_sampling(parts: Sequence[Dictionary]) -> None:
    """ValueError where the parts chose their examples by other settings: their lists could not be put together."""
    first = parts[0].info["index"]
    for part in parts[1:]:
        for key in SAMPLING:
            if part.info["index"][key] != first[key]:
                raise ValueError(
                    f"{part.path} was indexed with index.{key}={part.info['index'][key]} and {parts[0].path} with "
                    f"{first[key]}, expected one setting where a dictionary keeps examples only: index one again"
                )


def write_kept_tables(
    build: Path,
    parts: Sequence[Dictionary],
    behind: Sequence[int],
    corpus: Corpus,
    config: IndexConfig,
    advance: Callable[[int], object],
) -> EventFacts:
    """Writes the tables that are counted over events; `behind` is added to the numbers of each part's documents."""
    n = parts[0].n_features
    facts = [_columns(part, "select * from features order by feature") for part in parts]
    counts = np.stack([found["count"] for found in facts])
    masses = np.stack([found["count"] * found["mean_activation"].astype(np.float64) for found in facts])
    features = _features(facts, counts, masses, corpus)
    examples = _examples(parts, behind, counts, config)
    events = _events(parts, behind, examples, n, advance)
    kept = np.bincount(events["feature"], minlength=n)
    features["first_event"] = np.cumsum(kept) - kept
    live = np.flatnonzero(features["count"])
    by_feature = _tokens(parts, masses, config.feature_tokens)
    tables = {
        "features": _table("features", features),
        "histograms": _histograms(parts, n, config.histogram_bins),
        "examples": _table("examples", examples),
        "page_tokens": first_of_each(by_feature, PAGE_TOKENS),
        **_places(parts, corpus, live, features["count"]),
    }
    for name, table in tables.items():
        write_table(build, name, table, FEATURE_ROW_GROUP)
    write_table(build, "feature_tokens", by_token(by_feature))
    write_table(build, "events", _table("events", events), EVENT_ROW_GROUP)
    return EventFacts(int(live.size), int(features["count"].sum()), int(events["feature"].size))


def _features(facts: list[Columns], counts: np.ndarray, masses: np.ndarray, corpus: Corpus) -> Columns:
    total = counts.sum(0)
    mean = masses.sum(0) / np.maximum(total, 1)
    squares = np.stack(
        [
            found["count"]
            * (found["std_activation"].astype(np.float64) ** 2 + found["mean_activation"].astype(np.float64) ** 2)
            for found in facts
        ]
    ).sum(0) / np.maximum(total, 1)
    return {
        "feature": facts[0]["feature"],
        "count": total,
        "density": total / corpus.n_indexed,
        "mean_activation": mean.astype(np.float32),
        "std_activation": np.sqrt(np.maximum(squares - mean**2, 0)).astype(np.float32),
        "max_activation": np.stack([found["max_activation"] for found in facts]).max(0),
        "documents": np.stack([found["documents"] for found in facts]).sum(0).astype(np.int32),
        "is_dead": total == 0,
        "decoder_norm": facts[0]["decoder_norm"],
    }


def _histograms(parts: Sequence[Dictionary], n: int, max_bins: int) -> pa.Table:
    found = [_columns(part, "select feature, bin, count from histograms order by feature") for part in parts]
    tables = []
    for low in range(0, n, FEATURES_AT_ONCE):
        high = min(low + FEATURES_AT_ONCE, n)
        counts = np.zeros((high - low, N_BINS), dtype=np.int64)
        for rows in found:
            some = slice(*np.searchsorted(rows["feature"], [low, high]))
            np.add.at(counts, (rows["feature"][some] - low, rows["bin"][some]), rows["count"][some])
        tables.append(histogram_rows(counts, low, max_bins))
    return pa.concat_tables(tables)


def _tokens(parts: Sequence[Dictionary], masses: np.ndarray, limit: int) -> pa.Table:
    """Rows of feature_tokens by feature, the largest share first."""
    found = [_columns(part, "select feature, token_id, count, mass from feature_tokens") for part in parts]
    feature, token, count = (
        np.concatenate([rows[name] for rows in found]) for name in ("feature", "token_id", "count")
    )
    mass = np.concatenate([rows["mass"] * masses[i, rows["feature"]] for i, rows in enumerate(found)])
    keys, place = np.unique(feature.astype(np.int64) << 32 | token, return_inverse=True)
    feature, token = (keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32)
    share = (np.bincount(place, mass, keys.size) / masses.sum(0)[feature]).astype(np.float32)
    times = np.bincount(place, count, keys.size).astype(np.int64)
    order = np.lexsort((token, -share, feature))
    rows = {"token_id": token[order], "feature": feature[order], "count": times[order], "mass": share[order]}
    return first_of_each(_table("feature_tokens", rows), limit)


def _places(parts: Sequence[Dictionary], corpus: Corpus, live: np.ndarray, total: np.ndarray) -> dict[str, pa.Table]:
    """The rows of position_profiles and boundaries."""
    places = TokenPlaces(corpus)
    n, used = total.size, np.flatnonzero(places.bin_tokens)
    counts, mass = np.zeros((n, places.bin_tokens.size), np.int64), np.zeros((n, places.bin_tokens.size))
    at_ends = np.zeros((n, len(BOUNDARIES)), np.int64)
    for part in parts:
        rows = _columns(part, "select feature, bin, tokens, count, mean_activation from position_profiles")
        at = rows["feature"], rows["bin"]
        np.add.at(counts, at, rows["count"])
        np.add.at(mass, at, rows["mean_activation"].astype(np.float64) * rows["tokens"])
        ends = part.store.query("select feature, place, count from boundaries").to_pydict()
        numbers = [BOUNDARIES.index(place) for place in ends["place"]]
        np.add.at(at_ends, (np.array(ends["feature"], int), np.array(numbers, int)), np.array(ends["count"], int))
    tokens = np.tile(places.bin_tokens[used], live.size)
    profile = {
        "feature": np.repeat(live, used.size).astype(np.int32),
        "bin": np.tile(used, live.size).astype(np.int32),
        "low": np.tile((1 << used) >> 1, live.size).astype(np.int32),
        "high": np.tile(1 << used, live.size).astype(np.int32),
        "tokens": tokens,
        "count": counts[live][:, used].reshape(-1),
        "density": counts[live][:, used].reshape(-1) / tokens,
        "mean_activation": (mass[live][:, used].reshape(-1) / tokens).astype(np.float32),
    }
    boundaries = {
        "feature": np.repeat(live, len(BOUNDARIES)).astype(np.int32),
        "place": pa.array(np.tile(np.array(BOUNDARIES), live.size), pa.string()),
        "count": at_ends[live].reshape(-1),
        "share": (at_ends[live] / total[live, None]).reshape(-1),
        "base_share": np.tile(places.boundary_tokens / places.n_indexed, live.size),
    }
    return {"position_profiles": _table("position_profiles", profile), "boundaries": _table("boundaries", boundaries)}


def _examples(parts: Sequence[Dictionary], behind: Sequence[int], counts: np.ndarray, config: IndexConfig) -> Columns:
    """The strongest examples of all, and samples of the others, ordered by (feature, stratum, rank)."""
    found = [_columns(part, "select * from examples order by feature, stratum, rank") for part in parts]
    rows = {name: np.concatenate([part[name] for part in found]) for name in ("feature", "stratum", "position")}
    rows["document"] = np.concatenate([part["document"] + shift for part, shift in zip(found, behind, strict=True)])
    rows["activation"] = np.concatenate([part["activation"] for part in found])
    rows["weight"] = np.concatenate([_weights(part, counts[i]) for i, part in enumerate(found)])
    size = np.abs(rows["activation"])
    order = np.lexsort((rows["position"], rows["document"], -size, rows["stratum"] > 0, rows["feature"]))
    rows = {name: column[order] for name, column in rows.items()}
    place = np.arange(order.size) - np.searchsorted(rows["feature"], rows["feature"])
    is_top = (rows["stratum"] == 0) & (place < config.examples)
    stratum = np.where(is_top, 0, -1)
    others = np.flatnonzero(~is_top)
    others = others[np.lexsort((-np.abs(rows["activation"][others]), rows["feature"][others]))]
    stratum[others] = _strata({name: column[others] for name, column in rows.items()}, config)
    chosen = np.flatnonzero(stratum >= 0)
    rows = {name: column[chosen] for name, column in rows.items()} | {"stratum": stratum[chosen].astype(np.int8)}
    order = np.lexsort(
        (rows["position"], rows["document"], -np.abs(rows["activation"]), rows["stratum"], rows["feature"])
    )
    rows = {name: column[order] for name, column in rows.items()}
    group = rows["feature"].astype(np.int64) << 8 | rows["stratum"]
    rows["rank"] = (np.arange(group.size) - np.searchsorted(group, group)).astype(np.int32)
    return rows


def _weights(rows: Columns, counts: np.ndarray) -> np.ndarray:
    """How many events each example stands for: the strongest for themselves, samples for all the others."""
    sampled = np.bincount(rows["feature"][rows["stratum"] > 0], minlength=counts.size)
    strongest = np.bincount(rows["feature"][rows["stratum"] == 0], minlength=counts.size)
    each = np.maximum(counts - strongest, sampled) / np.maximum(sampled, 1)
    return np.where(rows["stratum"] == 0, 1.0, each[rows["feature"]])


def _strata(rows: Columns, config: IndexConfig) -> np.ndarray:
    """The stratum of each candidate, −1 where it is not drawn; candidates are ordered by (feature, −size)."""
    feature, weight = rows["feature"], rows["weight"]
    if not feature.size or not config.strata:
        return np.full(feature.size, -1)
    first = np.searchsorted(feature, feature)
    upto = np.cumsum(weight)
    before = upto - weight - (upto - weight)[first]
    total = np.bincount(feature, weight)[feature]
    stratum = np.minimum(((before + weight / 2) / total * config.strata).astype(int), config.strata - 1) + 1
    keys = uniform(config.seed, np.arange(feature.size), 1)[:, 0] ** (1 / weight)
    order = np.lexsort((-keys, stratum, feature))
    group = feature[order].astype(np.int64) << 8 | stratum[order]
    drawn = np.arange(group.size) - np.searchsorted(group, group) < config.stratum_examples
    chosen = np.full(feature.size, -1)
    chosen[order[drawn]] = stratum[order[drawn]]
    return chosen


def _events(
    parts: Sequence[Dictionary], behind: Sequence[int], examples: Columns, n: int, advance: Callable[[int], object]
) -> Columns:
    """Of all parts the events that are shown around the examples, ordered by (feature, document, position)."""
    pieces: list[Columns] = []
    last = [*behind[1:], np.iinfo(np.int64).max]
    for part, low_document, high_document in zip(parts, behind, last, strict=True):
        own = (examples["document"] >= low_document) & (examples["document"] < high_document)
        around = {name: examples[name][own] for name in ("feature", "document", "position")}
        around["document"] = around["document"] - low_document
        bounds = part.store.event_bounds()
        for low, high in split_features(np.diff(bounds), EVENTS_AT_ONCE, n):
            events = read_events(part.store.build / "events.parquet", int(bounds[low]), int(bounds[high]))
            some = slice(*np.searchsorted(around["feature"], [low, high]))
            shown = _shown(part, events, {name: column[some] for name, column in around.items()})
            pieces.append(
                {
                    "feature": events.features[shown],
                    "document": (events.documents[shown] + low_document).astype(np.int32),
                    "position": events.positions[shown],
                    "activation": events.activations[shown],
                }
            )
            advance(events.features.size)
    rows = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    order = np.argsort(rows["feature"], kind="stable")  # documents of a part follow those of the one before
    return {name: column[order] for name, column in rows.items()}


def _shown(part: Dictionary, events: Any, around: Columns) -> np.ndarray:
    """Whether each event lies in what is shown around an example of its feature."""
    text = part.text.documents
    row = np.searchsorted(text.ids, around["document"])
    center = part.text.ordinals(around["document"], around["position"])
    first, behind = text.first_token[row], text.first_token[row] + text.n_tokens[row]
    lowest, highest = np.maximum(center - SHOWN_BEFORE, first), np.minimum(center + SHOWN_AFTER, behind - 1)
    keys = events.features.astype(np.int64) << 32 | part.text.ordinals(events.documents, events.positions)
    feature = around["feature"].astype(np.int64) << 32
    depth = np.zeros(keys.size + 1, dtype=np.int64)
    np.add.at(depth, np.searchsorted(keys, feature | lowest), 1)
    np.add.at(depth, np.searchsorted(keys, feature | highest, side="right"), -1)
    return np.cumsum(depth)[:-1] > 0


def _columns(part: Dictionary, question: str) -> Columns:
    found = part.store.query(question)
    return {name: found[name].to_numpy() for name in found.column_names}


def _table(name: str, columns: dict[str, Any]) -> pa.Table:
    of = schema.TABLES[name].arrow_schema()
    return pa.table([columns[column] for column in of.names], schema=of)
