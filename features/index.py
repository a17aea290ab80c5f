"""The index: one pass of text through the language model and the SAE, for all features at once.

Enters: an SAE of any architecture, the language model it reads, and rows of tokens with their documents. Leaves: a
dictionary folder (`features.store`).

1. Forward up to the SAE's deepest site, encode; the non-zero codes at counted tokens are the events (feature, token
   number, activation). They gather in `features.events`, which turns them from the order of the text into that of the
   features.
2. Range by range of features: the table of all events, counts, mean, standard deviation, maximum, a histogram of
   quarter octaves, the examples (`features.examples`), and the tokens that hold most of each feature's activation.
3. From the weights: neighbours (`features.geometry`) and effects on logits (`features.logit_effects`).
4. The build folder is complete when `dictionary.json` names it, which happens in one step at the end. A killed build
   is never opened; the same call goes on from its last complete chunk of events.

Algorithm: statistics are exact, over every event; nothing is estimated from a sample. Where activations may be
negative, events and examples keep the sign, and everything that says how strong a feature is goes by the size.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from activations.buckets import capture_tokens
from activations.processes import current
from activations.progress import progress
from features import coactivation, geometry, logit_effects, schema, wiring
from features.event_tables import write_event_tables, write_table
from features.events import EventSpill
from features.store import FORMAT, MANIFEST, describe_files, read_manifest, write_json
from features.text import TOKEN_ROW_GROUP

SPILL_BYTES_PER_EVENT = 12


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
    """Nearest features by cosine of decoder rows, and as many by cosine of encoder rows."""
    coactivations: int = 10
    """Features kept of those that are active on the same tokens most."""
    coactivation_tokens: int = 131_072
    """Tokens on which these are counted: all where the text has no more, else a sample of this size."""
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
        least = ("batch_tokens", "examples", "per_document", "window_tokens", "histogram_bins", "feature_tokens")
        for name in (*least, "coactivation_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"index.{name}={getattr(self, name)}, expected at least 1: raise it")
        for name in ("strata", "stratum_examples", "neighbours", "coactivations", "logits"):
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
    kept = getattr(rows, "kept", None)
    kept = np.ones(tokens.shape, dtype=bool) if kept is None else kept
    if total_tokens is not None and tokens.size:
        some = slice(max(1, -(-total_tokens // tokens.shape[1])))
        tokens, documents, positions, kept = tokens[some], documents[some], positions[some], kept[some]
    if not _in_order(documents, positions):
        real = documents >= 0
        first = np.where(real.any(1), real.argmax(1), 0)
        line = np.arange(len(documents))
        order = np.lexsort(
            (positions[line, first], np.where(real.any(1), documents[line, first], np.iinfo(np.int32).max))
        )
        tokens, documents, positions, kept = tokens[order], documents[order], positions[order], kept[order]
        if not _in_order(documents, positions):
            raise ValueError(
                "the rows to index hold a token twice or documents out of order, expected rows of consecutive tokens: "
                "pack the documents with activations.tokens"
            )
    real = documents >= 0
    ordinal_of = np.full(documents.shape, -1, dtype=np.int64)
    ordinal_of[real] = np.arange(int(real.sum()))
    flat = tokens[real].astype(np.int32)
    is_indexed = kept[real] & ~np.isin(flat, np.fromiter(special_ids, dtype=np.int32, count=len(special_ids)))
    if not is_indexed.any():
        raise ValueError(f"no token to index among {flat.size} tokens: expected text; check the data section")
    columns = np.broadcast_to(np.arange(documents.shape[1], dtype=np.int32), documents.shape)
    arranged = {"tokens": tokens, "documents": documents, "positions": positions}
    if getattr(rows, "kept", None) is not None:
        arranged["kept"] = kept
    return Corpus(
        dataclasses.replace(rows, **arranged),
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
    sae: Any, lm: Any, corpus: Corpus, sites: Sequence[str], batch_tokens: int, batches: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Yields the events of the batches of these numbers as (features, ordinals, activations, tokens).

    Raises:
        ValueError: activations that are not finite; the message names site, row and document.
    """
    tokens = np.asarray(corpus.rows.tokens)
    batch_rows = max(1, batch_tokens // tokens.shape[1])
    device = next(sae.parameters()).device
    indexed = np.zeros(corpus.ordinal_of.shape, dtype=bool)
    indexed[corpus.ordinal_of >= 0] = corpus.is_indexed
    for number in batches:
        rows = slice(number * batch_rows, (number + 1) * batch_rows)
        is_token, wanted = corpus.ordinal_of[rows] >= 0, indexed[rows]
        with torch.no_grad():
            captured = capture_tokens(lm, tokens[rows], is_token, wanted, sites)
            kept = {site: x.to(device) for site, x in captured.items()}
            codes = wiring.encode_sites(sae, kept)
        values, indices = codes.values.float().cpu().numpy(), codes.indices.cpu().numpy()
        ordinals = corpus.ordinal_of[rows][wanted]
        for site, x in kept.items():
            _check_finite(x, site, ordinals, corpus)
        is_event = (indices >= 0) & (values != 0)
        row_of = np.repeat(ordinals, values.shape[1])
        if is_event.all():
            events = indices.reshape(-1), row_of, values.reshape(-1)
        else:
            flat = is_event.reshape(-1)
            events = indices[is_event], row_of[flat], values[is_event]
        yield events[0], events[1], events[2], int(is_token.sum())


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
    other_model: bool = False,
) -> Any:
    """Builds the dictionary of `sae` over `rows` (TokenRows) in the folder `out` and returns it opened.

    With `on_exists="resume"` a killed build goes on and a finished one of the same inputs is returned; a folder that
    holds another dictionary is refused unless `on_exists="replace"`. `other_model` admits a model that the SAE was not
    trained on, to compare the two. `data` is recorded as the source of the text.
    Of several processes (`activations.processes`) each encodes its part of the batches; the first makes the tables.

    Raises:
        ValueError: no tokens, another model or width than the SAE's, activations that are not finite, too many events.
        FileExistsError: `out` holds a dictionary of other inputs.
    """
    from features.dictionary import Dictionary

    config = config or IndexConfig()
    out = Path(out)
    started = time.perf_counter()
    if not (sae.metadata.get("site") or sae.metadata.get("sites")):
        raise ValueError("the SAE names no site, expected metadata['site'] such as 'resid_post.1': set it and save")
    sites, d_in = sae.sites, sae.config.d_in
    for site in sites:
        if not lm.has_site(site):
            raise ValueError(
                f"the SAE reads {site}, which model {lm.name} does not have: index with the SAE's own model"
            )
        if (width := lm.site_width(site)) != d_in:
            raise ValueError(
                f"the SAE has d_in={d_in}, model {lm.name} has width {width} at {site}: use the SAE's model"
            )
    recorded = sae.metadata.get("model_weight_hash")
    if recorded and recorded != lm.weight_hash() and not other_model:
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
    n_events = _check_size(sae, corpus, config, out)

    def prepare() -> None:
        if existing is not None and existing["fingerprint"] == fingerprint:
            shutil.rmtree(build, ignore_errors=True)
            os.unlink(out / MANIFEST)
        EventSpill.prepare(build / "spill")

    processes = current()
    processes.on_first(prepare)
    spill = EventSpill(build / "spill", sae.W_dec.shape[0])
    batch_rows = max(1, config.batch_tokens // corpus.ordinal_of.shape[1])
    missing = spill.missing(-(-len(corpus.ordinal_of) // batch_rows))
    processes.wait()  # all have seen what is missing before one writes
    mine = missing[processes.share(len(missing))]
    tokens_of = np.add.reduceat((corpus.ordinal_of >= 0).sum(1), np.arange(0, len(corpus.ordinal_of), batch_rows))
    done = corpus.tokens.size - int(tokens_of[missing].sum())
    with progress("index", done + int(tokens_of[mine].sum()), "tokens", done) as advance:
        encoding = encode_events(sae, lm, corpus, sites, config.batch_tokens, mine)
        for number, (features, ordinals, activations, n_tokens) in zip(mine, encoding, strict=True):
            spill.append(number, features, ordinals, activations)
            if spill.n_events > config.event_limit:
                _refuse_events(spill.n_events, config.event_limit)
            advance(n_tokens)
    spill.flush()
    processes.wait()
    spill.read_again()
    if spill.n_events > config.event_limit:
        _refuse_events(spill.n_events, config.event_limit)
    encoded = time.perf_counter()

    def finish() -> None:
        expected = spill.n_events or n_events
        facts = _write_tables(build, spill, corpus, config, sae, lm, expected, exclude_special_tokens)
        seconds = {
            "forward_and_encode": round(encoded - started, 2),
            "tables": round(time.perf_counter() - encoded, 2),
        }
        manifest = {
            "format": FORMAT,
            "build": build.name,
            "name": name or out.resolve().name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": fingerprint,
            **facts,
            "data": dict(data or sae.metadata.get("data") or {}),
            "index": dataclasses.asdict(config),
            "seconds": seconds,
            "files": describe_files(build),
        }
        write_json(out / MANIFEST, manifest)
        if existing is not None and existing["build"] != build.name:
            shutil.rmtree(out / existing["build"], ignore_errors=True)

    processes.on_first(finish)
    return Dictionary.open(out, model=lm)


def _write_tables(
    build: Path,
    spill: EventSpill,
    corpus: Corpus,
    config: IndexConfig,
    sae: Any,
    lm: Any,
    n_events: int,
    exclude_special_tokens: bool,
) -> dict[str, Any]:
    """Writes everything that the dictionary holds and returns what its manifest says of it."""
    with progress("tables", n_events, "events") as advance:
        live = write_event_tables(build, spill, corpus, config, sae, lm, advance)
    _write_corpus_tables(build, corpus, lm)
    write_table(build, "neighbours", geometry.neighbours(sae.W_dec, config.neighbours))
    write_table(build, "encoder_neighbours", geometry.neighbours(sae.W_enc, config.neighbours))
    for table, rows in logit_effects.tables(sae, lm, corpus, config).items():
        write_table(build, table, rows)
    sae.save(str(build / "sae"), format="saelens")
    spill.remove()
    return {
        "n_features": int(sae.W_dec.shape[0]),
        "n_live": live,
        "n_tokens": int(corpus.tokens.size),
        "n_indexed_tokens": corpus.n_indexed,
        "n_documents": int(np.unique(corpus.documents).size),
        "n_events": spill.n_events,
        "coactivation_tokens": coactivation.sample_size(corpus.n_indexed, spill.n_events, config.coactivation_tokens),
        "context_tokens": int(corpus.ordinal_of.shape[1]),
        "exclude_special_tokens": exclude_special_tokens,
        "site": sae.sites[0],
        "sites": sae.sites,
        "target_sites": sae.target_sites,
        "sae": {"d_in": int(sae.config.d_in), "d_sae": int(sae.W_dec.shape[0]), **_sae_facts(sae)},
        "model": _model_facts(lm),
    }


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
        "n_sites": int(getattr(config, "n_sites", 1)),
    }


def _model_facts(lm: Any) -> dict[str, Any]:
    return {"name": lasting_name(str(lm.name)), "revision": lm.revision, "weight_hash": lm.weight_hash()}


def _fingerprint(sae: Any, lm: Any, corpus: Corpus, config: IndexConfig, exclude_special_tokens: bool) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(lm.weight_hash().encode())
    for part in (corpus.rows.tokens, corpus.rows.documents, corpus.rows.positions):
        digest.update(np.ascontiguousarray(part).tobytes())
    if getattr(corpus.rows, "kept", None) is not None:
        digest.update(np.packbits(corpus.is_indexed).tobytes())
    digest.update("\0".join(corpus.rows.names).encode("utf-8", "surrogatepass"))
    how = sae.config
    encoding = [how.architecture, how.k, how.activation, how.subtracts_b_dec, how.normalize_activations]
    digest.update(json.dumps([encoding, sae.sites, sae.target_sites]).encode())
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


def _write_corpus_tables(build: Path, corpus: Corpus, lm: Any) -> None:
    token_table = pa.table(
        [corpus.documents, corpus.positions, corpus.tokens, corpus.context_positions, corpus.is_indexed],
        schema=schema.TABLES["token_ids"].arrow_schema(),
    )
    write_table(build, "token_ids", token_table, TOKEN_ROW_GROUP)
    documents, first, counts = np.unique(corpus.documents, return_index=True, return_counts=True)
    names = corpus.rows.names
    write_table(
        build,
        "documents",
        pa.table(
            [documents, [str(names[i]) for i in documents], counts.astype(np.int32), first],
            schema=schema.TABLES["documents"].arrow_schema(),
        ),
    )
    size = max(int(lm.vocab_size), int(corpus.tokens.max()) + 1)
    counts = np.bincount(corpus.tokens[corpus.is_indexed], minlength=size)
    write_table(
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
