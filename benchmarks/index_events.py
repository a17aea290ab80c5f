"""What the index costs an event, without a model: synthetic codes in, tables out.

    python -m benchmarks.index_events [--write] [--tokens N] [--d-sae N] [--k N] [--repeats N]

Every token has `k` distinct latents: some from its document's own small set, kept for a stretch of tokens (bursts), the
others from a Zipf distribution over all latents; tokens are Zipf distributed too, documents of log-normal length. The
codes are drawn before the clock starts, as the model and the encoder would have made them; the clock runs from the
codes to the finished Parquet files.

* statistics: counts, moments, histograms, tokens and examples of every feature (`index.events: examples`).
* complete: the same, and all events sorted by feature and written (`index.events: all`).

Memory is the highest resident set of the process above the one before the first batch, after a small run that compiles
and loads everything. Before anything is printed the counts of all features are held against those of the codes.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from activations import TokenRows
from benchmarks.report import Records, spread
from features.corpus import Corpus, arrange_corpus
from features.index import IndexConfig

VOCAB = 32_768
CONTEXT = 128
BATCH_ROWS = 64
STRETCH_TOKENS = 16
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices [n, k], values [n, k] and ordinals [n] of the tokens of a batch."""


def corpus_of(n_tokens: int, seed: int) -> Corpus:
    """Returns tokens drawn by Zipf's law in documents of log-normal length (median 400)."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(6.0, 1.0, n_tokens // 200 + 8).astype(np.int64), 16)
    owner = np.repeat(np.arange(lengths.size), lengths)[:n_tokens].astype(np.int32)
    first = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
    position = (np.arange(n_tokens) - np.repeat(first, np.diff(np.append(first, n_tokens)))).astype(np.int32)
    tokens = zipf(VOCAB, n_tokens, rng).astype(np.int32)
    shape = (-1, CONTEXT)
    names = [f"document {number}" for number in range(int(owner[-1]) + 1)]
    rows = TokenRows(tokens.reshape(shape), owner.reshape(shape), position.reshape(shape), names)
    return arrange_corpus(rows, frozenset(), None)


def zipf(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns numbers below `n` of which the r-th most frequent has a share near 1 / (r + 10)."""
    steps = np.log(np.arange(n + 1) + 10)
    drawn = np.searchsorted(steps, steps[0] + rng.random(size) * (steps[-1] - steps[0]), side="right") - 1
    return np.random.default_rng(0).permutation(n)[np.clip(drawn, 0, n - 1)]


def batches(corpus: Corpus, d_sae: int, k: int, seed: int) -> Iterator[Batch]:
    """Yields (indices [n, k], values [n, k], ordinals [n]) of batch after batch, latents distinct in each token."""
    rng = np.random.default_rng(seed)
    own_latents = zipf(d_sae, 64 * (int(corpus.documents[-1]) + 1), rng).reshape(-1, 64)
    n_tokens, step = corpus.tokens.size, BATCH_ROWS * CONTEXT
    for start in range(0, n_tokens, step):
        ordinals = np.arange(start, min(start + step, n_tokens))
        n = ordinals.size
        # within a stretch of its document a token keeps drawing from the same latents
        stretch = corpus.documents[ordinals].astype(np.int64) * 4096 + corpus.positions[ordinals] // STRETCH_TOKENS
        from_own = (stretch[:, None] * 31 + rng.integers(0, k // 2, (n, k // 2))) % 64
        drawn = np.concatenate(
            [own_latents[corpus.documents[ordinals][:, None], from_own], zipf(d_sae, n * k, rng).reshape(n, k)], axis=1
        )
        order = np.argsort(drawn, axis=1)
        sorted_ = np.take_along_axis(drawn, order, axis=1)
        again = np.zeros(drawn.shape, dtype=bool)
        np.put_along_axis(
            again, order, np.concatenate([np.zeros((n, 1), bool), sorted_[:, 1:] == sorted_[:, :-1]], axis=1), axis=1
        )
        kept = np.sort(np.argsort(again, axis=1, kind="stable")[:, :k], axis=1)
        doubled = np.take_along_axis(again, kept, axis=1)
        indices = np.where(doubled, -1, np.take_along_axis(drawn, kept, axis=1))  # int64, as torch gives them
        values = rng.gamma(2.0, 1.0, indices.shape).astype(np.float32) + np.float32(0.01)
        yield indices, np.where(doubled, np.float32(0), values), ordinals


def build(corpus: Corpus, drawn: list[Batch], d_sae: int, events: str, folder: Path) -> dict[str, Any]:
    """Builds the event tables from drawn codes; returns seconds, counts and bytes."""
    from features.event_tables import write_event_tables
    from features.events import EventSpill
    from features.text_events import write_text_events

    config = IndexConfig()
    EventSpill.prepare(folder / "spill")
    spill = EventSpill(folder / "spill", d_sae)
    start = time.perf_counter()
    for number, (indices, values, ordinals) in enumerate(drawn):
        spill.append(number, indices, values, ordinals)
    spill.close()
    began = time.perf_counter()
    norms = np.ones(d_sae, dtype=np.float32)
    write_event_tables(folder, spill, corpus, config, norms, VOCAB, lambda _: None, keeps_all=events == "all")
    if events == "all":
        write_text_events(folder, spill, corpus.tokens.size)
    spill.remove()
    stages = {"take": began - start, "tables": time.perf_counter() - began}
    counts = np.sum([np.bincount(indices[indices >= 0], minlength=d_sae) for indices, _, _ in drawn], axis=0)
    found = pq.read_table(folder / "features.parquet", columns=["count"])["count"].to_numpy()
    if not np.array_equal(found, counts):
        raise AssertionError("the counts of the features are not those of the codes")
    sizes = {path.stem: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return {"stages_s": stages, "events": int(counts.sum()), "bytes": sizes}


def reset_peak() -> int:
    """Forgets the highest resident set and returns the present one, in bytes (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> int:
    """Returns VmRSS or VmHWM of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def measure(n_tokens: int, d_sae: int, k: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Builds the tables `repeats` times in either way; yields the median cost of an event, peak memory and size."""
    small, corpus = corpus_of(32_768, 0), corpus_of(n_tokens // CONTEXT * CONTEXT, 0)
    few, drawn = list(batches(small, d_sae, k, 1)), list(batches(corpus, d_sae, k, 1))
    made: dict[str, list[dict[str, Any]]] = {"examples": [], "all": []}
    for turn in range(1 + repeats):
        for kind, results in made.items():
            with tempfile.TemporaryDirectory() as folder:
                before = reset_peak()
                result = build(corpus if turn else small, drawn if turn else few, d_sae, kind, Path(folder))
                if turn:
                    results.append(result | {"peak": resident("VmHWM") - before})
    for kind, results in made.items():
        yield summary(kind, results, corpus.tokens.size, d_sae, k)


def summary(kind: str, made: list[dict[str, Any]], n_tokens: int, d_sae: int, k: int) -> dict[str, Any]:
    """Returns the figures of one way to build."""
    n_events = made[0]["events"]
    times = [float(sum(result["stages_s"].values())) for result in made]
    return {
        "what": kind,
        "tokens": n_tokens,
        "d_sae": d_sae,
        "k": k,
        "events": n_events,
        "time": spread(times),
        "ns_per_event": round(1e9 * float(np.median(times)) / n_events, 1),
        "stages_s": {name: round(seconds, 2) for name, seconds in made[0]["stages_s"].items()},
        "peak_mb": round(max(result["peak"] for result in made) / 1e6),
        "bytes": made[0]["bytes"],
        "bytes_per_event": round(sum(made[0]["bytes"].values()) / n_events, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(2)
    records = Records("index_events", given.write)
    for figures in measure(given.tokens, given.d_sae, given.k, given.repeats):
        records.add("case", **figures)


if __name__ == "__main__":
    main()
