"""The `saes` section of a config file, expanded into the single SAEs it asks for.

Each entry names `sites` (one or several), optionally a `name`, and settings of `SAEConfig`; settings of `TrainSettings`
(a rate, a seed) may stand there too and then win over the `train` section. A list given for a scalar setting makes one
variant for each of its values, and several lists make all their combinations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sae.config import SAEConfig, TrainConfig, TrainSection, TrainSettings

SAE_KEYS = {field.name for field in fields(SAEConfig)}
TRAIN_KEYS = {field.name for field in fields(TrainSettings)}
SHORT_NAMES = {"d_sae": "width"}


@dataclass(frozen=True)
class SAEJob:
    """One SAE to train: where, under which name, what it is, and how it is trained."""

    site: str
    name: str
    sae: SAEConfig
    settings: TrainSettings

    def train_config(self, total_rows: int, out: str) -> TrainConfig:
        """Returns the complete run of this SAE."""
        chosen = {field.name: getattr(self.settings, field.name) for field in fields(TrainSettings)}
        return TrainConfig(sae=self.sae, total_rows=total_rows, out=out, **chosen)


def sites_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the sites that the entries name, each once, in their order."""
    return list(dict.fromkeys(site for number, entry in enumerate(entries) for site in _sites(entry, number)))


def _sites(entry: Mapping[str, Any], number: int) -> list[str]:
    sites = entry.get("sites")
    named = [sites] if isinstance(sites, str) else sites
    if not named or not all(isinstance(site, str) for site in named):
        raise ValueError(
            f"saes.{number} names sites={sites!r}, expected one or more: add for example sites: [resid_post.3]"
        )
    return list(named)


def expand_saes(
    entries: Sequence[Mapping[str, Any]], train: TrainSection, width_of: Callable[[str], int]
) -> list[SAEJob]:
    """Returns every SAE that `entries` ask for; `width_of(site)` gives `d_in`.

    Raises:
        ValueError: no entries, an unknown key (the nearest is named), an impossible setting, or one name given twice.
    """
    from configs import validate

    if not entries:
        raise ValueError("the config's `saes` is empty, expected at least one entry: see configs/demo.yaml")
    jobs: list[SAEJob] = []
    for number, entry in enumerate(entries):
        where = f"saes.{number}"
        given = {key: value for key, value in entry.items() if key not in ("sites", "name")}
        varied = [key for key, value in given.items() if isinstance(value, list)]
        for combination in itertools.product(*(given[key] for key in varied)):
            settings = {**given, **dict(zip(varied, combination, strict=True))}
            for_train = {key: value for key, value in settings.items() if key in TRAIN_KEYS}
            for_sae = {key: value for key, value in settings.items() if key not in TRAIN_KEYS}
            for site in _sites(entry, number):
                width = width_of(site)
                if for_sae.get("d_in", width) != width:
                    raise ValueError(
                        f"{where}: d_in={for_sae['d_in']} was given, but {site} is {width} wide: leave d_in out"
                    )
                sae = validate(SAEConfig, {**for_sae, "d_in": width}, where)
                name = str(entry.get("name") or sae.architecture)
                suffix = "".join(f"_{SHORT_NAMES.get(key, key)}{settings[key]}" for key in varied)
                jobs.append(SAEJob(site, name + suffix, sae, validate(TrainSettings, _merged(train, for_train), where)))
    seen: set[tuple[str, str]] = set()
    for job in jobs:
        if (job.site, job.name) in seen:
            raise ValueError(f"two SAEs at {job.site} are named `{job.name}`, expected distinct names: give `name:`")
        seen.add((job.site, job.name))
    return jobs


def _merged(train: TrainSection, changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: getattr(train, key) for key in TRAIN_KEYS} | dict(changes)
