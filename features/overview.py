"""What a dictionary is, at a glance: where it comes from, how good its SAE is, how dense its features are.

Enters: opened dictionaries. Leaves: an `Overview` for each, read once, and the points of a frontier.

Quality figures are those that `glassbox evaluate` left as `metrics.json` beside the SAE: in the folder of the run that
the dictionary belongs to (`<run>/sae/<site>/<name>` for `<run>/dictionary/<name>`), or one folder above the dictionary.
They count only where that SAE has the sites, the width and the name that the dictionary records.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from features.dictionary import Dictionary

METRICS = "metrics.json"
BINS_A_DECADE = 4
CLEAR_DENSITY = (1e-4, 0.05)
"""Densities between which a feature is looked for that shows a newcomer what features are."""


@dataclass(frozen=True)
class DensityBin:
    """Live features with `low` ≤ density < `high`."""

    low: float
    high: float
    features: int


@dataclass(frozen=True)
class ClearFeature:
    """A feature to begin with, and a text on which it is active."""

    feature: int
    explanation: str
    score: float | None
    text: str


@dataclass(frozen=True)
class Overview:
    """One dictionary."""

    facts: dict[str, str]
    """What it was made of, in words, by name."""
    metrics: dict[str, float] | None
    """Figures of `sae.Metrics` that were measured; None where no evaluation was found."""
    densities: list[DensityBin]
    start: ClearFeature | None
    """None where no feature is live."""

    def rows(self) -> list[dict[str, Any]]:
        """The bins of density as plain records."""
        return [asdict(entry) for entry in self.densities]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class FrontierPoint:
    """An SAE by what it costs (active latents a row) and what it explains."""

    name: str
    l0: float
    explained_variance: float
    explained_variance_se: float | None
    opened: int | None
    """Place of its dictionary among those asked about; None: another SAE of the same run."""


def overview(dictionary: Dictionary) -> Overview:
    """Reads what a dictionary is; `Dictionary.overview` keeps it."""
    return Overview(
        facts=_facts(dictionary),
        metrics=metrics_of(dictionary),
        densities=_densities(dictionary),
        start=_start(dictionary),
    )


def frontier(dictionaries: Sequence[Dictionary]) -> list[FrontierPoint]:
    """The SAEs of the dictionaries and the others of their runs, as far as they were evaluated."""
    opened = {folder: place for place, each in enumerate(dictionaries) if (folder := sae_folder(each)) is not None}
    folders = list(opened)
    for folder in opened:
        if folder.parent.parent.name == "sae":
            folders += sorted(path.parent.resolve() for path in folder.parent.parent.glob(f"*/*/{METRICS}"))
    points = []
    for folder in dict.fromkeys(folders):
        found = _read(folder / METRICS)
        if found is not None and {"l0", "explained_variance"} <= set(found):
            place = opened.get(folder)
            name = folder.name if place is None else dictionaries[place].name
            se = found.get("explained_variance_se")
            points.append(FrontierPoint(name, found["l0"], found["explained_variance"], se, place))
    return points


def metrics_of(dictionary: Dictionary) -> dict[str, float] | None:
    """The figures of the SAE's evaluation, or None where none was found."""
    folder = sae_folder(dictionary)
    return None if folder is None else _read(folder / METRICS)


def sae_folder(dictionary: Dictionary) -> Path | None:
    """The evaluated SAE that the dictionary was built from, where its folder is still beside it."""
    path = dictionary.path.resolve()
    candidates = [path.parent]
    if path.parent.name == "dictionary":
        candidates += sorted(folder.parent for folder in path.parent.parent.glob(f"sae/*/*/{METRICS}"))
    for folder in candidates:
        if (folder / METRICS).is_file() and _is_of(dictionary, folder):
            return folder.resolve()
    return None


def _is_of(dictionary: Dictionary, folder: Path) -> bool:
    said = _json(folder / "cfg.json")
    if said is None:
        return False
    metadata = said.get("metadata") or {}
    site = metadata.get("site")
    of_sae = dictionary.info["sae"]
    return (
        (said.get("d_sae"), metadata.get("name") or folder.name)
        == (of_sae.get("d_sae"), of_sae.get("name") or dictionary.name)
    ) and (site is None or site in dictionary.sites)


def _read(path: Path) -> dict[str, float] | None:
    found = _json(path)
    if found is None:
        return None
    return {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file is none or no longer whole: a page says so and shows the rest."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _facts(dictionary: Dictionary) -> dict[str, str]:
    info = dictionary.info
    sae, model, data = info["sae"], info["model"], info.get("data") or {}
    metadata = (_json(dictionary.store.build / "sae" / "cfg.json") or {}).get("metadata") or {}
    trained = metadata.get("train_config") or {}
    architecture = str(sae.get("architecture") or "SAE")
    training = metadata.get("training_architecture")
    if training and training != architecture:
        architecture += f", trained as {training}"
    if sae.get("k"):
        architecture += f", k = {sae['k']}"
    corpus = " · ".join(str(data[key]) for key in ("source", "subset", "split") if data.get(key))
    facts = {
        "model": str(model["name"]) + (f" at {model['revision']}" if model.get("revision") else ""),
        "weights": str(model.get("weight_hash") or "")[:12],
        "site": ", ".join(dictionary.sites),
        "architecture": architecture,
        "width": " → ".join(f"{sae[key]:,}" for key in ("d_in", "d_sae") if sae.get(key)),
        "trained on": f"{trained['total_rows']:,} rows, seed {trained.get('seed')}"
        if trained.get("total_rows")
        else "",
        "corpus": corpus,
        "indexed": f"{info['n_indexed_tokens']:,} tokens of {info['n_documents']:,} documents",
        "context": f"{info['context_tokens']:,} tokens" if info.get("context_tokens") else "",
        "built": str(info.get("created") or "").replace("T", " ").replace("+00:00", " UTC"),
        "fingerprint": str(info.get("fingerprint") or "")[:12],
    }
    if found := info.get("imported"):
        facts["imported from"] = str(found["from"])
    return {key: value for key, value in facts.items() if value}


def _densities(dictionary: Dictionary) -> list[DensityBin]:
    density = dictionary.store.query("select density from features where density > 0")["density"].to_numpy()
    if not density.size:
        return []
    first = math.floor(math.log10(float(density.min())) * BINS_A_DECADE)
    edges = 10 ** (np.arange(first, 1) / BINS_A_DECADE)
    place = np.searchsorted(edges, density, side="right") - 1
    counts = np.bincount(np.clip(place, 0, len(edges) - 1), minlength=len(edges))
    if counts[-1]:  # active on every token
        counts[-2] += counts[-1]
    pairs = zip(edges[:-1].tolist(), edges[1:].tolist(), counts[:-1].tolist(), strict=True)
    return [DensityBin(low, high, count) for low, high, count in pairs]


def _start(dictionary: Dictionary) -> ClearFeature | None:
    """The best explained of the features that are neither rare nor dense; without scores the strongest of them."""
    low, high = CLEAR_DENSITY
    rows = dictionary.store.query(
        """with best as (select feature, max(score) as score from explanations group by feature)
        select feature, best.score from features left join best using (feature) where not is_dead
        order by density between ? and ? desc, best.score desc nulls last, max_activation desc, feature limit 1""",
        [low, high],
    ).to_pylist()
    if not rows:
        return None
    feature = rows[0]["feature"]
    examples = dictionary.examples(feature, stratum=0)
    says = dictionary.explanations_of([feature]).get(feature, "")
    return ClearFeature(feature, says, rows[0]["score"], examples[0].text if examples else "")
