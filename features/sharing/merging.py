"""Dictionaries of one SAE over several texts, as one: what a single build over all the text would have made.

Enters: folders of dictionaries of the same SAE and model, over documents that do not overlap. Leaves: a new folder.

1. Documents are numbered on, dictionary by dictionary; tokens follow.
2. All events go once more through what the index does with events (`features.event_tables`): statistics, histograms,
   examples and token shares are counted anew and not averaged, with the settings of the first dictionary.
3. What the decoder alone says (neighbours, logits) and the SAE are copied: they are the same in all.
4. Labels, explanations and lists of all, with author and time. Scores are left out: they were measured on a part.

The folder is complete when its `dictionary.json` stands there; a merge that was killed is begun again.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from activations.progress import progress
from features import schema
from features.coactivation import sample_size
from features.corpus import Corpus
from features.dictionary import Dictionary
from features.event_tables import FEATURE_ROW_GROUP, write_event_tables, write_table
from features.events import EventSpill, read_events, split_features
from features.index import IndexConfig
from features.labels import now
from features.pages import write_pages
from features.relations import PAGE_TABLES
from features.sharing.imports import add_rows
from features.sharing.reading import identity
from features.store import FORMAT, MANIFEST, describe_files, write_json
from features.text import TOKEN_ROW_GROUP, write_packed

SPILLED_EVENTS = 2_000_000


def merge(folders: Sequence[str | Path], out: str | Path) -> Dictionary:
    """Merges dictionaries into the new folder `out` and returns it opened.

    Raises:
        ValueError: fewer than two, other SAEs or models, imported dictionaries, or a document that two of them hold.
        FileExistsError: `out` exists already.
    """
    out = Path(out)
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} dictionary was given, expected two or more to merge: name more")
    if out.exists() and (out.is_file() or any(not p.name.startswith("build-") for p in out.iterdir())):
        raise FileExistsError(f"{out} exists already, expected a new folder: choose another one")
    started = time.perf_counter()
    parts = [Dictionary.open(folder) for folder in folders]
    try:
        for part in parts:
            part.check_built()
            part.store.require_all_events("merging")
            _check_same(parts[0], part)
        _check_apart(parts)
        corpus = _join(parts)
        fingerprint = hashlib.sha256("\n".join(part.info["fingerprint"] for part in parts).encode()).hexdigest()
        build = out / f"build-{fingerprint[:12]}"
        shutil.rmtree(build, ignore_errors=True)
        facts = _write(build, parts, corpus)
        first = parts[0].info
        kept = (
            "n_features",
            "exclude_special_tokens",
            "site",
            "sites",
            "target_sites",
            "sae",
            "model",
            "data",
            "index",
        )
        manifest = {
            "format": FORMAT,
            "build": build.name,
            "name": out.resolve().name,
            "created": now(),
            "fingerprint": fingerprint,
            **{key: first[key] for key in kept},
            **facts,
            "context_tokens": max(part.info["context_tokens"] for part in parts),
            "merged": [{key: part.info[key] for key in ("name", "fingerprint", "n_tokens", "data")} for part in parts],
            "seconds": {"merge": round(time.perf_counter() - started, 2)},
            "files": describe_files(build),
        }
        write_json(out / MANIFEST, manifest)
        merged = Dictionary.open(out)
        rows: dict[str, list[dict[str, Any]]] = {}
        for part in parts:
            for name, found in part.store.read_labels().items():
                if name not in ("scores", "feature_map"):  # of one text each, and of its live features
                    rows[name] = rows.get(name, []) + found.to_pylist()
        add_rows(merged, rows, [part.name for part in parts])
    finally:
        for part in parts:
            part.close()
    return merged


def _check_same(first: Dictionary, other: Dictionary) -> None:
    ours, theirs = identity(first.info), identity(other.info)
    names = {"model": "language model", "sae": "SAE", "kind": "kind of SAE or site", "n_features": "number of features"}
    for key, what in names.items():
        if ours[key] != theirs[key]:
            raise ValueError(
                f"{other.path} is of another {what} ({str(theirs[key])[:12]}) than {first.path} "
                f"({str(ours[key])[:12]}), expected dictionaries of one SAE: merge those that are"
            )
    if first.text.vocabulary != other.text.vocabulary:
        raise ValueError(
            f"{other.path} has other tokens than {first.path}, expected the same tokenizer: build it again"
        )
    if first.info["exclude_special_tokens"] != other.info["exclude_special_tokens"]:
        raise ValueError(
            f"{other.path} counts special tokens and {first.path} does not, or the other way round, expected one rule: "
            "build one of them again"
        )


def _check_apart(parts: Sequence[Dictionary]) -> None:
    """Refuses a document that stands in two dictionaries: its tokens would count twice."""
    known: dict[str, tuple[Dictionary, str]] = {}
    for part in parts:
        documents = part.text.documents
        tokens, positions = part.text.column("token_id"), part.text.column("position")
        for row, name in enumerate(documents.names):
            place = slice(documents.first_token[row], documents.first_token[row] + documents.n_tokens[row])
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass"))
            digest.update(tokens[place].tobytes() + positions[place].tobytes())
            other = known.setdefault(digest.hexdigest(), (part, name))
            if other[0] is not part:
                raise ValueError(
                    f"document {name!r} stands in {other[0].path} and in {part.path}, expected each document once: "
                    "build one of them without it"
                )


def _join(parts: Sequence[Dictionary]) -> Corpus:
    """The texts of all behind each other; documents of each keep their order and get numbers behind the others'."""
    names: dict[int, str] = {}
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("token_id", "document", "position", "context_position", "is_indexed")
    }
    behind = 0
    for part in parts:
        for name, found in columns.items():
            column = part.text.column(name)
            found.append(column + behind if name == "document" else column)
        names |= {
            int(i) + behind: name for i, name in zip(part.text.documents.ids, part.text.documents.names, strict=True)
        }
        behind += int(part.text.documents.ids.max()) + 1
    joined = {name: np.concatenate(found) for name, found in columns.items()}
    return Corpus(
        SimpleNamespace(names=names),
        np.empty((0, 1), dtype=np.int64),
        joined["token_id"].astype(np.int32),
        joined["document"].astype(np.int32),
        joined["position"].astype(np.int32),
        joined["context_position"].astype(np.int32),
        joined["is_indexed"].astype(bool),
    )


def _write(build: Path, parts: Sequence[Dictionary], corpus: Corpus) -> dict[str, Any]:
    first = parts[0]
    config = IndexConfig(**first.info["index"])
    n_events = sum(part.info["n_events"] for part in parts)
    EventSpill.prepare(build / "spill")
    spill = EventSpill(build / "spill", first.n_features)
    with progress("events", n_events, "events") as advance:
        _spill(spill, parts, advance)
    vocabulary = first.text.vocabulary
    with progress("tables", n_events, "events") as advance:
        norms = first.sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
        found = write_event_tables(build, spill, corpus, config, norms, len(vocabulary), advance)
    spill.remove()
    text = [corpus.documents, corpus.positions, corpus.tokens, corpus.context_positions, corpus.is_indexed]
    write_table(build, "token_ids", pa.table(text, schema=_of("token_ids")), TOKEN_ROW_GROUP)
    documents, starts, counts = np.unique(corpus.documents, return_index=True, return_counts=True)
    names = [corpus.rows.names[int(i)] for i in documents]
    write_table(
        build, "documents", pa.table([documents, names, counts.astype(np.int32), starts], schema=_of("documents"))
    )
    write_packed(build, corpus.tokens, corpus.positions, starts)
    times = np.bincount(corpus.tokens[corpus.is_indexed], minlength=len(vocabulary))
    numbers = np.arange(len(vocabulary), dtype=np.int32)
    write_table(build, "vocabulary", pa.table([numbers, vocabulary, times], schema=_of("vocabulary")))
    # normed_logit_ids is left out: a mean over the text, whose lists the parts' lists do not give
    for name in ("neighbours", "encoder_neighbours", "logit_ids"):
        if (path := first.store.build / f"{name}.parquet").is_file():
            write_table(build, name, pq.ParquetFile(path).read(), FEATURE_ROW_GROUP)
    write_pages(build, first.n_features, PAGE_TABLES)
    shutil.copytree(first.store.build / "sae", build / "sae")
    return {
        "n_live": found.live,
        "n_tokens": int(corpus.tokens.size),
        "n_indexed_tokens": corpus.n_indexed,
        "n_documents": int(documents.size),
        "coactivation_tokens": sample_size(corpus.n_indexed, n_events, config.coactivation_tokens),
        "n_events": found.events,
        "events": "all",
        "n_kept_events": found.kept_events,
    }


def _spill(spill: EventSpill, parts: Sequence[Dictionary], advance: Any) -> None:
    """Gives the events of all to the index: inside a feature they follow the text, as it asks for."""
    batch, before = 0, 0
    for part in parts:
        facts = part.store.query("select count, first_event from features order by feature")
        counts, starts = (column.to_numpy() for column in facts.columns)
        path = part.store.build / "events.parquet"
        for low, high in split_features(counts, SPILLED_EVENTS, counts.size):
            start, stop = int(starts[low]), int(starts[high - 1] + counts[high - 1])
            if start == stop:
                continue
            events = read_events(path, start, stop)
            ordinals = part.text.ordinals(events.documents, events.positions) + before
            spill.append(batch, events.features[:, None], events.activations[:, None], ordinals)
            advance(events.features.size)
            batch += 1
        before += part.text.n_tokens
    spill.close()


def _of(table: str) -> pa.Schema:
    return schema.TABLES[table].arrow_schema()
