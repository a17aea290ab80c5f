"""Patterns are the model's own, whatever attention it runs; what is made of them keeps its identities."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from families import FAMILIES, build, tokenizer

from activations import LanguageModel
from activations.analyses import attention_patterns, compare_attention, head_roles
from activations.attention import AttentionCall, Handler, attention_as, attention_modules

TEXT = "def f(x): return x"


def model_of(name: str) -> LanguageModel:
    return LanguageModel(build(name), tokenizer())


@pytest.mark.parametrize("name", FAMILIES)
def test_patterns_are_those_that_the_reference_attention_returns(name: str) -> None:
    lm = model_of(name)
    tokens = lm.tokenize(TEXT).tokens
    before = lm.logits(tokens)
    found = attention_patterns(lm, TEXT)
    assert found.patterns.shape == (lm.n_layers, 4, len(TEXT), len(TEXT))
    np.testing.assert_allclose(found.patterns.sum(-1), 1, atol=1e-5)
    if lm.kind != "encoder":
        assert not np.triu(found.patterns, 1).any()
    # another road to the same numbers: what eager attention modules return beside their output
    for config in {id(m.config): m.config for m in lm.model.modules() if hasattr(m, "config")}.values():
        config._attn_implementation_internal = "eager"
    seen: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda _m, _a, out: seen.append(out[-1])) for module in attention_modules(lm)
    ]
    lm.logits(tokens)
    for handle in handles:
        handle.remove()
    expected = torch.stack([pattern[0] for pattern in seen]).float().numpy()
    np.testing.assert_allclose(found.patterns, expected, atol=1e-6)
    # the reference attention's softmax is in float32
    assert torch.allclose(lm.logits(tokens), before, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_written_norms_and_patterns_make_what_heads_write(name: str) -> None:
    lm = model_of(name)
    tokens = lm.tokenize(TEXT).tokens
    kept: dict[int, torch.Tensor] = {}

    def keep(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
        out, pattern = call.compute(call.query, call.key, call.value)
        kept[call.layer] = (pattern @ call.values_by_head.to(pattern.dtype)).transpose(1, 2)
        return out, pattern

    stack = FAMILIES[name].stack and "decoder."
    with attention_as(lm, keep):
        heads = lm.capture(tokens, None, [f"{stack}head_out.{layer}" for layer in range(lm.n_layers)])
    for layer in range(lm.n_layers):
        assert torch.allclose(kept[layer], heads[f"{stack}head_out.{layer}"].to(kept[layer].dtype), atol=1e-5)
    found = attention_patterns(lm, TEXT)
    np.testing.assert_allclose(found.value_weighted().sum(-1), 1, atol=1e-5)
    if name in {"gpt2", "llama"}:
        module = lm.site_map.stacks[-1].layers[1].get_submodule(FAMILIES[name].heads)
        weight = module.weight if name == "gpt2" else module.weight.T  # Conv1D keeps [in, out]
        with attention_as(
            lm,
            lambda call: (
                values.setdefault(call.layer, call.values_by_head[0]),
                call.compute(call.query, call.key, call.value),
            )[1],
        ):
            values: dict[int, torch.Tensor] = {}
            lm.logits(tokens)
        written = torch.einsum("htw,hwd->htd", values[1], weight.view(4, 8, 32))
        np.testing.assert_allclose(found.written_norms[1], written.norm(dim=-1).detach(), rtol=1e-5)


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return model_of("llama")


@pytest.mark.parametrize("name", ["llama", "gptj", "gpt2", "bert"])
def test_nothing_survives_an_exception(name: str) -> None:
    lm = model_of(name)
    tokens = lm.tokenize(TEXT).tokens
    before, config = lm.logits(tokens), lm.model.config._attn_implementation

    def fails(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), attention_as(lm, fails):
        lm.logits(tokens)
    assert lm.model.config._attn_implementation == config
    assert torch.equal(lm.logits(tokens), before)
    assert not any("_attn" in module.__dict__ for module in attention_modules(lm))
    with attention_as(lm, fails), pytest.raises(ValueError, match="expected one block at a time"):
        attention_patterns(lm, TEXT)


def test_a_handler_rewrites_what_the_rest_of_the_model_reads(llama: LanguageModel) -> None:
    tokens = llama.tokenize(TEXT).tokens

    def blind(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
        out, pattern = call.compute(call.query, call.key, call.value * (call.layer != 1))
        return out, pattern

    with attention_as(llama, blind):
        values = llama.capture(tokens, None, ["attn_out.0", "attn_out.1"])
    assert not values["attn_out.1"].any()
    assert values["attn_out.0"].any()


def test_rollout_rows_sum_to_one_and_flow_carries_at_least_as_much(llama: LanguageModel) -> None:
    found = attention_patterns(llama, TEXT[:8])
    rollout = found.rollout()
    np.testing.assert_allclose(rollout.sum(-1), 1, atol=1e-6)
    mixed = 0.5 * found.patterns.astype(float).mean(1) + 0.5 * np.eye(8)
    np.testing.assert_allclose(rollout[-1], mixed[2] @ mixed[1] @ mixed[0])
    raw = found.raw_flow(5, 0.5, False)
    assert (raw >= rollout[-1, 5] - 1e-9).all()
    assert abs(found.flow(5).sum() - 1) < 1e-12
    assert not found.flow(5)[6:].any()
    one = attention_patterns(llama, TEXT[:8], layers=[0])
    np.testing.assert_allclose(one.raw_flow(5, 0.5, False), mixed[0][5], atol=1e-9)


def test_two_texts_are_compared_at_the_tokens_they_share(llama: LanguageModel) -> None:
    first = attention_patterns(llama, "abcdef")
    same = compare_attention(first, first)
    assert not same.distances.any()
    assert same.pairs == tuple((i, i) for i in range(6))
    other = compare_attention(first, attention_patterns(llama, "abXcdef"))
    assert other.pairs == ((0, 0), (1, 1), (2, 3), (3, 4), (4, 5), (5, 6))
    assert (other.distances > 0).all()
    assert (other.distances <= 1).all()
    assert other.rows()[0]["distance"] == other.distances.max()
    with pytest.raises(ValueError, match="share no token"):
        compare_attention(first, attention_patterns(llama, "xyz"))
    with pytest.raises(ValueError, match="expected the same of one model"):
        compare_attention(first, attention_patterns(llama, "abc", layers=[0]))


def test_planted_heads_get_the_role_that_they_play(llama: LanguageModel) -> None:
    n = 12

    def planted(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
        out, pattern = call.compute(call.query, call.key, call.value)
        total = pattern.shape[-1]
        pattern = torch.tril(torch.ones_like(pattern)) / torch.arange(1, total + 1)[:, None]
        if call.layer == 1:
            for head, back in enumerate((1, n, n - 1)):
                eye = torch.diag_embed(torch.ones(total - back), -back).to(pattern)
                pattern[:, head, back:] = eye[back:]
        return out, pattern

    import activations.analyses.roles as roles

    real = roles.attention_as

    def wrapped(lm: LanguageModel, score: Handler) -> AbstractContextManager[None]:
        def handler(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
            _, pattern = planted(call)
            replaced = AttentionCall(
                call.layer, call.query, call.key, call.value, lambda *a: (call.compute(*a)[0], pattern)
            )
            return score(replaced)

        return real(lm, handler)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roles, "attention_as", wrapped)
        found = head_roles(llama, seq_tokens=n, batch_rows=3)
    assert [row["role"] for row in found.rows() if row["layer"] == 1] == [
        "previous_token",
        "duplicate",
        "induction",
        None,
    ]
    assert found.scores["induction"][1, 2] == pytest.approx(1)
    for role in ("previous_token", "duplicate", "induction", "first", "itself"):
        assert found.scores[role][0, 0] == pytest.approx(found.chance[role])
    assert found.scores["positional"] == pytest.approx(np.ones((3, 4)))
    json.loads(found.to_json())


def test_what_cannot_be_shown_is_said_in_one_line(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"layer 3 does not exist, expected 0 to 2"):
        attention_patterns(llama, TEXT, layers=[3])
    with pytest.raises(ValueError, match=r"position 9 is outside of a text of 3 tokens"):
        attention_patterns(llama, "abc").flow(9)
    with pytest.raises(ValueError, match=r"expected all from the first"):
        attention_patterns(llama, "abc", layers=[1]).flow()
    with pytest.raises(ValueError, match=r"got residual=1, expected 0 up to 1"):
        attention_patterns(llama, "abc").rollout(1)
    import activations.analyses.attention as module

    monkeypatch.setattr(module, "FLOW_EDGES", 10)
    with pytest.raises(ValueError, match=r"has 27 edges, expected at most 10: take a shorter text, or rollout"):
        attention_patterns(llama, "abc").flow()
    monkeypatch.setattr(module, "MAX_VALUES", 100)
    with pytest.raises(ValueError, match=r"hold 108 numbers, expected at most 100: name fewer layers"):
        attention_patterns(llama, "abc")
    with pytest.raises(ValueError, match=r"got seq_tokens=1 and batch_rows=8"):
        head_roles(llama, seq_tokens=1)
    with pytest.raises(ValueError, match=r"has two stacks of layers, expected one"):
        head_roles(model_of("t5"))
    json.loads(attention_patterns(llama, "a").to_json())
