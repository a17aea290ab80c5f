"""Questions to a large dictionary: 131,072 features and 100 million events, made up and written as the index writes.

    python -m benchmarks.dictionary [--write] [--folder DIR] [--features N] [--tokens N] [--samples N] [--fresh N]

1. Made up: tokens by a Zipf law in documents of 2,500; 32 latents at each, half of them given by the token, half
   drawn by another Zipf law; the events go through the index's own spill, sort and writers. Neighbours and logits are
   drawn, because their cost is not what is measured. Every feature has an explanation. `--folder` keeps the dictionary
   and takes it up again.
2. The page of a feature (`Dictionary.feature`), warm: the median over features drawn by seed, each for the first time
   in the process. Cold: the same in fresh processes whose files were dropped from the system's cache
   (`posix_fadvise`): once with the folder opened and nothing asked, once with everything from `Dictionary.open` on.
3. Search by token, by words of explanations, and neighbours, in the opened process.

What was read is checked against the events before anything is timed. Times are medians with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.report import Records, spread
from features import Dictionary, IndexConfig
from features.corpus import Corpus, write_corpus_tables
from features.event_tables import FEATURE_ROW_GROUP, write_event_tables, write_table
from features.events import EventSpill
from features.labels import write_explanations
from features.pages import write_pages
from features.relations import PAGE_TABLES
from features.schema import TABLES
from features.store import FORMAT, MANIFEST, describe_files, write_json
from features.text_events import write_text_events
from sae import SAE, SAEConfig

VOCABULARY = 32_768
DOCUMENT_TOKENS = 2500
SLOTS = 32
BATCH_TOKENS = 125_000


@dataclass(frozen=True)
class MadeUp:
    """What the writers ask of a language model."""

    vocab_size: int = VOCABULARY

    def token_strings(self, ids: list[int]) -> list[str]:
        """Spelled numbers, every other one with a blank before it."""
        return [f"{' ' if i % 2 else ''}{np.base_repr(7919 * (i + 1), 36).lower()}" for i in ids]


@dataclass(frozen=True)
class Rows:
    """The part of token rows that the writers read."""

    names: list[str]


def zipf(generator: np.random.Generator, size: int | tuple[int, int], n: int) -> np.ndarray:
    """Draws numbers below `n`, number i about as often as 1 / (i + 10)."""
    low, high = np.log(10.0), np.log(n + 10.0)
    return np.minimum(np.exp(low + (high - low) * generator.random(size)) - 10, n - 1).astype(np.int64)


def make(folder: Path, n_features: int, n_tokens: int) -> dict[str, Any]:
    """Writes the dictionary; returns how long it took."""
    began = time.perf_counter()
    generator = np.random.default_rng(0)
    build = folder / "build-madeup"
    build.mkdir(parents=True)
    shuffled = generator.permutation(VOCABULARY).astype(np.int32)
    tokens = shuffled[zipf(generator, n_tokens, VOCABULARY)]
    ordinals = np.arange(n_tokens)
    documents, positions = (ordinals // DOCUMENT_TOKENS).astype(np.int32), (ordinals % DOCUMENT_TOKENS).astype(np.int32)
    names = [f"made/up_{i}.txt" for i in range(int(documents[-1]) + 1)]
    corpus = Corpus(Rows(names), ordinals[None], tokens, documents, positions, positions, np.ones(n_tokens, dtype=bool))
    EventSpill.prepare(build / "spill")
    spill = EventSpill(build / "spill", n_features)
    by_rank = generator.permutation(n_features).astype(np.int32)
    for batch, first in enumerate(range(0, n_tokens, BATCH_TOKENS)):
        here = tokens[first : first + BATCH_TOKENS].astype(np.int64)
        given = (here[:, None] * 48_271 + np.arange(SLOTS // 2) * 69_621) * 16_807 % n_features
        drawn = by_rank[zipf(generator, (here.size, SLOTS // 2), n_features)]
        features = np.sort(np.concatenate([given.astype(np.int32), drawn], axis=1), axis=1)
        features[:, 1:][features[:, 1:] == features[:, :-1]] = -1
        activations = generator.gamma(2.0, 1.0, features.shape).astype(np.float32) + 1e-3
        spill.append(batch, features, activations, ordinals[first : first + here.size])
    spill.close()
    sae = SAE(SAEConfig(architecture="topk", d_in=16, d_sae=n_features, k=SLOTS))
    config = IndexConfig()
    lm = MadeUp()
    norms = sae.W_dec.detach().norm(dim=1).numpy()
    written = write_event_tables(build, spill, corpus, config, norms, VOCABULARY, lambda n: None)
    write_text_events(build, spill, n_tokens)
    write_corpus_tables(build, corpus, lm)
    _write_drawn(build, generator, n_features, config)
    paged = time.perf_counter()
    write_pages(build, n_features, PAGE_TABLES)
    paged = time.perf_counter() - paged
    sae.save(str(build / "sae"), format="saelens")
    spill.remove()
    manifest = {
        "format": FORMAT,
        "build": build.name,
        "name": "made up",
        "fingerprint": "",
        "n_features": n_features,
        "n_live": written.live,
        "n_tokens": n_tokens,
        "n_indexed_tokens": n_tokens,
        "n_documents": len(names),
        "n_events": written.events,
        "context_tokens": DOCUMENT_TOKENS,
        "exclude_special_tokens": False,
        "site": "resid_post.0",
        "sae": {"d_in": 16, "d_sae": n_features},
        "model": {"name": "made up", "revision": None, "weight_hash": ""},
        "index": asdict(config),
        "files": describe_files(build),
    }
    write_json(folder / MANIFEST, manifest)
    seconds = time.perf_counter() - began
    with_texts = Dictionary.open(folder)
    words = np.array(lm.token_strings(list(range(VOCABULARY))))
    texts = np.char.strip(words[zipf(generator, (n_features, 12), VOCABULARY)])
    rows = [
        {"feature": i, "method": "made up", "text": " ".join(words), "rule": None, "score": 0.5}
        | {"author": "", "created": ""}
        for i, words in enumerate(texts)
    ]
    table = pa.Table.from_pylist(rows, schema=TABLES["explanations"].arrow_schema())
    write_explanations(with_texts.store, table, "made up")
    with_texts.close()
    return {"made_s": round(seconds, 1), "pages_s": round(paged, 1)}


def _write_drawn(build: Path, generator: np.random.Generator, n: int, config: IndexConfig) -> None:
    k = config.neighbours
    for name in ("neighbours", "encoder_neighbours"):
        columns: list[Any] = [np.repeat(np.arange(n, dtype=np.int32), k), np.tile(np.arange(k, dtype=np.int32), n)]
        columns += [generator.integers(0, n, n * k, dtype=np.int32), generator.random(n * k, dtype=np.float32)]
        write_table(build, name, pa.table(columns, schema=TABLES[name].arrow_schema()), FEATURE_ROW_GROUP)
    k = config.logits
    for name in ("logit_ids", "normed_logit_ids"):
        columns = [
            np.repeat(np.arange(n, dtype=np.int32), 2 * k),
            pa.array(np.tile(np.repeat(np.array(["top", "bottom"]), k), n)),
            np.tile(np.arange(k, dtype=np.int32), 2 * n),
            generator.integers(0, VOCABULARY, 2 * n * k, dtype=np.int32),
            generator.random(2 * n * k, dtype=np.float32),
        ]
        write_table(build, name, pa.table(columns, schema=TABLES[name].arrow_schema()), FEATURE_ROW_GROUP)


def check(dictionary: Dictionary, features: list[int]) -> None:
    """The page says of some features what the events say."""
    for feature in features:
        events = dictionary.store.query("select activation from events where feature = ?", [feature])[0].to_numpy()
        page = dictionary.feature(feature)
        if page.count != events.size or (events.size and abs(page.max_activation - events.max()) > 1e-5):
            raise AssertionError(f"the page of feature {feature} says {page.count} events, there are {events.size}")


def drop_from_cache(folder: Path) -> None:
    """Asks the system to forget the files' contents."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_share(folder: Path) -> float:
    """Share of the files' bytes that stand in the system's cache, as the `fincore` command sees it; NaN without it."""
    paths = [str(path) for path in folder.rglob("*") if path.is_file()]
    try:
        told = subprocess.run(["fincore", "-b", "-n", "-o", "RES,SIZE", *paths], capture_output=True, text=True)
    except FileNotFoundError:
        return float("nan")
    pairs = [tuple(map(int, line.split())) for line in told.stdout.splitlines()]
    return sum(pair[0] for pair in pairs) / max(1, sum(pair[1] for pair in pairs))


def first_page(folder: Path, feature: int) -> dict[str, float]:
    """Opens the folder and asks for one page, its files not in the cache; called in a fresh process."""
    import duckdb

    duckdb.connect().execute("select 1")  # the library itself is loaded
    drop_from_cache(folder)
    began = time.perf_counter()
    dictionary = Dictionary.open(folder)
    dictionary.feature(feature)
    first = time.perf_counter() - began
    other = (feature + 4099) % dictionary.n_features
    drop_from_cache(folder)
    left = resident_share(folder)
    began = time.perf_counter()
    dictionary.feature(other)
    return {"with_open_s": first, "page_s": time.perf_counter() - began, "still_cached": left}


def measure(folder: Path, samples: int, fresh: int) -> dict[str, Any]:
    """Times every question; seconds are spread over features."""
    dictionary = Dictionary.open(folder)
    generator = np.random.default_rng(1)
    drawn = generator.choice(dictionary.n_features, 3 * samples + 5, replace=False).tolist()
    check(dictionary, drawn[:5])
    vocabulary = [token for token in dictionary.text.vocabulary if len(token.strip()) > 2]
    tokens = [vocabulary[i].strip() for i in generator.choice(len(vocabulary), samples, replace=False)]

    def timed(run: Any, given: list[Any]) -> list[float]:
        times = []
        for each in given:
            began = time.perf_counter()
            run(each)
            times.append(time.perf_counter() - began)
        return times

    close = "select neighbour, cosine from neighbours where feature = ? order by rank"
    found: dict[str, list[float]] = {
        "page, warm": timed(dictionary.feature, drawn[5 : 5 + samples]),
        "search by token": timed(lambda token: dictionary.search(token, kind="token"), tokens),
        "neighbours": timed(lambda f: dictionary.store.query(close, [f]), drawn[5 + samples : 5 + 2 * samples]),
        "search explanations": timed(lambda q: dictionary.search(q, kind="explanation"), tokens[:20]),
    }
    dictionary.close()
    cold = []
    for feature in drawn[-fresh:]:
        command = [sys.executable, "-m", "benchmarks.dictionary", "--folder", str(folder), "--first-page", str(feature)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        cold.append(json.loads(done.stdout.splitlines()[-1]))
    found["page, cold"] = [each["page_s"] for each in cold]
    found["open and page, cold"] = [each["with_open_s"] for each in cold]
    facts = dictionary.info
    return {
        "features": facts["n_features"],
        "events": facts["n_events"],
        "tokens": facts["n_tokens"],
        "folder_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "still_cached": max(each["still_cached"] for each in cold),
        "cases": {
            name: spread(times) | {"p95_ms": round(1e3 * float(np.quantile(times, 0.95)), 3), "n": len(times)}
            for name, times in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--folder", type=Path, default=None, help="keep the dictionary there, or take up that one")
    parser.add_argument("--features", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=3_200_000)
    parser.add_argument("--samples", type=int, default=100, help="features and tokens asked for")
    parser.add_argument("--fresh", type=int, default=10, help="fresh processes")
    parser.add_argument("--first-page", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.first_page is not None:
        print(json.dumps(first_page(given.folder, given.first_page)))
        return
    torch.set_num_threads(min(2, torch.get_num_threads()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "dictionary"
        made = {} if (folder / MANIFEST).exists() else make(folder, given.features, given.tokens)
        figures = measure(folder, given.samples, given.fresh)
    Records("dictionary", given.write).add("case", **figures, **made)


if __name__ == "__main__":
    main()
