"""Runs a language model over rows of tokens and keeps what it computes at some sites.

Enters: a `LanguageModel`, `TokenRows`, sites. Leaves: an `ActivationStore`, or batches of rows for those who
use them at once (`activations.streaming`, the index).

1. Token rows are divided into shards of equal numbers of rows; each process takes a part of those still missing.
2. A batch of rows passes through the model up to the deepest site; all sites are read in that one pass.
3. Rows at padding and at special tokens are dropped; the rest is rounded to the store's type and checked to be finite.
4. A full shard is written by a second thread while the model goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from activations.buckets import capture_tokens
from activations.processes import current
from activations.progress import progress
from activations.quantized import quantized
from activations.store import (
    DTYPES,
    FORMAT,
    FORMAT_INT8,
    ActivationStore,
    Manifest,
    check_space,
    scale_name,
)
from activations.tokens import TokenRows

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class HarvestConfig:
    """What is kept of a model's activations, and how."""

    __pydantic_config__ = {"extra": "forbid"}

    sites: list[str] = field(default_factory=list)
    """Sites to harvest; empty for those that the config's SAEs read."""
    dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"
    """Type in which rows are stored. `int8` takes half the room of bfloat16, at a loss that
    `python -m benchmarks.eight_bits` measures; it concerns stores alone (streams hold bfloat16 then)."""
    batch_tokens: int = 8192
    """Tokens in one forward pass."""
    shard_rows: int = 65_536
    """Rows in one shard, before special tokens are dropped."""
    store: bool = True
    """Keep rows on disk; otherwise they go straight into training through a shuffle buffer."""
    buffer_rows: int = 262_144
    """Rows that are mixed together: the shuffle buffer of a stream (with what is drawn ahead, twice as many are in
    memory), the largest window of a store (whole shards; the next one is read meanwhile)."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "shard_rows", "buffer_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected 1 or more: raise it")


@dataclass(frozen=True)
class RowBatch:
    """Activations of the kept tokens of a few token rows, by site, and where they come from."""

    values: dict[str, Tensor]
    """Float[n, d_in] by site, on the model's device."""
    documents: np.ndarray
    """Int32[n]: index of the document."""
    positions: np.ndarray
    """Int32[n]: position in the document."""


def row_batch(lm: LanguageModel, rows: TokenRows, sites: Sequence[str], excluded: frozenset[int]) -> RowBatch:
    """Reads the activations of the tokens of `rows` that are neither padding nor `excluded`."""
    keep = rows.trained_mask(excluded)
    values = capture_tokens(lm, rows.tokens, rows.mask(), keep, sites)
    batch = RowBatch(values, rows.documents[keep], rows.positions[keep])
    _check_finite(batch, rows.names)
    return batch


def _check_finite(batch: RowBatch, names: list[str]) -> None:
    for site, value in batch.values.items():
        # a sum is finite only if all its terms are; overflow of the sum itself is ruled out below
        if value.numel() == 0 or bool(torch.isfinite(value.sum(dtype=torch.float32))):
            continue
        bad = (~torch.isfinite(value)).any(dim=1).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(
                f"site {site!r} is not finite at position {batch.positions[row]} of document "
                f"{names[batch.documents[row]]!r} (row {row} of its batch), expected numbers: "
                "load the model with dtype=float32 or leave the document out"
            )


def special_ids(lm: LanguageModel, exclude: bool) -> frozenset[int]:
    """Returns the tokens whose activations are left out: the special ones, or none."""
    return lm.special_ids if exclude else frozenset()


def harvest(
    lm: LanguageModel,
    rows: TokenRows,
    config: HarvestConfig,
    out: str | Path,
    *,
    sites: Sequence[str] = (),
    exclude_special_tokens: bool = True,
    provenance: dict[str, Any] | None = None,
) -> ActivationStore:
    """Writes the activations of `rows` at `sites` (default: the config's) into a store, or finishes one begun before.

    A store of another model, other tokens or other settings in the same folder is refused. Of several processes
    (`activations.processes`) each writes its part of the shards, and all return the same store.
    """
    wanted = list(sites) or list(config.sites)
    if not wanted:
        raise ValueError("no sites to harvest, expected at least one: set harvest.sites, such as ['resid_post.1']")
    processes = current()
    excluded = special_ids(lm, exclude_special_tokens)
    manifest = _manifest(lm, rows, config, wanted, excluded, provenance or {})
    processes.on_first(lambda: ActivationStore.create(out, manifest))
    store = ActivationStore.create(out, manifest)
    missing = [index for index in range(manifest.n_shards) if index not in store.shards]
    processes.wait()  # all have seen what is missing before one writes
    todo = missing[processes.share(len(missing))]
    per_shard = manifest.shard_token_rows * rows.context_tokens
    row_bytes = sum(manifest.sites.values()) * DTYPES[manifest.dtype].itemsize + 8
    check_space(store.path, min(len(todo) * per_shard, rows.n_tokens) * row_bytes)
    done = manifest.n_shards - len(missing)
    with progress("harvest", (done + len(todo)) * per_shard, "tok", done * per_shard) as advance:
        _write_shards(lm, rows, store, todo, excluded, processes.rank, advance)
    processes.wait()
    return ActivationStore.open(out)


def _manifest(
    lm: LanguageModel,
    rows: TokenRows,
    config: HarvestConfig,
    sites: list[str],
    excluded: frozenset[int],
    provenance: dict[str, Any],
) -> Manifest:
    shard_token_rows = max(1, config.shard_rows // rows.context_tokens)
    return Manifest(
        sites={site: lm.site_width(site) for site in sites},
        dtype=config.dtype,
        format=FORMAT_INT8 if config.dtype == "int8" else FORMAT,
        n_shards=-(-len(rows) // shard_token_rows),
        shard_token_rows=shard_token_rows,
        batch_token_rows=max(1, config.batch_tokens // rows.context_tokens),
        provenance={
            "model_name": lm.name,
            "model_revision": lm.revision,
            "model_weight_hash": lm.weight_hash(),
            "model_dtype": str(lm.dtype).removeprefix("torch."),
            "tokenizer": type(lm.tokenizer).__name__,
            "tokens_sha256": rows.fingerprint(),
            "token_rows": len(rows),
            "context_tokens": rows.context_tokens,
            "excluded_tokens": sorted(excluded),
            **provenance,
        },
    )


def _write_shards(
    lm: LanguageModel,
    rows: TokenRows,
    store: ActivationStore,
    todo: Sequence[int],
    excluded: frozenset[int],
    rank: int,
    advance: Callable[[float], None],
) -> None:
    manifest = store.manifest
    dtype = DTYPES[manifest.dtype]
    with ThreadPoolExecutor(1, thread_name_prefix="harvest-writer") as pool:
        writing: Future[Any] | None = None
        for index in todo:
            part = rows[index * manifest.shard_token_rows : (index + 1) * manifest.shard_token_rows]
            tensors = _shard(lm, part, manifest, excluded, dtype, advance)
            if writing is not None:
                writing.result()
            writing = pool.submit(store.write, index, tensors, rank)
        if writing is not None:
            writing.result()


def _shard(
    lm: LanguageModel,
    part: TokenRows,
    manifest: Manifest,
    excluded: frozenset[int],
    dtype: torch.dtype,
    advance: Callable[[float], None],
) -> dict[str, Tensor]:
    keep = part.trained_mask(excluded)
    count, done = int(np.count_nonzero(keep)), 0
    tensors = {site: torch.empty((count, width), dtype=dtype) for site, width in manifest.sites.items()}
    if dtype == torch.int8:
        tensors |= {scale_name(site): torch.empty(count, dtype=torch.float32) for site in manifest.sites}
    for batch_rows in part.batches(manifest.batch_token_rows):
        batch = row_batch(lm, batch_rows, list(manifest.sites), excluded)
        size = len(batch.documents)
        here = slice(done, done + size)
        for site, value in batch.values.items():
            if dtype == torch.int8:
                value, scales = quantized(value)
                tensors[scale_name(site)][here].copy_(scales)
            tensors[site][here].copy_(value)
        done += size
        advance(batch_rows.tokens.size)
    tensors["document"] = torch.from_numpy(part.documents[keep])
    tensors["position"] = torch.from_numpy(part.positions[keep])
    return tensors


def iter_row_batches(
    lm: LanguageModel, rows: TokenRows, sites: Sequence[str], batch_tokens: int, exclude_special_tokens: bool = True
) -> Iterator[RowBatch]:
    """Yields the activations of all kept tokens in the order of the corpus."""
    excluded = special_ids(lm, exclude_special_tokens)
    for part in rows.batches(max(1, batch_tokens // rows.context_tokens)):
        yield row_batch(lm, part, sites, excluded)
