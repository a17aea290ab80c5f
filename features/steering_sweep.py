"""A sweep over steering strengths: what each one buys, and what it costs.

Enters: features with their relative strengths, factors to multiply these by, and prompts. Leaves: a row for every
factor, all generated under the same options and seed, scored without a judge:

* `concept`: how active the features are when the model left alone reads the continuation, as shares of their maxima,
  averaged over its tokens (and over features); what AxBench's judge rates, as the dictionary sees it
* `perplexity`: of the continuation under the model left alone, given the prompt
* `distinct`: different pairs of tokens that follow each other as a share of all such pairs; low where text repeats

Factor 0 is the model left alone, and a prompt with the wish in words is the baseline that steering has to beat (Wu et
al. 2025, "AxBench", arXiv 2501.17148).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from features import wiring
from features.steering import Mode, Steering, continuation_perplexity, feature_values

if TYPE_CHECKING:
    from features.dictionary import Dictionary


@dataclass(frozen=True)
class SweepPoint:
    """What one factor gave, averaged over prompts."""

    run: str
    """'left alone', 'steered', or 'asked in words'."""
    factor: float
    concept: float
    perplexity: float | None
    """None where nothing was written."""
    distinct: float | None
    """None where fewer than two tokens were written."""
    texts: list[str]
    """One continuation for each prompt."""


@dataclass(frozen=True)
class SteeringSweep:
    """All points of a sweep; `rows()` leaves out all texts but the first prompt's."""

    mode: str
    strengths: dict[int, float]
    prompts: list[str]
    points: list[SweepPoint]

    def rows(self) -> list[dict[str, Any]]:
        return [
            {**{key: value for key, value in asdict(point).items() if key != "texts"}, "text": point.texts[0]}
            for point in self.points
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def sweep(
    dictionary: Dictionary,
    strengths: Mapping[int, float],
    factors: Sequence[float],
    prompts: Sequence[str],
    mode: Mode = "add",
    *,
    asked: str | None = None,
    steering: Mapping[str, Any] | None = None,
    on_point: Callable[[SweepPoint], None] | None = None,
    **options: Any,
) -> SteeringSweep:
    """Generates from every prompt at every factor; `options` are those of `LanguageModel.generate`.

    `asked` is put before the prompts in a run of its own, `steering` goes to `Steering` (when, positions, …);
    `on_point` is told of each point as soon as it is there.

    Raises:
        ValueError: no factors or prompts, or what `Steering` refuses.
    """
    if not factors or not prompts:
        raise ValueError(f"got {len(factors)} factors and {len(prompts)} prompts, expected at least one of each")
    for factor in factors:
        if not math.isfinite(factor):
            raise ValueError(f"factor {factor} is no finite number, expected one such as 0.5: correct it")
    lm = dictionary.lm
    points: list[SweepPoint] = []

    def measured(run: str, factor: float, given: Sequence[str], interventions: Mapping[str, Any]) -> None:
        texts = [lm.generate(prompt, interventions=interventions, **options) for prompt in given]
        pairs = list(zip(given, texts, strict=True))
        point = SweepPoint(
            run,
            factor,
            concept=_mean([concept_score(dictionary, list(strengths), *pair) for pair in pairs]) or 0.0,
            perplexity=_mean([continuation_perplexity(lm, *pair) for pair in pairs]),
            distinct=_mean([distinct_pairs(lm, text) for text in texts]),
            texts=texts,
        )
        points.append(point)
        if on_point is not None:
            on_point(point)

    for factor in factors:
        # with erase and ablate 0 changes nothing, as with add; in the other modes 0 is a strength like any other
        if factor == 0:
            measured("left alone", 0.0, prompts, {})
            continue
        scaled = {feature: strength * factor for feature, strength in strengths.items()}
        edits = Steering(dictionary, scaled, mode, **(steering or {})).interventions
        measured("steered", factor, prompts, edits)
    if asked is not None:
        measured("asked in words", 0.0, [asked + prompt for prompt in prompts], {})
    return SteeringSweep(mode, {int(f): float(s) for f, s in strengths.items()}, list(prompts), points)


@torch.no_grad()
def concept_score(dictionary: Dictionary, features: Sequence[int], prompt: str, continuation: str) -> float:
    """Mean activation of `features` on the continuation's tokens, read by the model left alone, as shares of maxima."""
    if not continuation:
        return 0.0
    lm, sae = dictionary.lm, dictionary.sae
    batch = lm.tokenize(prompt + continuation)
    given = int(lm.tokenize(prompt).mask.sum()) if prompt else 0
    real = batch.mask[0].bool()
    captured = lm.capture(batch.tokens, batch.mask, dictionary.sites)
    codes = wiring.encode_sites(sae, {site: x[0][real].flatten(1) for site, x in captured.items()})
    written = max(int(real.sum()) - given, 1)
    values = feature_values(codes, features)[-written:].float().cpu()
    maxima = torch.tensor([float(dictionary.max_activations[feature]) for feature in features])
    return float((values / maxima.clamp(min=1e-12)).mean())


def distinct_pairs(lm: Any, text: str) -> float | None:
    """Different pairs of neighbouring tokens as a share of all; None for fewer than two tokens."""
    tokens = lm.encode([text])[0] if text else []
    pairs = list(itertools.pairwise(tokens))
    return len(set(pairs)) / len(pairs) if pairs else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
