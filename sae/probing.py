"""Sparse probing: can a handful of latents tell classes of text apart, and what do controls reach?

Enters: texts pooled by `sae.pooling`, and their labels. Leaves: accuracy and AUC on held-out texts.

1. Each label is a task of its own, against as many texts of other labels; half of the texts of either side, drawn by
   seed, train the probe, the other half test it.
2. The k latents whose means differ most between both sides, in absolute value and on the training half, are chosen
   (SAEBench's sparse probing; Gurnee et al. 2023, "Finding neurons in a haystack").
3. A logistic regression (`activations.logistic`) on them is scored on the test half.
4. Controls, on the same halves: the dense probe on mean activations; k coordinates of the activations chosen in the
   same way; k latents drawn at random among those that fire; and everything again with the training labels shuffled,
   which must stay near one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.logistic import accuracy, auc, fit
from sae.labelled_text import LabelledText
from sae.model import SAE
from sae.pooling import Pooled, pool_texts

KS = (1, 2, 5)
RANDOM_DRAWS = 5
MIN_TEXTS = 8
"""Texts that each side of a task must have at least."""


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How well k latents tell one label from the others; shares are of test texts, half of which carry the label."""

    labelled: str
    """Name of the set."""
    label: str
    """The class that is told apart from the rest."""
    k: int
    accuracy: float
    auc: float
    latents: tuple[int, ...]
    """The latents chosen, strongest difference first."""
    dense_accuracy: float
    """Of the probe on whole mean activations."""
    dense_auc: float
    coordinates_accuracy: float
    """Of k coordinates of the activations, chosen as the latents are."""
    random_accuracy: float
    """Of k live latents drawn at random, averaged over five draws."""
    shuffled_accuracy: float
    """Of k latents chosen and fitted with shuffled training labels."""
    n_test: int


@dataclass(frozen=True)
class ProbingReport:
    """Sparse probing of one SAE on one set: a score for each label and k."""

    scores: tuple[ProbeScore, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record for each k, averaged over labels, the scores' names kept."""
        return [self._mean(k) for k in dict.fromkeys(score.k for score in self.scores)]

    def to_json(self) -> dict[str, Any]:
        """Returns means and single scores, ready for JSON."""
        return {"mean": self.rows(), "scores": [asdict(score) for score in self.scores]}

    def _mean(self, k: int) -> dict[str, Any]:
        chosen = [score for score in self.scores if score.k == k]
        names = [name for name, value in asdict(chosen[0]).items() if isinstance(value, float)]
        return {
            "labelled": chosen[0].labelled,
            "labels": len(chosen),
            "k": k,
            **{name: sum(getattr(score, name) for score in chosen) / len(chosen) for name in names},
        }


def probe_saes(
    lm: Any,
    saes: Mapping[str, SAE],
    labelled: LabelledText,
    *,
    ks: Sequence[int] = KS,
    texts_per_class: int = 1000,
    seed: int = 0,
) -> dict[str, ProbingReport]:
    """Probes several SAEs on one set; at most `texts_per_class` texts of each label are read, once for all SAEs."""
    sample = labelled.sample(texts_per_class, seed)
    pooled = pool_texts(lm, saes, sample.texts)
    return {
        name: sparse_probing(each, sample.labels, name=labelled.name, ks=ks, seed=seed) for name, each in pooled.items()
    }


def sparse_probing(
    pooled: Pooled, labels: Sequence[str], *, name: str = "texts", ks: Sequence[int] = KS, seed: int = 0
) -> ProbingReport:
    """Scores k-sparse probes for every label (for the second one alone where there are two).

    Raises:
        ValueError: another number of labels than texts, a label with too few texts, or more latents asked for than are.
    """
    if len(labels) != len(pooled.x):
        raise ValueError(f"got {len(labels)} labels for {len(pooled.x)} texts, expected one each: pair them again")
    classes = sorted(set(labels))
    scores: list[ProbeScore] = []
    for label in classes[1:] if len(classes) == 2 else classes:
        is_label = torch.tensor([each == label for each in labels])
        if min(int(is_label.sum()), int((~is_label).sum())) < MIN_TEXTS:
            raise ValueError(
                f"set `{name}` has {int(is_label.sum())} of {len(labels)} texts labelled {label!r}, expected at least "
                f"{MIN_TEXTS} with and without: add texts"
            )
        train, test = halves(is_label, seed)
        scores += _task(pooled, is_label, train, test, name, label, ks, seed)
    return ProbingReport(tuple(scores))


def halves(is_label: Bool[Tensor, " n"], seed: int) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """Divides texts into a training and a test half, each with as many texts of the label as of others."""
    generator = torch.Generator().manual_seed(seed)
    size = min(int(is_label.sum()), int((~is_label).sum())) // 2
    train, test = torch.zeros_like(is_label), torch.zeros_like(is_label)
    for side in (is_label, ~is_label):
        places = side.nonzero().flatten()
        places = places[torch.randperm(len(places), generator=generator)]
        train[places[:size]], test[places[size : 2 * size]] = True, True
    return train, test


def strongest(difference: Float[Tensor, " columns"], k: int) -> Int[Tensor, " k"]:
    """Returns the k columns with the largest absolute difference, ties to the lower number."""
    if k > len(difference):
        raise ValueError(f"k={k} latents were asked for, the SAE has {len(difference)}: lower k")
    return difference.abs().sort(descending=True, stable=True).indices[:k]


def _task(
    pooled: Pooled, y: Tensor, train: Tensor, test: Tensor, name: str, label: str, ks: Sequence[int], seed: int
) -> list[ProbeScore]:
    generator = torch.Generator().manual_seed(seed)
    x = pooled.x.double()
    dense = fit(x[train], y[train]).scores(x[test])
    shuffled = y.clone()
    places = train.nonzero().flatten()
    shuffled[places] = y[places[torch.randperm(len(places), generator=generator)]]
    live = torch.unique(pooled.latents[train[pooled.texts]])
    scores = []
    for k in ks:
        latents = strongest(pooled.mean(train & y) - pooled.mean(train & ~y), k)
        by_chance = strongest(pooled.mean(train & shuffled) - pooled.mean(train & ~shuffled), k)
        coordinates = strongest(x[train & y].mean(0) - x[train & ~y].mean(0), min(k, x.shape[1]))
        drawn = [live[torch.randperm(len(live), generator=generator)[:k]] for _ in range(RANDOM_DRAWS)]
        chosen = _scores(pooled.columns(latents), y, train, test)
        scores.append(
            ProbeScore(
                labelled=name,
                label=label,
                k=k,
                accuracy=accuracy(chosen, y[test]),
                auc=auc(chosen, y[test]),
                latents=tuple(latents.tolist()),
                dense_accuracy=accuracy(dense, y[test]),
                dense_auc=auc(dense, y[test]),
                coordinates_accuracy=accuracy(_scores(x[:, coordinates], y, train, test), y[test]),
                random_accuracy=sum(accuracy(_scores(pooled.columns(at), y, train, test), y[test]) for at in drawn)
                / RANDOM_DRAWS,
                shuffled_accuracy=accuracy(_scores(pooled.columns(by_chance), shuffled, train, test), y[test]),
                n_test=int(test.sum()),
            )
        )
    return scores


def _scores(columns: Tensor, y: Tensor, train: Tensor, test: Tensor) -> Tensor:
    return fit(columns[train], y[train]).scores(columns[test])
