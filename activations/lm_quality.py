"""How good a small language model of code is: bits per byte beside two baselines, and code that parses.

* Bits per byte: the summed negative log-likelihood of held-out text over its UTF-8 bytes, windows overlapping by half
  so that every token but a document stream's first ones is scored with at least half a context before it.
* Baselines over the same text: an interpolated (Jelinek-Mercer) token-trigram model with the same tokenizer and
  training text, its weights fitted by EM per bucket of context counts (Chen and Goodman 1998, section 2.4), and gzip.
* Parse rate: the share of sampled `def` completions that `ast.parse` accepts once trimmed to their last complete
  statement.
"""

from __future__ import annotations

import ast
import gzip
import io
import math
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activations.corpus import Document

EM_ROUNDS = 20
COUNT_BUCKETS = (1, 2, 4, 8, 16, 64, 256)


@dataclass(frozen=True)
class LMQuality:
    """Figures of `measure`; the three compressions are in bits per UTF-8 byte of the held-out text."""

    bits_per_byte: float
    trigram_bits_per_byte: float
    gzip_bits_per_byte: float
    below_trigram_frac: float
    heldout_bytes: int
    heldout_tokens: int
    parse_rate: float
    parse_samples: int


def measure(
    model: Any, tokenizer: Any, heldout: list[Document], train_tokens: np.ndarray, context_tokens: int
) -> LMQuality:
    """Measures a causal model and its tokenizer on held-out documents; `train_tokens` feed the trigram baseline."""
    boundary = tokenizer.eos_token_id
    ids = [np.array([boundary, *tokenizer(document.text, verbose=False)["input_ids"]]) for document in heldout]
    stream = np.concatenate(ids)
    size = sum(len(document.text.encode()) for document in heldout)
    nats = token_nats(model, stream, context_tokens)
    is_text = stream[1:] != boundary
    bits = float(nats[is_text].sum()) / math.log(2) / size
    trigram = TrigramModel(train_tokens, len(tokenizer))
    trigram_bits = float(trigram.token_nats(stream)[is_text].sum()) / math.log(2) / size
    packed = gzip.compress("\n".join(document.text for document in heldout).encode(), compresslevel=9)
    parsed, sampled = parse_rate(model, tokenizer, heldout)
    return LMQuality(
        bits_per_byte=bits,
        trigram_bits_per_byte=trigram_bits,
        gzip_bits_per_byte=8 * len(packed) / size,
        below_trigram_frac=1 - bits / trigram_bits,
        heldout_bytes=size,
        heldout_tokens=int(is_text.sum()),
        parse_rate=parsed,
        parse_samples=sampled,
    )


@torch.inference_mode()
def token_nats(model: Any, stream: np.ndarray, context_tokens: int, batch_rows: int = 16) -> np.ndarray:
    """Returns −ln p of every token of `stream` but the first, each given at least half a context where there is one."""
    stride = context_tokens // 2
    tokens = torch.from_numpy(stream.astype(np.int64))
    result = torch.full((len(stream) - 1,), math.nan)
    starts = list(range(0, max(1, len(stream) - 1 - stride), stride))
    for chunk in (starts[i : i + batch_rows] for i in range(0, len(starts), batch_rows)):
        width = min(context_tokens, len(stream) - 1)
        batch = torch.stack([_window(tokens, start, width + 1) for start in chunk])
        logits = model(input_ids=batch[:, :-1].to(model.device), use_cache=False).logits.float().cpu()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        for start, row in zip(chunk, nats, strict=True):
            skip = 0 if start == 0 else width - stride
            last = min(width, len(result) - start)
            result[start + skip : start + last] = row[skip:last]
    if result.isnan().any():
        raise AssertionError("a token was left unscored")
    return result.double().numpy()


def _window(tokens: torch.Tensor, start: int, width: int) -> torch.Tensor:
    piece = tokens[start : start + width]
    return torch.nn.functional.pad(piece, (0, width - len(piece)))


class TrigramModel:
    """An interpolated token-trigram model: λ₃p₃ + λ₂p₂ + λ₁p₁ + λ₀/V, weights by EM per bucket of context counts."""

    def __init__(self, tokens: np.ndarray, vocab_size: int, tuning_frac: float = 0.05) -> None:
        self.vocab_size = vocab_size
        cut = int(len(tokens) * (1 - tuning_frac))
        train, tuning = tokens[:cut].astype(np.int64), tokens[cut:].astype(np.int64)
        self._unigrams = np.bincount(train, minlength=vocab_size).astype(np.float64)
        self._pairs = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
        triples = (train[:-2] * vocab_size + train[1:-1]) * vocab_size + train[2:]
        self._triples = np.unique(triples, return_counts=True)
        parts, buckets = self._parts(tuning)
        self._weights = np.full((len(COUNT_BUCKETS) + 1, 4), 0.25)
        for _ in range(EM_ROUNDS):
            joint = self._weights[buckets] * parts
            joint /= joint.sum(1, keepdims=True)
            for bucket in range(len(self._weights)):
                if (buckets == bucket).any():
                    self._weights[bucket] = joint[buckets == bucket].mean(0)

    def _parts(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns p₃, p₂, p₁, 1/V for every token from the third on, and the bucket of each one's context count."""
        a, b, c = tokens[:-2], tokens[1:-1], tokens[2:]
        size = self.vocab_size
        context = _count(self._pairs, a * size + b)
        triple = _count(self._triples, (a * size + b) * size + c)
        pair, single = _count(self._pairs, b * size + c), self._unigrams[b]
        parts = np.stack(
            [
                np.divide(triple, context, out=np.zeros(len(c)), where=context > 0),
                np.divide(pair, single, out=np.zeros(len(c)), where=single > 0),
                self._unigrams[c] / self._unigrams.sum(),
                np.full(len(c), 1 / size),
            ],
            axis=1,
        )
        return parts, np.searchsorted(COUNT_BUCKETS, context, side="right")

    def token_nats(self, stream: np.ndarray) -> np.ndarray:
        """Returns −ln p of every token of `stream` but the first, whose context is filled up with itself."""
        padded = np.concatenate([stream[:1], stream]).astype(np.int64)
        parts, buckets = self._parts(padded)
        return -np.log((self._weights[buckets] * parts).sum(1))


def _count(table: tuple[np.ndarray, np.ndarray], keys: np.ndarray) -> np.ndarray:
    values, counts = table
    index = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    return np.where(values[index] == keys, counts[index], 0).astype(np.float64)


def parse_rate(
    model: Any,
    tokenizer: Any,
    documents: Iterable[Document],
    samples: int = 200,
    new_tokens: int = 96,
    temperature: float = 0.8,
    seed: int = 0,
) -> tuple[float, int]:
    """Returns the share of sampled completions of held-out `def …:` lines that parse, and how many were sampled.

    A completion is trimmed to its last complete statement first; one without a complete statement counts as failed.
    """
    signature = re.compile(r"^(?:async )?def \w+\([^()\n]*\)(?: -> [^\n:]+)?:\n", re.MULTILINE)
    heads = [match.group() for document in documents for match in signature.finditer(document.text)]
    chosen = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    accepted = 0
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        for index in chosen:
            # the newline stays with the indentation that follows it: that is how the tokenizer cuts text
            prompt = tokenizer.eos_token + heads[index].rstrip("\n")
            inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
            output = model.generate(
                **inputs, max_new_tokens=new_tokens, do_sample=True, temperature=temperature, top_k=0
            )
            text = tokenizer.decode(output[0], skip_special_tokens=True)
            accepted += parses_when_trimmed(text)
    finally:
        torch.set_rng_state(generator_state)
    return accepted / max(1, len(chosen)), len(chosen)


def parses_when_trimmed(source: str) -> bool:
    """Says whether `source`, cut after its last complete statement, is Python with a body in its first definition."""
    end = 0
    lines = source.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    text = "".join(lines)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NEWLINE:
                end = token.end[0]
    except tokenize.TokenError:
        pass  # the text ends inside a bracket or string: what stands before is judged
    except SyntaxError:
        return False
    trimmed = "".join(lines[:end])
    try:
        tree = ast.parse(trimmed)
    except (SyntaxError, ValueError):
        return False
    return bool(tree.body)
