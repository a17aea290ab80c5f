"""Scores are the derivatives and differences that they are said to be, and add up where they should."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import AtSite, Continuation, attribute
from activations.analyses.attribution import METHODS
from activations.analyses.targets import Metric

TEXT = "def f(x):"
FIVE = ["gpt2", "gpt_neox", "llama", "gemma2", "bert"]


@pytest.fixture(scope="module", params=FIVE)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer())


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


def test_gradients_are_finite_differences(lm: LanguageModel) -> None:
    metric = Metric(lm, TEXT, "z", contrast="(")
    rows = lm.capture(metric.tokens, None, ["embed"])["embed"]
    direction = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).to(rows)
    step = 1e-5 if lm.dtype == torch.float64 else 1e-2
    norm = attribute(lm, TEXT, "z", contrast="(", method="gradient_norm")
    product = attribute(lm, TEXT, "z", contrast="(", method="gradient_x_input")
    assert norm.value == pytest.approx(float(metric(metric.tokens).detach()), rel=1e-6)
    for place in (0, 3, len(TEXT) - 1):
        for scale, check in ((rows, product.scores[place]), (direction, None)):
            moved = torch.zeros_like(rows)
            moved[0, place] = scale[0, place]
            with torch.no_grad():
                ends = [float(metric(metric.tokens, rows + sign * step * moved)) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * step)
            if check is not None:
                assert slope == pytest.approx(check, rel=2e-2, abs=2e-3)
            else:
                assert abs(slope) <= norm.scores[place] * float(moved.norm()) * 1.02 + 2e-3


@pytest.mark.parametrize("target", [None, "z", Continuation("xy")])
def test_integrated_gradients_are_complete(lm: LanguageModel, target: object) -> None:
    if isinstance(target, Continuation) and lm.kind == "encoder":
        pytest.skip("a model that reads both sides continues no text")
    found = attribute(lm, TEXT, target, steps=128, baseline="q")  # pyright: ignore
    assert found.baseline_value is not None
    assert found.scores.sum() - (found.value - found.baseline_value) == pytest.approx(found.error)
    assert found.relative_error is not None
    assert found.relative_error < 1e-3
    few = attribute(lm, TEXT, target, steps=2, baseline="q")  # pyright: ignore
    assert abs(few.error or 0) > abs(found.error or 0)


def test_integrated_gradients_of_a_linear_function_are_exact_in_one_step(llama: LanguageModel) -> None:
    weights = torch.randn(32, generator=torch.Generator().manual_seed(2)).double()
    linear = AtSite("embed", lambda rows: (rows @ weights).sum(1))
    found = attribute(llama, TEXT, linear, method="integrated_gradients", steps=1, baseline="mean")
    rows = llama.activations(TEXT, ["embed"])["embed"][0]
    table = llama.model.get_input_embeddings().weight.detach()[: len(llama.tokenizer)]
    np.testing.assert_allclose(found.scores, (rows - table.mean(0)) @ weights, atol=1e-9)
    assert abs(found.error or 1) < 1e-9
    product = attribute(llama, TEXT, linear, method="gradient_x_input")
    np.testing.assert_allclose(product.scores, rows @ weights, atol=1e-12)


def test_leaving_out_and_substituting_are_what_other_texts_give(lm: LanguageModel) -> None:
    metric = Metric(lm, TEXT, "z")
    left = attribute(lm, TEXT, "z", method="leave_one_out")
    by_hand = attribute(lm, TEXT, "z", method="substitution", substitute="q")
    for place in (0, 4, len(TEXT) - 1):
        shorter = TEXT[:place] + TEXT[place + 1 :]
        other = TEXT[:place] + "q" + TEXT[place + 1 :]
        with torch.no_grad():
            without = float(Metric(lm, shorter, "z")(lm.tokenize(shorter).tokens))
            swapped = float(metric(lm.tokenize(other).tokens))
        assert left.scores[place] == pytest.approx(left.value - without, abs=1e-4)
        assert by_hand.scores[place] == pytest.approx(by_hand.value - swapped, abs=1e-4)
    assert by_hand.standard_errors is None


def test_sampled_substitution_repeats_with_its_seed_and_tells_its_error(llama: LanguageModel) -> None:
    first, again, other = (
        attribute(llama, TEXT, "z", method="substitution", samples=5, seed=seed) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.scores, again.scores)
    assert not np.array_equal(first.scores, other.scores)
    assert first.standard_errors is not None
    assert (first.standard_errors > 0).all()


def test_a_planted_keyword_is_found_by_every_method(llama: LanguageModel) -> None:
    """A target that looks at one token alone gives all to this token."""
    place = 4
    keyed = AtSite("embed", lambda rows: rows[:, place].square().sum(-1))
    for method in METHODS:
        if method == "leave_one_out":
            continue  # what follows moves into its place
        found = attribute(llama, TEXT, keyed, method=method)
        assert int(np.abs(found.scores).argmax()) == place
        assert not np.delete(found.scores, place).any()


def test_targets_of_every_kind_are_measured(llama: LanguageModel) -> None:
    logits = llama.logits(llama.tokenize(TEXT).tokens)[0, -1]
    log_p = torch.log_softmax(logits, -1)
    best = int(logits.argmax())
    assert attribute(llama, TEXT, method="gradient_norm").value == pytest.approx(float(logits[best]))
    z, y = (llama.token_strings(range(99)).index(each) for each in "zy")
    difference = attribute(llama, TEXT, "z", contrast="y", method="gradient_norm")
    assert difference.value == pytest.approx(float(logits[z] - logits[y]))
    assert difference.target == "logit of 'z' less that of 'y'"
    chance = attribute(llama, TEXT, "z", measure="log_probability", method="gradient_norm")
    assert chance.value == pytest.approx(float(log_p[z]))
    follows = attribute(llama, TEXT, Continuation("zy"), method="gradient_norm")
    whole = torch.log_softmax(llama.logits(llama.tokenize(TEXT + "zy").tokens)[0], -1)
    assert follows.value == pytest.approx(float(whole[-3, z] + whole[-2, y]))
    assert len(follows.scores) == len(TEXT)
    neuron = AtSite("mlp_act.1", lambda rows: rows[:, -1, 7], name="neuron 7")
    seen = attribute(llama, TEXT, neuron, method="integrated_gradients", baseline="q", steps=64)
    assert seen.value == pytest.approx(float(llama.activations(TEXT, ["mlp_act.1"])["mlp_act.1"][0, -1, 7]))
    assert seen.relative_error is not None
    assert seen.relative_error < 1e-3
    own = attribute(llama, TEXT, lambda logits: logits[:, -1].logsumexp(-1), method="gradient_norm")
    assert own.value == pytest.approx(float(logits.logsumexp(-1)))


def test_a_class_of_a_classifier_is_a_target() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    shape = BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
        id2label={0: "good", 1: "bad", 2: "odd"},
    )
    lm = LanguageModel(BertForSequenceClassification(shape).eval(), tokenizer())
    with torch.no_grad():
        logits = lm.forward(lm.tokenize(TEXT).tokens).logits[0]
    found = attribute(lm, TEXT, "odd", contrast="good", method="integrated_gradients", baseline="q")
    assert found.value == pytest.approx(float(logits[2] - logits[0]), abs=1e-6)
    assert found.target == "logit of 'odd' less that of 'good'"
    with pytest.raises(ValueError, match="class 'ugly' does not exist, expected one of good, bad, odd"):
        attribute(lm, TEXT, "ugly")


def test_a_function_of_gradients_is_a_method(llama: LanguageModel) -> None:
    def largest(rows: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return (rows * gradient).abs().amax(1)

    found = attribute(llama, TEXT, "z", method=largest)
    rows = llama.activations(TEXT, ["embed"])["embed"][0]
    by_hand = attribute(llama, TEXT, "z", method=lambda rows, gradient: (rows * gradient).sum(1))
    assert found.method == "largest"
    assert (found.scores > 0).all()
    assert (found.scores * rows.shape[1] >= np.abs(by_hand.scores)).all()
    product = attribute(llama, TEXT, "z", method="gradient_x_input")
    np.testing.assert_allclose(by_hand.scores, product.scores, atol=1e-12)
    with pytest.raises(ValueError, match=r"the method's function returned \(9, 32\), expected 9 scores: return one"):
        attribute(llama, TEXT, "z", method=lambda rows, gradient: rows * gradient)


def test_special_tokens_stand_still(llama: LanguageModel) -> None:
    tokens = torch.cat([torch.tensor([[1]]), llama.tokenize(TEXT).tokens], dim=1)
    for method in ("integrated_gradients", "leave_one_out", "substitution", "shapley"):
        found = attribute(llama, tokens, "z", method=method)
        assert found.tokens[0] == "<s>"
        assert found.scores[0] == 0
        assert found.scores[1:].all()


def test_nothing_survives_an_exception(llama: LanguageModel) -> None:
    before = llama.logits(llama.tokenize(TEXT).tokens)

    def fails(_rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    for target in (fails, AtSite("resid_post.1", fails)):
        with pytest.raises(RuntimeError, match="on purpose"):
            attribute(llama, TEXT, target)
    assert len(llama.taps) == 0
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in llama.model.parameters())
    assert torch.equal(llama.logits(llama.tokenize(TEXT).tokens), before)


def test_what_cannot_be_attributed_is_said_in_one_line(llama: LanguageModel) -> None:
    with pytest.raises(ValueError, match="method 'magic' is unknown, expected one of gradient_norm"):
        attribute(llama, TEXT, method="magic")
    with pytest.raises(ValueError, match="gradient_norm has no setting 'steps', expected none"):
        attribute(llama, TEXT, method="gradient_norm", steps=3)
    with pytest.raises(ValueError, match="got steps=0, expected at least 1"):
        attribute(llama, TEXT, steps=0)
    with pytest.raises(ValueError, match="got samples=0, expected at least 1"):
        attribute(llama, TEXT, method="substitution", samples=0)
    with pytest.raises(
        ValueError, match="baseline 'abc' has 3 tokens, expected pad, mean, zero, one token, or a text of 9"
    ):
        attribute(llama, TEXT, baseline="abc")
    with pytest.raises(ValueError, match=r"returned \(1, 9\), expected 1 finite numbers: return one a row"):
        attribute(llama, TEXT, lambda logits: logits[..., 0], method="gradient_norm")
    with pytest.raises(ValueError, match="a contrast was given beside this target"):
        attribute(llama, TEXT, Continuation("a"), contrast="z")
    with pytest.raises(ValueError, match="got the continuation '' for"):
        attribute(llama, TEXT, Continuation(""))
    with pytest.raises(ValueError, match="position 9 is outside of a text of 9 tokens"):
        attribute(llama, TEXT, position=9)
    with pytest.raises(ValueError, match="the text has one token, expected at least two"):
        attribute(llama, "a", method="leave_one_out")
    with pytest.raises(ValueError, match="the text is empty"):
        attribute(llama, "\n")
    with pytest.raises(ValueError, match="unknown site 'mlp.9'"):
        attribute(llama, TEXT, AtSite("mlp.9", lambda rows: rows[:, 0, 0]))
    with pytest.raises(ValueError, match="has two stacks of layers, expected one"):
        attribute(LanguageModel(build("t5"), tokenizer()), TEXT)
    found = attribute(llama, "<b>\"'", method="leave_one_out")
    assert json.loads(found.to_json())["tokens"] == ["<", "b", ">", '"', "'"]
    assert sum(row["share"] for row in found.rows()) == pytest.approx(1)
