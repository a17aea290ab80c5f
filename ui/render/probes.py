"""How probes, their causal checks, concepts and neurons' logits are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ui.render.curves import Point, Scatter
from ui.render.results import View, interval_text

if TYPE_CHECKING:
    from activations.analyses import NeuronLogits
    from activations.probes import ConceptTest, ProbeCheck, ProbeReport


def _probe_facts(found: ProbeReport) -> Mapping[str, str]:
    best = max(found.scores, key=lambda score: score.auc)
    return {
        "model": found.model,
        "set": found.name,
        "texts (train, validation, test)": f"{found.n_train:,}, {found.n_validation:,}, {found.n_test:,}",
        "best probe": f"{best.kind} at {best.site}" + (f", {best.setting}" if best.setting else ""),
        "its accuracy": interval_text(best.accuracy, best.accuracy_low, best.accuracy_high),
        "base rate": f"{best.base_rate:.3f}",
    }


def _probe_curves(found: ProbeReport) -> list[Scatter]:
    """Accuracy by site, for each label: a line for each kind, and the controls."""
    charts = []
    for label in found.labels:
        scores = [score for score in found.scores if score.label == label]
        series: dict[str, list[Point]] = {}
        for score in scores:
            place = float(found.sites.index(score.site))
            half = (score.accuracy_high - score.accuracy_low) / 2
            series.setdefault(score.kind, []).append(Point(score.site, place, score.accuracy, half))
        first = found.kinds[0]
        for score in scores:
            if score.kind == first:
                place = float(found.sites.index(score.site))
                series.setdefault(f"{first}, shuffled", []).append(Point(score.site, place, score.shuffled_accuracy))
                series.setdefault("random directions", []).append(Point(score.site, place, score.random_accuracy))
                series.setdefault("base rate", []).append(Point(score.site, place, score.base_rate))
        charts.append(
            Scatter(
                title=f"Accuracy on test texts, {label!r}",
                x_label=f"site, from {found.sites[0]} (0) to {found.sites[-1]} ({len(found.sites) - 1})",
                y_label="accuracy",
                series=series,
            )
        )
    return charts


def _check_curves(found: ProbeCheck) -> list[Scatter]:
    added = [effect for effect in found.effects if effect.strength is not None]
    if not added:
        return []
    series = {
        "probe": [Point("probe", e.strength or 0.0, e.effect, (e.high - e.low) / 2 or None) for e in added],
        "largest of random directions": [
            Point("random", e.strength or 0.0, e.random_effect) for e in added if e.random_effect is not None
        ],
    }
    title = f"Change of the {found.target}"
    return [Scatter(title=title, x_label="standard deviations added", y_label="change", series=series)]


def _concept_facts(found: ConceptTest) -> Mapping[str, str]:
    return {
        "model": found.model,
        "site": found.site,
        "target": found.target,
        "TCAV score": f"{found.score:.3f}",
        "of meaningless vectors": f"{found.random_score:.3f}",
        "p (permutations)": f"{found.p:.4f}",
        "accuracy of the vectors": f"{found.accuracy:.3f}",
    }


def _logit_rows(found: NeuronLogits) -> list[dict[str, Any]]:
    return sorted(found.rows(), key=lambda row: -row["kurtosis"])


PROBES = View(
    heading="Probes",
    what=(
        "What can be read from the model at each site, on texts that chose nothing. Shuffled labels and random "
        "directions are controls: a probe says something only as far as it is above them. That a label can be read "
        "does not mean that the model uses it: check the probe by intervention."
    ),
    facts=_probe_facts,
    columns=(
        "site", "label", "kind", "setting", "accuracy", "accuracy_low", "accuracy_high", "auc", "auc_low", "auc_high",
        "base_rate", "shuffled_accuracy", "random_accuracy", "selectivity",
    ),
    brief=(
        "site", "label", "kind", "setting", "accuracy", "auc", "base_rate", "shuffled_accuracy", "random_accuracy",
        "selectivity",
    ),
    curves=_probe_curves,
)  # fmt: skip
CHECK = View(
    heading="A probe's direction, added and erased",
    what=(
        "What happens to the model's output when activations are moved along the probe's direction, beside moves just "
        "as far along random directions. An effect that random directions reach says nothing about the direction; a "
        "large KL says that the push left what the model knows."
    ),
    facts=lambda found: {
        "model": found.model,
        "probe": f"{found.label!r}, {found.kind} at {found.site}",
        "target": found.target,
        "its mean": f"{found.value:.4g}",
        "texts": f"{found.n_texts:,}",
    },
    curves=_check_curves,
)
CONCEPT = View(
    heading="Concept test",
    what=(
        "The share of texts for which a small step along the concept's direction raises the target, beside the same "
        "for vectors that were fitted on mixed texts and mean nothing. First order only; where the vectors' accuracy "
        "is "
        "near one half the concept is not there to be tested."
    ),
    facts=_concept_facts,
)
NEURON_LOGITS = View(
    heading="What neurons write",
    what=(
        "The tokens that each neuron raises (top) and lowers (bottom) when it is positive, up to the final norm's "
        "scale. A large kurtosis means few tokens. The direct path only: what later layers make of a neuron is not "
        "seen. "
        "Contexts in which a neuron is most active are in a dictionary of neurons (glassbox index … --neurons)."
    ),
    facts=lambda found: {"model": found.model, "layer": str(found.layer), "neurons": f"{len(found.neurons):,}"},
    columns=("neuron", "top", "bottom", "norm", "variance", "kurtosis", "skew"),
    rows=_logit_rows,
)
