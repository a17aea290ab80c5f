"""Probes at many sites: how well each kind reads a label there, beside what chance and controls reach.

    train_probes(lm, texts, labels, sites=None, kinds=…) -> ProbeReport

1. Texts become rows (`activations.probes.rows`), in one pass for all sites.
2. Examples are divided (`activations.probes.splits`): fit on the first part, settings chosen on the second, all that is
   reported measured on the third. Equal texts stand on one side.
3. Each label is told apart from the rest (with two labels the second alone), by each kind
   (`activations.probes.fitting`).
4. Controls at the same site: the same kind with the same setting, fitted on shuffled training labels (`shuffled_…`,
   mean of five shuffles; single ones scatter widely, as every direction through separate classes does), and directions
   drawn at random, with a threshold from the training rows (`random_…`). A probe that does well on shuffled labels has
   learnt the rows by heart; random directions tell what comes for free.

`selectivity` = accuracy − shuffled accuracy (Hewitt & Liang 2019). Intervals are of 95 % over test examples: Wilson's
for shares, Newcombe's for areas; they know nothing of the luck of the split.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.analyses.plain import to_json
from activations.intervals import area_interval, share_interval
from activations.logistic import accuracy, auc
from activations.probes.fitting import KINDS, AnyProbe, Fitted, along, fit_probe
from activations.probes.rows import CONTEXT_TOKENS, text_rows
from activations.probes.saving import TrainedProbe
from activations.probes.splits import SHARES, Split, split_examples
from activations.progress import progress
from activations.sites import Site, parse_site
from activations.state_cache import StateCache

if TYPE_CHECKING:
    from activations.model import LanguageModel

DEFAULT_KINDS = ("logistic", "k_sparse", "mean_difference")
SHUFFLES = 5
RANDOM_DIRECTIONS = 20


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """One kind of probe for one label at one site; all figures are of test examples."""

    site: str
    layer: int | None
    label: str
    kind: str
    setting: str
    """What was chosen on validation examples."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    auc: float
    """The chance that an example with the label scores above one without it."""
    auc_low: float
    auc_high: float
    base_rate: float
    """Accuracy of always naming the more frequent side."""
    shuffled_accuracy: float
    shuffled_auc: float
    random_accuracy: float
    """Mean over random directions."""
    random_auc: float
    selectivity: float
    n_test: int


@dataclass(frozen=True)
class ProbeReport:
    """Probes of one labelled set in one model."""

    model: str
    name: str
    """Of the labelled set."""
    labels: tuple[str, ...]
    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    pooling: str
    n_train: int
    n_validation: int
    n_test: int
    scores: tuple[ProbeScore, ...]
    probes: Mapping[tuple[str, str, str], TrainedProbe] = field(repr=False)
    """By (site, label, kind)."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each site, label and kind, in order of execution."""
        return [asdict(score) for score in self.scores]

    def to_json(self) -> str:
        """Returns everything but the probes' weights; those are saved by `TrainedProbe.save`."""
        about = {key: getattr(self, key) for key in ("model", "name", "labels", "sites", "kinds", "pooling")}
        counts = {key: getattr(self, key) for key in ("n_train", "n_validation", "n_test")}
        return to_json(about | counts | {"scores": self.rows()})

    def curve(self, kind: str, label: str | None = None, measure: str = "accuracy") -> list[tuple[str, float]]:
        """Returns (site, figure) of one kind, averaged over labels where none is named.

        Raises:
            ValueError: a kind or label that was not probed.
        """
        chosen = [s for s in self.scores if s.kind == kind and label in (None, s.label)]
        if not chosen:
            raise ValueError(
                f"no probe of kind {kind!r} and label {label!r}, expected {', '.join(self.kinds)} and "
                f"{', '.join(self.labels)}: choose among these"
            )
        by_site: dict[str, list[float]] = {}
        for score in chosen:
            by_site.setdefault(score.site, []).append(float(getattr(score, measure)))
        return [(site, sum(values) / len(values)) for site, values in by_site.items()]

    def best(self, kind: str | None = None, label: str | None = None) -> TrainedProbe:
        """Returns the probe with the highest AUC on test examples (of one kind, of one label); the earliest of equals.

        Choosing by test figures makes that probe's own figure a little too good: confirm it on other texts.
        """
        chosen = [s for s in self.scores if kind in (None, s.kind) and label in (None, s.label)]
        if not chosen:
            raise ValueError(
                f"no probe of kind {kind!r} and label {label!r}, expected {', '.join(self.kinds)} and "
                f"{', '.join(self.labels)}: choose among these"
            )
        best = max(chosen, key=lambda score: score.auc)
        return self.probes[best.site, best.label, best.kind]


def stream_of(lm: LanguageModel) -> list[str]:
    """Returns the sites that probes read by default: the stream before the first layer and behind each."""
    stack = lm.site_map.stacks[-1].architecture.stack
    return [str(Site("resid_pre", 0, stack)), *(str(Site("resid_post", layer, stack)) for layer in range(lm.n_layers))]


def train_probes(
    lm: LanguageModel,
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    sites: Sequence[str] | None = None,
    kinds: Sequence[str] = DEFAULT_KINDS,
    name: str = "texts",
    pooling: str = "mean",
    context_tokens: int = CONTEXT_TOKENS,
    groups: Sequence[Hashable] | None = None,
    shares: tuple[float, float, float] = SHARES,
    k: int | None = None,
    seed: int = 0,
    cache: StateCache | None = None,
) -> ProbeReport:
    """Trains and scores probes for the labels of texts, at `sites` (default: the residual stream behind each layer).

    `groups` names what belongs together (documents, templates); by default equal texts do. `k` fixes the number of
    columns of `k_sparse`; otherwise it is chosen.

    Raises:
        ValueError: another number of labels than texts, one label alone or one that is too rare, unknown kinds or
            sites, a text without tokens.
    """
    if len(texts) != len(labels):
        raise ValueError(f"got {len(labels)} labels for {len(texts)} texts, expected one each: pair them again")
    places = stream_of(lm) if sites is None else sorted(set(sites), key=_order(lm))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"probe {unknown[0]!r} is unknown, expected one of {', '.join(KINDS)}: choose among these")
    if len(set(labels)) < 2:
        raise ValueError(f"got the labels {sorted(set(labels))}, expected at least two: a probe tells classes apart")
    split = split_examples(labels, groups=list(texts) if groups is None else groups, shares=shares, seed=seed)
    rows = text_rows(lm, texts, places, pooling=pooling, context_tokens=context_tokens, cache=cache)
    classes = sorted(set(labels))
    asked = classes[1:] if len(classes) == 2 else classes
    scores: list[ProbeScore] = []
    probes: dict[tuple[str, str, str], TrainedProbe] = {}
    about = {"model": lm.name, "weight_hash": lm.weight_hash(), "pooling": pooling, "context_tokens": context_tokens}
    with progress("Probes", len(places) * len(asked) * len(kinds), "probes") as advance:
        for site in places:
            x = rows[site].double()
            for label in asked:
                y = torch.tensor([each == label for each in labels])
                task = _Task(x, y, split, seed)
                for kind in kinds:
                    fitted, figures = task.score(kind, k)
                    scores.append(
                        ProbeScore(
                            site=site,
                            layer=parse_site(site).layer,
                            label=label,
                            kind=kind,
                            setting=fitted.setting,
                            **figures,
                        )
                    )
                    against = next(each for each in classes if each != label) if len(classes) == 2 else "others"
                    probes[site, label, kind] = TrainedProbe(
                        **about,
                        site=site,
                        label=label,
                        against=against,
                        kind=kind,
                        setting=fitted.setting,
                        columns=fitted.columns,
                        spread=task.spread(fitted.probe),
                        probe=fitted.probe,
                        name=name,
                        accuracy=scores[-1].accuracy,
                        auc=scores[-1].auc,
                    )
                    advance(1, f"{kind} at {site}")
    sizes = {"n_train": len(split.train), "n_validation": len(split.validation), "n_test": len(split.test)}
    return ProbeReport(
        model=lm.name,
        name=name,
        labels=tuple(asked),
        sites=tuple(places),
        kinds=tuple(kinds),
        pooling=pooling,
        scores=tuple(scores),
        probes=probes,
        **sizes,
    )


class _Task:
    """One label against the rest at one site."""

    def __init__(self, x: Float[Tensor, "n d"], y: Bool[Tensor, " n"], split: Split, seed: int) -> None:
        self.x, self.y = {}, {}
        for side in ("train", "validation", "test"):
            chosen = getattr(split, side)
            self.x[side], self.y[side] = x[chosen], y[chosen]
        self.seed = seed
        yes = float(self.y["test"].double().mean())
        self.base_rate = max(yes, 1 - yes)
        generator = torch.Generator().manual_seed(seed)
        spread = self.x["train"].std(0, correction=0)
        # as long in each column as its rows are spread: what a careless look would take for a direction of the data
        drawn = [torch.randn(x.shape[1], generator=generator, dtype=torch.float64) for _ in range(RANDOM_DIRECTIONS)]
        blind = [along(each / spread.clamp(min=1e-12), self.x["train"], self.y["train"]) for each in drawn]
        self.random_accuracy, self.random_auc = self._mean(blind)
        self.shuffles = [torch.randperm(len(self.y["train"]), generator=generator) for _ in range(SHUFFLES)]

    def score(self, kind: str, k: int | None) -> tuple[Fitted, dict[str, Any]]:
        """Fits one kind and its control, and returns the probe and its figures on test rows."""
        x, y = self.x, self.y
        given = (x["validation"], y["validation"])
        fitted = fit_probe(kind, x["train"], y["train"], *given, k=k, seed=self.seed)
        blind = [
            fit_probe(kind, x["train"], y["train"][order], *given, chosen=fitted.chosen, seed=self.seed).probe
            for order in self.shuffles
        ]
        shuffled_accuracy, shuffled_auc = self._mean(blind)
        truth = y["test"]
        values = fitted.probe.scores(x["test"])
        hits = share_interval(int(((values > 0) == truth).sum()), len(truth))
        area = area_interval(auc(values, truth), int(truth.sum()), int((~truth).sum()))
        return fitted, {
            "accuracy": hits.value,
            "accuracy_low": hits.low,
            "accuracy_high": hits.high,
            "auc": area.value,
            "auc_low": area.low,
            "auc_high": area.high,
            "base_rate": self.base_rate,
            "shuffled_accuracy": shuffled_accuracy,
            "shuffled_auc": shuffled_auc,
            "random_accuracy": self.random_accuracy,
            "random_auc": self.random_auc,
            "selectivity": hits.value - shuffled_accuracy,
            "n_test": len(truth),
        }

    def spread(self, probe: AnyProbe) -> float:
        """Returns the standard deviation of training rows along the probe's unit direction (1 for none)."""
        weight = getattr(probe, "weight", None)
        if weight is None or not float(weight.norm()):
            return 1.0
        return float((self.x["train"] @ (weight / weight.norm())).std(correction=0))

    def _mean(self, probes: Sequence[AnyProbe]) -> tuple[float, float]:
        x, y = self.x["test"], self.y["test"]
        scored = [probe.scores(x) for probe in probes]
        return (
            sum(accuracy(each, y) for each in scored) / len(scored),
            sum(auc(each, y) for each in scored) / len(scored),
        )


def _order(lm: LanguageModel) -> Any:
    known = {site: place for place, site in enumerate(lm.sites())}
    return lambda site: (known.get(site, len(known)), site)
