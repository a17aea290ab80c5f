"""Files of SAEDashboard and Neuronpedia: read field by field, refused when damaged, written as their importer asks.

The fixtures are made by hand after the layouts of SAEDashboard 0.8 and Neuronpedia's schema (2026-08).
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from dashboards import HOSTILE, dashboard

from features import Dictionary, Steering, verification
from features.sharing import dumps, foreign
from features.sharing.documents import write_json
from features.sharing.imports import import_files
from features.sharing.neuronpedia import Upload, write_upload
from ui import cli

MODEL_COLUMNS = {
    "release": {"name", "visibility", "description", "descriptionShort", "urls", "creatorName", "creatorNameShort"}
    | {"creatorId", "defaultUmapSourceIds", "createdAt"},
    "model": {"id", "displayNameShort", "displayName", "creatorId", "visibility", "inferenceEnabled", "instruct"}
    | {"layers", "neuronsPerLayer", "createdAt", "owner", "updatedAt"},
    "sourceset": {"modelId", "name", "hasDashboards", "visibility", "description", "type", "creatorName", "urls"}
    | {"creatorId", "releaseName", "defaultRange", "defaultShowBreaks", "createdAt"},
    "source": {"id", "modelId", "hasDashboards", "inferenceEnabled", "visibility", "setName", "creatorId", "createdAt"}
    | {"num_prompts", "num_tokens_in_prompt", "dataset", "notes"},
}
"""Columns of its tables, all that these need without a default among them; an unknown one makes its import fail."""


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    path = tmp_path / "batch-0.json"
    path.write_text(json.dumps(dashboard()), encoding="utf-8")
    return path


def explanation(index: str, text: str, **more: Any) -> dict[str, Any]:
    found = {"id": "c1", "modelId": "gpt2-small", "layer": "0-res-jb", "index": index, "authorId": "c2"}
    return found | {"description": text, "typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini"} | more


def test_a_dashboard_becomes_a_dictionary_that_opens_searches_and_holds(batch: Path, tmp_path: Path) -> None:
    opened, _ = dumps.dictionary_from_dump([batch], tmp_path / "own")
    assert (opened.n_features, opened.info["n_live"], opened.site) == (4, 1, "0-res-jb")
    feature = opened.feature(1)
    assert feature.density == 0.002
    assert [(e.stratum, e.rank, e.activation, e.tokens) for e in feature.examples] == [
        (0, 0, 2.25, ["<s>", " dog", HOSTILE]), (0, 1, 2.0, [" a", " dog"]), (1, 0, 0.75, [" the", " cat", "."]),
    ]  # fmt: skip
    assert feature.examples[0].activations == [0, 2.25, 0.5]
    assert (feature.count, feature.max_activation, feature.documents) == (4, 2.25, 3)
    assert feature.mean_activation == pytest.approx((2.25 + 0.5 + 2.0 + 0.75) / 4)
    assert (feature.histogram.edges, feature.histogram.counts) == ([0, 1, 2, 3], [40, 0, 2])
    assert [(token, logit) for token, _, logit in feature.top_logits] == [(" yes", 3.5), ("\n", 2.5)]
    assert feature.bottom_logits[1].token == HOSTILE
    assert feature.tokens[0] == (" dog", pytest.approx(4.25 / 5.5), 2)
    assert opened.feature(3).is_dead
    assert opened.feature(3).examples == []
    assert opened.search("dog")[0].feature == 1
    assert opened.sql("select name from documents")["name"].to_pylist()[0] == "gpt2-small 0-res-jb · text 0"
    assert verification.verify(opened.path).ok
    opened.add_label(1, "dogs")
    write_json(opened, [1], tmp_path / "dog.json")
    opened.close()


def test_what_needs_sae_model_or_text_refuses_in_one_line(batch: Path, tmp_path: Path, capsys: Any) -> None:
    from features.explain import explain
    from features.sharing.merging import merge

    opened, _ = dumps.dictionary_from_dump([batch], tmp_path / "own")
    for call in (
        lambda: opened.sae,
        lambda: opened.active_on("a dog"),
        lambda: Steering(opened, {1: 1.0}).generate("a"),
        lambda: explain(opened),
        lambda: merge([opened.path, opened.path], tmp_path / "merged"),
    ):
        with pytest.raises(ValueError, match="was imported from SAEDashboard files and holds neither SAE nor model"):
            call()
    assert cli.run(["steer", str(opened.path), "--prompt", "a", "--feature", "1=1"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(FileExistsError, match="exists already"):
        dumps.dictionary_from_dump([batch], opened.path)


def test_an_export_of_neuronpedia_becomes_the_same_dictionary(batch: Path, tmp_path: Path) -> None:
    source = tmp_path / "gpt2-small" / "0-res-jb"
    heads, rows, pieces = dashboard(), [], []
    for row in heads["features"]:
        at = {"modelId": "gpt2-small", "layer": "0-res-jb", "index": str(row["feature_index"])}
        kept = {k: v for k, v in row.items() if k not in ("activations", "feature_index", "n_prompts_total", "dataset")}
        rows.append(at | kept | {"topkCosSimIndices": [2], "topkCosSimValues": [0.5]})
        pieces += [
            at | {"tokens": a["tokens"], "values": a["values"], "binMin": a["bin_min"], "binMax": a["bin_max"]}
            for a in row["activations"]
        ]
    said = [explanation("1", "dogs"), explanation("1", HOSTILE, typeName=None, explanationModelName=None)]
    for name, lines in (("features", rows), ("activations", pieces), ("explanations", said)):
        (source / name).mkdir(parents=True)
        with gzip.open(source / name / "batch-0.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    (source / "source.jsonl").write_text('{"id": "0-res-jb", "num_prompts": 100, "num_tokens_in_prompt": 210}\n')
    ours, report = dumps.dictionary_from_dump([tmp_path / "gpt2-small"], tmp_path / "np")
    assert report.added["explanations"] == 2
    theirs, _ = dumps.dictionary_from_dump([batch], tmp_path / "dash")
    assert ours.feature(1).examples == theirs.feature(1).examples
    assert ours.feature(1).histogram == theirs.feature(1).histogram
    assert ours.feature(1).neighbours[0] == (2, 0.5)
    assert {(e.text, e.method) for e in ours.feature(1).explanations} == {
        ("dogs", "neuronpedia oai_token-act-pair (gpt-4o-mini)"), (HOSTILE, "neuronpedia"),
    }  # fmt: skip


def test_explanations_of_neuronpedia_attach_with_their_source(copied: Path, tmp_path: Path) -> None:
    opened = Dictionary.open(copied)
    lines = tmp_path / "batch-0.jsonl"
    lines.write_text(json.dumps(explanation("3", "dogs", createdAt="2024-01-02T03:04:05.000Z")) + "\n")
    api = tmp_path / "feature.json"
    author = {"name": "johnny"}
    said = explanation("4", "cats", author=author, scores=[{"value": 0.75}])
    api.write_text(json.dumps({"modelId": "gpt2-small", "layer": "0-res-jb", "index": "4", "explanations": [said]}))
    upload = tmp_path / "upload.json"
    body = {"index": 5, "density": 0.1, "explanations": [{"text": "birds", "methodName": "mine"}], "activations": []}
    upload.write_text(json.dumps({"modelId": "gpt2-small", "source": "0-res-jb", "features": [body]}))
    assert import_files(opened, [lines, api, upload]).added["explanations"] == 3
    (dogs,) = opened.feature(3).explanations
    method = "neuronpedia oai_token-act-pair (gpt-4o-mini)"
    assert (dogs.text, dogs.method, dogs.author, dogs.time) == ("dogs", method, "c2", "2024-01-02T03:04:05+00:00")
    assert [(e.text, e.author, e.score) for e in opened.feature(4).explanations] == [("cats", "johnny", 0.75)]
    assert opened.feature(5).explanations[0].method == "neuronpedia mine"
    assert sum(import_files(opened, [lines, api, upload]).added.values()) == 0
    lines.write_text(json.dumps(explanation("96", "no such feature")) + "\n")
    with pytest.raises(ValueError, match="feature 96 does not exist"):
        import_files(opened, [lines])


def damaged() -> dict[str, tuple[bytes, str]]:
    whole = json.dumps(dashboard())
    cases: dict[str, tuple[bytes, str]] = {
        "batch-1.json": (whole[:-40].encode(), "cut short or no JSON"),
        "batch-2.jsonl.gz": (gzip.compress(json.dumps(explanation("1", "a")).encode() + b"\n")[:-9], "cut short"),
        "batch-3.jsonl": (json.dumps(explanation("1", "a")).encode(), "cut short"),
        "batch-4.json": (b"[1, 2]", "of no known kind"),
        "batch-5.json": (b'{"weights": 3}', "of no known kind"),
    }
    for number, (path, value, message) in enumerate((
        (("features", 0, "feature_index"), -1, "the index -1"),
        (("features", 0, "feature_index"), 10**8, "the index 100000000"),
        (("features", 0, "feature_index"), "1.5", "the index '1.5'"),
        (("features", 0, "frac_nonzero"), "many", "'many' for a number"),
        (("features", 0, "activations", 0, "values"), [1.0], "3 tokens with 1 values"),
        (("features", 0, "activations", 0, "values"), [float("nan")] * 3, "nan for a number"),
        (("features", 0, "activations", 0, "tokens"), [None] * 3, "is damaged"),
        (("features", 0, "pos_values"), [1.0], "2 names for 1 numbers"),
        (("features", 0, "freq_hist_data_bar_values"), [1.0], "3 bars and 1 values"),
        (("features", 0, "activations"), 7, "is damaged"),
    )):  # fmt: skip
        content: Any = dashboard()
        inside = content
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
        cases[f"batch-{10 + number}.json"] = (json.dumps(content).encode(), message)
    return cases


def test_damaged_and_foreign_files_are_refused_and_leave_nothing(batch: Path, tmp_path: Path) -> None:
    for name, (data, message) in damaged().items():
        path = tmp_path / "bad" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message) as refused:
            dumps.dictionary_from_dump([batch, path], tmp_path / "own")
        assert "\n" not in str(refused.value)
        assert name in str(refused.value)
        assert not list(tmp_path.glob("own*"))
    other = dashboard() | {"sae_set": "res-other"}
    (tmp_path / "batch-9.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="expected one SAE"):
        foreign.read_dump([batch, tmp_path / "batch-9.json"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        foreign.read_dump([tmp_path / "nowhere"])


def lines_of(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines()]


def test_an_upload_has_every_field_that_the_importer_asks_for(copied: Path, tmp_path: Path) -> None:
    opened = Dictionary.open(copied)
    opened.add_label(3, HOSTILE, "ann")
    source = write_upload(opened, [3, 95], tmp_path / "up", Upload(model="tiny", source_set="res-x", creator="me"))
    assert source == tmp_path / "up" / "tiny" / "1-res-x"
    for name, columns in MODEL_COLUMNS.items():
        (head,) = lines_of(source / f"{name}.jsonl")
        assert set(head) == columns, name
        assert all(value.endswith("Z") for key, value in head.items() if key.endswith("At"))
    assert lines_of(source / "source.jsonl")[0]["id"] == "1-res-x"
    live, dead = lines_of(source / "features" / "batch-0.jsonl.gz")
    feature = opened.feature(3, 64, 32)
    assert (live["modelId"], live["layer"], live["index"], live["sourceSetName"]) == ("tiny", "1-res-x", "3", "res-x")
    assert live["frac_nonzero"] == feature.density
    assert live["pos_str"] == [token for token, _, _ in feature.top_logits]
    assert live["neg_values"] == pytest.approx([logit for _, _, logit in feature.bottom_logits])
    assert sum(live["freq_hist_data_bar_heights"]) == feature.count
    assert len(live["freq_hist_data_bar_values"]) == 50
    assert live["freq_hist_data_bar_values"][-1] == pytest.approx(feature.max_activation * 0.99)
    assert live["topkCosSimIndices"] == [other for other, _ in feature.neighbours]
    row = opened.sae.W_dec[3].detach().abs()
    assert live["neuron_alignment_indices"][0] == int(row.argmax())
    assert live["neuron_alignment_l1"][0] == pytest.approx(float(row.max() / row.sum()), abs=1e-5)
    assert (dead["frac_nonzero"], dead["freq_hist_data_bar_heights"], dead["maxActApprox"]) == (0, [], 0)
    pieces = lines_of(source / "activations" / "batch-0.jsonl.gz")
    assert len(pieces) == len(feature.examples)
    for piece, example in zip(pieces, feature.examples, strict=True):
        assert piece["tokens"] == example.tokens
        assert piece["values"] == pytest.approx(example.activations)
        assert piece["values"][piece["maxValueTokenIndex"]] == piece["maxValue"] == max(piece["values"])
        assert piece["qualifyingTokenIndex"] == example.center
        assert (piece["binMin"] == -1) == (piece["binContains"] == -1) == (example.stratum == 0)
        assert piece["binContains"] <= 1
        assert len(piece["id"]) == 25
    assert len({piece["id"] for piece in pieces}) == len(pieces)
    (said,) = lines_of(source / "explanations" / "batch-0.jsonl.gz")
    assert (said["index"], said["description"], said["typeName"]) == ("3", HOSTILE, None)
    assert said["notes"] == "label by ann"
    again = write_upload(opened, [3, 95], tmp_path / "again", Upload(model="tiny", source_set="res-x", creator="me"))
    name = "activations/batch-0.jsonl.gz"
    assert (again / name).read_bytes() == (source / name).read_bytes()


def test_an_upload_comes_back_as_a_dictionary_of_the_same_examples(copied: Path, tmp_path: Path) -> None:
    opened = Dictionary.open(copied)
    write_upload(opened, list(range(8)), tmp_path / "up", Upload(model="tiny"))
    back, _ = dumps.dictionary_from_dump([tmp_path / "up"], tmp_path / "back")
    for number in range(8):
        ours, theirs = opened.feature(number), back.feature(number)
        assert theirs.max_activation == ours.max_activation
        assert theirs.density == ours.density
        assert theirs.examples[0].activation == ours.examples[0].activation
    assert verification.verify(back.path).ok
    with pytest.raises(ValueError, match="is no name for Neuronpedia"):
        write_upload(opened, [3], tmp_path / "bad", Upload(model="My Model"))
    assert not (tmp_path / "bad").exists()
    shutil.rmtree(tmp_path / "up")
