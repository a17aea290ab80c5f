"""One stage on a finished folder: an SAE's dictionary is built; a dictionary is explained, scored, compared.

Enters: folders, and settings as `key=value` overrides of a config class's defaults. Leaves: what the stage's own module
returns. `features.run` has the stages of a whole run, from its config.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from activations import DataConfig
from features.comparison import CompareConfig, compare
from features.comparison_records import Comparison
from features.crosscoder_comparison import ModelComparison, compare_models
from features.dictionary import Dictionary
from features.embedders import embedder_for
from features.embedding_scorer import score_embeddings
from features.endpoint import REQUESTS_PER_MINUTE
from features.explain import ExplainConfig, explain
from features.index import IndexConfig, build_index
from features.origin import check_site, data_of, model_of, settled
from features.reader_scores import ReaderReport, read
from features.readers import reader_for
from features.score_run import ScoreReport, score_rules
from features.scoring_samples import ScoreConfig
from sae import SAE

READ_FEATURES = 100


def index_sae(
    sae_dir: str | Path,
    model: str | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    other_model: bool = False,
) -> Dictionary:
    """Builds the dictionary of one SAE folder; model and text default to those recorded in it.

    `overrides` are settings of the index such as `total_tokens=500000` (or `index.total_tokens=…`). Without `out` the
    dictionary goes into the run's `dictionary` folder where the SAE is part of a run, else into `dictionary` beside it.
    `other_model` admits a model that the SAE was not trained on (`features.comparison`).
    """
    from activations import token_rows

    config = _settings(IndexConfig, overrides, "index")
    folder = Path(sae_dir)
    sae = SAE.load(str(folder))
    text = data_of(sae, folder, data)
    lm = model_of(sae, folder, model, other_model)
    sae = settled(sae, lm)
    check_site(sae, lm, folder)
    where = Path(out) if out is not None else _dictionary_beside(folder)
    return build_index(
        sae.to(lm.device),
        lm,
        token_rows(lm, text, "train"),
        where,
        config,
        data=asdict(text),
        exclude_special_tokens=text.exclude_special_tokens,
        name=where.resolve().name,
        other_model=other_model,
    )


def index_neuron_sites(
    sites: Sequence[str],
    model: str,
    data: str,
    out: str | Path = "runs/neurons",
    overrides: Sequence[str] = (),
) -> list[Dictionary]:
    """Builds the dictionaries of the neurons at `sites` (`mlp_act.L`) in one pass, in `<out>/<site>`.

    `overrides` are settings of the index such as `total_tokens=500000`, of the neurons (`neurons.density=0.005`) and of
    the text (`data.context_tokens=256`).
    """
    from activations import LanguageModel, token_rows
    from features.neurons import NeuronConfig, index_neurons

    sections = ("neurons.", "data.")
    neurons = _settings(NeuronConfig, [o for o in overrides if o.startswith("neurons.")], "neurons")
    of_data = [f"source={data}", *(o for o in overrides if o.startswith("data."))]
    text = _settings(DataConfig, of_data, "data")
    config = _settings(IndexConfig, [o for o in overrides if not o.startswith(sections)], "index")
    lm = LanguageModel.load(model)
    return index_neurons(
        lm,
        token_rows(lm, text, "train"),
        sites,
        [Path(out) / site for site in sites],
        config,
        neurons,
        data=asdict(text),
        exclude_special_tokens=text.exclude_special_tokens,
    )


def run_explain(dictionary: str | Path, overrides: Sequence[str] = ()) -> int:
    """Explains the features of a dictionary; returns how many.

    `overrides` are settings such as `sample_tokens=1000000` (or `explain.sample_tokens=…`).
    """
    config = _settings(ExplainConfig, overrides, "explain")
    with closing(Dictionary.open(dictionary)) as opened:
        return explain(opened, config).explained


def run_score(dictionary: str | Path, scorers: Sequence[str], overrides: Sequence[str] = ()) -> ScoreReport:
    """Scores the explanations of a dictionary; `overrides` are settings such as `score.features=100`."""
    config = _settings(ScoreConfig, overrides, "score")
    with closing(Dictionary.open(dictionary)) as opened:
        return score_rules(opened, scorers, config)


def run_compare(first: str | Path, second: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Compares two dictionaries; `overrides` are settings such as `cosine_min=0.8` (or `compare.cosine_min=…`)."""
    config = _settings(CompareConfig, overrides, "compare")
    with closing(Dictionary.open(first)) as a, closing(Dictionary.open(second)) as b:
        return compare(a, b, config)


def run_compare_models(dictionary: str | Path) -> ModelComparison:
    """Compares the two models of a crosscoder's dictionary."""
    with closing(Dictionary.open(dictionary)) as opened:
        return compare_models(opened)


def run_read(
    dictionary: str | Path,
    reader: str,
    scorers: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    allow_host: str | None = None,
    write: bool = False,
    requests_per_minute: float = REQUESTS_PER_MINUTE,
) -> ReaderReport:
    """Lets a language model judge explanations and, with `write`, write them first (`features.reader_scores`).

    `reader` is a model's folder or hub name, or the address of an endpoint that has `model`. Without `score.features`,
    `READ_FEATURES` features are drawn: every window is a question.
    """
    config = _settings(ScoreConfig, overrides, "score")
    if config.features is None:
        config = replace(config, features=READ_FEATURES)
    with closing(Dictionary.open(dictionary)) as opened:
        answers = opened.path / "answers"
        asked = reader_for(reader, model, answers, allow_host, requests_per_minute=requests_per_minute)
        return read(opened, asked, scorers, config, write=write)


def run_embedding_scores(
    dictionary: str | Path,
    embedder: str,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    allow_host: str | None = None,
    requests_per_minute: float = REQUESTS_PER_MINUTE,
) -> ScoreReport:
    """Scores explanations by an embedding model: a folder or hub name, or an endpoint's address that has `model`."""
    config = _settings(ScoreConfig, overrides, "score")
    with closing(Dictionary.open(dictionary)) as opened:
        answers = opened.path / "answers"
        asked = embedder_for(embedder, model, answers, allow_host, requests_per_minute=requests_per_minute)
        return score_embeddings(opened, asked, config)


def _dictionary_beside(folder: Path) -> Path:
    """`<run>/dictionary/<name>` for `<run>/sae/<site>/<name>` (with the site where several SAEs of the run have that
    name), else `<folder>/dictionary`."""
    parts = folder.resolve()
    if parts.parent.parent.name != "sae" or not (parts.parents[2] / "config.yaml").exists():
        return folder / "dictionary"
    several = sum(other.is_dir() for other in parts.parents[1].glob(f"*/{glob.escape(parts.name)}")) > 1
    return parts.parents[2] / "dictionary" / (f"{parts.parent.name}_{parts.name}" if several else parts.name)


def _settings(config_class: type[Any], overrides: Sequence[str], section: str) -> Any:
    """A config section from its defaults and `key=value` overrides."""
    from configs import validate

    values: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        key = key.strip().removeprefix(f"{section}.")
        if not equals or not key:
            raise ValueError(f"override {override!r} has no value, expected key=value: write it as {section}.key=value")
        values[key] = value.strip()
    return validate(config_class, values, section)
