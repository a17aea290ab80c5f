"""Steering: no-ops are exact, strengths are in units of the maximum, and what is removed is gone."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from features import Dictionary, Steering
from features.steering import continuation_perplexity, feature_values
from sae import SAE

SITE = "resid_post.1"
PROMPT = "import self"


@pytest.fixture
def x(tiny_lm: Any) -> torch.Tensor:
    batch = tiny_lm.tokenize("import value, return (a, b)")
    return tiny_lm.capture(batch.tokens, batch.mask, [SITE])[SITE]


@pytest.fixture
def live(dictionary: Dictionary) -> list[int]:
    return [row["feature"] for row in dictionary.features(limit=3).features]


def test_strength_zero_is_the_same_tensor(dictionary: Dictionary, live: list[int], x: torch.Tensor) -> None:
    edited = Steering(dictionary, dict.fromkeys(live, 0.0), mode="add").edit(x)
    assert torch.equal(edited, x)
    assert Steering(dictionary, {live[0]: 0.0}).generate(PROMPT, max_new_tokens=8) == dictionary.lm.generate(
        PROMPT, max_new_tokens=8
    )


def test_add_writes_the_maximum_along_the_decoder(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    edited = Steering(dictionary, {live[0]: 2.0, live[1]: -0.5}, mode="add").edit(x)
    maxima = dictionary.max_activations
    wanted = 2 * maxima[live[0]] * tiny_sae.W_dec[live[0]] - 0.5 * maxima[live[1]] * tiny_sae.W_dec[live[1]]
    torch.testing.assert_close(edited - x, wanted.detach().expand_as(x), atol=1e-5, rtol=1e-4)


def test_clamp_at_the_value_that_is_there_changes_no_bit(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    flat = x.reshape(-1, x.shape[-1])
    present = feature_values(tiny_sae.encode(flat), [live[0]])[:, 0].detach()
    silent = flat[present == 0][None]
    assert torch.equal(Steering(dictionary, {live[0]: 0.0}, mode="clamp").edit(silent), silent)
    row = flat[present > 0][:1]
    maxima = dictionary.max_activations.copy()
    maxima[live[0]] = float(feature_values(tiny_sae.encode(row), [live[0]]).detach())
    dictionary.__dict__["max_activations"] = maxima
    assert torch.equal(Steering(dictionary, {live[0]: 1.0}, mode="clamp").edit(row[None]), row[None])
    assert not torch.equal(Steering(dictionary, {live[0]: 1.1}, mode="clamp").edit(row[None]), row[None])


def test_clamp_sets_the_feature_and_keeps_the_error(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    flat = x.reshape(-1, x.shape[-1])
    edited = Steering(dictionary, {live[0]: 1.5}, mode="clamp").edit(x).reshape_as(flat)
    target = 1.5 * float(dictionary.max_activations[live[0]])
    dense = tiny_sae.encode(flat).to_dense().detach()
    dense[:, live[0]] = target
    error = flat - tiny_sae(flat).detach()
    wanted = dense @ tiny_sae.W_dec.detach() + tiny_sae.b_dec.detach() + error
    torch.testing.assert_close(edited, wanted, atol=1e-4, rtol=1e-4)


def test_ablation_removes_what_the_feature_wrote(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    # encoder and decoder directions are equal and of unit norm: without its own part the latent's input is its bias
    flat = x.reshape(-1, x.shape[-1])
    before = feature_values(tiny_sae.encode(flat), [live[0]])[:, 0].detach()
    edited = Steering(dictionary, {live[0]: 1.0}, mode="ablate").edit(x).reshape_as(flat)
    after = feature_values(tiny_sae.encode(edited), [live[0]])[:, 0].detach()
    assert before.max() > 0.02
    assert after.max() < 1e-5
    assert torch.equal(edited[before == 0], flat[before == 0])


def test_steering_holds_in_cached_generation(dictionary: Dictionary, live: list[int]) -> None:
    steering = Steering(dictionary, {live[0]: 40.0}, mode="add")
    cached = steering.generate(PROMPT, max_new_tokens=10)
    assert cached == steering.generate(PROMPT, max_new_tokens=10, use_cache=False)
    assert cached != dictionary.lm.generate(PROMPT, max_new_tokens=10)
    assert "".join(steering.stream(PROMPT, max_new_tokens=10)) == cached
    with dictionary.lm.intervene({SITE: steering.edit}):
        assert dictionary.lm.generate(PROMPT, max_new_tokens=10) == cached


def test_compare_measures_both_under_the_unsteered_model(dictionary: Dictionary, live: list[int]) -> None:
    steering = Steering(dictionary, {live[0]: 40.0}, mode="add")
    found = steering.compare(PROMPT, max_new_tokens=10)
    assert found.steered == steering.generate(PROMPT, max_new_tokens=10)
    assert found.unsteered == dictionary.lm.generate(PROMPT, max_new_tokens=10)
    assert found.unsteered_perplexity == continuation_perplexity(dictionary.lm, PROMPT, found.unsteered)
    assert found.steered_perplexity != found.unsteered_perplexity
    assert found.relative_norm > 0.1
    assert [row["run"] for row in found.rows()] == ["unsteered", "steered"]
    assert json.loads(found.to_json())["mode"] == "add"


def test_perplexity_is_that_of_the_continuation_alone(tiny_lm: Any) -> None:
    text = PROMPT + "abcd"
    losses = tiny_lm.token_losses(tiny_lm.tokenize(text).tokens)[0]
    assert continuation_perplexity(tiny_lm, PROMPT, "abcd") == pytest.approx(float(losses[-4:].mean().exp()))
    assert continuation_perplexity(tiny_lm, PROMPT, "") is None


def test_impossible_steering_is_refused_in_one_line(dictionary: Dictionary, live: list[int]) -> None:
    for strengths, mode, message in (
        ({}, "add", "no feature to steer"),
        ({96: 1.0}, "add", "expected 0 to 95"),
        ({live[0]: float("nan")}, "add", "finite number"),
        ({95: 1.0}, "clamp", "is dead"),
    ):
        with pytest.raises(ValueError, match=message) as refusal:
            Steering(dictionary, strengths, mode=mode)
        assert "\n" not in str(refusal.value)
