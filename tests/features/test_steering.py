"""Steering: no-ops are exact, strengths are in units of the maximum, and what is removed is gone."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from features import Dictionary, Steering
from features.steering import continuation_perplexity, feature_values
from features.steering_sweep import concept_score, distinct_pairs, sweep
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
            Steering(dictionary, strengths, mode=mode)  # pyright: ignore[reportArgumentType]
        assert "\n" not in str(refusal.value)


def present(sae: SAE, flat: torch.Tensor, feature: int) -> torch.Tensor:
    return feature_values(sae.encode(flat), [feature])[:, 0].detach()


def test_min_clamp_raises_the_weak_and_leaves_the_strong(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    flat = x.reshape(-1, x.shape[-1])
    before = present(tiny_sae, flat, live[0])
    share = float(before[before > 0].median() / dictionary.max_activations[live[0]])
    edited = Steering(dictionary, {live[0]: share}, mode="min_clamp").edit(x).reshape_as(flat)
    target = share * float(dictionary.max_activations[live[0]])
    assert (before >= target).any()
    assert (before < target).any()
    assert torch.equal(edited[before >= target], flat[before >= target])
    missing = (target - before).clamp(min=0)[:, None] * tiny_sae.W_dec[live[0]].detach()
    torch.testing.assert_close(edited - flat, missing, atol=1e-5, rtol=1e-4)


def test_scale_multiplies_what_is_there(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    assert torch.equal(Steering(dictionary, {live[0]: 1.0}, mode="scale").edit(x), x)
    doubled = Steering(dictionary, {live[0]: 3.0}, mode="scale").edit(x)
    removed = Steering(dictionary, {live[0]: 0.0}, mode="scale").edit(x)
    torch.testing.assert_close(removed, Steering(dictionary, {live[0]: 1.0}, mode="ablate").edit(x))
    torch.testing.assert_close(doubled - x, 2 * (x - removed), atol=1e-5, rtol=1e-4)


def test_erasing_leaves_nothing_along_any_of_the_directions(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    edited = Steering(dictionary, dict.fromkeys(live, 1.0), mode="erase").edit(x)
    directions = tiny_sae.W_dec[live].detach()
    assert (x @ directions.T).abs().max() > 0.02
    assert (edited @ directions.T).abs().max() < 1e-6
    torch.testing.assert_close(Steering(dictionary, dict.fromkeys(live, 1.0), mode="erase").edit(edited), edited)
    half = Steering(dictionary, dict.fromkeys(live, 0.5), mode="erase").edit(x)
    torch.testing.assert_close(half, (x + edited) / 2)
    with pytest.raises(ValueError, match="expected one for all:"):
        Steering(dictionary, {live[0]: 1.0, live[1]: 0.5}, mode="erase")


def test_a_condition_limits_steering_to_tokens_where_another_feature_is_active(
    dictionary: Dictionary, live: list[int], x: torch.Tensor, tiny_sae: SAE
) -> None:
    flat = x.reshape(-1, x.shape[-1])
    share = 0.05
    holds = present(tiny_sae, flat, live[1]) >= share * float(dictionary.max_activations[live[1]])
    assert holds.any()
    assert not holds.all()
    everywhere = Steering(dictionary, {live[0]: 2.0}).edit(x).reshape_as(flat)
    limited = Steering(dictionary, {live[0]: 2.0}, when={live[1]: share}).edit(x).reshape_as(flat)
    assert torch.equal(limited[~holds], flat[~holds])
    assert torch.equal(limited[holds], everywhere[holds])


def test_rows_keep_their_length_when_asked(dictionary: Dictionary, live: list[int], x: torch.Tensor) -> None:
    edited = Steering(dictionary, {live[0]: 5.0}, keeps_norm=True).edit(x)
    torch.testing.assert_close(edited.norm(dim=-1), x.norm(dim=-1))
    assert (edited - x).norm(dim=-1).min() > 0.1 * x.norm(dim=-1).min()
    silent = Steering(dictionary, {live[0]: 1.0}, mode="scale", keeps_norm=True).edit(x)
    assert torch.equal(silent, x)


def test_positions_and_phase_say_which_tokens_are_steered(dictionary: Dictionary, live: list[int]) -> None:
    lm, batch = dictionary.lm, dictionary.lm.tokenize(PROMPT)
    plain = lm.capture(batch.tokens, batch.mask, [SITE])[SITE]
    for limits, changed in (
        ({"positions": [0, -1]}, [0, plain.shape[1] - 1]),
        ({"phase": "prompt"}, list(range(plain.shape[1]))),
        ({"phase": "generated"}, []),
    ):
        with lm.intervene(Steering(dictionary, {live[0]: 3.0}, **limits).interventions):  # pyright: ignore[reportArgumentType]
            seen = lm.capture(batch.tokens, batch.mask, [SITE])[SITE]
        assert (seen != plain).any(-1)[0].nonzero().flatten().tolist() == changed
    later = Steering(dictionary, {live[0]: 40.0}, phase="generated")
    text = later.generate(PROMPT, max_new_tokens=8)
    assert text == later.generate(PROMPT, max_new_tokens=8, use_cache=True)
    assert text[0] == lm.generate(PROMPT, max_new_tokens=8)[0], "the first token is chosen before anything is generated"


def test_a_sweep_tells_what_each_strength_bought_and_cost(dictionary: Dictionary, live: list[int]) -> None:
    told = []
    found = sweep(
        dictionary,
        {live[0]: 1.0},
        [0, 40],
        [PROMPT, "return"],
        asked="a list. ",
        on_point=told.append,
        max_new_tokens=10,
    )
    alone, steered, asked = found.points
    assert told == found.points
    assert [point.run for point in found.points] == ["left alone", "steered", "asked in words"]
    assert alone.texts == [dictionary.lm.generate(prompt, max_new_tokens=10) for prompt in (PROMPT, "return")]
    assert steered.texts[0] == Steering(dictionary, {live[0]: 40.0}).generate(PROMPT, max_new_tokens=10)
    assert asked.texts[1] == dictionary.lm.generate("a list. return", max_new_tokens=10)
    perplexities = [
        continuation_perplexity(dictionary.lm, prompt, text)
        for prompt, text in zip((PROMPT, "return"), steered.texts, strict=True)
    ]
    assert steered.perplexity == pytest.approx(sum(p for p in perplexities if p is not None) / 2)
    assert len(found.rows()) == 3
    assert found.rows()[1]["text"] == steered.texts[0]
    assert json.loads(found.to_json())["points"][1]["factor"] == 40


def test_the_concept_score_is_the_activation_on_the_continuation_alone(
    dictionary: Dictionary, live: list[int], tiny_sae: SAE
) -> None:
    text = "abcd"
    batch = dictionary.lm.tokenize(PROMPT + text)
    rows = dictionary.lm.capture(batch.tokens, batch.mask, [SITE])[SITE][0]
    expected = present(tiny_sae, rows, live[0])[-len(text) :].mean() / dictionary.max_activations[live[0]]
    assert concept_score(dictionary, [live[0]], PROMPT, text) == pytest.approx(float(expected), rel=1e-4)
    assert concept_score(dictionary, [live[0]], PROMPT, "") == 0


def test_repetition_is_seen_in_pairs_of_tokens(tiny_lm: Any) -> None:
    assert distinct_pairs(tiny_lm, "abcdef") == 1
    assert distinct_pairs(tiny_lm, "ababab") == pytest.approx(2 / 5)
    assert distinct_pairs(tiny_lm, "a") is None


def test_impossible_sweeps_are_refused(dictionary: Dictionary, live: list[int]) -> None:
    for factors, prompts, message in (
        ([], ["a"], "0 factors"),
        ([1.0], [], "0 prompts"),
        ([math.inf], ["a"], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(dictionary, {live[0]: 1.0}, factors, prompts)
