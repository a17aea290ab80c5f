"""Harvesting against the bare truncated forward pass of the same model, and how fast stores and streams are read.

    python -m benchmarks.harvest [--write] [--tokens N] [--repeats N]

The bare pass is the model cut behind the deepest site, called in a loop on the same batches, its output dropped. The
model is the embedded one where it is installed, otherwise a random Llama of the same shape in the type that
`dtype="auto"` gives a bf16 checkpoint on this machine. Harvested rows are compared with the bare pass first; nothing
is printed when they differ.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations import HarvestConfig, LanguageModel, TokenRows, harvest, stream
from activations.loading import embedded_folder, has_fast_bfloat16
from benchmarks.report import finish, interleaved, spread

SITES = {"one site": ["resid_post.1"], "three sites": ["resid_post.0", "mlp_out.1", "resid_post.1"]}
DEEPEST_LAYER = 1
CONTEXT_TOKENS = 256


def model() -> LanguageModel:
    """Returns the embedded model, or a random one of its shape."""
    try:
        embedded_folder()
    except FileNotFoundError:
        return random_model()
    return LanguageModel.load("embedded")


def random_model() -> LanguageModel:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = device == "cuda" or has_fast_bfloat16()
    words = {f"w{index}": index for index in range(4096)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")))
    network: Any = LlamaForCausalLM(shape)
    network.to(device, torch.bfloat16 if half else torch.float32)
    return LanguageModel(network, tokenizer, name="random Llama of the embedded shape")


def token_rows(lm: LanguageModel, n_tokens: int) -> TokenRows:
    """Returns random tokens: what they say does not change how long they take."""
    shape = (n_tokens // CONTEXT_TOKENS, CONTEXT_TOKENS)
    tokens = np.random.default_rng(0).integers(1, lm.vocab_size, shape).astype(np.int32)
    positions = np.arange(tokens.size, dtype=np.int32).reshape(shape)
    return TokenRows(tokens, np.zeros_like(tokens), positions, ["random"])


def bare_pass(lm: LanguageModel, rows: TokenRows, config: HarvestConfig) -> Callable[[], Tensor]:
    """Returns a function that runs the model, cut behind the deepest site, over all rows."""
    body = lm.model.base_model
    batches = [part.torch_tokens(lm.device) for part in rows.batches(config.batch_tokens // CONTEXT_TOKENS)]

    @torch.no_grad()
    def run() -> Tensor:
        layers, norm = body.layers, body.norm
        body.layers, body.norm = layers[: DEEPEST_LAYER + 1], torch.nn.Identity()
        try:
            for batch in batches:
                out = body(input_ids=batch, use_cache=False).last_hidden_state
        finally:
            body.layers, body.norm = layers, norm
        return out

    return run


def measure(lm: LanguageModel, n_tokens: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Times bare pass, harvests, stream and store in turn."""
    rows = token_rows(lm, n_tokens)
    config = HarvestConfig()
    bare = bare_pass(lm, rows, config)
    numbers = iter(range(1_000_000))

    def run_harvest(sites: list[str]) -> Path:
        out = folder / f"store{next(numbers)}"
        harvest(lm, rows, config, out, sites=sites)
        return out

    def timed_harvest(sites: list[str]) -> None:
        shutil.rmtree(run_harvest(sites))

    kept = run_harvest(SITES["one site"])
    store = harvest(lm, rows, config, kept, sites=SITES["one site"])
    deepest = f"resid_post.{DEEPEST_LAYER}"
    last = torch.cat(list(store.rows(deepest, shuffle=False)))[-len(bare().flatten(0, 1)) :]
    if not torch.equal(last, bare().flatten(0, 1).cpu().to(last.dtype)):
        raise AssertionError("harvested rows differ from the bare pass")

    candidates: dict[str, Callable[[], object]] = {"bare truncated forward": bare}
    for name, sites in SITES.items():
        candidates[f"harvest, {name}"] = lambda sites=sites: timed_harvest(sites)
    candidates["stream, one site"] = lambda: sum(len(chunk) for chunk in stream(lm, rows, deepest, config))
    candidates["read store, shuffled"] = lambda: sum(len(chunk) for chunk in store.rows(deepest))
    times = interleaved(candidates, repeats, warmup=1)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = times["bare truncated forward"]
    result: dict[str, Any] = {}
    for name, values in times.items():
        share = statistics.median(b / v for b, v in zip(base, values, strict=True))
        result[name] = {**spread(values), "tokens_per_s": round(n_tokens / medians[name])}
        if name.startswith(("harvest", "stream")):
            result[name]["share_of_bare"] = round(share, 3)
    return {"model": lm.name, "dtype": str(lm.dtype), "tokens": n_tokens, "d_in": lm.d_model, "cases": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(model(), given.tokens, given.repeats, Path(folder))
    for name, case in figures["cases"].items():
        share = f"{case['share_of_bare']:.1%} of bare" if "share_of_bare" in case else ""
        print(f"{name:28} {case['median_ms']:9.0f} ms {case['tokens_per_s']:>12,} tokens/s  {share}")
    finish("harvest", figures, given.write)


if __name__ == "__main__":
    main()
