"""A whole run from its config: every stage's artefact, resumption, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import configs
from activations import DataConfig, HarvestConfig, ModelConfig
from features import Dictionary, IndexConfig
from features.evaluation_run import run_evaluate
from features.explain import ExplainConfig
from features.folder_runs import index_sae, run_explain
from features.run import (
    RunConfig,
    run_demo,
    run_harvest,
    run_index,
    run_train,
)
from sae import TrainSection


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Any) -> Path:
    """A model folder and a folder of text."""
    folder = tmp_path_factory.mktemp("material")
    tiny_lm.model.save_pretrained(folder / "model")
    tiny_lm.tokenizer.save_pretrained(folder / "model")
    (folder / "text").mkdir()
    for number in range(40):
        lines = [f"def name_{number}_{i}(self): return {i * number}" for i in range(8)]
        (folder / "text" / f"file_{number}.py").write_text("\n".join(lines))
    return folder


def config(material: Path, out: Path, **changes: Any) -> RunConfig:
    return replace(
        RunConfig(
            model=ModelConfig(name=str(material / "model"), device="cpu"),
            data=DataConfig(source=str(material / "text"), context_tokens=64, heldout_percent=20, heldout_tokens=1500),
            harvest=HarvestConfig(batch_tokens=1024, shard_rows=4096),
            saes=[{"sites": ["resid_post.1"], "name": "small", "d_sae": 64, "k": 4}],
            train=TrainSection(batch_rows=256, epochs=2, device="cpu", checkpoint_every_steps=20),
            index=IndexConfig(examples=4),
            explain=ExplainConfig(),
            out=str(out),
        ),
        **changes,
    )


@pytest.fixture(scope="module")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    done = config(material, tmp_path_factory.mktemp("runs") / "run")
    run_demo(done)
    return done


def test_a_demo_leaves_every_artefact_of_the_run_folder(finished: RunConfig) -> None:
    out = Path(finished.out)
    for name in (
        "config.yaml",
        "provenance.json",
        "metrics.jsonl",
        "store/manifest.json",
        "sae/resid_post.1/small/cfg.json",
        "sae/resid_post.1/small/sae_weights.safetensors",
        "sae/resid_post.1/small/metrics.json",
        "dictionary/small/dictionary.json",
        "report.json",
    ):
        assert (out / name).exists(), name
    assert configs.load(RunConfig, out / "config.yaml") == finished
    provenance = json.loads((out / "provenance.json").read_text())
    assert {"versions", "data_sha256", "seeds"} <= provenance.keys()
    report = json.loads((out / "report.json").read_text())
    assert len(report["features"]) == 20
    assert all(feature["explanation"] for feature in report["features"])
    assert {row["metric"] for row in report["metrics"]} >= {"explained_variance", "ce_recovered", "l0", "dead_frac"}


def test_a_second_demo_skips_what_is_finished(finished: RunConfig) -> None:
    out = Path(finished.out)
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".parquet", ".safetensors")}
    stages = (out / "stages.json").read_text()
    report = run_demo(finished)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert json.loads((out / "stages.json").read_text()).keys() == json.loads(stages).keys()
    assert json.loads((out / "stages.json").read_text())["train"] == json.loads(stages)["train"]
    assert report.timings["train"] == json.loads(stages)["train"]["seconds"]
    assert [row["metric"] for row in report.metrics_rows() if "met" in row] == list(
        dict.fromkeys(row["metric"] for row in report.metrics_rows() if "target" in row)
    )
    assert report.headline()["features"] == "64"


def test_drawn_features_are_live_and_drawn_by_seed(finished: RunConfig) -> None:
    report = run_demo(finished)
    assert len({feature.id for feature in report.features}) == len(report.features) == 20
    assert not any(feature.is_dead for feature in report.features)
    again = run_demo(finished)
    assert [feature.id for feature in again.features] == [feature.id for feature in report.features]


def test_another_config_in_the_same_folder_is_refused(finished: RunConfig, material: Path) -> None:
    other = config(material, Path(finished.out), train=replace(finished.train, lr=0.5))
    with pytest.raises(FileExistsError, match=r"train\.lr=None, this config says 0\.5"):
        run_demo(other)
    with pytest.raises(FileExistsError, match="pass --resume"):
        run_train(finished)
    assert [result.path for result in run_train(finished, resume=True)] == [
        Path(finished.out) / "sae/resid_post.1/small"
    ]


def test_a_folder_of_other_things_is_refused(material: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"photo\.png"):
        run_demo(config(material, tmp_path))


def test_an_unknown_site_is_named_with_those_that_exist(material: Path, tmp_path: Path) -> None:
    wrong = config(material, tmp_path / "new", saes=[{"sites": ["resid_post.7"], "d_sae": 64, "k": 4}])
    for run in (run_harvest, run_train, run_demo):
        with pytest.raises(ValueError, match=r"resid_post\.7"):
            run(wrong)


def test_stages_run_one_by_one_give_the_same_dictionary(finished: RunConfig, material: Path, tmp_path: Path) -> None:
    single = config(material, tmp_path / "single")
    with pytest.raises(FileNotFoundError, match="glassbox train"):
        run_index(single)
    assert run_harvest(single).n_rows > 1000
    (result,) = run_train(single)
    metrics = run_evaluate(result.path)
    assert json.loads((result.path / "metrics.json").read_text())["l0"] == metrics.l0
    (dictionary,) = run_index(single)
    assert run_explain(dictionary.path, ["explain.min_events=2"]) == dictionary.info["n_live"]
    whole = Dictionary.open(Path(finished.out) / "dictionary/small")
    assert dictionary.sql("select * from events").equals(whole.sql("select * from events"))


def test_streaming_needs_no_store(material: Path, tmp_path: Path) -> None:
    streaming = config(
        material, tmp_path / "streaming", harvest=HarvestConfig(store=False, buffer_rows=2048, batch_tokens=1024)
    )
    (result,) = run_train(streaming)
    assert (result.path / "cfg.json").exists()
    assert not (tmp_path / "streaming" / "store").exists()
    with pytest.raises(ValueError, match=r"harvest\.store is false"):
        run_harvest(streaming)


def test_an_sae_folder_alone_is_indexed_with_what_it_records(finished: RunConfig, tmp_path: Path) -> None:
    folder = Path(finished.out) / "sae/resid_post.1/small"
    built = index_sae(folder, out=tmp_path / "alone", overrides=["total_tokens=1000", "index.examples=3"])
    assert built.info["n_tokens"] <= 1024
    assert built.info["index"]["examples"] == 3
    with pytest.raises(ValueError, match="unknown key `totl_tokens`"):
        index_sae(folder, out=tmp_path / "other", overrides=["totl_tokens=5"])


def test_an_sae_without_origin_asks_for_model_and_data(finished: RunConfig, tmp_path: Path) -> None:
    from sae import SAE

    sae = SAE.load(str(Path(finished.out) / "sae/resid_post.1/small"))
    sae.metadata.pop("model_name")
    sae.save(str(tmp_path / "no_model"))
    with pytest.raises(ValueError, match="give --model"):
        run_evaluate(tmp_path / "no_model")
    sae.metadata.pop("data")
    sae.save(str(tmp_path / "no_data"))
    with pytest.raises(ValueError, match="give --data"):
        index_sae(tmp_path / "no_data", model=finished.model.name)


SEVERAL = [
    {"sites": ["resid_post.1", "resid_post.0"], "architecture": "topk", "d_sae": 48, "k": 4, "seed": [0, 1]},
    {"sites": ["resid_post.1"], "architecture": "jumprelu", "d_sae": 48, "target_l0": 4},
    {"sites": ["mlp_in.1"], "architecture": "transcoder", "d_sae": 48, "k": 4},
    {"sites": ["resid_post.0", "resid_post.1"], "architecture": "crosscoder", "d_sae": 48, "k": 4},
    {"sites": ["mlp_in.0", "mlp_in.1"], "architecture": "clt", "d_sae": 48, "k": 4},
]


def several(material: Path, out: Path, **changes: Any) -> RunConfig:
    # the smallest settings at which every stage has something to do
    quick = TrainSection(batch_rows=256, epochs=0.5, device="cpu", checkpoint_every_steps=8)
    return config(material, out, **{"saes": SEVERAL, "train": quick, **changes})


def test_one_pass_trains_every_sae_of_a_config(material: Path, tmp_path: Path, monkeypatch: Any) -> None:
    import features.training_run

    passes: list[int] = []
    original = features.training_run.train_together

    def counted(trainings: Any, *args: Any) -> Any:
        passes.append(len(trainings))
        return original(trainings, *args)

    monkeypatch.setattr(features.training_run, "train_together", counted)
    results = run_train(several(material, tmp_path / "run"))
    assert passes == [8]
    assert [str(result.path.relative_to(tmp_path / "run" / "sae")) for result in results] == [
        "resid_post.1/topk_seed0",
        "resid_post.0/topk_seed0",
        "resid_post.1/topk_seed1",
        "resid_post.0/topk_seed1",
        "resid_post.1/jumprelu",
        "mlp_in.1/transcoder",
        "resid_post.0+resid_post.1/crosscoder",
        "mlp_in.0+mlp_in.1/clt",
    ]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["sae"] for line in lines} == {
        str(result.path.relative_to(tmp_path / "run" / "sae")) for result in results
    }
    assert results[5].sae.target_sites == ["mlp_out.1"]
    assert results[7].sae.sites == ["mlp_in.0", "mlp_in.1"]
    for result in (results[0], results[1], results[4]):
        index_sae(result.path, overrides=["total_tokens=500"])
    names = sorted(path.name for path in (tmp_path / "run" / "dictionary").iterdir())
    assert names == ["jumprelu", "resid_post.0_topk_seed0", "resid_post.1_topk_seed0"]
    alone = config(material, tmp_path / "alone", saes=[SEVERAL[0] | {"sites": "resid_post.0", "seed": 1}])
    alone = replace(alone, train=several(material, tmp_path).train)
    (single,) = run_train(alone)
    # in company or alone, an SAE of the same seed sees the same rows
    assert all((single.sae.tensors[name] == results[3].sae.tensors[name]).all() for name in single.sae.tensors)


def test_every_stage_works_for_every_kind_of_dictionary(material: Path, tmp_path: Path) -> None:
    done = several(material, tmp_path / "run", saes=SEVERAL[1:])
    report = run_demo(done)
    assert report.metrics.l0 > 0
    for entry in ("resid_post.1/jumprelu", "mlp_in.1/transcoder", "resid_post.0+resid_post.1/crosscoder"):
        assert json.loads((Path(done.out) / "sae" / entry / "metrics.json").read_text())["n_rows"] > 100
    names = sorted(path.name for path in (Path(done.out) / "dictionary").iterdir())
    assert names == ["clt", "crosscoder", "jumprelu", "transcoder"]
    before = json.loads((Path(done.out) / "stages.json").read_text())
    run_demo(done)
    after = json.loads((Path(done.out) / "stages.json").read_text())
    # only loading the model is done again
    assert after | {"load": None} == before | {"load": None}


def test_a_crosscoder_over_two_models_is_trained_measured_and_indexed(
    material: Path, tmp_path: Path, tiny_lm: Any
) -> None:
    import copy

    other = copy.deepcopy(tiny_lm.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    other.save_pretrained(tmp_path / "other")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "other")
    entry = {"sites": ["resid_post.1", "compare:resid_post.1"], "architecture": "crosscoder", "d_sae": 48, "k": 4}
    two = several(
        material,
        tmp_path / "two",
        saes=[entry, {"sites": "compare:resid_post.0", "d_sae": 48, "k": 4}],
        compare_model=ModelConfig(name=str(tmp_path / "other"), device="cpu"),
    )
    crosscoder, single = run_train(two)
    assert crosscoder.path.parent.name == "resid_post.1+compare.resid_post.1"
    assert single.path.parent.name == "compare.resid_post.0"
    assert crosscoder.sae.metadata["compare_model_name"] == str(tmp_path / "other")
    assert run_evaluate(crosscoder.path).l0 == pytest.approx(4, abs=0.5)
    dictionary = index_sae(crosscoder.path, out=tmp_path / "dictionary", overrides=["total_tokens=1000"])
    assert dictionary.active_on("def name").ranked
    reopened = Dictionary.open(tmp_path / "dictionary")
    assert reopened.active_on("def name").ranked == dictionary.active_on("def name").ranked
    with pytest.raises(ValueError, match="the config names none: set compare_model.name"):
        run_train(replace(two, compare_model=None, out=str(tmp_path / "none")))
    with pytest.raises(FileExistsError, match="holds a run with compare_model="):
        run_train(replace(two, compare_model=None), resume=True)


def test_outlying_rows_are_left_out_of_training_and_said_so(material: Path, tmp_path: Path) -> None:
    limited = several(material, tmp_path / "limited", saes=SEVERAL[:1])
    limited = replace(limited, data=replace(limited.data, exclude_outlier_norms=1.01))
    results = run_train(limited)
    limits = json.loads((tmp_path / "limited" / "provenance.json").read_text())["norm_limits"]
    assert sorted(limits) == ["resid_post.0", "resid_post.1"]
    assert results[0].sae.metadata["norm_limits"] == {"resid_post.1": limits["resid_post.1"]}
    plain = run_train(several(material, tmp_path / "plain", saes=SEVERAL[:1]))
    assert not (results[0].sae.W_enc == plain[0].sae.W_enc).all()
    rows = [run_evaluate(result[0].path).n_rows for result in (results, plain)]
    assert rows[0] < rows[1]


def test_an_end_to_end_sae_has_a_pass_of_its_own_and_a_warm_start(material: Path, tmp_path: Path) -> None:
    plain = {"sites": "resid_post.1", "architecture": "topk", "d_sae": 48, "k": 4}
    (first,) = run_train(several(material, tmp_path / "plain", saes=[plain]))
    entry = plain | {"objective": "kl", "name": "through"}
    tuned = several(material, tmp_path / "tuned", saes=[plain, entry | {"init_from": str(first.path)}])
    results = run_train(tuned)
    assert [result.path.name for result in results] == ["topk", "through"]
    assert sorted(path.name for path in (tmp_path / "tuned" / "state").iterdir()) == [
        "pass_0",
        "pass_1",
        "resid_post.1",
    ]
    assert results[1].sae.metadata["train_config"]["objective"] == "kl"
    near = torch.cosine_similarity(results[1].sae.W_dec.detach(), first.sae.W_dec.detach(), dim=1)
    assert float(near.median()) > 0.9
    odd = several(material, tmp_path / "odd", saes=[entry], train=TrainSection(batch_rows=100, device="cpu"))
    with pytest.raises(ValueError, match=r"batch_rows=100 is no multiple of context_tokens=64, .* set batch_rows=128"):
        run_train(odd)
