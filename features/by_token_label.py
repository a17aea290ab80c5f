"""The features that tell labelled tokens apart: ranked on one half of the texts, reported on the other.

Enters: texts with labelled pieces (`features.labelled_tokens`). Leaves: `ByLabel`, as for labelled texts.

1. A token of the model carries the labels of the pieces that it shares a character with; special tokens are left out.
   Texts that stand in the set more than once count once.
2. Texts are drawn by seed until they hold `MOST_TOKENS` tokens. Half of them train, half test: no text is in both.
3. Each label is a task of its own: its tokens, at most `TOKENS_PER_LABEL` of a half, against as many others.
4. Ranking, threshold and figures are those of `features.by_label`, a token's value being the activation at it.
   Intervals resample texts: tokens of one text are alike.

Labels with too few tokens in either half are left out and named.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from features.by_label import ByLabel, LabelFeature, best_features

if TYPE_CHECKING:
    from features.dictionary import Dictionary
    from features.labelled_tokens import LabelledTokens
    from sae.pooling import Pooled

MOST_TOKENS = 100_000
TOKENS_PER_LABEL = 2000
MIN_TOKENS = 8
"""Tokens with a label, and texts that hold them, that each half must have: half as many texts."""
BATCH_TEXTS = 32


class _Tokens(NamedTuple):
    """The model's tokens of all texts, one behind the other."""

    codes: Pooled
    text: np.ndarray
    """int64 [n]: the text of each."""
    of_label: dict[str, np.ndarray]
    """bool [n]: whether a token carries a label."""


def by_token_label(
    dictionary: Dictionary, labelled: LabelledTokens, limit: int = 10, seed: int = 0, most_tokens: int = MOST_TOKENS
) -> ByLabel:
    """Ranks features for every label of tokens. Loads the model.

    Raises:
        ValueError: no label has enough tokens in both halves, or a tokenizer that does not place its tokens.
    """
    first: dict[str, int] = {}
    for place, text in enumerate(labelled.texts):
        first.setdefault(text, place)
    places = np.array(sorted(first.values()), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(places)
    tokens = _read(dictionary, labelled, order, most_tokens)
    is_train = tokens.text % 2 == 0  # they stand in a drawn order
    found: list[LabelFeature] = []
    left_out: list[str] = []
    for number, label in enumerate(labelled.labels):
        is_label = tokens.of_label[label]
        rng = np.random.default_rng([seed, number])
        halves = [_drawn(is_label, half, rng) for half in (is_train, ~is_train)]
        if any(
            min(is_label[half].sum(), (~is_label[half]).sum()) < MIN_TOKENS
            or np.unique(tokens.text[half[is_label[half]]]).size < MIN_TOKENS // 2
            for half in halves
        ):
            left_out.append(label)
            continue
        found += _of_label(tokens, is_label, halves, label, limit, seed)
    if not found:
        raise ValueError(
            f"set `{labelled.name}` has no label with {MIN_TOKENS} tokens in {MIN_TOKENS // 2} texts of either half, "
            "expected one: give more texts"
        )
    texts = dictionary.explanations_of([each.feature for each in found])
    told = [replace(each, explanation=texts.get(each.feature, "")) for each in found]
    return ByLabel(labelled.name, "token", told, len(labelled.texts) - places.size, "tokens", left_out)


def _drawn(is_label: np.ndarray, half: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Numbers of a half's tokens: some with the label, and as many without."""
    sides = [np.flatnonzero(half & is_label), np.flatnonzero(half & ~is_label)]
    size = min(TOKENS_PER_LABEL, *(side.size for side in sides))
    return np.sort(np.concatenate([rng.permutation(side)[:size] for side in sides]))


def _of_label(
    tokens: _Tokens, is_label: np.ndarray, halves: list[np.ndarray], label: str, limit: int, seed: int
) -> list[LabelFeature]:
    import torch

    chosen = np.zeros(is_label.size, dtype=bool)
    chosen[np.concatenate(halves)] = True
    train = np.isin(np.flatnonzero(chosen), halves[0])
    some = tokens.codes[torch.from_numpy(chosen)]
    _, owner = np.unique(tokens.text[halves[1]], return_inverse=True)
    return best_features(some, is_label[chosen], train, ~train, label, limit, seed, owner)


def _read(dictionary: Dictionary, labelled: LabelledTokens, order: np.ndarray, most_tokens: int) -> _Tokens:
    """Reads texts in their order, as many as hold the tokens; each is cut to what the model read while indexing."""
    import torch

    from activations.buckets import length_groups
    from activations.offsets import PlacedTokens, encode_with_places
    from activations.progress import progress
    from sae.pooling import Pooled, encoded_rows

    lm, sae = dictionary.lm, dictionary.sae
    leads = bool((sae.metadata.get("data") or {}).get("prepend_bos", False))
    bos = lm.tokenizer.bos_token_id if leads else None
    limit = min(int(dictionary.info["context_tokens"]), lm.context_tokens)
    special = np.array(sorted(lm.special_ids))
    placed: list[PlacedTokens] = []
    total = 0
    for start in range(0, order.size, 256):
        for row in encode_with_places(lm, [labelled.texts[int(place)] for place in order[start : start + 256]]):
            if bos is not None and row.ids[:1] != [bos]:
                row = PlacedTokens([bos, *row.ids], *(np.concatenate(([0], ends)) for ends in row[1:]))
            placed.append(PlacedTokens(row.ids[:limit], row.starts[:limit], row.ends[:limit]))
            total += len(placed[-1].ids)
        if total >= most_tokens:
            break
    kept = [~np.isin(row.ids, special) for row in placed]
    counts = np.array([some.sum() for some in kept])
    starts = np.cumsum(counts) - counts
    parts: list[tuple[np.ndarray, Pooled]] = []
    with progress("labelled tokens", len(placed), "texts") as advance, torch.no_grad():
        for _, group in length_groups([len(row.ids) for row in placed], BATCH_TEXTS * limit):
            members = group.tolist()
            at = lm.capture(torch.tensor([placed[place].ids for place in members]), None, dictionary.sites)
            inside = torch.from_numpy(np.stack([kept[place] for place in members]))
            rows = [at[site].flatten(2).float()[inside.to(at[site].device)] for site in dictionary.sites]
            x = torch.stack(rows, 1) if sae.config.n_sites > 1 else rows[0]
            numbers = np.concatenate([starts[place] + np.arange(int(counts[place])) for place in members])
            parts.append((numbers, encoded_rows(sae, x.to(sae.W_dec.device))))
            advance(len(members))
    n = int(counts.sum())
    if not n:
        raise ValueError(f"set `{labelled.name}` holds no tokens, expected texts that are not empty: check the file")
    entries = [(torch.from_numpy(numbers)[part.texts], part.latents, part.values) for numbers, part in parts]
    row, latents, values = (torch.cat(columns) for columns in zip(*entries, strict=True))
    codes = Pooled(torch.zeros(n, 1), row, latents, values, parts[0][1].d_sae)
    of_label = {label: np.zeros(n, dtype=bool) for label in labelled.labels}
    for number, tokens in enumerate(placed):
        first, last = tokens.starts[kept[number]], tokens.ends[kept[number]]
        own = slice(starts[number], starts[number] + counts[number])
        for span in labelled.spans[order[number]]:
            of_label[span.label][own] |= (first < span.end) & (last > span.start)
    return _Tokens(codes, np.repeat(np.arange(len(placed)), counts), of_label)
