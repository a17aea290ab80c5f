"""The `saes` section of a config file, expanded into the single SAEs it asks for.

Each entry names `sites` (one or several), optionally a `name`, and settings of `SAEConfig`; settings of `TrainSettings`
(a rate, a seed, a warm start) may stand there too and then win over the `train` section. A list given for a scalar
setting makes one variant for each of its values, and several lists make all their combinations.

What `sites` means depends on the architecture:

    one SAE for each site        autoencoders
    one SAE for each site        transcoder, skip_transcoder: reads it and writes the one of `target_sites` in the same
                                 place (default: mlp_in.L writes mlp_out.L)
    one SAE over all the sites   crosscoder; a list of lists makes several
    one SAE over all the sites   clt: reads them and writes all of `target_sites` (same default)

A site written `compare:SITE` is read in the run's second model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from sae.config import SAEConfig, TrainConfig, TrainSection, TrainSettings, check_divide

SAE_KEYS = {field.name for field in fields(SAEConfig)}
TRAIN_KEYS = {field.name for field in fields(TrainSettings)}
LIST_KEYS = {field.name for field in (*fields(SAEConfig), *fields(TrainSettings)) if "list[" in str(field.type)}
PLACES = ("sites", "target_sites", "name")
MANY_SITES = ("crosscoder", "clt")
WITH_TARGET = ("transcoder", "skip_transcoder", "clt")
SHORT_NAMES = {"d_sae": "width", "architecture": ""}
DEFAULT_ARCHITECTURE = next(str(field.default) for field in fields(SAEConfig) if field.name == "architecture")


class Wiring(NamedTuple):
    """The sites that one SAE reads, and those that it writes where they are others."""

    sites: tuple[str, ...]
    target_sites: tuple[str, ...] = ()


@dataclass(frozen=True)
class SAEJob:
    """One SAE to train: where, under which name, what it is, and how it is trained."""

    wiring: Wiring
    name: str
    sae: SAEConfig
    settings: TrainSettings

    @property
    def site(self) -> str:
        """The site, or the first of several, that it reads."""
        return self.wiring.sites[0]

    @property
    def folder(self) -> str:
        """Name of the folder of its place: all sites that it reads."""
        return "+".join(self.wiring.sites).replace(":", ".")

    @property
    def all_sites(self) -> tuple[str, ...]:
        """The sites whose rows it is trained on."""
        return (*self.wiring.sites, *self.wiring.target_sites)

    def train_config(self, total_rows: int, out: str) -> TrainConfig:
        """Returns the complete run of this SAE."""
        chosen = {field.name: getattr(self.settings, field.name) for field in fields(TrainSettings)}
        return TrainConfig(sae=self.sae, total_rows=total_rows, out=out, **chosen)


def sites_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the sites that the entries read or write, each once, in their order."""
    found: dict[str, None] = {}
    for number, entry in enumerate(entries):
        architectures = entry.get("architecture", DEFAULT_ARCHITECTURE)
        for architecture in architectures if isinstance(architectures, list) else [architectures]:
            for wiring in _wirings(entry, str(architecture), f"saes.{number}"):
                found |= dict.fromkeys((*wiring.sites, *wiring.target_sites))
    return list(found)


def expand_saes(
    entries: Sequence[Mapping[str, Any]], train: TrainSection, width_of: Callable[[str], int]
) -> list[SAEJob]:
    """Returns every SAE that `entries` ask for; `width_of(site)` gives the width of a site's rows.

    Raises:
        ValueError: no entries, an unknown key (the nearest is named), an impossible setting, sites that do not fit
            together, or one name given twice.
    """
    if not entries:
        raise ValueError("the config's `saes` is empty, expected at least one entry: see configs/demo.yaml")
    jobs = [job for number, entry in enumerate(entries) for job in _jobs(entry, f"saes.{number}", train, width_of)]
    seen: set[tuple[str, str]] = set()
    for job in jobs:
        if (job.folder, job.name) in seen:
            raise ValueError(f"two SAEs at {job.folder} are named `{job.name}`, expected distinct names: give `name:`")
        seen.add((job.folder, job.name))
    return jobs


def _jobs(
    entry: Mapping[str, Any], where: str, train: TrainSection, width_of: Callable[[str], int]
) -> Iterator[SAEJob]:
    from configs import validate

    given = {key: value for key, value in entry.items() if key not in PLACES}
    varied = [key for key, value in given.items() if _is_varied(key, value)]
    for combination in itertools.product(*(given[key] for key in varied)):
        settings = {**given, **dict(zip(varied, combination, strict=True))}
        architecture = str(settings.get("architecture", DEFAULT_ARCHITECTURE))
        for_train = {key: value for key, value in settings.items() if key in TRAIN_KEYS}
        for_sae = {key: value for key, value in settings.items() if key not in TRAIN_KEYS}
        chosen = validate(TrainSettings, {key: getattr(train, key) for key in TRAIN_KEYS} | for_train, where)
        for wiring in _wirings(entry, architecture, where):
            sae = validate(SAEConfig, {**for_sae, **_shape(for_sae, wiring, width_of, where)}, where)
            check_divide(sae, chosen)
            compared = any(site.startswith("compare:") for site in wiring.sites)
            elsewhere = compared or len(wiring.sites) > 1 or wiring.target_sites
            if chosen.objective != "reconstruction" and elsewhere:
                raise ValueError(
                    f"{where}: objective={chosen.objective} with architecture `{architecture}` at "
                    f"{', '.join(wiring.sites)}, expected an autoencoder of one site of the first model: leave the "
                    "objective out"
                )
            yield SAEJob(wiring, _name(entry, sae, settings, varied), sae, chosen)


def _is_varied(key: str, value: Any) -> bool:
    """Says whether a setting's value lists variants: a list, or a list of lists where one list is the setting."""
    if key in LIST_KEYS:
        return isinstance(value, list) and bool(value) and isinstance(value[0], list)
    return isinstance(value, list)


def _name(entry: Mapping[str, Any], sae: SAEConfig, settings: Mapping[str, Any], varied: Sequence[str]) -> str:
    name = str(entry.get("name") or sae.architecture)
    for key in varied:
        if key == "architecture" and not entry.get("name"):
            continue
        value = "-".join(map(str, settings[key])) if isinstance(settings[key], list) else str(settings[key])
        name += f"_{SHORT_NAMES.get(key, key)}{value.strip('/').replace('/', '-')}"
    return name


def _wirings(entry: Mapping[str, Any], architecture: str, where: str) -> list[Wiring]:
    """Returns what each SAE of an entry reads and writes, for one architecture."""
    sites, targets = entry.get("sites"), entry.get("target_sites")
    if architecture in MANY_SITES:
        nested = isinstance(sites, list) and bool(sites) and all(isinstance(site, list) for site in sites)
        parts: list[Any] = sites if nested and sites else [sites]
        read = [_site_names(part, where, "sites") for part in parts]
        lists = list(targets or ()) if nested else [targets] if targets else []
        written = [_site_names(part, where, "target_sites") for part in lists]
    else:
        read = [(site,) for site in _site_names(sites, where, "sites")]
        written = [(site,) for site in _site_names(targets, where, "target_sites")] if targets else []
    if architecture not in WITH_TARGET:
        if targets:
            raise ValueError(
                f"{where}: architecture `{architecture}` writes the sites it reads, got target_sites={targets!r}: "
                "leave them out"
            )
        return [Wiring(sites) for sites in read]
    if not written:
        written = [tuple(_default_target(site, where) for site in sites) for sites in read]
    if [len(part) for part in read] != [len(part) for part in written]:
        raise ValueError(
            f"{where} names sites={sites!r} and target_sites={targets!r}, expected one target for each site: give as "
            "many of both"
        )
    return [Wiring(sites, targets) for sites, targets in zip(read, written, strict=True)]


def _site_names(sites: Any, where: str, key: str) -> tuple[str, ...]:
    named = [sites] if isinstance(sites, str) else sites
    if not isinstance(named, list | tuple) or not named or not all(isinstance(site, str) for site in named):
        raise ValueError(f"{where} names {key}={sites!r}, expected one or more: add for example {key}: [resid_post.3]")
    return tuple(named)


def _default_target(site: str, where: str) -> str:
    before, kind, layer = site.rpartition("mlp_in.")
    if not kind:
        raise ValueError(
            f"{where}: a transcoder that reads {site} has no usual target, expected target_sites: name what it writes, "
            "or read mlp_in.L"
        )
    return f"{before}mlp_out.{layer}"


def _shape(
    given: Mapping[str, Any], wiring: Wiring, width_of: Callable[[str], int], where: str
) -> dict[str, int | None]:
    """Returns d_in, d_out and n_sites as the sites have them; ValueError where the entry says otherwise."""
    read, written = _width(wiring.sites, width_of, where), None
    if wiring.target_sites:
        written = _width(wiring.target_sites, width_of, where)
    shape = {"d_in": read, "d_out": written if written != read else None, "n_sites": len(wiring.sites)}
    for key, measured in (("d_in", read), ("d_out", written or read), ("n_sites", len(wiring.sites))):
        if given.get(key) not in (None, measured):
            sites = ", ".join(wiring.target_sites if key == "d_out" and written else wiring.sites)
            fact = f"{sites} is {measured} wide" if key != "n_sites" else f"it names {measured} sites"
            raise ValueError(f"{where}: {key}={given[key]} was given, but {fact}: leave {key} out")
    return shape


def _width(sites: Sequence[str], width_of: Callable[[str], int], where: str) -> int:
    widths = {site: width_of(site) for site in sites}
    first = next(iter(widths))
    for site, width in widths.items():
        if width != widths[first]:
            raise ValueError(
                f"{where}: {first} is {widths[first]} wide and {site} is {width}, expected one width for all sites of "
                "an SAE: choose sites of equal width"
            )
    return widths[first]
