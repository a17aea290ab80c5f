"""SAEDashboard's files as we write them: its fields and no others, and the way back through our own reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboards import dashboard

from features import Dictionary, verification
from features.sharing import dumps, foreign
from features.sharing.dashboard import write_dashboard
from features.sharing.neuronpedia import Upload
from ui import cli

HEADS = {"model_id", "layer", "sae_set", "features"}
FEATURE = {
    "feature_index", "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices",
    "correlated_features_l1", "correlated_features_pearson", "neg_str", "neg_values", "pos_str", "pos_values",
    "frac_nonzero", "freq_hist_data_bar_values", "freq_hist_data_bar_heights", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values", "n_prompts_total", "n_tokens_in_prompt", "dataset", "activations",
    "decoder_weights_dist",
}  # fmt: skip
"""What its class of a feature takes; it refuses any other."""
ACTIVATION = {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}


def test_a_batch_has_the_fields_of_its_classes_and_no_others(copied: Path, tmp_path: Path) -> None:
    opened = Dictionary.open(copied)
    upload = Upload(model="tiny", source_set="res-x")
    out = write_dashboard(opened, [3, 95, *range(10, 20)], tmp_path / "out", upload)
    content = json.loads((out / "batch-0.json").read_text(encoding="utf-8"))
    assert set(content) == HEADS
    assert (content["model_id"], content["layer"], content["sae_set"]) == ("tiny", 1, "res-x")
    assert [row["feature_index"] for row in content["features"]] == [3, 95, *range(10, 20)]
    for row in content["features"]:
        assert set(row) == FEATURE
        assert all(set(piece) == ACTIVATION for piece in row["activations"])
    live, dead = content["features"][:2]
    feature = opened.feature(3, 64, 32)
    assert sum(live["freq_hist_data_bar_heights"]) == feature.count
    assert [piece["tokens"] for piece in live["activations"]] == [e.tokens for e in feature.examples]
    sizes = np.abs(opened.events_of(3)[1])
    for piece, example in zip(live["activations"], feature.examples, strict=True):
        assert piece["values"] == pytest.approx(example.activations)
        assert piece["values"][piece["qualifying_token_index"]] == pytest.approx(example.activation)
        if example.stratum == 0:
            assert (piece["bin_min"], piece["bin_contains"]) == (-1, -1)
        else:
            low, high = np.float32([piece["bin_min"], piece["bin_max"]])
            inside = ((sizes >= low) & (sizes <= high)).mean()
            assert piece["bin_contains"] == pytest.approx(inside, abs=1e-6)
    assert (dead["activations"], dead["freq_hist_data_bar_heights"], dead["frac_nonzero"]) == ([], [], 0)
    with pytest.raises(FileExistsError, match="exists already"):
        write_dashboard(opened, [3], out, upload)
    with pytest.raises(ValueError, match="is no name for Neuronpedia.*--model-id"):
        write_dashboard(opened, [3], tmp_path / "bad", Upload(model="My Model"))
    opened.close()


def test_batches_come_back_as_a_dictionary_of_the_same_features(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.sharing.dashboard.BATCH_FEATURES", 40)
    arguments = ["dict", "export", str(copied), "--format", "saedashboard", "--model-id", "tiny"]
    assert cli.run([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "96 features: " in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"batch-{i}.json" for i in range(3)]
    opened = Dictionary.open(copied)
    back, _ = dumps.dictionary_from_dump([tmp_path / "out"], tmp_path / "back")
    assert verification.verify(back.path).ok
    assert back.n_features == opened.n_features
    for number in range(0, 96, 5):
        ours, theirs = opened.feature(number, 64, 32), back.feature(number, 64, 32)
        assert theirs.density == ours.density
        assert theirs.max_activation == ours.max_activation
        assert sum(theirs.histogram.counts) == ours.count
        assert [(t, x) for t, _, x in theirs.top_logits] == [(t, pytest.approx(x)) for t, _, x in ours.top_logits]
        if ours.examples:
            assert theirs.examples[0].tokens == ours.examples[0].tokens
            assert {e.text for e in theirs.examples} == {e.text for e in ours.examples}
    back.close()
    opened.close()


def test_another_projects_batch_goes_out_as_it_came_in(tmp_path: Path) -> None:
    given: dict[str, Any] = dashboard()
    given["features"][1]["activations"] = []  # a dead feature's silence is no example
    (tmp_path / "batch-0.json").write_text(json.dumps(given), encoding="utf-8")
    opened, _ = dumps.dictionary_from_dump([tmp_path / "batch-0.json"], tmp_path / "own")
    out = write_dashboard(opened, [1, 3], tmp_path / "out")
    first, again = foreign.read_dump([tmp_path / "batch-0.json"]), foreign.read_dump([out])
    assert (again.kind, again.model, again.source, again.dataset) == (
        "SAEDashboard",
        "gpt2-small",
        "0-res-jb",
        "some/text",
    )
    assert again.tokens == first.tokens
    for number in (1, 3):
        ours, theirs = again.features[number], first.features[number]
        assert ours.density == theirs.density
        bars = dict(zip(theirs.middles, theirs.heights, strict=True))
        assert dict(zip(ours.middles, ours.heights, strict=True)) == {m: bars[m] for m in ours.middles}
        assert sum(ours.heights) == sum(theirs.heights)
        assert [t for t, _ in ours.promoted] == [t for t, _ in theirs.promoted]
        assert [t for t, _ in ours.suppressed] == [t for t, _ in theirs.suppressed]
        # a piece that is listed under an interval again stands among the strongest once
        assert {(e.tokens, e.values) for e in ours.excerpts} == {(e.tokens, e.values) for e in theirs.excerpts}
    opened.close()
    shutil.rmtree(tmp_path / "own")
