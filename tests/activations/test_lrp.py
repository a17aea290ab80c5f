"""Relevance is conserved where it should be, follows its rules, and leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import AtSite, Continuation, attribute
from activations.analyses.lrp import relevance_rules

TEXT = "def f(x):"
FIVE = ["gpt2", "gpt_neox", "llama", "gemma2", "bert"]
NAMES = ("attn_lrp", "cp_lrp")


def without_biases(name: str) -> LanguageModel:
    """The family's model with nothing but the token embeddings to start from."""
    model = build(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias") or "wpe" in path or "position_embeddings" in path or "token_type" in path:
                parameter.zero_()
    return LanguageModel(model, tokenizer())


@pytest.fixture(scope="module", params=FIVE)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer())


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


@pytest.mark.parametrize("name", [*FIVE, "qwen3", "phi3", "olmo2", "gemma3_text", "gptj"])
def test_cp_relevance_sums_to_the_logit_where_there_are_no_biases(name: str) -> None:
    # norms and softmaxes of these families compute in float32, which the sum of a few hundred numbers shows
    for contrast in (None, "("):
        found = attribute(without_biases(name), TEXT, "z", contrast=contrast, method="cp_lrp")
        assert found.scores.sum() == pytest.approx(found.value, abs=1e-6)
        assert found.error == pytest.approx(0, abs=1e-6)


def test_the_rules_change_nothing_forward(lm: LanguageModel) -> None:
    tokens = lm.tokenize(TEXT).tokens
    own = lm.logits(tokens)
    for is_cp in (False, True):
        with relevance_rules(lm, is_cp):
            ruled = lm.logits(tokens)
        assert torch.allclose(ruled, own, atol=2e-6)
    assert torch.equal(lm.logits(tokens), own)


def test_gates_share_with_neurons_and_activations_keep_what_they_pass() -> None:
    """Without attention, AttnLRP meets only norms, activations and gates: it is conserved too."""
    lm = without_biases("llama")
    with torch.no_grad():
        for layer in lm.site_map.stacks[-1].layers:
            layer.self_attn.o_proj.weight.zero_()  # pyright: ignore
    found = attribute(lm, TEXT, "z", method="attn_lrp")
    assert found.scores.sum() == pytest.approx(found.value, abs=1e-6)
    plain = attribute(lm, TEXT, "z", method="gradient_x_input")
    assert abs(plain.scores.sum() - plain.value) > 1e-3


def test_half_of_what_attention_moves_goes_to_the_values() -> None:
    """With one layer whose pattern cannot change, other tokens act through values alone: AttnLRP gives them half."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=16,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(shape).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    lm = LanguageModel(model, tokenizer())
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.zero_()  # pyright: ignore
        model.model.layers[0].mlp.down_proj.weight.zero_()  # pyright: ignore
    half, whole = (attribute(lm, TEXT, "z", method=name).scores[:-1] for name in NAMES)
    assert np.abs(whole).min() > 1e-5
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


def test_neurons_are_targets_and_sums_of_logs_have_no_error(llama: LanguageModel) -> None:
    neuron = AtSite("mlp_act.1", lambda rows: rows[:, -1, 7], name="neuron 7")
    own = float(llama.activations(TEXT, ["mlp_act.1"])["mlp_act.1"][0, -1, 7])
    assert attribute(llama, TEXT, neuron, method="attn_lrp").value == pytest.approx(own)
    found = attribute(llama, TEXT, neuron, method="cp_lrp")
    assert found.scores.sum() == pytest.approx(own, abs=1e-6)
    for target, measure in ((Continuation("xy"), "logit"), ("z", "log_probability")):
        found = attribute(llama, TEXT, target, method="cp_lrp", measure=measure)  # pyright: ignore
        assert found.error is None
        assert np.abs(found.scores).max() > 0


def test_a_class_of_a_classifier_is_explained() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    shape = BertConfig(
        vocab_size=99,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
    )
    model = BertForSequenceClassification(shape).double().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias") or "position_embeddings" in path or "token_type" in path:
                parameter.zero_()
    found = attribute(LanguageModel(model, tokenizer()), TEXT, 2, method="cp_lrp")
    assert found.scores.sum() == pytest.approx(found.value, abs=1e-9)


def test_no_rule_survives(lm: LanguageModel) -> None:
    before = {name: dict(module._forward_hooks) for name, module in lm.model.named_modules()}
    own = attribute(lm, TEXT, "z", method="gradient_x_input").scores

    def fails(_rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    for name in NAMES:
        with pytest.raises(RuntimeError, match="on purpose"):
            attribute(lm, TEXT, fails, method=name)
    assert {name: dict(module._forward_hooks) for name, module in lm.model.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in lm.model.modules())
    assert np.array_equal(attribute(lm, TEXT, "z", method="gradient_x_input").scores, own)
    assert len(lm.taps) == 0


def test_models_that_the_rules_do_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="has experts in place of one MLP a layer, expected a dense model"):
        attribute(LanguageModel(build("mixtral"), tokenizer()), TEXT, method="cp_lrp")

    class OddNorm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.abs()

    model = build("llama")
    lm = LanguageModel(model, tokenizer())
    model.model.norm = OddNorm()
    with pytest.raises(ValueError, match="OddNorm is off a norm with one scale a row by .*, expected LayerNorm or RMS"):
        attribute(lm, TEXT, "z", method="attn_lrp")
    assert not any(module._forward_hooks for module in model.modules())
