"""Concept removal: what happens to probes when the latents of a concept are taken out.

Enters: texts pooled by `sae.pooling`, their labels, an SAE. Leaves: SCR and TPP (Karvonen et al. 2024, "Evaluating
sparse autoencoders on targeted concept erasure"; SAEBench, evals/scr_and_tpp), for several numbers n of latents.

Both fit logistic probes on mean activations, rank latents by their effect e_i = Δ_i · (d_i·w) on a probe with direction
w, Δ_i the difference of the latent's mean between the probe's classes on training texts, take the n latents with the
largest effect out of the test texts (the SAE's error stays), and look at the probes' accuracies again.

* **Targeted probe perturbation (TPP).** One probe for each class against the others; effects with Δ_i > 0 only. For the
  latents of class c: the drop in accuracy of c's probe minus the mean drop of the other probes; averaged over classes.
  1/2 is as good as it gets for balanced classes and perfect probes; 0 means that nothing, or everything, was hit.
* **Spurious correlation removal (SCR).** Two labels A and B per text. A probe trained where they coincide learns both.
  Latents are ranked by |e_i| on the probe of the unwanted label B (trained on balanced texts) and taken out; then
  (acc − acc_biased) / (acc_clean − acc_biased) on A, where acc_clean is that of A's own probe. 1 means that the
  spurious cue is gone. Both directions are computed; the score is that in which the biased probe does worse.

Where probes fail even before anything is removed there is nothing to measure: `NotMeasurable`. Later work finds both
scores noisy across seeds and data (arXiv 2605.18229), sparse probing steadier.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.logistic import Probe, accuracy, fit
from sae.absorption import NotMeasurable
from sae.model import SAE
from sae.pooling import Pooled
from sae.probing import halves

NS = (2, 5, 10, 20, 50, 100, 500)
MIN_ACCURACY = 0.7
"""Accuracy on balanced test texts that the probes must reach before anything is removed."""
MIN_BIAS = 0.05
"""Accuracy that the spurious cue must cost the biased probe."""
MIN_TEXTS = 6
"""Texts for each pair of labels, on each half."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One number of latents taken out."""

    n: int
    score: float
    intended: float
    """TPP: drop in accuracy of the class's own probe. SCR: accuracy on the wanted label once the latents are out."""
    unintended: float
    """TPP: mean drop of the other probes. SCR: accuracy on the wanted label before."""


@dataclass(frozen=True, kw_only=True)
class RemovalReport:
    """SCR or TPP of one SAE on one set of texts."""

    method: str
    labelled: str
    removals: tuple[Removal, ...]
    clean_accuracy: float
    """TPP: of all probes, averaged, before. SCR: of the wanted label's own probe."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record for each number of latents."""
        return [{"method": self.method, "labelled": self.labelled, **asdict(removal)} for removal in self.removals]

    def to_json(self) -> dict[str, Any]:
        """Returns the report, ready for JSON."""
        return asdict(self)


@torch.no_grad()
def targeted_probe_perturbation(
    sae: SAE,
    pooled: Pooled,
    labels: Sequence[str],
    *,
    name: str = "texts",
    ns: Sequence[int] = NS,
    seed: int = 0,
    min_accuracy: float = MIN_ACCURACY,
) -> RemovalReport:
    """Returns TPP over all classes of `labels`.

    Raises:
        NotMeasurable: fewer than two classes are left, too few texts, or probes below `min_accuracy`.
    """
    _check_wiring(sae, "TPP")
    classes = sorted(set(labels))
    is_class = {label: torch.tensor([each == label for each in labels]) for label in classes}
    fewest = min(int(y.sum()) for y in is_class.values())
    if len(classes) < 3 or fewest < 2 * MIN_TEXTS:
        raise NotMeasurable(
            f"TPP: set `{name}` has {len(classes)} classes, the smallest with {fewest} texts, expected three or more "
            f"with {2 * MIN_TEXTS} each: use another set"
        )
    x = pooled.x.double()
    split = {label: halves(y, seed) for label, y in is_class.items()}
    probes = {label: fit(x[train], is_class[label][train]) for label, (train, _) in split.items()}
    clean = {label: _tested(probe, x, is_class[label], split[label][1]) for label, probe in probes.items()}
    mean = sum(clean.values()) / len(clean)
    if mean < min_accuracy:
        raise NotMeasurable(
            f"TPP: probes on `{name}` reach a mean accuracy of {mean:.2f} on the model's activations, expected at "
            f"least {min_accuracy}: the model does not hold these classes; use a larger model or another set"
        )
    ranked = {}
    for label, probe in probes.items():
        y, train = is_class[label], split[label][0]
        ranked[label] = _ranked(effects(sae, pooled, probe, train & y, train & ~y, more_only=True))
    removals = []
    for n in ns:
        own, other = [], []
        for label in classes:
            without = pooled.without(ranked[label][:n], sae.W_dec.cpu()).double()
            for each in classes:
                drop = clean[each] - _tested(probes[each], without, is_class[each], split[each][1])
                (own if each == label else other).append(drop)
        intended, unintended = sum(own) / len(own), sum(other) / len(other)
        removals.append(Removal(n=n, score=intended - unintended, intended=intended, unintended=unintended))
    return RemovalReport(method="TPP", labelled=name, removals=tuple(removals), clean_accuracy=mean)


@torch.no_grad()
def spurious_correlation_removal(
    sae: SAE,
    pooled: Pooled,
    wanted: Sequence[str],
    unwanted: Sequence[str],
    *,
    name: str = "texts",
    ns: Sequence[int] = NS,
    seed: int = 0,
    min_accuracy: float = MIN_ACCURACY,
    min_bias: float = MIN_BIAS,
) -> RemovalReport:
    """Returns SCR, averaged over all pairs of two wanted and two unwanted labels for which it exists.

    Raises:
        NotMeasurable: no pair has enough texts, probes above `min_accuracy`, and a cue that costs at least `min_bias`.
    """
    _check_wiring(sae, "SCR")
    found, refused = [], []
    for a0, a1 in itertools.combinations(sorted(set(wanted)), 2):
        for b0, b1 in itertools.combinations(sorted(set(unwanted)), 2):
            kept = torch.tensor([a in (a0, a1) and b in (b0, b1) for a, b in zip(wanted, unwanted, strict=True)])
            places = kept.nonzero().flatten().tolist()
            a = torch.tensor([wanted[place] == a1 for place in places])
            b = torch.tensor([unwanted[place] == b1 for place in places])
            try:
                found.append(_remove_cue(sae, pooled[kept], a, b, ns, seed, min_accuracy, min_bias))
            except NotMeasurable as reason:
                refused.append(f"{a0}/{a1} with {b0}/{b1}: {reason}")
    if not found:
        why = "; ".join(refused[:2]) or "it has fewer than two labels of a kind"
        raise NotMeasurable(f"SCR: set `{name}` offers no pair of labels to measure ({why}): use another set")
    removals = tuple(
        Removal(n=n, **{key: sum(each[0][place][key] for each in found) / len(found) for key in found[0][0][place]})
        for place, n in enumerate(ns)
    )
    clean = sum(each[1] for each in found) / len(found)
    return RemovalReport(method="SCR", labelled=name, removals=removals, clean_accuracy=clean)


def effects(
    sae: SAE, pooled: Pooled, probe: Probe, yes: Bool[Tensor, " n"], no: Bool[Tensor, " n"], *, more_only: bool = False
) -> Float[Tensor, " d_sae"]:
    """Returns each latent's effect on a probe: the difference of its means times its decoder row along the probe.

    With `more_only` latents that are stronger in `no` count nothing.
    """
    difference = pooled.mean(yes) - pooled.mean(no)
    return (difference.clamp(min=0) if more_only else difference) * (sae.W_dec.cpu().double() @ probe.weight.cpu())


def _remove_cue(
    sae: SAE,
    pooled: Pooled,
    a: Tensor,
    b: Tensor,
    ns: Sequence[int],
    seed: int,
    min_accuracy: float,
    min_bias: float,
) -> tuple[list[dict[str, float]], float]:
    """Returns score and accuracies for each n, and the clean accuracy, in the direction that the bias hurts more."""
    train, test = _quarters(a, b, seed)
    x = pooled.x.double()
    together = train & (a == b)
    biased = fit(x[together], a[together])
    own = {"a": fit(x[train], a[train]), "b": fit(x[train], b[train])}
    labels = {"a": a, "b": b}
    wanted = min(labels, key=lambda key: _tested(biased, x, labels[key], test))
    unwanted = "b" if wanted == "a" else "a"
    clean = _tested(own[wanted], x, labels[wanted], test)
    before = _tested(biased, x, labels[wanted], test)
    cue = _tested(own[unwanted], x, labels[unwanted], test)
    if min(clean, cue) < min_accuracy:
        raise NotMeasurable(f"probes reach {min(clean, cue):.2f}, expected at least {min_accuracy}")
    if clean - before < min_bias:
        raise NotMeasurable(f"the cue costs the biased probe {clean - before:.2f}, expected at least {min_bias}")
    y = labels[unwanted]
    ranked = _ranked(effects(sae, pooled, own[unwanted], train & y, train & ~y).abs())
    measured = []
    for n in ns:
        without = pooled.without(ranked[:n], sae.W_dec.cpu()).double()
        after = _tested(biased, without, labels[wanted], test)
        measured.append({"score": (after - before) / (clean - before), "intended": after, "unintended": before})
    return measured, clean


def _quarters(a: Tensor, b: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Divides texts into halves that hold equally many texts of each of the four pairs of labels."""
    generator = torch.Generator().manual_seed(seed)
    cells = [side & other for side in (a, ~a) for other in (b, ~b)]
    size = min(int(cell.sum()) for cell in cells) // 2
    if size < MIN_TEXTS:
        raise NotMeasurable(f"the rarest pair has {2 * size} texts, expected {2 * MIN_TEXTS} or more")
    train, test = torch.zeros_like(a), torch.zeros_like(a)
    for cell in cells:
        places = cell.nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)]
        train[places[:size]], test[places[size : 2 * size]] = True, True
    return train, test


def _ranked(effect: Tensor) -> Tensor:
    """Returns latents by effect, largest first, those without a positive one left out."""
    order = effect.sort(descending=True, stable=True)
    return order.indices[order.values > 0]


def _tested(probe: Probe, x: Tensor, y: Tensor, test: Tensor) -> float:
    return accuracy(probe.scores(x[test]), y[test])


def _check_wiring(sae: SAE, method: str) -> None:
    if sae.config.n_sites > 1 or sae.config.predicts_target:
        raise NotMeasurable(
            f"{method}: architecture `{sae.config.architecture}` writes elsewhere than it reads, expected an SAE of "
            "one site: leave it out"
        )
