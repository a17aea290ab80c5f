"""Indexing against its own floor: the forward pass up to the site and the SAE's encoding of the same batches.

    python -m benchmarks.index [--write] [--tokens N] [--repeats N] [--model M] [--site S] [--d-sae N] [--k N]

The floor captures and encodes every batch and drops the codes. The index does the same and writes a whole dictionary:
events, statistics, histograms, examples, search, neighbours, logits. The share is floor / index in wall time, and in
processor time too, which a busy machine disturbs less. Events written are counted against the codes first; nothing is
printed when they differ. The model is the embedded one where it is installed, otherwise a random one of its shape;
the SAE is random.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from activations import LanguageModel, TokenRows
from benchmarks.harvest import model as default_model
from benchmarks.harvest import token_rows
from benchmarks.report import finish, interleaved, spread
from features import IndexConfig, build_index
from sae import SAE, SAEConfig


def random_sae(lm: LanguageModel, site: str, d_sae: int, k: int) -> SAE:
    """Returns a TopK SAE with random unit directions."""
    width = lm.site_width(site)
    sae = SAE(SAEConfig(architecture="topk", d_in=width, d_sae=d_sae, k=k))
    directions = torch.nn.functional.normalize(
        torch.randn(d_sae, width, generator=torch.Generator().manual_seed(0)), dim=1
    )
    with torch.no_grad():
        sae.W_enc.copy_(directions)
        sae.W_dec.copy_(directions)
    sae.metadata["site"] = site
    return sae.to(lm.device)


def floor(lm: LanguageModel, sae: SAE, rows: TokenRows, config: IndexConfig) -> Callable[[], int]:
    """Returns a function that captures and encodes all rows and returns the number of active codes."""
    site = sae.site

    @torch.no_grad()
    def run() -> int:
        active = torch.zeros((), dtype=torch.long, device=lm.device)
        for part in rows.batches(max(1, config.batch_tokens // rows.context_tokens)):
            x = lm.capture(part.torch_tokens(lm.device), None, [site])[site]
            active += sae.encode(x.reshape(-1, x.shape[-1])).active.sum()
        return int(active)

    return run


def measure(
    lm: LanguageModel, site: str, d_sae: int, k: int, n_tokens: int, repeats: int, folder: Path
) -> dict[str, Any]:
    """Times the floor and the index in turn."""
    rows = token_rows(lm, n_tokens)
    config = IndexConfig()
    sae = random_sae(lm, site, d_sae, k)
    bare = floor(lm, sae, rows, config)
    out = folder / "dictionary"

    def index() -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)
        dictionary = build_index(sae, lm, rows, out, config, exclude_special_tokens=False)
        dictionary.close()
        return dictionary.info

    info = index()
    if info["n_events"] != bare():
        raise AssertionError(f"the index holds {info['n_events']} events, the codes {bare()}")
    processor: dict[str, list[float]] = {"forward + encode": [], "index": []}

    def clocked(name: str, run: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            began = time.process_time()
            run()
            processor[name].append(time.process_time() - began)

        return timed

    candidates = {"forward + encode": clocked("forward + encode", bare), "index": clocked("index", index)}
    times = interleaved(candidates, repeats, warmup=0)
    share = statistics.median(b / i for b, i in zip(*times.values(), strict=True))
    processor_share = statistics.median(b / i for b, i in zip(*processor.values(), strict=True))
    index_s = statistics.median(times["index"])
    return {
        "model": lm.name,
        "site": site,
        "d_sae": d_sae,
        "k": k,
        "tokens": n_tokens,
        "events": info["n_events"],
        "cases": {name: spread(values) for name, values in times.items()},
        "share_of_forward_and_encode": round(share, 3),
        "share_in_processor_time": round(processor_share, 3),
        "tokens_per_s": round(n_tokens / index_s),
        "stages_s": info["seconds"],
        "folder_bytes": sum(file["bytes"] for file in info["files"].values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=None, help="folder or hub name; default the embedded model")
    parser.add_argument("--site", default="resid_post.1")
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    given = parser.parse_args()
    lm = LanguageModel.load(given.model) if given.model else default_model()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(lm, given.site, given.d_sae, given.k, given.tokens, given.repeats, Path(folder))
    for name, case in figures["cases"].items():
        print(f"{name:20} {case['median_ms']:9.0f} ms")
    print(
        f"index runs at {figures['share_of_forward_and_encode']:.1%} of forward + encode "
        f"({figures['share_in_processor_time']:.1%} in processor time), {figures['tokens_per_s']:,} tokens/s"
    )
    finish("index", figures, given.write)


if __name__ == "__main__":
    main()
