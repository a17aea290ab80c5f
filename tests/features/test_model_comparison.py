"""Two models compared: a direction that was put into one is found, by one SAE over both and by a crosscoder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from activations import LanguageModel, ModelPair
from features import Dictionary, IndexConfig, build_index
from features.comparison import compare
from features.crosscoder_comparison import compare_models
from sae import SAE, SAEConfig
from sae.geometry import unit_rows

D, SITE, NEW = 32, "resid_post.1", 40


@pytest.fixture(scope="module")
def direction() -> Tensor:
    return unit_rows(torch.randn(1, D, generator=torch.Generator().manual_seed(5)))[0]


@pytest.fixture(scope="module")
def tuned(tiny_lm: Any, direction: Tensor) -> LanguageModel:
    """The same model with a direction of its own at every x."""
    model = copy.deepcopy(tiny_lm.model)
    with torch.no_grad():
        model.get_input_embeddings().weight[tiny_lm.tokenizer("x")["input_ids"][0]] += 4 * direction
    return LanguageModel(model, tiny_lm.tokenizer, name="tuned")


def test_one_sae_over_both_models_finds_the_new_direction(
    tiny_lm: Any, tuned: Any, tiny_sae: SAE, rows: Any, config: IndexConfig, tmp_path: Path, direction: Tensor
) -> None:
    sae = copy.deepcopy(tiny_sae)
    with torch.no_grad():
        sae.W_enc[NEW] = 2 * direction
        sae.W_dec[NEW] = direction
    opened = [
        build_index(sae, lm, rows, tmp_path / name, config, other_model=lm is tuned)
        for name, lm in (("base", tiny_lm), ("tuned", tuned))
    ]
    result = compare(*opened)
    changed = [match for match in result.matched if match.shift is not None and match.shift.is_change]
    assert changed[0].a == changed[0].b == NEW
    shift = changed[0].shift
    assert shift is not None
    assert shift.mean_low > 0
    example = changed[0].examples[0]
    assert example.tokens[example.center] == "x"
    assert any("Two models" in note for note in result.notes)
    for each in opened:
        each.close()


@pytest.fixture
def crosscoder(tiny_lm: Any, tuned: Any, rows: Any, config: IndexConfig, tmp_path: Path) -> Any:
    sae = SAE(SAEConfig(architecture="crosscoder", activation="topk", d_in=D, d_sae=64, k=6, n_sites=2))
    first = unit_rows(torch.randn(64, D, generator=torch.Generator().manual_seed(6)))
    second = first + 0.05 * torch.randn(64, D, generator=torch.Generator().manual_seed(7))
    first[1], second[0] = 0.02 * first[1], 0.02 * second[0]
    second[2] = -second[2]
    second[3] *= 4
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([first, second], dim=1))
        sae.W_enc.copy_(torch.cat([unit_rows(first), unit_rows(second)], dim=1))
        sae.W_enc[2] = torch.cat([first[2], first[2]])
        sae.b_enc[-2:] = -1e6
    sae.metadata.update(
        sites=[SITE, f"compare:{SITE}"],
        model_name=tiny_lm.name,
        model_revision=None,
        model_weight_hash=tiny_lm.weight_hash(),
        compare_model_name="tuned",
        name="pair",
    )
    opened = build_index(sae, ModelPair(tiny_lm, tuned), rows, tmp_path / "pair", config)
    yield opened
    opened.close()


def test_a_crosscoder_tells_what_vanished_appeared_and_turned(crosscoder: Dictionary, tmp_path: Path) -> None:
    from ui.render.models import models_tables, write_models_report

    crosscoder.add_label(0, "<script>alert(1)</script>", "me")
    result = compare_models(crosscoder)
    kinds = {entry.feature: entry.kind for entry in result.features}
    live = set(kinds)
    assert live == set(crosscoder.sql("select feature from features where count > 0")["feature"].to_pylist())
    expected = {0: "vanished", 1: "appeared", 2: "turned", 3: "between"}
    assert len(live & set(expected)) >= 3
    assert all(kinds[feature] == expected.get(feature, "shared") for feature in live)
    by_id = {entry.feature: entry for entry in result.features}
    assert all(by_id[f].cosine == pytest.approx(1, abs=0.2) for f in live if kinds[f] == "shared")
    assert sum(entry.share for entry in result.features) == pytest.approx(1)
    assert (result.first, result.second) == (crosscoder.info["model"]["name"], "tuned")
    assert json.loads(result.to_json())["features"][0]["examples"]
    page = write_models_report(result, tmp_path / "models.html").read_text()
    assert "<script>" not in page
    assert ("&lt;script&gt;" in page) == (0 in live)
    assert len(models_tables(result)) >= 2


def test_a_dictionary_of_one_model_is_refused(dictionary: Dictionary) -> None:
    with pytest.raises(ValueError, match="expected a crosscoder over one site of two models"):
        compare_models(dictionary)
