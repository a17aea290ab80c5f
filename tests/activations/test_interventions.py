"""Ablation and patching: what changes nothing is exact, and what restores everything restores it exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import ablate_components, patch_activations
from activations.analyses.targets import Metric

CLEAN, CORRUPT = "def f(x):", "def g(y):"
FIVE = ["gpt2", "gpt_neox", "llama", "gemma2", "bert"]


@pytest.fixture(scope="module", params=FIVE)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer())


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_whole_layers_restore_all_and_what_comes_before_the_difference_nothing(
    lm: LanguageModel, direction: str
) -> None:
    found = patch_activations(lm, CLEAN, CORRUPT, "z", contrast="(", direction=direction)  # pyright: ignore
    assert found.effects["resid_pre"].shape == (lm.n_layers, len(CLEAN))
    if lm.kind == "decoder":
        # 'def ' is the same in both: a decoder's activations there are too
        for effects in found.effects.values():
            np.testing.assert_allclose(effects[:, :4], 0, atol=1e-4)
        # at the last layer only the last position is read, which lacks what its own layer still takes from the others
        np.testing.assert_allclose(found.effects["mlp_out"][-1, :-1], 0, atol=1e-4)
    base, source = (CORRUPT, CLEAN) if direction == "denoise" else (CLEAN, CORRUPT)
    kept = lm.capture(lm.tokenize(source).tokens, None, ["resid_pre.1", "head_out.1"])
    metric = Metric(lm, CLEAN, "z", contrast="(")
    tokens = lm.tokenize(base).tokens
    with torch.no_grad():
        begin, end = float(metric(tokens)), float(metric(lm.tokenize(source).tokens))

        def patched(site: str, where: object) -> float:
            def edit(x: torch.Tensor) -> torch.Tensor:
                x[where] = kept[site][where]
                return x

            with lm.intervene({site: edit}):
                return (float(metric(tokens)) - begin) / (end - begin)

        assert patched("resid_pre.1", slice(None)) == pytest.approx(1, abs=1e-4)
        assert found.effects["resid_pre"][1, 6] == pytest.approx(patched("resid_pre.1", (0, 6)), abs=1e-4)
        assert found.heads[1, 2] == pytest.approx(patched("head_out.1", (0, slice(None), 2)), abs=1e-4)
    assert len(lm.taps) == 0


def test_the_default_target_is_what_the_model_says_on_each_text(llama: LanguageModel) -> None:
    said = [Metric(llama, text) for text in (CLEAN, CORRUPT)]
    found = patch_activations(llama, CLEAN, CORRUPT)
    if said[0].token == said[1].token:
        assert found.target == said[0].name
    else:
        strings = llama.token_strings([metric.token or 0 for metric in said])
        assert found.target == f"logit of {strings[0]!r} less that of {strings[1]!r}"
    assert json.loads(found.to_json())["direction"] == "denoise"
    assert abs(found.rows()[0]["effect"]) == max(abs(row["effect"]) for row in found.rows())


def test_an_ablated_head_is_one_whose_values_are_gone(lm: LanguageModel) -> None:
    found = ablate_components(lm, CLEAN, "z", how="zero")
    metric = Metric(lm, CLEAN, "z")
    tokens = lm.tokenize(CLEAN).tokens

    def silent(x: torch.Tensor) -> torch.Tensor:
        x[:, :, 3] = 0
        return x

    with torch.no_grad():
        assert found.value == pytest.approx(float(metric(tokens)), abs=1e-6)
        with lm.intervene({"head_out.1": silent}):
            assert found.heads[1, 3] == pytest.approx(found.value - float(metric(tokens)), abs=1e-4)
        with lm.intervene({"attn_out.2": torch.zeros_like}):
            assert found.attention[2] == pytest.approx(found.value - float(metric(tokens)), abs=1e-4)
        mean = ablate_components(lm, CLEAN, "z")
        with lm.intervene({"mlp_out.0": lambda x: x.mean(1, keepdim=True).expand_as(x).clone()}):
            assert mean.mlp[0] == pytest.approx(mean.value - float(metric(tokens)), abs=1e-4)


def test_a_mean_over_one_token_changes_nothing(llama: LanguageModel) -> None:
    found = ablate_components(llama, "a", "z")
    assert np.abs(found.heads).max() < 1e-12
    assert np.abs(found.mlp).max() < 1e-12
    assert len(found.rows()) == 3 * 4 + 3 + 3 + 1
    json.loads(found.to_json())


def test_what_cannot_be_compared_is_said_in_one_line(llama: LanguageModel) -> None:
    with pytest.raises(ValueError, match="the texts have 9 and 3 tokens, expected equally many"):
        patch_activations(llama, CLEAN, "abc")
    with pytest.raises(ValueError, match="for both texts, expected a difference to explain"):
        patch_activations(llama, CLEAN, CLEAN)
    with pytest.raises(ValueError, match="direction 'up' is unknown, expected denoise or noise"):
        patch_activations(llama, CLEAN, CORRUPT, direction="up")  # pyright: ignore
    with pytest.raises(ValueError, match="how='none' is unknown, expected mean, zero, mean_reference"):
        ablate_components(llama, CLEAN, how="none")  # pyright: ignore
