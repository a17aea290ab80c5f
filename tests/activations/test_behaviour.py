"""What is planted in a black box is found, measures are those of the books, and a model's answers are its own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.behaviour import (
    Answer,
    Answering,
    calibrate,
    check_consistency,
    cka,
    compare_models,
    compare_outputs,
    failure_report,
    knowledge_boundaries,
    measure_confidence,
    next_token_calibration,
    part_importance,
    profile_model,
    reasoning_faithfulness,
    selfcheck,
    semantic_entropy,
)
from activations.behaviour.distributions import aligned, entropy, jsd, kl, margin
from activations.behaviour.failures import fisher_p
from activations.behaviour.reasoning import corrupted

HOSTILE = "<script>alert(1)</script> \x00 ;drop table"


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


# distributions


def test_measures_of_distributions_are_those_of_the_books() -> None:
    uniform = {str(number): 1 / 7 for number in range(7)}
    assert entropy(uniform) == pytest.approx(math.log(7))
    assert margin(uniform) == pytest.approx(0.0)
    p, q = {"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}
    assert kl(p, q) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5))
    assert jsd(p, q) == pytest.approx(jsd(q, p))
    assert jsd(p, p) == kl(p, p) == 0
    assert jsd({"a": 1.0}, {"b": 1.0}) == pytest.approx(math.log(2))
    assert kl({"a": 1.0}, {"b": 1.0}) == math.inf
    # of lists that were cut, what one alone names is part of the other's rest
    cut = aligned({"a": 0.5, "b": 0.3, "(rest)": 0.2}, {"a": 0.6, "c": 0.3, "(rest)": 0.1})
    assert cut[0] == pytest.approx({"a": 0.5, "(rest)": 0.5})
    assert cut[1] == pytest.approx({"a": 0.6, "(rest)": 0.4})
    assert aligned(p, {"c": 1.0}) == (p, {"c": 1.0})


def test_a_models_answers_carry_its_own_probabilities(llama: LanguageModel) -> None:
    model = Answering(llama, max_new_tokens=4, stop=None, top=7)
    answer = model("abc")
    assert answer.text == llama.generate("abc", max_new_tokens=4)
    tokens = llama.tokenize("abc" + answer.text).tokens
    log_p = torch.log_softmax(llama.logits(tokens)[0].double(), -1)
    count = llama.tokenize("abc").tokens.shape[1]
    expected = [float(log_p[place - 1, tokens[0, place]]) for place in range(count, tokens.shape[1])]
    assert answer.log_probabilities == pytest.approx(expected, abs=1e-9)
    assert model.log_probability("abc", answer.text) == pytest.approx(sum(expected))
    assert answer.choices is not None
    assert sum(answer.choices.values()) == pytest.approx(1.0)
    assert len(answer.choices) == 8
    drawn = model.sample("abc", 3, seed=4)
    assert [each.text for each in drawn] == [each.text for each in model.sample("abc", 3, seed=4)]
    with pytest.raises(ValueError, match="is no decoder, expected a model that continues text"):
        Answering(LanguageModel(build("bert"), tokenizer()))


def test_confidence_and_differences_of_outputs_are_told_by_text() -> None:
    def sure(text: str) -> Answer:
        high = 0.9 if "sure" in text else 0.5
        return Answer(text.upper(), choices={"yes": high, "no": 1 - high})

    found = measure_confidence(sure, ["sure", "hm"])
    assert [row["text"] for row in found.rows()] == ["hm", "sure"]
    assert found.summary()["mean_probability"] == pytest.approx(0.7)
    assert int(found.histogram(10)[0].sum()) == 2
    apart = compare_outputs(sure, ["sure", "hm"], ["hm", "hm"])
    assert apart.rows()[0]["jsd"] == pytest.approx(jsd({"y": 0.9, "n": 0.1}, {"y": 0.5, "n": 0.5}))
    assert [pair.is_same for pair in apart.pairs] == [False, True]
    assert apart.pairs[1].edit_share == 0
    assert compare_outputs(lambda text: text, ["a"], ["b"]).mean_jsd is None
    with pytest.raises(ValueError, match="the model gave no choices"):
        measure_confidence(lambda text: text, ["a"])
    with pytest.raises(ValueError, match="choices sum to 0.5, expected shares of 1"):
        measure_confidence(lambda text: Answer("", choices={"a": 0.5}), ["a"])
    with pytest.raises(ValueError, match="the model returned int, expected a text or an Answer"):
        compare_outputs(lambda text: 3, ["a"], ["b"])  # pyright: ignore[reportArgumentType]


# importance


@pytest.mark.parametrize("substitute", [None, "thing", ["thing", "other"]])
def test_a_planted_keyword_is_found(substitute: str | list[str] | None) -> None:
    def keyed(text: str) -> str:
        return "open sesame" if "magic" in text else "nothing"

    found = part_importance(keyed, "say the magic word, please", substitute=substitute)
    effects = {part.part: part.effect for part in found.parts}
    assert effects.pop("magic") > 0.5
    assert not any(effects.values())
    assert [part.part for part in found.parts if part.changes_answer] == ["magic"]
    for part in found.parts:
        assert found.text[part.start : part.end] == part.part


def test_a_models_importance_is_the_answers_log_probability(llama: LanguageModel) -> None:
    model = Answering(llama, max_new_tokens=2, stop=None)
    found = part_importance(model, "ab cd")
    assert found.score == pytest.approx(model.log_probability("ab cd", found.answer))
    assert found.parts[0].effect == pytest.approx(found.score - model.log_probability("cd", found.answer))
    custom = part_importance(lambda text: text, "one two", measure=lambda answer: float(len(answer.text)))
    assert [part.effect for part in custom.parts] == [4.0, 4.0]
    alone = part_importance(lambda text: text, "word")
    assert math.isnan(alone.parts[0].effect)
    assert json.loads(alone.to_json())["parts"][0]["effect"] is None
    with pytest.raises(ValueError, match="by='letter' is unknown"):
        part_importance(lambda text: text, "word", by="letter")
    with pytest.raises(ValueError, match="has no words"):
        part_importance(lambda text: text, "  ")


# consistency and knowledge


def test_agreement_over_templates_is_counted_by_pairs() -> None:
    def fickle(text: str) -> str:
        return "Paris." if text.startswith("capital") or "France" not in text else "the Lyon"

    found = check_consistency(
        fickle, ["capital of {}", "{} has", "in {}"], ["France", "Peru"], expected=["Paris", "Lima"]
    )
    france, peru = found.subjects
    assert france.agreement == pytest.approx(1 / 3)
    assert (france.main, france.main_share, france.correct) == ("the Lyon", 2 / 3, 1 / 3)
    assert (peru.agreement, peru.correct) == (1.0, 0.0)
    assert found.by_template == (0.5, 0.0, 0.0)
    assert found.rows()[0]["subject"] == "France"
    with pytest.raises(ValueError, match="has 0 places, expected one"):
        check_consistency(fickle, ["no place"], ["x"])
    with pytest.raises(ValueError, match="got 1 answers for 2 subjects"):
        check_consistency(fickle, ["{}"], ["x", "y"], expected=["z"])


def test_facts_fall_into_the_four_kinds() -> None:
    class Partly:
        def __call__(self, text: str) -> str:
            return "right!" if "always" in text or ("half" in text and text.startswith("one")) else "wrong"

        def sample(self, text: str, n: int, *, temperature: float, seed: int) -> list[Answer]:
            return [Answer("Right" if "seldom" in text and number == 0 else "no") for number in range(n)]

    facts = dict.fromkeys(("always", "half", "seldom", "never"), "right")
    found = knowledge_boundaries(Partly(), ["one {}", "two {}"], facts)
    assert [fact.kind for fact in found.facts] == ["known", "maybe known", "weakly known", "unknown"]
    assert found.facts[2].sampled_correct == 0.25
    assert [row["share"] for row in found.summary()] == [0.25] * 4


# calibration


def test_a_calibrated_model_shows_no_more_error_than_chance_and_an_overconfident_one_does() -> None:
    generator = np.random.default_rng(0)
    p = generator.uniform(0.5, 1, size=2000)
    honest = calibrate(p, generator.random(2000) < p)
    assert honest.ece < 2.5 * honest.ece_expected
    boastful = calibrate(p, generator.random(2000) < 0.5)
    assert boastful.ece == pytest.approx(0.25, abs=0.04)
    assert boastful.ece_low > 5 * boastful.ece_expected
    assert boastful.auroc == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("by", ["width", "count"])
def test_calibration_is_what_a_hand_computes(by: str) -> None:
    found = calibrate([0.9, 0.9, 0.3, 0.3], [True, False, False, True], bins=2, by=by)
    assert found.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.2)
    assert found.mce == pytest.approx(0.4)
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.09 + 0.49) / 4)
    assert found.log_loss == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.7) + math.log(0.3)) / 4)
    assert sum(each.n for each in found.bins) == 4
    perfect = calibrate([1.0, 0.0], [True, False])
    assert perfect.ece == perfect.brier == 0
    with pytest.raises(ValueError, match="run from 0.5 to 1.5, expected 0 to 1"):
        calibrate([0.5, 1.5], [True, False])
    with pytest.raises(ValueError, match="expected as many, at least one"):
        calibrate([0.5], [True, False])


def test_next_tokens_are_held_against_what_follows(llama: LanguageModel) -> None:
    text = "def f(x): return x"
    tokens = llama.tokenize(text).tokens
    best = torch.softmax(llama.logits(tokens)[0, :-1].double(), -1).max(-1)
    found = next_token_calibration(llama, [text, text])
    assert found.n == 2 * (tokens.shape[1] - 1)
    assert found.confidence == pytest.approx(float(best.values.mean()))
    assert found.accuracy == pytest.approx(float((best.indices == tokens[0, 1:]).double().mean()))


# uncertainty


def test_equal_samples_have_no_entropy_and_different_ones_the_most() -> None:
    same = semantic_entropy([Answer("The cat."), Answer("cat"), Answer("a CAT!")], "")
    assert same.entropy == 0
    assert len(same.meanings) == 1
    different = semantic_entropy([Answer(word) for word in "abcd"], "")
    assert different.entropy == pytest.approx(math.log(4)) == pytest.approx(different.largest)
    weighted = semantic_entropy([Answer("x", (math.log(0.8),)), Answer("y", (math.log(0.1), math.log(0.1)))], "")
    shares = (8 / 9, 1 / 9)
    assert weighted.weighted_entropy == pytest.approx(-sum(share * math.log(share) for share in shares))
    grouped = semantic_entropy(
        [Answer("yes"), Answer("sure"), Answer("no")], "", same=lambda a, b: (a == "no") == (b == "no")
    )
    assert [meaning.n for meaning in grouped.meanings] == [2, 1]
    with pytest.raises(ValueError, match="got 1 samples, expected at least 2"):
        semantic_entropy([Answer("a")], "")


def test_what_no_sample_says_is_unsupported() -> None:
    samples = ["Ann lives in Oslo. She sings.", "Ann lives in Oslo. She sings."]
    assert selfcheck(samples, "", answer="Ann lives in Oslo. She sings.").unsupported == 0
    found = selfcheck(samples, "", answer="Ann lives in Oslo. She paints walls.")
    assert [each.unsupported for each in found.sentences] == pytest.approx([0, 2 / 3])
    assert found.sentences[1].words == ("paints", "walls")
    assert found.sentences[1].max_surprise > found.sentences[0].max_surprise
    counts = {"ann": 3, "lives": 3, "in": 3, "oslo": 3, "she": 3, "sings": 2, "paints": 1, "walls": 1}
    total = sum(counts.values()) + len(counts)
    assert found.sentences[0].mean_surprise == pytest.approx(-math.log(4 / total))
    bigrams = selfcheck(samples, "", answer="Oslo lives in Ann.", n=2)
    assert bigrams.unsupported == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="has no 3-grams of words"):
        selfcheck(samples, "", answer="Ann lives", n=3)


# reasoning


def test_an_answer_that_hangs_on_the_reasoning_is_told_from_one_that_does_not() -> None:
    reasoning = " First there are 3. Then 4 more come. So 7 in all."

    def reads(text: str) -> str:
        return text.split(" in all")[0].rsplit(" ", 1)[-1] if " in all" in text else "0"

    faithful = reasoning_faithfulness(reads, "How many?", reasoning=reasoning, goes_on=False)
    assert faithful.answer == "7"
    assert (faithful.early_share, faithful.aoc) == (0.0, 1.0)
    assert faithful.mistake_change == pytest.approx(1 / 3)
    assert not faithful.filler_keeps
    spoiled = [step for step in faithful.steps if step.change == "corrupted"]
    assert spoiled[2].answer == "8"
    stubborn = reasoning_faithfulness(lambda text: "7", "How many?", reasoning=reasoning)
    assert (stubborn.aoc, stubborn.mistake_change, stubborn.filler_keeps) == (0.0, 0.0, True)
    with pytest.raises(ValueError, match="wrote no reasoning"):
        reasoning_faithfulness(lambda text: "", "How many?")


def test_mistakes_are_made_of_numbers_opposites_or_order() -> None:
    assert corrupted(" There are 9 and 10.") == " There are 10 and 11."
    assert corrupted(" It is True.") == " It is not False."
    assert corrupted(" red green blue.") == " blue. green red"


# failures


def test_the_planted_kind_of_failure_comes_first() -> None:
    texts = [f"item {'with 3' if number % 3 == 0 else 'without'} label {HOSTILE}" for number in range(60)]
    found = failure_report(
        lambda text: Answer("bad" if "3" in text else "good", (math.log(0.5),)), texts, ["good"] * 60,
        tags=[["even"] if number % 2 else [] for number in range(60)],
    )  # fmt: skip
    assert found.rate == pytest.approx(1 / 3)
    assert len(found.rows()) == 20
    assert found.failures[0].confidence == pytest.approx(0.5)
    telling = [each for each in found.slices if each.p < 1e-6]
    assert "holds the word 'with'" in {each.slice for each in telling}
    by_name = {each.slice: each for each in found.slices}
    assert by_name["tag even"].p == pytest.approx(1.0)
    assert (by_name["holds the word 'with'"].rate, by_name["holds the word 'with'"].rate_elsewhere) == (1.0, 0.0)
    # Fisher's tea: 3 of 4 against 1 of 4
    assert fisher_p(3, 4, 1, 4) == pytest.approx(34 / 70)
    with pytest.raises(ValueError, match="got 1 texts, 2 right answers"):
        failure_report(lambda text: text, ["a"], ["b", "c"])


# several models, and what one costs


def test_cka_is_one_up_to_rotation_and_near_nothing_for_unrelated_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    assert cka(x, 3 * x @ turn + 5) == pytest.approx(1.0, abs=1e-9)
    # far more columns than rows, where the plain estimate is close to 1
    wide = [torch.randn(30, 500, generator=generator, dtype=torch.float64) for _ in range(2)]
    assert abs(cka(*wide)) < 0.15
    assert math.isnan(cka(x, torch.ones(60, 2)))
    with pytest.raises(ValueError, match="got 3 and 3 rows"):
        cka(x[:3], x[:3])


def test_a_model_is_like_itself_and_its_prediction_is_told(llama: LanguageModel) -> None:
    texts = ["abcd", "hello", "x = 1;", "return"]
    twin = LanguageModel(build("llama"), tokenizer())
    other = LanguageModel(build("gpt2"), tokenizer())
    found = compare_models({"a": llama, "twin": twin, "b": other}, texts)
    same = found.pairs[0]
    assert (same.agreement, same.jsd, same.by) == (1.0, 0.0, "tokens")
    assert np.allclose(np.diag(same.cka), 1.0)
    assert same.bits_difference == 0
    first = found.predictions[0]
    expected = float(llama.token_losses(llama.tokenize("abcd").tokens).sum()) / math.log(2) / 4
    assert first.bits_per_character == pytest.approx(expected)
    assert found.pairs[1].jsd is not None
    assert found.pairs[1].jsd > 0
    assert len(found.rows()) == 12
    json.loads(found.to_json())
    with pytest.raises(ValueError, match="got 1 models and 4 texts"):
        compare_models({"a": llama}, texts)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "bert"])
def test_a_profile_tells_every_layer_and_leaves_no_hook(family: str) -> None:
    lm = LanguageModel(build(family), tokenizer())
    ticks = iter(range(10**6))
    found = profile_model(lm, "abcd", repeats=2, clock=lambda: float(next(ticks)))
    layers = [cost for cost in found.modules if cost.module.rpartition(".")[2].isdigit()]
    assert [cost.layer for cost in layers] == list(range(lm.n_layers))
    for cost in found.modules:
        assert cost.calls == 1
        assert 0 < cost.share < 1
    parts = [cost for cost in found.modules if cost.layer == 0 and cost not in layers]
    assert 0 < sum(cost.time_ms for cost in parts) < layers[0].time_ms
    assert found.parameters == sum(each.numel() for each in lm.model.parameters())
    assert layers[0].weight_bytes == layers[0].parameters * (4 if lm.dtype == torch.float32 else 8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
    assert found.peak_bytes is None
    with pytest.raises(ValueError, match="got detail='atoms'"):
        profile_model(lm, detail="atoms")


def test_a_profile_that_fails_leaves_no_hook(llama: LanguageModel) -> None:
    ticks = iter(range(12))
    with pytest.raises(StopIteration):
        profile_model(llama, seq=4, repeats=1, clock=lambda: float(next(ticks)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.model.modules())
