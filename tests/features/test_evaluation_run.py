"""SAE folders are measured together as they are alone, and what cannot be measured is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from features.evaluation_run import evaluate_folders, run_evaluate
from sae import SAE, SAEConfig


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Any) -> Path:
    """A model folder, a folder of text, and SAEs of several kinds and sites."""
    folder = tmp_path_factory.mktemp("material")
    tiny_lm.model.save_pretrained(folder / "model")
    tiny_lm.tokenizer.save_pretrained(folder / "model")
    (folder / "text").mkdir()
    for number in range(40):
        lines = [f"def name_{number}_{i}(self): return {i * number}" for i in range(8)]
        (folder / "text" / f"file_{number}.py").write_text("\n".join(lines))
    data = {"source": str(folder / "text"), "context_tokens": 64, "heldout_percent": 20, "heldout_tokens": 1000}
    shape: dict[str, Any] = {"d_in": 32, "d_sae": 64}
    kinds: dict[str, tuple[SAEConfig, list[str], list[str]]] = {
        "a": (SAEConfig(**shape, k=4, architecture="topk"), ["resid_post.1"], []),
        "b": (SAEConfig(**shape, k=8, architecture="topk"), ["resid_post.1"], []),
        "relu": (SAEConfig(**shape, architecture="standard"), ["resid_post.0"], []),
        "cross": (SAEConfig(**shape, k=4, architecture="crosscoder", n_sites=2), ["resid_post.0", "resid_post.1"], []),
        "trans": (SAEConfig(**shape, k=4, architecture="transcoder"), ["resid_mid.1"], ["mlp_out.1"]),
    }
    for number, (name, (config, sites, targets)) in enumerate(kinds.items()):
        metadata = {"site": sites[0], "sites": sites, "model_name": str(folder / "model"), "data": data}
        sae = SAE(config, metadata | ({"target_sites": targets} if targets else {}))
        torch.manual_seed(number)
        for value in sae.parameters():
            torch.nn.init.normal_(value, std=0.2)
        sae.save(str(folder / "saes" / name))
    return folder


def test_saes_measured_together_are_measured_as_they_are_alone(material: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from activations import LanguageModel

    captures = []
    original = LanguageModel.capture
    monkeypatch.setattr(LanguageModel, "capture", lambda self, *a: captures.append(a[2]) or original(self, *a))
    names = ("a", "b", "relu", "cross", "trans")
    together = evaluate_folders([material / "saes" / name for name in names])
    passes = {tuple(sites) for sites in captures if len(sites) > 1}  # single ones verify the model's map
    assert passes == {("mlp_out.1", "resid_mid.1", "resid_post.0", "resid_post.1")}
    assert list(together.metrics) == [f"saes/{name}" for name in names]
    for name in names:
        metrics = together.metrics[f"saes/{name}"]
        assert json.loads((material / "saes" / name / "metrics.json").read_text())["l0"] == metrics.l0
        alone = run_evaluate(material / "saes" / name)
        figures = {row["metric"]: row["value"] for row in alone.rows()}
        assert {row["metric"]: row["value"] for row in metrics.rows()} == pytest.approx(figures, rel=1e-5)
        assert metrics.ce_recovered is not None
    assert len(together.metrics["saes/cross"].ce_recovered_by_site) == 2
    assert [(pair.first, pair.second) for pair in together.stability] == [("saes/a", "saes/b")]
    listed = {row["metric"]: row for row in together.rows()}
    assert listed["l0"]["saes/b"] == together.metrics["saes/b"].l0
    assert json.loads(together.to_json())["saes"]["saes/a"]["d_sae"] == 64


def test_probes_and_refusals_are_part_of_the_result(material: Path) -> None:
    found = evaluate_folders([material / "saes" / "a", material / "saes" / "trans"], probe=["forms"], full=True)
    assert [row["k"] for row in found.probing["saes/a"][0].rows()] == [1, 2, 5]
    assert any("probe_forms_k1" in row["metric"] for row in found.rows())
    assert 0 < found.meta["saes/a"].explained_variance <= 1
    reasons = "\n".join(found.refused["saes/a"])
    assert "absorption: the vocabulary of" in reasons
    wired = "\n".join(found.refused["saes/trans"])
    for method in ("absorption", "SCR", "TPP"):
        assert f"{method}: architecture `transcoder` writes elsewhere than it reads" in wired
    with pytest.raises(ValueError, match="no labelled set"):
        evaluate_folders([material / "saes" / "a"], probe=["nowhere"])
    with pytest.raises(ValueError, match="given twice"):
        evaluate_folders([material / "saes" / "a", material / "saes" / ".." / "saes" / "a"])
