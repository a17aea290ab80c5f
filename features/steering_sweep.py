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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    is_stopped: Callable[[], bool] | None = None,
    **options: Any,
) -> SteeringSweep:
    """Generates from every prompt at every factor; `options` are those of `LanguageModel.generate`.

    `asked` is put before the prompts in a run of its own, `steering` goes to `Steering` (when, positions, …);
    `on_point` is told of each point as soon as it is there. `is_stopped` is asked before every token: once it says so,
    the sweep ends with the points that are finished.

    Raises:
        ValueError: no factors or prompts, or what `Steering` refuses.
    """
    points = []
    for point in sweep_points(
        dictionary, strengths, factors, prompts, mode, asked=asked, steering=steering, is_stopped=is_stopped, **options
    ):
        points.append(point)
        if on_point is not None:
            on_point(point)
    return SteeringSweep(mode, {int(f): float(s) for f, s in strengths.items()}, list(prompts), points)


def sweep_points(
    dictionary: Dictionary,
    strengths: Mapping[int, float],
    factors: Sequence[float],
    prompts: Sequence[str],
    mode: Mode = "add",
    *,
    asked: str | None = None,
    steering: Mapping[str, Any] | None = None,
    is_stopped: Callable[[], bool] | None = None,
    **options: Any,
) -> Iterator[SweepPoint]:
    """Yields the points of `sweep` one after another; every factor is checked before the first is written."""
    if not factors or not prompts:
        raise ValueError(f"got {len(factors)} factors and {len(prompts)} prompts, expected at least one of each")
    for factor in factors:
        if not math.isfinite(factor):
            raise ValueError(f"factor {factor} is no finite number, expected one such as 0.5: correct it")
    lm = dictionary.lm
    # with erase and ablate 0 changes nothing, as with add; in the other modes 0 is a strength like any other
    edits = {
        factor: Steering(
            dictionary,
            {feature: strength * factor for feature, strength in strengths.items()},
            mode,
            **(steering or {}),
        ).interventions
        for factor in factors
        if factor != 0
    }
    runs: list[tuple[str, float, Sequence[str], Mapping[str, Any]]] = [
        ("steered" if factor else "left alone", float(factor), prompts, edits.get(factor, {})) for factor in factors
    ]
    if asked is not None:
        runs.append(("asked in words", 0.0, [asked + prompt for prompt in prompts], {}))
    for run, factor, given, interventions in runs:
        texts = []
        for prompt in given:
            text = _written(lm, prompt, is_stopped, interventions=interventions, **options)
            if text is None:
                return
            texts.append(text)
        pairs = list(zip(given, texts, strict=True))
        yield SweepPoint(
            run,
            factor,
            concept=_mean([concept_score(dictionary, list(strengths), *pair) for pair in pairs]) or 0.0,
            perplexity=_mean([continuation_perplexity(lm, *pair) for pair in pairs]),
            distinct=_mean([distinct_pairs(lm, text) for text in texts]),
            texts=texts,
        )


def read_factors(text: str) -> list[float]:
    """Reads numbers with commas between them, such as `0, 0.5, 1, 2`.

    Raises:
        ValueError: something else.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"the sweep got `{text[:60]}`, expected numbers with commas: write for example 0,1,2,4"
        ) from None


def _written(lm: Any, prompt: str, is_stopped: Callable[[], bool] | None, **options: Any) -> str | None:
    """Returns the continuation, or None where it was stopped."""
    pieces: list[str] = []
    for piece in lm.stream(prompt, **options):
        pieces.append(piece)
        if is_stopped is not None and is_stopped():
            return None
    return "".join(pieces)


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
