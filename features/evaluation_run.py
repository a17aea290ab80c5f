"""Evaluation of trained SAEs on held-out documents, from their folders.

Enters: folders of SAEs. Leaves: an `Evaluation`, and `metrics.json` in each folder.

1. SAEs of the same model and text are measured together: the model reads the held-out documents once, for all sites and
   all SAEs; cross-entropy takes one more run for each SAE (`sae.evaluation`).
2. SAEs that write the same sites are compared with each other (`sae.stability`): latents that fired on the text.
3. On request: sparse probing on labelled text (`sae.probing`).
4. With `full`: the meta-SAE, absorption, SCR and TPP. What the model, the SAE or the texts cannot carry is refused by
   name, and the refusal is part of the result.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from features.origin import check_site, data_of, model_of, settled, with_second_model
from features.store import write_json
from sae import SAE, Metrics
from sae.absorption import AbsorptionReport, NotMeasurable, measure_absorption, word_activations
from sae.concept_removal import RemovalReport, spurious_correlation_removal, targeted_probe_perturbation
from sae.evaluation import evaluate_together
from sae.labelled_text import labelled_text
from sae.meta_sae import MetaSAE, meta_sae
from sae.pooling import pool_texts
from sae.probing import ProbingReport, probe_saes
from sae.stability import Stability, compare

if TYPE_CHECKING:
    from activations import DataConfig, LanguageModel, TokenRows

BATCH_TOKENS = 8192
LOGITS_AT_ONCE = 1 << 25
FULL_SETS = ("topics", "forms")
"""Shipped sets that SCR and TPP are measured on."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two SAEs of the same sites, and how they agree."""

    first: str
    second: str
    sites: tuple[str, ...]
    stability: Stability


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Several SAEs and what was measured of each; keys are their names."""

    metrics: dict[str, Metrics]
    facts: dict[str, dict[str, Any]]
    """Folder, architecture, sites, width, model and text of each SAE."""
    stability: tuple[Pair, ...] = ()
    probing: dict[str, list[ProbingReport]] = field(default_factory=dict)
    meta: dict[str, MetaSAE] = field(default_factory=dict)
    absorption: dict[str, AbsorptionReport] = field(default_factory=dict)
    removal: dict[str, list[RemovalReport]] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    """What could not be measured, and why."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record a figure: its name, and a value for each SAE that has one."""
        figures: dict[str, dict[str, Any]] = {}
        for name in self.metrics:
            for metric, value in self._figures(name).items():
                figures.setdefault(metric, {})[name] = value
        return [{"metric": metric, **values} for metric, values in figures.items()]

    def _figures(self, name: str) -> dict[str, Any]:
        found = {row["metric"]: row["value"] for row in self.metrics[name].rows()}
        for report in self.probing.get(name, []):
            for row in report.rows():
                found[f"probe_{row['labelled']}_k{row['k']}"] = row["accuracy"]
                found[f"probe_{row['labelled']}_dense"] = row["dense_accuracy"]
        if name in self.meta:
            found["meta_explained_variance"] = self.meta[name].explained_variance
            found["meta_explained_variance_shuffled"] = self.meta[name].shuffled_explained_variance
        if name in self.absorption:
            found |= {row["metric"]: row["value"] for row in self.absorption[name].rows()}
        for report in self.removal.get(name, []):
            for removal in report.removals:
                found[f"{report.method.lower()}_{report.labelled}_n{removal.n}"] = removal.score
        return found

    def to_json(self) -> str:
        """Returns everything but what is known of each single latent."""
        content = {
            name: {
                **self.facts[name],
                "metrics": json.loads(metrics.to_json()),
                "probing": [report.to_json() for report in self.probing.get(name, [])],
                "meta_sae": self.meta[name].to_json() if name in self.meta else None,
                "absorption": self.absorption[name].to_json() if name in self.absorption else None,
                "concept_removal": [report.to_json() for report in self.removal.get(name, [])],
                "refused": self.refused.get(name, []),
            }
            for name, metrics in self.metrics.items()
        }
        pairs = [
            {"first": pair.first, "second": pair.second, "sites": pair.sites, **pair.stability.to_json()}
            for pair in self.stability
        ]
        return json.dumps({"saes": content, "stability": pairs}, indent=2)


def run_evaluate(
    sae_dir: str | Path, model: str | None = None, data: str | None = None, *, lm: LanguageModel | None = None
) -> Metrics:
    """Measures a trained SAE on held-out documents and writes `metrics.json` beside it.

    Model and text default to those recorded in the SAE. Cross-entropy is measured where the model is a decoder.

    Raises:
        FileNotFoundError: no SAE there.
        ValueError: the SAE does not say what it was trained on, or the model lacks its site.
    """
    return next(iter(evaluate_folders([sae_dir], model, data, lm=lm).metrics.values()))


def evaluate_folders(
    sae_dirs: Sequence[str | Path],
    model: str | None = None,
    data: str | None = None,
    *,
    probe: Sequence[str] = (),
    full: bool = False,
    lm: LanguageModel | None = None,
) -> Evaluation:
    """Measures several SAEs, each on its own model and text unless these are given; writes each one's `metrics.json`.

    `probe` names labelled sets (`sae.labelled_text`); `full` adds what takes minutes.

    Raises:
        FileNotFoundError: a folder without an SAE.
        ValueError: an SAE does not say what it was trained on, its model lacks its sites, or a labelled set is unknown.
    """
    sets = [labelled_text(name) for name in probe]
    folders = _named(sae_dirs)
    saes = {name: SAE.load(str(folder)) for name, folder in folders.items()}
    metrics: dict[str, Metrics] = {}
    probing: dict[str, list[ProbingReport]] = {name: [] for name in saes}
    extra = _Extra()
    for group in _groups(saes, folders, model, data):
        first = group.names[0]
        own = with_second_model(saes[first], folders[first], lm) if lm else model_of(saes[first], folders[first], model)
        mine = {name: settled(saes[name], own) for name in group.names}
        for name, sae in mine.items():
            check_site(sae, own, folders[name])
            sae.to(own.device)
        metrics |= _measure(mine, own, group.data)
        for labelled in sets:
            for name, report in probe_saes(own, mine, labelled).items():
                probing[name].append(report)
        if full:
            extra.measure(mine, own)
    for name, folder in folders.items():
        write_json(folder / "metrics.json", json.loads(metrics[name].to_json()))
    return Evaluation(
        metrics={name: metrics[name] for name in saes},
        facts={name: _facts(sae, folders[name]) for name, sae in saes.items()},
        stability=_compared(saes, metrics),
        probing={name: reports for name, reports in probing.items() if reports},
        meta=extra.meta,
        absorption=extra.absorption,
        removal=extra.removal,
        refused=extra.refused,
    )


@dataclass(frozen=True)
class _Group:
    names: list[str]
    data: DataConfig


def _named(sae_dirs: Sequence[str | Path]) -> dict[str, Path]:
    """Names every folder by its last two parts (site and name), or by its whole path where that is taken."""
    named: dict[str, Path] = {}
    for folder in map(Path, sae_dirs):
        whole = folder.resolve()
        if whole in {other.resolve() for other in named.values()}:
            raise ValueError(f"{folder} was given twice, expected each SAE once: leave one out")
        name = "/".join(whole.parts[-2:])
        named[name if name not in named else str(whole)] = folder
    return named


def _groups(saes: dict[str, SAE], folders: dict[str, Path], model: str | None, data: str | None) -> list[_Group]:
    """Gathers SAEs that one model reads the same text for."""
    groups: dict[str, _Group] = {}
    for name, sae in saes.items():
        config = data_of(sae, folders[name], data)
        facts = [sae.metadata.get(key) for key in ("model_name", "model_revision", "compare_model_name")]
        key = repr((model or facts[:2], facts[2], config))
        groups.setdefault(key, _Group([], config)).names.append(name)
    return list(groups.values())


def _measure(saes: dict[str, SAE], lm: LanguageModel, data: DataConfig) -> dict[str, Metrics]:
    from activations import token_rows

    rows = token_rows(lm, data, "heldout")
    whole = rows.mask().all(axis=1)
    batch_rows = max(1, min(4096, LOGITS_AT_ONCE // lm.vocab_size) // rows.context_tokens)
    tokens = (_tokens(part, lm) for part in rows[: int(whole.sum())].batches(batch_rows) if len(part))
    sites = sorted({site for sae in saes.values() for site in (*sae.sites, *sae.target_sites)})
    scored = lm.kind == "decoder" and bool(whole.any())
    return evaluate_together(
        saes,
        _rows(lm, rows, sites, data.exclude_special_tokens, _norm_limits(saes)),
        lm=lm if scored else None,
        tokens=tokens if scored else None,
    )


def _tokens(part: TokenRows, lm: LanguageModel) -> Any:
    """The tokens of a batch, with those that SAEs rewrite where roles leave some out."""
    tokens = part.torch_tokens(lm.device)
    return tokens if part.kept is None else (tokens, torch.from_numpy(part.kept).to(lm.device))


def _norm_limits(saes: dict[str, SAE]) -> dict[str, float]:
    """The largest norms that the SAEs were trained up to: rows that one of them left out are left out for all."""
    limits: dict[str, float] = {}
    for sae in saes.values():
        for site, limit in (sae.metadata.get("norm_limits") or {}).items():
            limits[site] = min(float(limit), limits.get(site, float(limit)))
    return limits


def _rows(
    lm: LanguageModel, rows: TokenRows, sites: list[str], exclude: bool, limits: dict[str, float]
) -> Iterator[dict[str, Tensor]]:
    from activations import within_limits
    from activations.harvesting import iter_row_batches
    from activations.progress import progress

    with progress("evaluate", rows.n_tokens, "tok") as advance:
        for batch in iter_row_batches(lm, rows, sites, BATCH_TOKENS, exclude):
            values = {site: value.float().to(lm.device) for site, value in batch.values.items()}
            if limits:
                kept = within_limits(values, limits)
                values = {site: value[kept] for site, value in values.items()}
            yield values
            advance(len(batch.documents))


def _facts(sae: SAE, folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "architecture": sae.metadata.get("training_architecture") or sae.config.architecture,
        "sites": sae.sites,
        "target_sites": sae.target_sites,
        "d_in": sae.config.d_in,
        "d_sae": sae.config.d_sae,
        "model": sae.metadata.get("model_name"),
        "data": (sae.metadata.get("data") or {}).get("source"),
        "seed": (sae.metadata.get("train_config") or {}).get("seed"),
    }


def _compared(saes: dict[str, SAE], metrics: dict[str, Metrics]) -> tuple[Pair, ...]:
    """Compares all SAEs that write the same sites of one model."""
    pairs = []
    for first, second in itertools.combinations(saes, 2):
        one, other = saes[first], saes[second]
        same = all(one.metadata.get(key) == other.metadata.get(key) for key in ("model_name", "model_weight_hash"))
        if not same or one.target_sites != other.target_sites or one.W_dec.shape[1] != other.W_dec.shape[1]:
            continue
        live = (torch.tensor(metrics[first].density) > 0, torch.tensor(metrics[second].density) > 0)
        if live[0].any() and live[1].any():
            found = compare(one, other, live=live)
            pairs.append(Pair(first=first, second=second, sites=tuple(one.target_sites), stability=found))
    return tuple(pairs)


class _Extra:
    """What takes minutes or a large model, and what was refused."""

    def __init__(self) -> None:
        self.meta: dict[str, MetaSAE] = {}
        self.absorption: dict[str, AbsorptionReport] = {}
        self.removal: dict[str, list[RemovalReport]] = {}
        self.refused: dict[str, list[str]] = {}

    def measure(self, saes: dict[str, SAE], lm: LanguageModel) -> None:
        for name, sae in saes.items():
            if sae.config.d_sae < 64:
                self._refuse(name, f"meta-SAE: {sae.config.d_sae} latents, expected 64 or more: use a wider SAE")
            else:
                self.meta[name] = meta_sae(sae)
            if (report := self._tried(name, _absorption, sae, lm)) is not None:
                self.absorption[name] = report
        for set_name in FULL_SETS:
            labelled = labelled_text(set_name)
            for name, pooled in pool_texts(lm, saes, labelled.texts).items():
                given = (saes[name], pooled, labelled.labels)
                if len(labelled.classes) > 2:
                    found = self._tried(name, targeted_probe_perturbation, *given, name=set_name)
                else:
                    found = self._tried(name, spurious_correlation_removal, *given, labelled.second, name=set_name)
                if found is not None:
                    self.removal.setdefault(name, []).append(found)

    def _tried(self, sae_name: str, measure: Callable[..., Any], *given: Any, **named: Any) -> Any:
        try:
            return measure(*given, **named)
        except NotMeasurable as reason:
            self._refuse(sae_name, str(reason))
            return None

    def _refuse(self, name: str, reason: str) -> None:
        self.refused.setdefault(name, []).append(reason)


def _absorption(sae: SAE, lm: LanguageModel) -> AbsorptionReport:
    x, letters = word_activations(lm, sae)
    return measure_absorption(sae, x, letters, source=lm.name)
