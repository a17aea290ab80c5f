"""Does the model use what a probe reads? The probe's direction is added or erased, and the output watched.

    check_probe(lm, probe, texts, target, contrast=…) -> ProbeCheck

Enters: a linear probe, texts, a target (`activations.analyses.targets`). Leaves, for each intervention at the probe's
site on all tokens, the mean change of the target's number over texts:

* `add α`: x + α·s·d, with d the probe's unit direction and s its spread (the standard deviation of training rows along
  it): α standard deviations towards the label (away from it where α < 0).
* `erase`: x + (c − d·x) d, with c where the probe's score is 0: every token is put where the probe sees neither.
* `leace`: where an eraser is given, r(x) (`activations.probes.erasure`).

Beside each, `random_…`: the same moved just as far along directions drawn at random, of which the largest effect is the
bar that `is_beyond_random` asks for; and KL(before ‖ after) of the next token in nats: what the change cost elsewhere.

It misleads where the push is so large that the model leaves what it knows (the KL tells), and says nothing about texts
of another kind. No effect of erasing may mean that a copy in another direction serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.plain import to_json
from activations.analyses.targets import Metric, Target
from activations.intervals import mean_interval
from activations.probes.erasure import Eraser, erasing
from activations.probes.saving import TrainedProbe
from activations.progress import progress

if TYPE_CHECKING:
    from activations.model import LanguageModel

STRENGTHS = (-4.0, -2.0, 2.0, 4.0)
RANDOM_DIRECTIONS = 10
BATCH_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class ProbeEffect:
    """What one intervention does to the target's number, as a mean over texts with its 95 % interval."""

    intervention: str
    strength: float | None
    """In standard deviations along the direction; None where nothing is added."""
    effect: float
    low: float
    high: float
    kl: float | None
    """KL(before ‖ after) at the target's position, in nats; None for classifiers."""
    random_effect: float | None
    """Of the random direction with the largest absolute mean effect; None where there is no control."""
    random_kl: float | None
    """Mean over random directions."""
    is_beyond_random: bool | None
    """The effect is larger than that of every random direction."""


@dataclass(frozen=True)
class ProbeCheck:
    """Interventions along one probe's direction."""

    model: str
    site: str
    label: str
    kind: str
    target: str
    n_texts: int
    value: float
    """The target's number without intervention, as a mean over texts."""
    effects: tuple[ProbeEffect, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each intervention."""
        return [asdict(effect) for effect in self.effects]

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def check_probe(
    lm: LanguageModel,
    probe: TrainedProbe,
    texts: Sequence[str],
    target: Target = None,
    *,
    contrast: str | int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    eraser: Eraser | None = None,
    random_directions: int = RANDOM_DIRECTIONS,
    seed: int = 0,
) -> ProbeCheck:
    """Intervenes along a probe's direction on all tokens of `texts`; the target's number is read for each text.

    Raises:
        ValueError: no texts, a probe without direction or of another model, and whatever the target refuses.
    """
    if not texts:
        raise ValueError("got no texts, expected at least one: give texts on which the target can be read")
    if random_directions < 1:
        raise ValueError(f"random_directions={random_directions}, expected at least 1: an effect needs a control")
    probe.check(lm)
    direction = probe.direction
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(random_directions, len(direction), generator=generator, dtype=torch.float64)
    directions = torch.cat([direction[None], drawn / drawn.norm(dim=1, keepdim=True)])
    moves: list[float | None] = [*strengths, None]
    values, effects, divergences, leace = [], [], [], []
    name = ""
    with progress("Probe check", len(texts), "texts") as advance:
        for text in texts:
            metric = Metric(lm, text, target, contrast=contrast)
            name = metric.name
            clean, before = _measured(lm, metric, 1)
            values.append(float(clean))
            found = [_moved(lm, metric, probe, directions, strength) for strength in moves]
            effects.append([(numbers - clean).tolist() for numbers, _ in found])
            divergences.append([_divergence(before, after) for _, after in found])
            if eraser is not None:
                with lm.intervene({probe.site: erasing(eraser)}):
                    number, after = _measured(lm, metric, 1)
                leace.append((float(number - clean), _divergence(before, after)))
            advance(1)
    changed, kl = np.array(effects), None if divergences[0][0] is None else np.array(divergences)
    shown = [
        _effect(
            "erase" if strength is None else "add", strength, changed[:, place], None if kl is None else kl[:, place]
        )
        for place, strength in enumerate(moves)
    ]
    if leace:
        numbers = np.array([[number] for number, _ in leace])
        costs = None if leace[0][1] is None else np.array([cost for _, cost in leace])
        shown.append(_effect("leace", None, numbers, costs))
    return ProbeCheck(
        model=lm.name,
        site=probe.site,
        label=probe.label,
        kind=probe.kind,
        target=name,
        n_texts=len(texts),
        value=float(np.mean(values)),
        effects=tuple(shown),
    )


def _moved(
    lm: LanguageModel, metric: Metric, probe: TrainedProbe, directions: Float[Tensor, "n d"], strength: float | None
) -> tuple[Float[Tensor, " n"], Tensor | None]:
    """The target's number, and the log-probabilities, with each direction in a row of its own."""
    numbers, after = [], []
    for part in directions.split(max(1, BATCH_TOKENS // metric.tokens.shape[1])):
        with lm.intervene({probe.site: _displaced(probe, part, strength)}):
            number, log_p = _measured(lm, metric, len(part))
        numbers.append(number)
        after.append(log_p)
    return torch.cat(numbers), None if after[0] is None else torch.cat(after)


def _displaced(
    probe: TrainedProbe, directions: Float[Tensor, "batch d"], strength: float | None
) -> Callable[[Tensor], Tensor]:
    """An edit that moves each row of a batch along its own direction: a fixed way, or as far as erasing the probe's."""
    own = probe.direction
    threshold = -float(getattr(probe.probe, "bias", 0.0)) / float(getattr(probe.probe, "weight", own).norm())

    def edit(values: Tensor) -> Tensor:
        wide = values.flatten(2).double()
        if strength is None:
            far = threshold - wide @ own.to(wide.device)
        else:
            far = wide.new_full(wide.shape[:2], strength * probe.spread)
        return (wide + far[:, :, None] * directions.to(wide.device)[:, None]).to(values.dtype).view_as(values)

    return edit


def _measured(lm: LanguageModel, metric: Metric, rows: int) -> tuple[Float[Tensor, " rows"], Tensor | None]:
    tokens = metric.tokens.expand(rows, -1)
    number = metric(tokens).double().cpu()
    if metric.is_classifier:
        return number, None
    logits = lm.logits(tokens[:, : metric.count])[:, metric.position]
    return number, torch.log_softmax(logits.double(), dim=-1).cpu()


def _divergence(before: Tensor | None, after: Tensor | None) -> list[float] | None:
    if before is None or after is None:
        return None
    return (before.exp() * (before - after)).sum(-1).tolist()


def _effect(intervention: str, strength: float | None, changed: np.ndarray, kl: np.ndarray | None) -> ProbeEffect:
    """`changed` and `kl` are [texts, directions], the probe's own first."""
    own = mean_interval(changed[:, 0])
    blind = changed[:, 1:].mean(0)
    has_control = len(blind) > 0
    largest = float(blind[np.abs(blind).argmax()]) if has_control else None
    return ProbeEffect(
        intervention=intervention,
        strength=strength,
        effect=own.value,
        low=own.low,
        high=own.high,
        kl=None if kl is None else float(kl[:, 0].mean()),
        random_effect=largest,
        random_kl=None if kl is None or not has_control else float(kl[:, 1:].mean()),
        is_beyond_random=None if largest is None else abs(own.value) > abs(largest),
    )
