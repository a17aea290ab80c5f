"""A direction that the model uses moves its output beyond random ones; sensitivities are derivatives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.logistic import Probe
from activations.probes import TrainedProbe, check_probe, concept_test, erasing, fit_eraser, text_rows, train_probes

TEXTS = ["abcd", "hello world", "x = 1"]


def probe_along(lm: LanguageModel, site: str, direction: torch.Tensor, bias: float = 0.0) -> TrainedProbe:
    return TrainedProbe(
        model=lm.name,
        weight_hash=lm.weight_hash(),
        site=site,
        pooling="mean",
        context_tokens=64,
        name="planted",
        label="yes",
        against="no",
        kind="logistic",
        setting="",
        probe=Probe(direction.double(), bias),
    )


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama", "gemma2", "bert"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer())


def test_the_direction_that_writes_a_token_moves_it_beyond_random_ones(lm: LanguageModel) -> None:
    site = lm.final_site
    target, contrast = lm.encode(["z"])[0][-1], lm.encode(["q"])[0][-1]
    rows = lm.model.get_output_embeddings().weight.detach().double()
    found = check_probe(
        lm, probe_along(lm, site, rows[target] - rows[contrast]), TEXTS, "z", contrast="q", strengths=(-1, 1)
    )
    down, up, erased = found.effects
    assert (down.strength, up.strength, erased.intervention) == (-1, 1, "erase")
    if lm.kind == "decoder":  # BERT's head turns the stream before it reads it
        assert down.effect < 0 < up.effect
        assert up.is_beyond_random
    assert up.low <= up.effect <= up.high
    assert up.kl is not None
    assert up.kl > 0
    assert len(lm.taps) == 0
    assert json.loads(found.to_json())["effects"][0]["intervention"] == "add"


def test_no_move_changes_nothing_and_erasing_puts_every_token_on_the_threshold(lm: LanguageModel) -> None:
    from activations.analyses.targets import Metric
    from activations.probes.causal import _displaced

    site = "resid_post.1"
    direction = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probe = probe_along(lm, site, direction, bias=0.7)
    still = check_probe(lm, probe, TEXTS, "z", strengths=(0.0,)).effects[0]
    exact = 1e-12 if lm.dtype == torch.float64 else 1e-5
    assert abs(still.effect) <= exact
    assert still.kl == pytest.approx(0.0, abs=1e-6)
    tokens = Metric(lm, TEXTS[1], "z").tokens
    with lm.intervene({site: _displaced(probe, probe.direction[None], None)}):
        rows = lm.capture(tokens, None, [site])[site].flatten(0, -2)
    scores = probe.probe.scores(rows)
    torch.testing.assert_close(scores, torch.zeros_like(scores), rtol=0, atol=1e-8 if exact < 1e-6 else 1e-4)


def test_leace_in_the_model_takes_the_label_from_its_rows_and_is_checked_beside_the_direction(
    tiny_lm: LanguageModel,
) -> None:
    texts = ["".join(letters) for letters in ("abab", "baab", "aabb", "abba", "bbaa", "baba")]
    texts += [text.translate({97: "x", 98: "y"}) for text in texts]
    labels = ["left"] * 6 + ["right"] * 6
    site = "resid_post.1"
    eraser = fit_eraser(text_rows(tiny_lm, texts, [site])[site], labels)
    with tiny_lm.intervene({site: erasing(eraser)}):
        rows = text_rows(tiny_lm, texts, [site])[site].double()
    torch.testing.assert_close(rows[:6].mean(0), rows[6:].mean(0), rtol=0, atol=1e-5)
    probe = train_probes(tiny_lm, texts * 2, labels * 2, sites=[site], kinds=("mean_difference",)).best()
    found = check_probe(tiny_lm, probe, texts, "x", contrast="a", eraser=eraser)
    assert [effect.intervention for effect in found.effects] == ["add"] * 4 + ["erase", "leace"]
    assert found.effects[-1].random_effect is None
    assert found.effects[-1].is_beyond_random is None


def test_a_concept_along_the_logits_own_gradient_always_raises_them(lm: LanguageModel) -> None:
    site = "resid_pre.0"
    concept = ["zzzz", "zxzz", "zzxz", "zzyz", "yzzz", "zzzy", "xzzz", "zzzx"]
    others = ["aaaa", "abaa", "aaba", "aaca", "caaa", "aaac", "baaa", "aaab"]
    found = concept_test(lm, site, concept, others, TEXTS, "z", runs=6)
    assert found.accuracy > 0.9
    assert len(found.scores) == len(found.random_scores) == 6
    assert 0 < found.p <= 1
    assert np.linalg.norm(found.vector) == pytest.approx(1.0)
    assert len(lm.taps) == 0
    # a sensitivity is the derivative along the vector, here by differences
    from activations.analyses.targets import Metric

    metric = Metric(lm, TEXTS[0], "z")
    step = 1e-4 if lm.dtype == torch.float64 else 3e-2
    numbers = []
    for sign in (-1, 1):
        push = sign * step * torch.from_numpy(found.vector)
        with lm.intervene({site: lambda x, push=push: x + push.to(x)}), torch.no_grad():
            numbers.append(float(metric(metric.tokens)))
    from activations.probes.concepts import _gradient

    slope = float(_gradient(lm, metric, site) @ torch.from_numpy(found.vector))
    assert (numbers[1] - numbers[0]) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=2e-3)


def test_unusable_questions_are_told_in_one_line(tiny_lm: LanguageModel, embedded_lm: LanguageModel) -> None:
    probe = probe_along(tiny_lm, "resid_post.1", torch.ones(32))
    with pytest.raises(ValueError, match="got no texts, expected at least one"):
        check_probe(tiny_lm, probe, [])
    with pytest.raises(ValueError, match="random_directions=0, expected at least 1"):
        check_probe(tiny_lm, probe, ["a"], random_directions=0)
    with pytest.raises(ValueError, match="its directions mean nothing there"):
        check_probe(embedded_lm, probe, ["a"])
    with pytest.raises(ValueError, match="got 1 texts with the concept"):
        concept_test(tiny_lm, "resid_post.1", ["a"], ["b"] * 6, ["a"])
