"""Trains all SAEs of a run in as few passes over the rows as possible.

Enters: the run's SAEs (`sae.jobs`), its model and tokens, its activation store where it has one. Leaves: for each SAE
its training run below `state`, and for each pass the place in the rows.

SAEs share a pass if they take batches of one size and are checkpointed together; one order of rows, that of the `train`
section's seed, serves all of them. End-to-end training reads sequences instead of rows and has a pass of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.trainer import Training, TrainResult, train_together

if TYPE_CHECKING:
    from activations import ActivationStore, DataConfig, HarvestConfig, LanguageModel, TokenRows
    from sae import TrainSection
    from sae.jobs import SAEJob


@dataclass(frozen=True)
class Material:
    """What the SAEs of a run are trained on."""

    lm: LanguageModel
    rows: TokenRows
    store: ActivationStore | None
    """The run's store; None where rows come straight from the model."""
    data: DataConfig
    harvest: HarvestConfig
    norm_limits: Mapping[str, float]
    """Largest norm of a row by site, where outliers are left out."""

    def rows_of(self, sites: Sequence[str], seed: int) -> tuple[Any, int]:
        """Returns endless shuffled rows of `sites`, by site, and how many there are in an epoch."""
        from activations import WithoutOutliers, stream
        from activations.divided import divided
        from activations.processes import current

        if self.store is not None:
            rows: Any = self.store.rows(sites, seed=seed, epochs=None, window_rows=self.harvest.buffer_rows)
            available = self.store.n_rows
        else:
            rows = stream(
                divided(self.lm, current()),
                self.rows,
                sites,
                self.harvest,
                seed=seed,
                epochs=None,
                exclude_special_tokens=self.data.exclude_special_tokens,
            )
            available = int(np.count_nonzero(self.rows.trained_mask(self._excluded)))
        limits = {site: self.norm_limits[site] for site in sites if site in self.norm_limits}
        return (WithoutOutliers(rows, limits) if limits else rows), available

    def sequences(self, seed: int) -> tuple[Any, int]:
        """Returns endless whole sequences, and how many tokens they have in an epoch."""
        from activations.sequences import SequenceRows

        rows = SequenceRows(self.rows, self._excluded, seed=seed, epochs=None)
        return rows, rows.rows_per_epoch

    @property
    def _excluded(self) -> frozenset[int]:
        return self.lm.special_ids if self.data.exclude_special_tokens else frozenset()


def passes_of(jobs: Sequence[SAEJob]) -> list[list[SAEJob]]:
    """Returns the SAEs that can be trained together, in the order of their first ones."""
    groups: dict[tuple[int, int, bool], list[SAEJob]] = {}
    for job in jobs:
        settings = job.settings
        key = (settings.batch_rows, settings.checkpoint_every_steps, settings.objective != "reconstruction")
        groups.setdefault(key, []).append(job)
    return list(groups.values())


def train_jobs(
    jobs: Sequence[SAEJob],
    material: Material,
    train: TrainSection,
    out: Path,
    metadata: Mapping[tuple[str, str], Mapping[str, Any]],
    resume: bool,
) -> dict[tuple[str, str], TrainResult]:
    """Trains `jobs` and returns the results by folder and name, as `metadata` is given.

    `out` is the folder of training runs, `<folder>/<name>` for each SAE and `pass_<n>` for the rows of each pass.
    """
    results: dict[tuple[str, str], TrainResult] = {}
    for number, group in enumerate(passes_of(jobs)):
        if group[0].settings.objective == "reconstruction":
            sites = list(dict.fromkeys(site for job in group for site in job.all_sites))
            rows, available = material.rows_of(sites, train.seed)
        else:
            rows, available = material.sequences(train.seed)
        total_rows = train.total_rows or int(available * train.epochs)
        trainings = [
            _training(job, material, total_rows, out / job.folder / job.name, metadata[job.folder, job.name])
            for job in group
        ]
        made = train_together(trainings, rows, out / f"pass_{number}", resume)
        results |= {(job.folder, job.name): result for job, result in zip(group, made, strict=True)}
    return {(job.folder, job.name): results[job.folder, job.name] for job in jobs}


def _training(job: SAEJob, material: Material, total_rows: int, out: Path, metadata: Mapping[str, Any]) -> Training:
    config = job.train_config(total_rows, str(out))
    if config.objective == "reconstruction":
        return Training(config, job.wiring.sites, job.wiring.target_sites, metadata)
    from sae.end_to_end import EndToEnd

    context = material.rows.context_tokens
    if config.batch_rows % context:
        raise ValueError(
            f"batch_rows={config.batch_rows} is no multiple of context_tokens={context}, expected whole sequences for "
            f"objective={config.objective}: set batch_rows={max(1, round(config.batch_rows / context)) * context}"
        )
    objective = EndToEnd(
        material.lm,
        job.site,
        context,
        config.objective,
        reconstruction_weight=config.reconstruction_weight,
        downstream_weight=config.downstream_weight,
        norm_limit=material.norm_limits.get(job.site),
    )
    return Training(config, ("tokens", "kept"), (), metadata, objective)
