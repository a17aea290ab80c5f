"""What stands in place of a text's tokens: baselines, as rows of the embedding or as ids.

Enters: a `Metric` (the text and its target) and a baseline: `pad` (the tokenizer's padding or end token in every
place), `mean` (the mean row of the embedding table), `zero`, or a text or token of your own. Leaves: rows or ids in
which special tokens (BOS) and a continuation stand as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import token_id
from activations.analyses.targets import Metric

BATCH_TOKENS = 2048
"""Tokens in one pass of many replaced or interpolated texts."""


def replaceable(metric: Metric) -> list[int]:
    """Returns the positions of the text's tokens that are not special (all, where there are no others)."""
    ids = metric.tokens[0, : metric.count].tolist()
    ordinary = [place for place, token in enumerate(ids) if token not in metric.lm.special_ids]
    return ordinary or list(range(metric.count))


@torch.no_grad()
def embeddings_of(metric: Metric, tokens: Int[Tensor, "1 seq"]) -> Float[Tensor, "1 seq d"]:
    """Returns what the token embedding makes of tokens, in the model's type."""
    return metric.lm.capture(tokens, None, ["embed"])["embed"]


@torch.no_grad()
def baseline_embeddings(metric: Metric, baseline: str | int) -> Float[Tensor, "1 seq d"]:
    """Returns the rows that a baseline puts in place of the text's, special tokens and a continuation aside.

    Raises:
        ValueError: neither a known name, nor one token, nor a text of as many tokens as the one explained.
    """
    lm, rows = metric.lm, embeddings_of(metric, metric.tokens).clone()
    places = replaceable(metric)
    if baseline == "zero":
        rows[0, places] = 0
    elif baseline == "mean":
        every = torch.arange(len(lm.tokenizer), device=lm.device)
        span = min(lm.context_tokens, 512)
        total = torch.zeros(rows.shape[-1], dtype=torch.float64, device=lm.device)
        for start in range(0, len(every), span):
            total += embeddings_of(metric, every[None, start : start + span])[0].double().sum(0)
        rows[0, places] = (total / len(every)).to(rows.dtype)
    else:
        ids = metric.tokens.clone()
        ids[0, places] = baseline_ids(metric, baseline, places)
        rows[0, places] = embeddings_of(metric, ids)[0, places]
    return rows


def baseline_ids(metric: Metric, baseline: str | int, places: list[int]) -> Int[Tensor, " places"]:
    """Returns the ids that a baseline of tokens puts at `places`; ValueError as `baseline_embeddings`."""
    lm, device = metric.lm, metric.tokens.device
    if baseline == "pad":
        return torch.full((len(places),), lm.pad_id, device=device)
    if isinstance(baseline, str):
        ids = lm.encode([baseline])[0] if baseline else []
        if len(ids) == metric.count:
            return torch.tensor(ids, device=device)[places]
        ordinary = [each for each in ids if each not in lm.special_ids]
        if len(ordinary) != 1:
            raise ValueError(
                f"baseline {baseline!r} has {len(ids)} tokens, expected pad, mean, zero, one token, or a text of "
                f"{metric.count} tokens: choose one of these"
            )
    return torch.full((len(places),), token_id(lm, baseline), device=device)


def groups(places: list[int], length: int) -> list[list[int]]:
    """Returns places in groups whose texts fit one pass."""
    size = max(1, BATCH_TOKENS // length)
    return [places[start : start + size] for start in range(0, len(places), size)]
