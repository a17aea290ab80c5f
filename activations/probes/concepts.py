"""Concept activation vectors: does the model's output rise along a concept's direction?

    concept_test(lm, site, concept, others, texts, target, contrast=…) -> ConceptTest

1. A CAV is the unit normal of a logistic probe between rows of texts with the concept and of others. Several are
   fitted, each on halves drawn by seed.
2. The sensitivity of a text is the directional derivative of the target's number along the CAV, Σ_t ∂m/∂x_t · v, with
   x_t the site's activations at its tokens.
3. The score (TCAV) is the share of texts whose sensitivity is positive: 1 where the concept always raises the target.
4. The same with as many CAVs fitted between halves of the mixed texts, whose labels mean nothing. `p` is the chance,
   under exchange of real and meaningless CAVs, of mean scores as far apart: a permutation test.

It misleads where the concept's texts differ from the others in more than the concept, and it is first-order: `causal`
moves the activations for real. One backward pass a text.

Source: Kim et al. 2018, "Interpretability beyond feature attribution: quantitative testing with concept activation
vectors" (arXiv 1711.11279); with meaningless CAVs from mixed texts in the place of random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.plain import to_json
from activations.analyses.targets import Metric, Target
from activations.logistic import accuracy, fit
from activations.probes.rows import CONTEXT_TOKENS, text_rows
from activations.progress import progress
from activations.state_cache import StateCache

if TYPE_CHECKING:
    from activations.model import LanguageModel

RUNS = 10
MIN_TEXTS = 6
PERMUTATIONS = 5000


@dataclass(frozen=True)
class ConceptTest:
    """How the target's number changes along a concept's direction at one site."""

    model: str
    site: str
    target: str
    n_texts: int
    score: float
    """Share of texts with a positive sensitivity, as a mean over CAVs."""
    scores: tuple[float, ...]
    """Of each CAV."""
    random_score: float
    random_scores: tuple[float, ...]
    p: float
    """Of a permutation test between `scores` and `random_scores`."""
    accuracy: float
    """Of the CAVs on the halves that they were not fitted on: near 0.5 there is no concept here to test."""
    sensitivities: Float[np.ndarray, " texts"]
    """Mean over CAVs, in units of the target's number for a step of length 1 at every token."""
    texts: tuple[str, ...]
    vector: Float[np.ndarray, " d"]
    """The mean CAV, of length 1."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each text, the most sensitive first."""
        found = [
            {"text": text, "sensitivity": float(s)} for text, s in zip(self.texts, self.sensitivities, strict=True)
        ]
        return sorted(found, key=lambda record: -abs(record["sensitivity"]))

    def to_json(self) -> str:
        return to_json(self)


def concept_test(
    lm: LanguageModel,
    site: str,
    concept: Sequence[str],
    others: Sequence[str],
    texts: Sequence[str],
    target: Target = None,
    *,
    contrast: str | int | None = None,
    pooling: str = "mean",
    context_tokens: int = CONTEXT_TOKENS,
    runs: int = RUNS,
    seed: int = 0,
    cache: StateCache | None = None,
) -> ConceptTest:
    """Tests a concept, given by texts that hold it and others that do not, on the target's number of `texts`.

    Raises:
        ValueError: fewer than six texts with or without the concept, no texts to test on, whatever the target refuses.
    """
    if min(len(concept), len(others)) < MIN_TEXTS or not texts or runs < 2:
        raise ValueError(
            f"got {len(concept)} texts with the concept, {len(others)} without, {len(texts)} to test on, runs={runs}, "
            f"expected at least {MIN_TEXTS}, {MIN_TEXTS}, 1 and 2: add texts"
        )
    given = [*concept, *others]
    x = text_rows(lm, given, [site], pooling=pooling, context_tokens=context_tokens, cache=cache)[site].double()
    y = torch.arange(len(given)) < len(concept)
    generator = torch.Generator().manual_seed(seed)
    vectors, right, blind = [], [], []
    for _ in range(runs):
        half = _half(y, generator)
        probe = fit(x[half], y[half], balanced=True)
        vectors.append(_unit(probe.weight))
        right.append(accuracy(probe.scores(x[~half]), y[~half]))
        mixed = y[torch.randperm(len(y), generator=generator)]
        half = _half(mixed, generator)
        blind.append(_unit(fit(x[half], mixed[half], balanced=True).weight))
    directions = torch.stack([*vectors, *blind])
    found = []
    with progress("Concept", len(texts), "texts") as advance:
        for text in texts:
            metric = Metric(lm, text, target, contrast=contrast)
            found.append(directions @ _gradient(lm, metric, site))
            name = metric.name
            advance(1)
    sensitivities = torch.stack(found).numpy()
    scores = (sensitivities > 0).mean(0)
    real, random = scores[:runs], scores[runs:]
    return ConceptTest(
        model=lm.name,
        site=site,
        target=name,
        n_texts=len(texts),
        score=float(real.mean()),
        scores=tuple(real.tolist()),
        random_score=float(random.mean()),
        random_scores=tuple(random.tolist()),
        p=_permutation_p(real, random, seed),
        accuracy=sum(right) / len(right),
        sensitivities=sensitivities[:, :runs].mean(1),
        texts=tuple(texts),
        vector=_unit(torch.stack(vectors).mean(0)).numpy(),
    )


def _gradient(lm: LanguageModel, metric: Metric, site: str) -> Float[Tensor, " d"]:
    """∂m/∂x at a site, summed over tokens."""
    held: list[Tensor] = []

    def edit(values: Tensor) -> Tensor:
        held.append(torch.zeros_like(values, requires_grad=True))
        return values + held[-1]

    with torch.enable_grad(), lm.intervene({site: edit}):
        number = metric(metric.tokens).sum()
        (gradient,) = torch.autograd.grad(number, held[-1])
    return gradient.flatten(2).double().sum((0, 1)).cpu()


def _half(y: Tensor, generator: torch.Generator) -> Tensor:
    """Half of each side, drawn."""
    chosen = torch.zeros_like(y)
    for side in (y, ~y):
        places = side.nonzero().flatten()
        chosen[places[torch.randperm(len(places), generator=generator)][: len(places) // 2]] = True
    return chosen


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp(min=1e-300)


def _permutation_p(real: np.ndarray, random: np.ndarray, seed: int) -> float:
    both = np.concatenate([real, random])
    gap = abs(real.mean() - random.mean())
    generator = np.random.default_rng(seed)
    far = 1
    for _ in range(PERMUTATIONS):
        mixed = generator.permutation(both)
        far += abs(mixed[: len(real)].mean() - mixed[len(real) :].mean()) >= gap - 1e-12
    return far / (PERMUTATIONS + 1)
