"""Dictionaries of one SAE over several texts, as one: what a single build over all the text would have made.

Enters: folders of dictionaries of the same SAE and model, over documents that do not overlap. Leaves: a new folder.

1. Documents are numbered on, dictionary by dictionary; tokens follow.
2. All events go once more through what the index does with events (`features.event_tables`): statistics, histograms,
   examples and token shares are counted anew and not averaged, with the settings of the first dictionary.
3. What the decoder alone says (neighbours, logits) and the SAE are copied: they are the same in all. Effects through
   the final norm are a mean over the text: computed anew where the model is given, else those of the largest part.
4. Labels, explanations and lists of all, with author and time. Scores keep the name of the part whose text they were
   measured on (column `source`). The map, which is of directions alone, is kept where the same features are alive.

Where a part keeps the events around its examples only, so does the merged dictionary
(`features.sharing.merging_examples`). What is not as one build would have made it stands in the manifest under `notes`.

The folder is complete when its `dictionary.json` stands there; a merge that was killed is begun again.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from activations.progress import progress
from features import logit_effects, schema
from features.coactivation import sample_size
from features.corpus import Corpus
from features.dictionary import Dictionary
from features.event_tables import FEATURE_ROW_GROUP, write_event_tables, write_table
from features.events import EventSpill, read_events, split_features
from features.index import IndexConfig
from features.labels import now
from features.pages import write_pages
from features.relations import PAGE_TABLES
from features.sharing import merging_examples
from features.sharing.imports import add_rows
from features.sharing.reading import identity
from features.store import FORMAT, MANIFEST, describe_files, write_json
from features.text import TOKEN_ROW_GROUP, write_packed
from features.text_events import TextEventsWriter

if TYPE_CHECKING:
    from activations import LanguageModel

SPILLED_EVENTS = 2_000_000


def merge(
    folders: Sequence[str | Path], out: str | Path, model: str | Path | LanguageModel | None = None
) -> Dictionary:
    """Merges dictionaries into the new folder `out` and returns it opened.

    With the language model (`model`: itself, or where it lies) its effects through the final norm are computed over all
    the text; `info["notes"]` of the result says what differs from one build.

    Raises:
        ValueError: fewer than two, other SAEs or models, imported dictionaries, a document that two of them hold, or
            examples that were chosen by other settings where not all events are kept.
        FileExistsError: `out` exists already.
    """
    out = Path(out)
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} dictionary was given, expected two or more to merge: name more")
    if out.exists() and (out.is_file() or any(not p.name.startswith("build-") for p in out.iterdir())):
        raise FileExistsError(f"{out} exists already, expected a new folder: choose another one")
    started = time.perf_counter()
    parts = [Dictionary.open(folder, model=model) for folder in folders]
    try:
        for part in parts:
            part.check_built()
            _check_same(parts[0], part)
        if not all(part.store.keeps_all_events for part in parts):
            merging_examples.check_sampling(parts)
        if model is not None:
            parts[0].lm  # noqa: B018  (another model is refused before anything is written)
        _check_apart(parts)
        corpus = _join(parts)
        fingerprint = hashlib.sha256("\n".join(part.info["fingerprint"] for part in parts).encode()).hexdigest()
        build = out / f"build-{fingerprint[:12]}"
        shutil.rmtree(build, ignore_errors=True)
        notes: list[str] = []
        facts = _write(build, parts, corpus, model is not None, notes)
        rows = _people(parts, build, notes)
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
            "notes": notes,
            "seconds": {"merge": round(time.perf_counter() - started, 2)},
            "files": describe_files(build),
        }
        write_json(out / MANIFEST, manifest)
        merged = Dictionary.open(out)
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
    for part, behind in zip(parts, _behind(parts), strict=True):
        for name, found in columns.items():
            column = part.text.column(name)
            found.append(column + behind if name == "document" else column)
        names |= {
            int(i) + behind: name for i, name in zip(part.text.documents.ids, part.text.documents.names, strict=True)
        }
    joined = {name: np.concatenate(found) for name, found in columns.items()}
    # what the model reads at once: from one token that does not follow the one before to the next
    column = joined["context_position"].astype(np.int64)
    row = np.concatenate(([0], np.cumsum(column[1:] != column[:-1] + 1)))
    shape = int(row[-1]) + 1, max(part.info["context_tokens"] for part in parts)
    ordinal_of, tokens = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int32)
    ordinal_of[row, column], tokens[row, column] = np.arange(row.size), joined["token_id"]
    return Corpus(
        SimpleNamespace(names=names, tokens=tokens),
        ordinal_of,
        joined["token_id"].astype(np.int32),
        joined["document"].astype(np.int32),
        joined["position"].astype(np.int32),
        joined["context_position"].astype(np.int32),
        joined["is_indexed"].astype(bool),
    )


def _behind(parts: Sequence[Dictionary]) -> list[int]:
    """What is added to the numbers of each part's documents."""
    sizes = [int(part.text.documents.ids.max()) + 1 for part in parts]
    return [0, *np.cumsum(sizes[:-1]).tolist()]


def _people(parts: Sequence[Dictionary], build: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the label tables of all; scores with the part that they were measured on."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        said = {name: found.to_pylist() for name, found in part.store.read_labels().items()}
        scored = {(row["feature"], row["method"]) for row in said["scores"] if row["source"] is None}
        said["scores"] = [row | {"source": row["source"] or part.name} for row in said["scores"]]
        said["explanations"] = [
            row | {"score": None} if (row["feature"], row["method"]) in scored else row for row in said["explanations"]
        ]
        of_map = said.pop("feature_map")
        for name, found in said.items():
            rows[name] = rows.get(name, []) + found
        if of_map and "feature_map" not in rows:
            is_dead = pq.read_table(build / "features.parquet", columns=["feature", "is_dead"])
            live = is_dead["feature"].to_numpy()[~is_dead["is_dead"].to_numpy()]
            if np.array_equal(np.sort([row["feature"] for row in of_map]), live):
                rows["feature_map"] = of_map
            else:
                notes.append(
                    f"the map of {part.name} is of other live features and left out: it is made anew when asked for"
                )
    if scores := len(rows["scores"]):
        notes.append(
            f"{scores:,} scores were measured on single parts and say so (column source): run "
            "`glassbox explain --score` for scores of the whole"
        )
    return rows


def _write(build: Path, parts: Sequence[Dictionary], corpus: Corpus, reads: bool, notes: list[str]) -> dict[str, Any]:
    """Writes the build and returns what the manifest says of it; with `reads` the model reads the text once more."""
    first = parts[0]
    config = IndexConfig(**first.info["index"])
    n_events = sum(part.info["n_events"] for part in parts)
    keeps_all = all(part.store.keeps_all_events for part in parts)
    vocabulary = first.text.vocabulary
    if keeps_all:
        EventSpill.prepare(build / "spill")
        spill = EventSpill(build / "spill", first.n_features)
        with progress("events", n_events, "events") as advance:
            _spill(spill, parts, advance)
        with progress("tables", n_events, "events") as advance:
            norms = first.sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
            found = write_event_tables(build, spill, corpus, config, norms, len(vocabulary), advance)
        spill.remove()
        _copy_text_events(build, parts, corpus.tokens.size)
    else:
        build.mkdir(parents=True)
        kept = sum(part.info.get("n_kept_events", part.info["n_events"]) for part in parts)
        with progress("events", kept, "events") as advance:
            found = merging_examples.write_kept_tables(build, parts, _behind(parts), corpus, config, advance)
        short = ", ".join(part.name for part in parts if not part.store.keeps_all_events)
        notes.append(
            f"{short} keep the events around examples only, and so does this dictionary: statistics and strongest "
            "examples are exact, samples of weaker examples and lists of tokens put together from the parts', "
            "co-activations left out"
        )
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
    for name in ("neighbours", "encoder_neighbours", "logit_ids"):
        _copy(first, build, name)
    if reads:
        readout = logit_effects.Readout(first.lm, corpus, config.batch_tokens)
        normed = logit_effects.tables(first.sae, readout, config.logits)["normed_logit_ids"]
        write_table(build, "normed_logit_ids", normed, FEATURE_ROW_GROUP)
    else:
        most = max(parts, key=lambda part: part.info["n_indexed_tokens"])
        if _copy(most, build, "normed_logit_ids"):
            notes.append(
                f"effects through the final norm are those over the text of {most.name}: give the model for all of it"
            )
    write_pages(build, first.n_features, PAGE_TABLES)
    shutil.copytree(first.store.build / "sae", build / "sae")
    return {
        "n_live": found.live,
        "n_tokens": int(corpus.tokens.size),
        "n_indexed_tokens": corpus.n_indexed,
        "n_documents": int(documents.size),
        "coactivation_tokens": sample_size(corpus.n_indexed, n_events, config.coactivation_tokens) if keeps_all else 0,
        "n_events": found.events,
        "events": "all" if keeps_all else "examples",
        "n_kept_events": found.kept_events,
    }


def _copy_text_events(build: Path, parts: Sequence[Dictionary], n_tokens: int) -> None:
    """Writes the events in the order of the text, which is that of the parts, where all of them have it."""
    held = [events for part in parts if (events := part.text.events) is not None]
    if len(held) < len(parts):
        return
    with TextEventsWriter(build, n_tokens) as writer:
        for events in held:
            for piece in events.all():
                writer.take(piece)


def _copy(part: Dictionary, build: Path, name: str) -> bool:
    """Copies a table of a part that has it."""
    path = part.store.build / f"{name}.parquet"
    if path.is_file():
        write_table(build, name, pq.ParquetFile(path).read(), FEATURE_ROW_GROUP)
    return path.is_file()


def _spill(spill: EventSpill, parts: Sequence[Dictionary], advance: Any) -> None:
    """Gives the events of all to the index: inside a feature they follow the text, as it asks for."""
    batch, before = 0, 0
    for part in parts:
        bounds = part.store.event_bounds()
        path = part.store.build / "events.parquet"
        for low, high in split_features(np.diff(bounds), SPILLED_EVENTS, part.n_features):
            start, stop = int(bounds[low]), int(bounds[high])
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
