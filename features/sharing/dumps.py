"""A dictionary made of another project's feature files alone, where neither SAE nor model is at hand.

Enters: a `Dump` of SAEDashboard or Neuronpedia. Leaves: a dictionary folder that opens, is browsed, searched, asked in
SQL and exported as any other; what needs the SAE, the model or the whole text refuses in one line.

1. Each piece of text in the dump is a document; the same piece under several features is one. Its tokens get numbers
   in the order in which they appear, and so do promoted ones: the vocabulary is that of the dump.
2. Events are the activations in these pieces, no others: `count`, `mean_activation` and `max_activation` are over them,
   exact for what is there. How often a feature is active in the whole text is the dump's own word: `density`, and the
   histogram with its bars as they stand.
3. Examples: stratum 0 are the strongest pieces, then one stratum for each interval of activation, from strong to weak.
   Pieces in which the feature is silent, with which some files fill the lists of dead features, are none.

Indices that the dump leaves out stand as dead features.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features import schema
from features.dictionary import Dictionary
from features.event_tables import write_table
from features.labels import now
from features.sharing.foreign import Dump, DumpedFeature, Excerpt, read_dump
from features.sharing.imports import ImportReport, add_rows, explanations_of_dump
from features.store import FORMAT, MANIFEST, describe_files, write_json
from features.text import TOKEN_ROW_GROUP

FEATURE_TOKENS = 64


def dictionary_from_dump(paths: Sequence[str | Path], out: str | Path) -> tuple[Dictionary, ImportReport]:
    """Makes the dictionary `out` from files of another project and returns it opened, with its explanations.

    Raises:
        FileExistsError: `out` exists already.
        ValueError: a file cut short or of another kind, or files without any piece of text.
    """
    out = Path(out)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists already, expected a new folder for the dictionary: choose another one")
    dump = read_dump([Path(path) for path in paths])
    if not any(feature.excerpts for feature in dump.features.values()):
        raise ValueError(
            f"{', '.join(map(str, paths))} holds no text with activations, expected features with examples: give "
            "SAEDashboard's batch-*.json or Neuronpedia's features and activations"
        )
    said = explanations_of_dump(dump.kind, [one for one in dump.said if one.feature <= max(dump.features)])
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        _write(dump, unfinished, out.resolve().name)
        opened = Dictionary.open(unfinished)
        report = add_rows(opened, said, [f"{dump.kind} {dump.model} {dump.source}"])
        opened.close()
        if out.is_dir():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Dictionary.open(out), report


def _write(dump: Dump, folder: Path, name: str) -> None:
    n = max(dump.features) + 1
    vocabulary: dict[str, int] = {}
    documents: dict[tuple[str, ...], int] = {}
    rows: dict[str, list[tuple[Any, ...]]] = {
        key: [] for key in ("features", "events", "examples", "histograms", "logit_ids", "neighbours", "feature_tokens")
    }
    for feature in range(n):
        _feature_rows(
            dump.features.get(feature) or DumpedFeature(), feature, n, dump.tokens, documents, vocabulary, rows
        )
    rows["feature_tokens"].sort(key=lambda row: (row[0], -row[3]))
    tokens = np.array([vocabulary[token] for text in documents for token in text], dtype=np.int32)
    lengths = np.array([len(text) for text in documents], dtype=np.int32)
    first = np.cumsum(lengths, dtype=np.int64) - lengths
    position = (np.arange(tokens.size) - np.repeat(first, lengths)).astype(np.int32)
    counts = np.bincount(tokens, minlength=len(vocabulary))
    numbers = np.arange(len(documents), dtype=np.int32)
    tables: dict[str, list[Any]] = {key: list(map(list, zip(*found, strict=True))) for key, found in rows.items()}
    tables |= {
        "documents": [numbers, [f"{dump.model} {dump.source} · text {i}" for i in numbers], lengths, first],
        "token_ids": [np.repeat(numbers, lengths), position, tokens, position, np.ones(tokens.size, dtype=bool)],
        "vocabulary": [np.arange(len(vocabulary), dtype=np.int32), list(vocabulary), counts],
    }
    build = folder / "build-unnamed"
    build.mkdir()
    for table in schema.STORED:
        columns = tables.get(table.name)
        if columns is None:
            continue
        of = table.arrow_schema()
        found = pa.table(columns, schema=of) if columns else of.empty_table()
        write_table(build, table.name, found, TOKEN_ROW_GROUP if table.name in ("token_ids", "events") else 131_072)
    files = describe_files(build)
    fingerprint = hashlib.sha256(json.dumps([dump.model, dump.source, files]).encode()).hexdigest()
    build = build.rename(folder / f"build-{fingerprint[:12]}")
    manifest = {
        "format": FORMAT,
        "build": build.name,
        "name": name,
        "created": now(),
        "fingerprint": fingerprint,
        "n_features": n,
        "n_live": sum(not row[7] for row in rows["features"]),
        "n_tokens": int(tokens.size),
        "n_indexed_tokens": int(tokens.size),
        "n_documents": len(documents),
        "n_events": len(rows["events"]),
        "context_tokens": int(lengths.max()),
        "exclude_special_tokens": False,
        "site": str(dump.source),
        "sites": [str(dump.source)],
        "target_sites": [str(dump.source)],
        "sae": {"d_in": None, "d_sae": n, "architecture": "", "k": None, "name": dump.source, "n_sites": 1},
        "model": {"name": str(dump.model), "revision": None, "weight_hash": ""},
        "data": {"source": dump.dataset},
        "index": {},
        "seconds": {},
        "imported": {"from": dump.kind, "model": dump.model, "source": dump.source, "tokens": dump.tokens},
        "files": files,
    }
    write_json(folder / MANIFEST, manifest)


def _feature_rows(
    told: DumpedFeature,
    feature: int,
    n: int,
    tokens: int | None,
    documents: dict[tuple[str, ...], int],
    vocabulary: dict[str, int],
    rows: dict[str, list[tuple[Any, ...]]],
) -> None:
    """Appends one feature's rows to every table."""
    values: dict[tuple[int, int], float] = {}
    texts: dict[int, tuple[str, ...]] = {}
    seen: dict[tuple[int, int], int] = {}
    strata = _strata(told.excerpts)
    for excerpt in told.excerpts:
        found = np.array(excerpt.values, dtype=np.float32)
        if not found.any():
            continue
        for token in excerpt.tokens:
            vocabulary.setdefault(token, len(vocabulary))
        document = documents.setdefault(excerpt.tokens, len(documents))
        texts[document] = excerpt.tokens
        for position in np.flatnonzero(found).tolist():
            values.setdefault((document, position), float(found[position]))
        # the strongest ones may stand in an interval again
        center = int(np.argmax(np.abs(found))) if excerpt.center is None else excerpt.center
        seen[document, center] = min(strata[excerpt.low], seen.get((document, center), len(strata)))
    if seen:  # whatever it was listed under, or beside what, the strongest one comes first
        strongest = max(values, key=lambda key: abs(values[key]))
        seen[strongest] = min(seen.values())
    events = sorted((document, position, value) for (document, position), value in values.items())
    sizes = np.abs(np.array([value for _, _, value in events], dtype=np.float32))
    bars = [(m, h) for m, h in zip(told.middles, told.heights, strict=True)]
    count = len(events)
    density = told.density if told.density is not None else (sum(told.heights) / tokens if tokens else 0.0)
    rows["features"].append(
        (
            feature,
            count,
            float(density),
            float(sizes.astype(np.float64).mean()) if count else 0.0,
            float(sizes.astype(np.float64).std()) if count else 0.0,
            float(sizes.max()) if count else 0.0,
            len({document for document, _, _ in events}),
            count == 0,
            0.0,
            len(rows["events"]),
        )
    )
    rows["events"] += [(feature, *event) for event in events]
    taken: dict[int, int] = {}
    # intervals that a file names and that hold nothing new leave no gap
    order = sorted(seen, key=lambda key: (seen[key], -abs(values[key]), key))
    numbers = {stratum: i for i, stratum in enumerate(sorted(set(seen.values())))}
    for key in order:
        place = numbers[seen[key]]
        rows["examples"].append((feature, place, taken.get(place, 0), *key, values[key]))
        taken[place] = taken.get(place, 0) + 1
    if count:
        rows["histograms"] += _histogram(feature, bars, sizes)
    for side, some in (("top", told.promoted), ("bottom", told.suppressed)):
        for rank, (token, logit) in enumerate(some):
            rows["logit_ids"].append((feature, side, rank, vocabulary.setdefault(token, len(vocabulary)), logit))
    others = [(other, cosine) for other, cosine in told.neighbours if other != feature and other < n]
    rows["neighbours"] += [(feature, rank, *pair) for rank, pair in enumerate(others)]
    rows["feature_tokens"] += _tokens(feature, events, texts, vocabulary, float(sizes.sum()))


def _strata(excerpts: Sequence[Excerpt]) -> dict[float | None, int]:
    """Numbers of the intervals, from strong to weak; None, the strongest, is 0."""
    lows = sorted({e.low for e in excerpts if e.low is not None}, reverse=True)
    return {None: 0} | {low: i + 1 for i, low in enumerate(lows)}


def _histogram(feature: int, bars: list[tuple[float, float]], sizes: np.ndarray) -> list[tuple[Any, ...]]:
    """The dump's own bars (middles of equal width), or those of the events where it has none."""
    if len(bars) < 2:
        heights, edges = np.histogram(sizes, 20, (0.0, float(sizes.max())))
        found = [(float(low), float(high), int(h)) for low, high, h in zip(edges, edges[1:], heights, strict=False)]
    else:
        width = (bars[-1][0] - bars[0][0]) / (len(bars) - 1)
        found = [(max(m - width / 2, 0.0), m + width / 2, round(h)) for m, h in bars]
    return [(feature, i, low, high, h) for i, (low, high, h) in enumerate(found) if h > 0 and high > low]


def _tokens(
    feature: int,
    events: list[tuple[int, int, float]],
    texts: dict[int, tuple[str, ...]],
    vocabulary: dict[str, int],
    total: float,
) -> list[tuple[Any, ...]]:
    found: dict[str, list[float]] = {}
    for document, position, value in events:
        entry = found.setdefault(texts[document][position], [0, 0.0])
        entry[0] += 1
        entry[1] += abs(value)
    best = sorted(found.items(), key=lambda item: -item[1][1])[:FEATURE_TOKENS]
    return [(vocabulary[token], feature, int(times), min(mass / total, 1.0)) for token, (times, mass) in best]
