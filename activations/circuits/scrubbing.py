"""Causal scrubbing: is a stated hypothesis enough to explain what a model does.

    scrub(lm, inputs, hypothesis, value, *, samples=5, seed=0) -> Scrubbing

Enters: inputs of equally many tokens, each with the facts that a hypothesis speaks of; a `Claim`, which is a tree: its
root is the logits, every claim names a component, what of the input it depends on (`same`: inputs with an equal
value are interchangeable there), and the claims it reads (`because`; none: all that it reads matters). Leaves: the
task's value when every activation that the hypothesis calls irrelevant comes from a random other input, and what it
calls interchangeable from a random input with the same value:

    recovered = (F(scrubbed) − F(random)) / (F(model) − F(random))

F(random) scrubs with a hypothesis that says nothing matters. 1 says the hypothesis is enough; it does not say that it
is the only one, nor that all its parts are needed. A hypothesis with coarse `same` is the stronger claim.

Source: Chan et al. 2022, "Causal scrubbing: a method for rigorously testing interpretability hypotheses".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.plain import to_json
from activations.circuits.graph import ComponentGraph

if TYPE_CHECKING:
    from activations.model import LanguageModel

Same = Callable[[Mapping[str, Any]], Hashable]


@dataclass(frozen=True)
class Claim:
    """One component of a hypothesis."""

    component: str
    """`logits` at the root, below it `head L.H`, `mlp L`, `embed`."""
    same: Same | None = None
    """What of an input's facts it depends on; None: on the whole input, so that only itself can stand for it."""
    because: tuple[Claim, ...] = ()
    """What it reads; nothing else matters to it. None named: all that it reads matters."""
    by: tuple[str, ...] = ()
    """Where the claim that reads this one is a head: through which of `q`, `k`, `v` it does; empty for all."""


@dataclass(frozen=True)
class Scrubbing:
    """What a hypothesis recovers."""

    model: str
    inputs: int
    samples: int
    seed: int
    value: float
    """F(model)."""
    random_value: float
    """F with nothing that matters."""
    scrubbed_values: Float[np.ndarray, " samples"]
    """F under the hypothesis, for each draw."""
    recovered: float
    standard_error: float | None
    """Of `recovered`, over draws."""
    claims: tuple[str, ...]
    """The components that were named, depth first."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each draw."""
        span = self.value - self.random_value
        return [
            {"draw": draw, "value": float(value), "recovered": float((value - self.random_value) / span)}
            for draw, value in enumerate(self.scrubbed_values)
        ]

    def to_json(self) -> str:
        return to_json(self)


def scrub(
    lm: LanguageModel,
    tokens: Int[Tensor, "inputs seq"],
    facts: Sequence[Mapping[str, Any]],
    hypothesis: Claim,
    value: Callable[[Float[Tensor, "inputs vocab"]], Float[Tensor, " inputs"]],
    *,
    samples: int = 5,
    seed: int = 0,
) -> Scrubbing:
    """Tests a hypothesis on inputs (decoder; the logits are read behind the last token).

    `value` turns the logits of all inputs, in their order, into one number each.

    Raises:
        ValueError: a root that is not the logits, unknown components, fewer than two inputs, facts that do not belong
            to them, a claim that reads a later component, or a value that random inputs reach too.
    """
    if len(tokens) != len(facts) or len(tokens) < 2 or samples < 1:
        raise ValueError(
            f"got {len(tokens)} inputs, {len(facts)} facts and samples={samples}, expected two inputs or more, the "
            "facts of each, and one draw or more: give these"
        )
    if hypothesis.component != "logits":
        raise ValueError(f"the hypothesis begins at {hypothesis.component!r}, expected logits: begin it there")
    scrubber = _Scrubber(lm, tokens, facts, seed)
    scrubber.check(hypothesis)

    def measured(claim: Claim) -> float:
        with torch.no_grad():
            return float(value(scrubber.graph.logits(scrubber.final(claim)[:, -1])).double().mean())

    whole = measured(Claim("logits"))
    nothing = Claim("logits", because=(_NOTHING,))
    random_value = float(np.mean([measured(nothing) for _ in range(samples)]))
    if abs(whole - random_value) <= 1e-6 * (1 + abs(whole)):
        raise ValueError(
            f"random inputs reach the model's own value ({whole:.4g}), expected a difference: choose another value"
        )
    found = np.array([measured(hypothesis) for _ in range(samples)])
    shares = (found - random_value) / (whole - random_value)
    return Scrubbing(
        model=lm.name,
        inputs=len(tokens),
        samples=samples,
        seed=seed,
        value=whole,
        random_value=random_value,
        scrubbed_values=found,
        recovered=float(shares.mean()),
        standard_error=float(shares.std(ddof=1) / np.sqrt(samples)) if samples > 1 else None,
        claims=tuple(_named(hypothesis)),
    )


_NOTHING = Claim("")


def _named(claim: Claim) -> list[str]:
    return [claim.component, *(name for each in claim.because for name in _named(each))]


class _Scrubber:
    def __init__(
        self, lm: LanguageModel, tokens: Int[Tensor, "inputs seq"], facts: Sequence[Mapping[str, Any]], seed: int
    ) -> None:
        self.graph = ComponentGraph(lm)
        self.tokens = tokens.to(lm.device)
        self.facts = facts
        self.random = np.random.default_rng(seed)

    def check(self, claim: Claim) -> None:
        rows = self.graph.receivers_of(claim.component) if claim.because else []
        for child in claim.because:
            column = self.graph.sender_index.get(child.component)
            if column is None or not bool(self.graph.edges[rows, column].any()):
                raise ValueError(
                    f"the hypothesis says that {claim.component!r} reads {child.component!r}, expected an earlier "
                    "component of the model: mend it"
                )
            self.check(child)

    def drawn(self, of: np.ndarray, same: Same | None) -> np.ndarray:
        """For each input another that `same` does not tell from it; itself where nothing is named."""
        if same is None:
            return of
        values = [same(each) for each in self.facts]
        groups: dict[Hashable, list[int]] = {}
        for index, each in enumerate(values):
            groups.setdefault(each, []).append(index)
        return np.array([self.random.choice(groups[values[index]]) for index in of])

    def final(self, root: Claim) -> Tensor:
        return self._run(root, np.arange(len(self.tokens))).final

    def write(self, claim: Claim, of: np.ndarray) -> Tensor:
        """What a component writes on inputs that stand for `of`."""
        chosen = self.drawn(of, claim.same)
        return self._run(claim, chosen).writes[self.graph.sender_index[claim.component]]

    def _run(self, claim: Claim, chosen: np.ndarray) -> Any:
        graph = self.graph
        if not claim.because:
            return graph.run(self.tokens[torch.from_numpy(chosen)])
        # what does not matter comes from inputs drawn at random, one for all of it
        others = self.random.integers(len(self.tokens), size=len(chosen))
        tokens = self.tokens[torch.from_numpy(others)]
        children = [child for child in claim.because if child.component]
        if not children:
            return graph.run(tokens)
        replacement = graph.writes(tokens)
        cut = torch.zeros(graph.edges.shape)
        for child in children:
            column = graph.sender_index[child.component]
            replacement[column] = self.write(child, chosen)
            for row in graph.receivers_of(claim.component):
                if not child.by or graph.receivers[row].slot in child.by:
                    cut[row, column] = graph.edges[row, column].float()
        return graph.run(tokens, cut, replacement)
