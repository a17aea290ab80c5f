"""A whole run from its config: harvest → train → evaluate → index → explain → report.

Enters: a `RunConfig` (a YAML file's sections). Leaves: the run folder

    config.yaml  provenance.json  stages.json     what was run, on what, how long each stage took
    store/                                        activations (`activations.store`)
    sae/<site>/<name>/                            finished SAEs, with metrics.json once evaluated
    state/<site>/<name>/                          each SAE's own training run, from which a killed one goes on
    state/pass_<n>/                               the place in the rows of each pass over them
    metrics.jsonl                                 training metrics of all SAEs
    dictionary/<name>/                            dictionaries, explained
    report.json                                   the demo's report

An SAE over several sites has them all in its folder's name, joined by `+`. Every stage is skipped when it is finished
and goes on where it stopped when it is not. A folder that holds a run of another config is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from activations import DataConfig, HarvestConfig, ModelConfig
from activations.processes import current
from features.demo_report import DemoReport
from features.dictionary import Dictionary
from features.evaluation_run import evaluate_folders
from features.explain import METHOD, ExplainConfig, ExplainReport, explain
from features.index import IndexConfig, build_indexes, lasting_name
from features.store import write_json
from features.training_run import Material, train_jobs
from sae import SAE, Metrics, TrainResult, TrainSection

if TYPE_CHECKING:
    from activations import ActivationStore, LanguageModel, TokenRows
    from sae.jobs import SAEJob

DRAWN_FEATURES = 20
# what is held out, or left out of training, is no part of the store: asking for more of it keeps the store
UNSTORED_DATA = ("heldout_tokens", "exclude_outlier_norms")
# stores of plain text do not mention these, so that those made before there were chats go on being used
CHAT_DATA = ("messages_column", "roles")
FIXED_SECTIONS = ("model", "compare_model", "data", "harvest", "saes", "train")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete run: which model and text, which SAEs, and what is made of them."""

    __pydantic_config__ = {"extra": "forbid"}

    model: ModelConfig = field(default_factory=ModelConfig)
    """The language model."""
    compare_model: ModelConfig | None = None
    """A second model with the same tokenizer, in which sites written `compare:SITE` are read (crosscoders)."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text."""
    harvest: HarvestConfig = field(default_factory=HarvestConfig)
    """How activations are read and kept."""
    saes: list[dict[str, Any]] = field(default_factory=list)
    """SAEs to train: each entry names sites, architecture and its settings; a list for a scalar makes variants."""
    train: TrainSection = field(default_factory=TrainSection)
    """How they are trained."""
    index: IndexConfig = field(default_factory=IndexConfig)
    """How their dictionaries are built."""
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    """How features are explained."""
    out: str = "runs/run"
    """The run folder."""


class _Run:
    """One run's folder, and what its stages share: the model and the tokens are loaded once."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.out = Path(config.out)

    @cached_property
    def lm(self) -> LanguageModel:
        from activations import LanguageModel, ModelPair

        lm = LanguageModel.from_config(self.config.model)
        if self.config.compare_model is None:
            return lm
        return ModelPair(lm, LanguageModel.from_config(self.config.compare_model))

    @cached_property
    def rows(self) -> TokenRows:
        from activations import token_rows

        return token_rows(self.lm, self.config.data, "train")

    @cached_property
    def jobs(self) -> list[SAEJob]:
        from sae.jobs import expand_saes

        return expand_saes(self.config.saes, self.config.train, self.width)

    def width(self, site: str) -> int:
        """Width of the rows at a site or module path; ValueError names the nearest that the model has."""
        if site.startswith("compare:") and self.config.compare_model is None:
            raise ValueError(
                f"site {site!r} is read in a second model, and the config names none: set compare_model.name"
            )
        return self.lm.site_width(site)

    def begin(self) -> None:
        """Claims the run folder: writes its config, or refuses a folder of another run."""
        current().on_first(self._claim)

    def _claim(self) -> None:
        import configs

        path = self.out / "config.yaml"
        if path.exists():
            saved = configs.load(RunConfig, path)
            for section in FIXED_SECTIONS:
                _refuse_difference(self.out, section, getattr(saved, section), getattr(self.config, section))
        elif self.out.is_dir() and (strangers := sorted(entry.name for entry in self.out.iterdir())):
            raise FileExistsError(
                f"{self.out} holds {strangers[0]} and no run, expected an empty folder: choose another out"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("config.yaml.partial")
        partial.write_text(configs.dump(self.config), encoding="utf-8")
        os.replace(partial, path)

    def write_provenance(self) -> None:
        """Writes provenance.json (in the first of several processes)."""
        from sae.provenance import provenance

        facts = provenance(self.config.train.seed, _metadata(self, None))
        if self.norm_limits:
            facts["norm_limits"] = self.norm_limits
        seeds = {"train": self.config.train.seed, "index": self.config.index.seed, "explain": self.config.explain.seed}
        facts |= {"data_sha256": self.rows.fingerprint(), "seeds": seeds}
        current().on_first(lambda: write_json(self.out / "provenance.json", facts))

    @cached_property
    def norm_limits(self) -> dict[str, float]:
        """The largest norm of a row at each site that an SAE reads or writes; empty where all rows are kept."""
        from activations import norm_limits

        data = self.config.data
        if data.exclude_outlier_norms is None:
            return {}
        sites = list(dict.fromkeys(site for job in self.jobs for site in job.all_sites))
        return norm_limits(
            self.lm,
            self.rows,
            sites,
            data.exclude_outlier_norms,
            self.config.harvest.batch_tokens,
            data.exclude_special_tokens,
        )

    def sae_path(self, job: SAEJob) -> Path:
        return self.out / "sae" / job.folder / job.name

    def state_path(self, job: SAEJob) -> Path:
        return self.out / "state" / job.folder / job.name

    def dictionary_path(self, job: SAEJob) -> Path:
        several = sum(other.name == job.name for other in self.jobs) > 1
        return self.out / "dictionary" / (f"{job.folder}_{job.name}" if several else job.name)

    # Stages

    def harvest(self) -> ActivationStore | None:
        """Fills the activation store; None where the config streams instead."""
        from activations import harvest
        from sae.jobs import sites_of

        if not self.config.harvest.store:
            return None
        sites = self.config.harvest.sites or sites_of(self.config.saes)
        for site in sites:
            self.width(site)
        return harvest(
            self.lm,
            self.rows,
            self.config.harvest,
            self.out / "store",
            sites=sites,
            exclude_special_tokens=self.config.data.exclude_special_tokens,
            provenance=self._store_provenance(),
        )

    def _store_provenance(self) -> dict[str, Any]:
        data = asdict(self.config.data)
        stored = {key: data[key] for key in data if key not in UNSTORED_DATA and (data[key] or key not in CHAT_DATA)}
        facts: dict[str, Any] = {"data": stored}
        return facts | _second_model(self.lm)

    def train(self, store: ActivationStore | None, resume: bool) -> list[TrainResult]:
        """Trains every SAE and puts it into the run's `sae` folder."""
        config = self.config
        material = Material(self.lm, self.rows, store, config.data, config.harvest, self.norm_limits)
        metadata = {(job.folder, job.name): _metadata(self, job) for job in self.jobs}
        results = train_jobs(self.jobs, material, config.train, self.out / "state", metadata, resume)
        moved = []
        for job in self.jobs:
            result, path = results[job.folder, job.name], self.sae_path(job)
            current().on_first(partial(_copy_folder, result.path, path))
            moved.append(replace(result, path=path))
        return moved

    def load_sae(self, job: SAEJob) -> SAE:
        path = self.sae_path(job)
        if not (path / "cfg.json").exists():
            raise FileNotFoundError(f"{path} holds no SAE, expected a finished one: run `glassbox train` first")
        return SAE.load(str(path))

    def index(self) -> list[Dictionary]:
        """Builds the dictionaries of all SAEs in one pass over the text."""
        paths = [self.dictionary_path(job) for job in self.jobs]
        return build_indexes(
            [self.load_sae(job).to(self.lm.device) for job in self.jobs],
            self.lm,
            self.rows,
            paths,
            self.config.index,
            data=asdict(self.config.data),
            exclude_special_tokens=self.config.data.exclude_special_tokens,
            names=[path.name for path in paths],
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[_Stage]:
        """Times a stage; what it took is kept in stages.json, also when it is skipped later."""
        path = self.out / "stages.json"
        saved: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        stage = _Stage(saved.get(name, {}).get("of"), float(saved.get(name, {}).get("seconds", 0.0)))
        began = time.perf_counter()
        yield stage
        if not stage.skipped:
            stage.seconds = round(time.perf_counter() - began, 2)
            saved[name] = {"of": stage.of, "seconds": stage.seconds}
            write_json(path, saved)


class _Stage:
    """One stage's record: `of` says what inputs its result belongs to."""

    def __init__(self, of: str | None, seconds: float) -> None:
        self.of, self.seconds, self.skipped = of, seconds, False

    def is_done(self, of: str, exists: bool) -> bool:
        """Whether the stage was finished for these inputs before; it is skipped then."""
        self.skipped = exists and self.of == of
        self.of = of
        return self.skipped


def run_harvest(config: RunConfig) -> ActivationStore:
    """Writes the run's activation store, or goes on with it."""
    run = _Run(config)
    if not config.harvest.store:
        raise ValueError("harvest.store is false: there is nothing to write; set harvest.store=true, or train directly")
    run.begin()
    run.write_provenance()
    store = run.harvest()
    assert store is not None
    return store


def run_train(config: RunConfig, resume: bool = False) -> list[TrainResult]:
    """Trains every SAE of the config, from the run's store (harvested first where it is missing) or the model."""
    run = _Run(config)
    run.begin()
    for job in run.jobs:
        if not resume and (run.state_path(job).exists() or run.sae_path(job).exists()):
            raise FileExistsError(
                f"{run.out} already holds training of {job.folder}/{job.name}, expected none: pass --resume to go on, "
                "or choose another out"
            )
    run.write_provenance()
    store = run.harvest()
    results = run.train(store, resume)
    current().on_first(lambda: _join_metrics(run))
    return results


def run_index(config: RunConfig) -> list[Dictionary]:
    """Builds the dictionaries of all SAEs of the config, in one pass over the text."""
    return _Run(config).index()


def run_demo(config: RunConfig) -> DemoReport:
    """Runs every stage for the first SAE of the config, and the others up to their dictionaries; writes report.json.

    Stages that are finished are skipped; a killed run goes on where it stopped.
    """
    run = _Run(config)
    run.begin()
    timings: dict[str, float] = {}
    with run.stage("load") as stage:
        jobs = run.jobs
        run.write_provenance()
    timings["load"] = stage.seconds
    tokens_of = run.rows.fingerprint()[:16]
    with run.stage("harvest") as stage:
        store = run.harvest()
        stage.is_done(tokens_of, stage.of == tokens_of)
    timings["harvest"] = stage.seconds
    explained: list[ExplainReport | None] = []
    with run.stage("train") as stage:
        finished = all((run.sae_path(job) / "cfg.json").exists() for job in jobs)
        run.train(store, resume=True)
        stage.is_done(tokens_of, finished and stage.of == tokens_of)
    timings["train"] = stage.seconds
    paths = [run.sae_path(job) for job in jobs]
    with run.stage("evaluate") as stage:
        weights = " ".join(str((path / "cfg.json").stat().st_mtime_ns) for path in paths)
        if not stage.is_done(weights, all((path / "metrics.json").exists() for path in paths)):
            evaluate_folders(paths, lm=run.lm)
    timings["evaluate"] = stage.seconds
    with run.stage("index") as stage:
        before = all((run.dictionary_path(job) / "dictionary.json").exists() for job in jobs)
        dictionaries = run.index()
        of = " ".join(dictionary.info["fingerprint"] for dictionary in dictionaries)
        stage.is_done(of, before and stage.of == of)
    timings["index"] = stage.seconds
    for job, dictionary in zip(jobs, dictionaries, strict=True):
        suffix = "" if len(jobs) == 1 else f" {job.folder}/{job.name}"
        with run.stage(f"explain{suffix}") as stage:
            of = dictionary.info["fingerprint"] + json.dumps(asdict(config.explain))
            written = dictionary.sql(f"select count(*) as n from explanations where method = '{METHOD}'")
            done = stage.is_done(of, written["n"][0].as_py() > 0)
            explained.append(None if done else explain(dictionary, config.explain))
        timings[f"explain{suffix}"] = stage.seconds
    _join_metrics(run)
    dictionary = dictionaries[0]
    live = np.flatnonzero(dictionary.max_activations > 0)
    chosen = np.random.default_rng(config.train.seed).permutation(live)[:DRAWN_FEATURES]
    report = DemoReport(
        out=str(run.out),
        dictionary=str(dictionary.path),
        metrics=Metrics(**json.loads((paths[0] / "metrics.json").read_text())),
        timings=timings,
        features=[dictionary.feature(int(feature)) for feature in chosen],
        explained=explained[0],
        info=dictionary.info,
        recipe=_recipe(run, jobs[0], dictionary),
    )
    write_json(run.out / "report.json", json.loads(report.to_json()))
    for opened in dictionaries:
        opened.close()
    return report


def _recipe(run: _Run, job: SAEJob, dictionary: Dictionary) -> str:
    config = run.config
    k = f", k={job.sae.k}" if job.sae.k else ""
    rows = config.train.total_rows or f"{config.train.epochs:g} × {run.rows.n_tokens:,}"
    return (
        f"{job.sae.architecture} SAE with {job.sae.d_sae:,} latents{k} at {job.folder} of model "
        f"{config.model.name}, trained on {rows} activations (batches of {job.settings.batch_rows:,}, "
        f"seed {job.settings.seed}) of text from {config.data.source}; measured on {config.data.heldout_tokens:,} "
        f"tokens of documents never trained on; {dictionary.info['n_indexed_tokens']:,} tokens indexed."
    )


def _metadata(run: _Run, job: SAEJob | None) -> dict[str, Any]:
    """What an SAE says about its origin."""
    facts: dict[str, Any] = {
        "model_name": lasting_name(run.lm.name),
        "model_revision": run.lm.revision,
        "model_weight_hash": run.lm.weight_hash(),
        "data": asdict(run.config.data) | {"source": lasting_name(run.config.data.source)},
    }
    if job is None:
        return facts
    facts |= {"site": job.site, "name": job.name}
    if len(job.wiring.sites) > 1:
        facts["sites"] = list(job.wiring.sites)
    if job.wiring.target_sites:
        facts["target_sites"] = list(job.wiring.target_sites)
    if any(site.startswith("compare:") for site in job.all_sites):
        facts |= _second_model(run.lm)
    if run.norm_limits:
        facts["norm_limits"] = {site: run.norm_limits[site] for site in job.all_sites}
    return facts


def _second_model(lm: LanguageModel) -> dict[str, Any]:
    """What a store or an SAE says about the model that `compare:` sites are read in."""
    second = getattr(lm, "second", None)
    if second is None:
        return {}
    return {
        "compare_model_name": lasting_name(second.name),
        "compare_model_revision": second.revision,
        "compare_model_weight_hash": second.weight_hash(),
    }


def _refuse_difference(out: Path, section: str, saved: Any, wanted: Any) -> None:
    if saved == wanted:
        return
    key, before, now = section, saved, wanted
    if not isinstance(saved, list) and saved is not None and wanted is not None:
        before_all, now_all = asdict(saved), asdict(wanted)
        name = next(name for name in before_all if before_all[name] != now_all[name])
        key, before, now = f"{section}.{name}", before_all[name], now_all[name]
    raise FileExistsError(
        f"{out} holds a run with {key}={before!r}, this config says {now!r}: choose another out, or restore the setting"
    )


def _copy_folder(source: Path, target: Path) -> None:
    """Copies a finished SAE; the target appears whole or not at all, and stays where it is the same already."""
    if (target / "cfg.json").exists():
        return
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    os.replace(partial, target)


def _join_metrics(run: _Run) -> None:
    """Gathers the training metrics of all SAEs in the run's metrics.jsonl."""
    lines = []
    for job in run.jobs:
        path = run.state_path(job) / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            lines.append(json.dumps({"sae": f"{job.folder}/{job.name}", **json.loads(line)}) + "\n")
    partial = run.out / "metrics.jsonl.partial"
    partial.write_text("".join(lines), encoding="utf-8")
    os.replace(partial, run.out / "metrics.jsonl")
