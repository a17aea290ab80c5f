"""The index: one pass of text through the language model and the SAE, for all features at once.

Enters: an SAE, the language model it reads, and rows of tokens with their documents. Leaves: a dictionary folder
(`features.store`).

1. Forward up to the SAE's site, encode; the non-zero codes at counted tokens are the events (feature, token number,
   activation). They gather in `features.events`, which turns them from the order of the text into that of the features.
2. Range by range of features: the table of all events, counts, mean, standard deviation, maximum, a histogram of
   quarter octaves, the examples (`features.examples`), and the tokens that hold most of each feature's activation.
3. From the decoder alone: neighbours and logits (`features.geometry`).
4. The build folder is complete when `dictionary.json` names it, which happens in one step at the end. A killed build
   is never opened; the same call goes on from its last complete chunk of events.

Algorithm: statistics are exact, over every event; nothing is estimated from a sample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from activations.progress import progress
from features import geometry, schema
from features.events import EventRange, EventSpill
from features.examples import choose_examples, order_by_activation, rank_within
from features.store import FORMAT, MANIFEST, describe_files, read_manifest, write_json
from features.text import TOKEN_ROW_GROUP

BINS_PER_OCTAVE = 4
N_BINS = 40 * BINS_PER_OCTAVE  # from 2⁻²⁰ to 2²⁰
_BIN_SHIFT = 21  # of a float32's 23 bits of mantissa, two stay
_FIRST_BIN = (127 - 20) << (23 - _BIN_SHIFT)
EVENT_ROW_GROUP = 65_536
SPILL_BYTES_PER_EVENT = 12
RANGE_EVENTS = 1_500_000
TABLE_THREADS = 2


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """How a dictionary is built from text."""

    __pydantic_config__ = {"extra": "forbid"}

    total_tokens: int | None = None
    """Tokens of the text to index; default all."""
    batch_tokens: int = 8192
    """Tokens in one forward pass."""
    examples: int = 20
    """Strongest windows to keep of each feature."""
    per_document: int = 3
    """Most of these strongest windows that may come from one document."""
    window_tokens: int = 16
    """Length of the windows of which at most one example is taken, in tokens."""
    strata: int = 4
    """Equal parts into which the weaker windows are cut, from strong to weak, to be sampled."""
    stratum_examples: int = 5
    """Windows sampled from each of these parts."""
    neighbours: int = 10
    """Nearest features by cosine of decoder rows."""
    logits: int = 15
    """Most promoted, and as many most suppressed, tokens."""
    histogram_bins: int = 48
    """Most bins of a feature's histogram (quarter octaves of activation; smaller values join the lowest bin)."""
    feature_tokens: int = 64
    """Tokens kept for search of each feature, those with most of its activation."""
    event_limit: int = 5_000_000_000
    """Most events (non-zero activations) that the dictionary may hold."""
    seed: int = 0
    """Seed of the sampled examples."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "examples", "per_document", "window_tokens", "histogram_bins", "feature_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"index.{name}={getattr(self, name)}, expected at least 1: raise it")
        for name in ("strata", "stratum_examples", "neighbours", "logits"):
            if getattr(self, name) < 0:
                raise ValueError(f"index.{name}={getattr(self, name)}, expected 0 or more: raise it")
        if self.total_tokens is not None and self.total_tokens < 1:
            raise ValueError(f"index.total_tokens={self.total_tokens}, expected at least 1: raise it or leave it out")


@dataclass(frozen=True)
class Corpus:
    """The tokens to index in the order of (document, position), numbered from 0: their ordinals."""

    rows: Any
    """TokenRows in the order of the text."""
    ordinal_of: np.ndarray
    """int64 [rows, context]: the token's number, −1 at padding."""
    tokens: np.ndarray
    """int32 [n]."""
    documents: np.ndarray
    """int32 [n]."""
    positions: np.ndarray
    """int32 [n]."""
    context_positions: np.ndarray
    """int32 [n]: column in the row that the model reads."""
    is_indexed: np.ndarray
    """bool [n]: counts in the statistics."""

    @property
    def n_indexed(self) -> int:
        return int(self.is_indexed.sum())


def arrange_corpus(rows: Any, special_ids: frozenset[int], total_tokens: int | None) -> Corpus:
    """Numbers the tokens of `rows` in the order of the text; tokens in `special_ids` are kept but not counted.

    Raises:
        ValueError: no token to index, or a token that stands in the text twice.
    """
    tokens, documents, positions = (np.asarray(part) for part in (rows.tokens, rows.documents, rows.positions))
    if total_tokens is not None and tokens.size:
        keep_rows = max(1, -(-total_tokens // tokens.shape[1]))
        tokens, documents, positions = tokens[:keep_rows], documents[:keep_rows], positions[:keep_rows]
    if not _in_order(documents, positions):
        real = documents >= 0
        first = np.where(real.any(1), real.argmax(1), 0)
        line = np.arange(len(documents))
        order = np.lexsort(
            (positions[line, first], np.where(real.any(1), documents[line, first], np.iinfo(np.int32).max))
        )
        tokens, documents, positions = tokens[order], documents[order], positions[order]
        if not _in_order(documents, positions):
            raise ValueError(
                "the rows to index hold a token twice or documents out of order, expected rows of consecutive tokens: "
                "pack the documents with activations.tokens"
            )
    real = documents >= 0
    ordinal_of = np.full(documents.shape, -1, dtype=np.int64)
    ordinal_of[real] = np.arange(int(real.sum()))
    flat = tokens[real].astype(np.int32)
    is_indexed = ~np.isin(flat, np.fromiter(special_ids, dtype=np.int32, count=len(special_ids)))
    if not is_indexed.any():
        raise ValueError(f"no token to index among {flat.size} tokens: expected text; check the data section")
    columns = np.broadcast_to(np.arange(documents.shape[1], dtype=np.int32), documents.shape)
    return Corpus(
        dataclasses.replace(rows, tokens=tokens, documents=documents, positions=positions),
        ordinal_of,
        flat,
        documents[real].astype(np.int32),
        positions[real].astype(np.int32),
        np.ascontiguousarray(columns[real]),
        is_indexed,
    )


def _in_order(documents: np.ndarray, positions: np.ndarray) -> bool:
    real = documents >= 0
    document, position = documents[real].astype(np.int64), positions[real].astype(np.int64)
    step = np.diff(document)
    return bool(np.all((step > 0) | ((step == 0) & (np.diff(position) == 1))))


def encode_events(
    sae: Any, lm: Any, corpus: Corpus, site: str, batch_tokens: int, first_batch: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Yields each batch's events as (features, ordinals, activations, tokens), from batch `first_batch` on.

    Raises:
        ValueError: activations that are not finite; the message names site, row and document.
    """
    tokens = np.asarray(corpus.rows.tokens)
    batch_rows = max(1, batch_tokens // tokens.shape[1])
    device = next(sae.parameters()).device
    indexed = np.zeros(corpus.ordinal_of.shape, dtype=bool)
    indexed[corpus.ordinal_of >= 0] = corpus.is_indexed
    for first in range(first_batch * batch_rows, len(tokens), batch_rows):
        rows = slice(first, first + batch_rows)
        ids = torch.from_numpy(tokens[rows].astype(np.int64)).to(lm.device)
        mask = torch.from_numpy(corpus.ordinal_of[rows] >= 0).to(lm.device)
        wanted = indexed[rows].reshape(-1)
        with torch.no_grad():
            x = lm.capture(ids, mask, [site])[site]
            x = x.reshape(-1, x.shape[-1])
            if wanted.all():
                kept = x.to(device)
            else:
                kept = x[torch.from_numpy(np.flatnonzero(wanted)).to(x.device)].to(device)
            codes = sae.encode(kept)
        values, indices = codes.values.float().cpu().numpy(), codes.indices.cpu().numpy()
        ordinals = corpus.ordinal_of[rows].reshape(-1)[wanted]
        _check_finite(kept, site, ordinals, corpus)
        is_event = (indices >= 0) & (values != 0)
        row_of = np.repeat(ordinals, values.shape[1])
        if is_event.all():
            events = indices.reshape(-1), row_of, values.reshape(-1)
        else:
            flat = is_event.reshape(-1)
            events = indices[is_event], row_of[flat], values[is_event]
        yield events[0], events[1], events[2], int((corpus.ordinal_of[rows] >= 0).sum())


def _check_finite(x: torch.Tensor, site: str, ordinals: np.ndarray, corpus: Corpus) -> None:
    # a sum is finite unless an entry is not (or it overflows, which the second look tells apart)
    if not torch.isfinite(x.float().sum()):
        bad = (~torch.isfinite(x)).any(1).nonzero()
        if len(bad):
            ordinal = int(ordinals[int(bad[0])])
            raise ValueError(
                f"activations at {site} are not finite at position {corpus.positions[ordinal]} of document "
                f"{corpus.rows.names[corpus.documents[ordinal]]!r}: expected finite numbers; check the model's weights "
                "or load it with dtype=float32"
            )


def build_index(
    sae: Any,
    lm: Any,
    rows: Any,
    out: str | Path,
    config: IndexConfig | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    exclude_special_tokens: bool = True,
    name: str | None = None,
    on_exists: Literal["resume", "error", "replace"] = "resume",
) -> Any:
    """Builds the dictionary of `sae` over `rows` (TokenRows) in the folder `out` and returns it opened.

    With `on_exists="resume"` a killed build goes on and a finished one of the same inputs is returned; a folder that
    holds another dictionary is refused unless `on_exists="replace"`. `data` is recorded as the source of the text.

    Raises:
        ValueError: no tokens, another model or width than the SAE's, activations that are not finite, too many events.
        FileExistsError: `out` holds a dictionary of other inputs.
    """
    from features.dictionary import Dictionary

    config = config or IndexConfig()
    out = Path(out)
    started = time.perf_counter()
    site = str(sae.metadata.get("site") or "")
    if not site:
        raise ValueError("the SAE names no site, expected metadata['site'] such as 'resid_post.1': set it and save")
    if site not in lm.sites():
        raise ValueError(f"the SAE reads {site}, which model {lm.name} does not have: index with the SAE's own model")
    d_in, width = sae.W_dec.shape[1], lm.site_width(site)
    if width != d_in:
        raise ValueError(f"the SAE has d_in={d_in}, model {lm.name} has width {width} at {site}: use the SAE's model")
    recorded = sae.metadata.get("model_weight_hash")
    if recorded and recorded != lm.weight_hash():
        raise ValueError(
            f"model {lm.name} has weight hash {lm.weight_hash()[:12]}, the SAE was trained on {recorded[:12]} "
            f"({sae.metadata.get('model_name')}): index with the SAE's own model"
        )
    special = frozenset(lm.special_ids) if exclude_special_tokens else frozenset()
    corpus = arrange_corpus(rows, special, config.total_tokens)
    fingerprint = _fingerprint(sae, lm, corpus, config, exclude_special_tokens)
    build = out / f"build-{fingerprint[:12]}"
    existing = read_manifest(out) if (out / MANIFEST).exists() else None
    if existing is not None and on_exists != "replace":
        if existing["fingerprint"] == fingerprint and on_exists == "resume":
            return Dictionary.open(out, model=lm)
        raise FileExistsError(
            f"{out} already holds a dictionary ({existing['name']}, {existing['n_tokens']} tokens), expected a free "
            "folder: choose another one, or replace it"
        )
    if existing is None and out.is_dir() and any(not _is_ours(path.name) for path in out.iterdir()):
        foreign = next(path.name for path in out.iterdir() if not _is_ours(path.name))
        raise FileExistsError(f"{out} holds other files ({foreign}), expected a free folder: choose another one")
    if existing is not None and existing["fingerprint"] == fingerprint:
        shutil.rmtree(build, ignore_errors=True)
        os.unlink(out / MANIFEST)
    n_events = _check_size(sae, corpus, config, out)
    build.mkdir(parents=True, exist_ok=True)

    spill = EventSpill(build / "spill", sae.W_dec.shape[0])
    batch_rows = max(1, config.batch_tokens // corpus.ordinal_of.shape[1])
    done = int((corpus.ordinal_of[: spill.batches_done * batch_rows] >= 0).sum())
    with progress("index", corpus.tokens.size, "tokens", done) as advance:
        for features, ordinals, activations, n_tokens in encode_events(
            sae, lm, corpus, site, config.batch_tokens, spill.batches_done
        ):
            spill.append(features, ordinals, activations)
            if spill.n_events > config.event_limit:
                _refuse_events(spill.n_events, config.event_limit)
            advance(n_tokens)
    encoded = time.perf_counter()
    with progress("tables", spill.n_events or n_events, "events") as advance:
        live = _write_event_tables(build, spill, corpus, config, sae, lm, advance)
    _write_corpus_tables(build, corpus, lm)
    _write(build, "neighbours", geometry.neighbours(sae.W_dec, config.neighbours))
    _write(build, "logit_ids", geometry.logits(sae.W_dec, _logit_directions(lm, site, d_in), config.logits))
    sae.save(str(build / "sae"), format="saelens")
    spill.remove()
    finished = time.perf_counter()

    manifest = {
        "format": FORMAT,
        "build": build.name,
        "name": name or out.resolve().name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "n_features": int(sae.W_dec.shape[0]),
        "n_live": live,
        "n_tokens": int(corpus.tokens.size),
        "n_indexed_tokens": corpus.n_indexed,
        "n_documents": int(np.unique(corpus.documents).size),
        "n_events": spill.n_events,
        "context_tokens": int(corpus.ordinal_of.shape[1]),
        "exclude_special_tokens": exclude_special_tokens,
        "site": site,
        "sae": {"d_in": int(d_in), "d_sae": int(sae.W_dec.shape[0]), **_sae_facts(sae)},
        "model": {"name": lasting_name(str(lm.name)), "revision": lm.revision, "weight_hash": lm.weight_hash()},
        "data": dict(data or sae.metadata.get("data") or {}),
        "index": dataclasses.asdict(config),
        "seconds": {
            "forward_and_encode": round(encoded - started, 2),
            "tables": round(finished - encoded, 2),
        },
        "files": describe_files(build),
    }
    write_json(out / MANIFEST, manifest)
    if existing is not None and existing["build"] != build.name:
        shutil.rmtree(out / existing["build"], ignore_errors=True)
    return Dictionary.open(out, model=lm)


def lasting_name(name: str) -> str:
    """A model's or data source's name that also holds in another working directory: folders become absolute paths."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _is_ours(name: str) -> bool:
    return name.startswith("build-") or name.startswith("labels.duckdb") or name.endswith(".partial")


def _sae_facts(sae: Any) -> dict[str, Any]:
    config = sae.config
    return {
        "architecture": str(getattr(config, "architecture", "")),
        "k": getattr(config, "k", None),
        "name": sae.metadata.get("name"),
    }


def _fingerprint(sae: Any, lm: Any, corpus: Corpus, config: IndexConfig, exclude_special_tokens: bool) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(lm.weight_hash().encode())
    for part in (corpus.rows.tokens, corpus.rows.documents, corpus.rows.positions):
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update("\0".join(corpus.rows.names).encode("utf-8", "surrogatepass"))
    settings = dataclasses.asdict(config) | {"exclude_special_tokens": exclude_special_tokens, "format": FORMAT}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _refuse_events(events: int, limit: int) -> None:
    raise ValueError(
        f"the index would hold {events:,} events or more, expected at most index.event_limit={limit:,}: "
        "index fewer tokens with index.total_tokens, or raise the limit"
    )


def _check_size(sae: Any, corpus: Corpus, config: IndexConfig, out: Path) -> int:
    """Refuses what cannot be held before hours are spent; returns the expected number of events."""
    k = getattr(sae.config, "k", None)
    events = corpus.n_indexed * int(k) if k else 0
    if events > config.event_limit:
        _refuse_events(events, config.event_limit)
    folder = out
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = events * SPILL_BYTES_PER_EVENT * 2
    if needed > free:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, the index needs about {needed / 1e9:.1f} GB: "
            "free space, or index fewer tokens with index.total_tokens"
        )
    return events


def _logit_directions(lm: Any, site: str, d_in: int) -> torch.Tensor | None:
    """The model's logit directions where the site writes into the residual stream, which they read."""
    kind = site.split(".")[0]
    if kind not in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "embed"):
        return None
    directions = lm.logit_directions()
    return directions if directions.shape[1] == d_in else None


def _write(build: Path, name: str, table: pa.Table, row_group: int = 131_072) -> None:
    pq.write_table(table, build / f"{name}.parquet", compression="zstd", row_group_size=row_group)


def _write_corpus_tables(build: Path, corpus: Corpus, lm: Any) -> None:
    token_table = pa.table(
        [corpus.documents, corpus.positions, corpus.tokens, corpus.context_positions, corpus.is_indexed],
        schema=schema.TABLES["token_ids"].arrow_schema(),
    )
    _write(build, "token_ids", token_table, TOKEN_ROW_GROUP)
    documents, first, counts = np.unique(corpus.documents, return_index=True, return_counts=True)
    names = corpus.rows.names
    _write(
        build,
        "documents",
        pa.table(
            [documents, [str(names[i]) for i in documents], counts.astype(np.int32), first],
            schema=schema.TABLES["documents"].arrow_schema(),
        ),
    )
    size = max(int(lm.vocab_size), int(corpus.tokens.max()) + 1)
    counts = np.bincount(corpus.tokens[corpus.is_indexed], minlength=size)
    _write(
        build,
        "vocabulary",
        pa.table(
            [np.arange(size, dtype=np.int32), _token_texts(lm, size), counts],
            schema=schema.TABLES["vocabulary"].arrow_schema(),
        ),
    )


def _token_texts(lm: Any, size: int) -> list[str]:
    known = lm.token_strings(list(range(min(size, int(lm.vocab_size)))))
    # lone surrogates cannot be stored as UTF-8
    known = [text.encode("utf-8", "backslashreplace").decode() for text in known]
    return known + [f"<{i}>" for i in range(len(known), size)]


def _write_event_tables(
    build: Path, spill: EventSpill, corpus: Corpus, config: IndexConfig, sae: Any, lm: Any, advance: Any
) -> int:
    """Writes events, features, examples, histograms and feature_tokens; returns the number of live features."""
    window_key = corpus.documents.astype(np.int64) << 32 | (corpus.positions // config.window_tokens)
    windows = np.concatenate(([0], np.cumsum(window_key[1:] != window_key[:-1])))
    norms = sae.W_dec.detach().float().norm(dim=1).cpu().numpy()
    vocab = max(int(lm.vocab_size), int(corpus.tokens.max()) + 1)
    parts: dict[str, list[pa.Table]] = {name: [] for name in ("features", "examples", "histograms", "feature_tokens")}
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
        }

    def keep(made: dict[str, pa.Table]) -> None:
        writer.write_table(made["events"], row_group_size=EVENT_ROW_GROUP)
        for name, pieces in parts.items():
            pieces.append(made[name])
        advance(made["events"].num_rows)

    # NumPy lets go of the interpreter while it sorts and gathers: ranges are tabulated side by side, written in order
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
    for name, table in tables.items():
        _write(build, name, table)
    return live


def _feature_rows(
    events: EventRange, documents: np.ndarray, n_indexed: int, norms: np.ndarray, first_event: int
) -> pa.Table:
    n = events.last - events.first
    local = events.features - events.first
    counts = events.counts
    divisor = np.maximum(counts, 1)
    mean = np.bincount(local, events.activations, minlength=n) / divisor
    centred = events.activations - mean[local]
    variance = np.bincount(local, centred * centred, minlength=n) / divisor
    largest = np.zeros(n, dtype=np.float32)
    alive = counts > 0
    largest[alive] = np.maximum.reduceat(events.activations, events.starts[alive]) if alive.any() else 0
    new_document = np.ones(local.size, dtype=bool)
    new_document[1:] = (documents[1:] != documents[:-1]) | (local[1:] != local[:-1])
    return pa.table(
        [
            np.arange(events.first, events.last, dtype=np.int32),
            counts.astype(np.int64),
            counts / n_indexed,
            mean.astype(np.float32),
            np.sqrt(variance).astype(np.float32),
            largest,
            np.bincount(local[new_document], minlength=n).astype(np.int32),
            ~alive,
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
    counts = np.bincount(local * n_bins + histogram_bins(events.activations), minlength=n * n_bins).reshape(n, n_bins)
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


def group_events(keys: np.ndarray, weights: np.ndarray, n_keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct keys in rising order, how often each occurs, and the sum of its weights."""
    if n_keys <= max(4 * keys.size, 1 << 20):
        counts = np.bincount(keys, minlength=1)
        present = np.flatnonzero(counts)
        return present, counts[present], np.bincount(keys, weights)[present]
    if keys.size == 0:
        return keys, keys, weights.astype(np.float64)
    if n_keys < 1 << 31 and keys.size < 1 << 32:
        packed = (keys.astype(np.int64) << 32) | np.arange(keys.size, dtype=np.int64)
        packed.sort()
        order, ordered = packed & 0xFFFFFFFF, packed >> 32
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[starts], np.diff(np.append(starts, keys.size)), np.add.reduceat(weights[order].astype(float), starts)


def _token_rows(events: EventRange, tokens: np.ndarray, vocab: int, limit: int) -> pa.Table:
    local = (events.features - events.first).astype(np.int64)
    keys, counts, mass = group_events(
        local * vocab + tokens[events.ordinals], events.activations, (events.last - events.first) * vocab
    )
    feature, token = keys // vocab, keys % vocab
    total = np.bincount(local, events.activations, minlength=events.last - events.first)
    share = (mass / np.where(total == 0, 1, total)[feature]).astype(np.float32)
    order = order_by_activation(feature, share)
    order = order[rank_within(feature[order]) < limit]
    return pa.table(
        [
            token[order].astype(np.int32),
            (feature[order] + events.first).astype(np.int32),
            counts[order].astype(np.int64),
            share[order],
        ],
        schema=schema.TABLES["feature_tokens"].arrow_schema(),
    )
