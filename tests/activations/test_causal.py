"""Causal tools: what restores everything restores it exactly, and integrated gradients equal exact patching."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import (
    ablate_components,
    attribute_patches,
    compare_ablations,
    patch_activations,
    patching_agreement,
    trace_fact,
)
from activations.analyses.patching import SITES
from activations.analyses.targets import Metric
from activations.analyses.tracing import subject_positions
from activations.analyses.two_texts import TwoTexts

CLEAN, CORRUPT = "def f(x):", "def g(y):"
FIVE = ["gpt2", "gpt_neox", "llama", "gemma2", "bert"]
EXACT = {"gemma2": 2e-4}
"""Float32: what rounding leaves of a share."""


@pytest.fixture(scope="module", params=FIVE)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer(), name=request.param)


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


def _near(lm: LanguageModel) -> float:
    return EXACT.get(lm.name, 1e-8)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_every_place_can_be_patched_and_what_lies_before_the_difference_does_nothing(
    lm: LanguageModel, direction: str
) -> None:
    sites = [site for site in SITES if site != "resid_mid" or lm.has_site("resid_mid.0")]
    found = patch_activations(lm, CLEAN, CORRUPT, "z", contrast="(", sites=sites, neurons=3, direction=direction)
    assert found.head_positions is not None
    assert set(found.attention) == {"query", "key", "value", "pattern"}
    assert found.attention["key"].shape[1] == (2 if lm.name in ("llama", "gemma2") else 4)
    assert len(found.neurons) == 3
    if lm.kind == "decoder":
        for values in found.effects.values():
            np.testing.assert_allclose(values[:, :4], 0, atol=_near(lm))
        np.testing.assert_allclose(found.head_positions[:, :, :4], 0, atol=_near(lm))
        # behind the last layer only the position that is read matters, and it holds everything
        np.testing.assert_allclose(found.effects["resid_post"][-1], [0] * 8 + [1], atol=_near(lm))
    texts = TwoTexts(lm, CLEAN, CORRUPT, "z", contrast="(", direction=direction)
    best = found.neurons[0]
    site = f"mlp_act.{best.layer}"
    kept = lm.capture(texts.source, None, [site])[site]

    def one(x: torch.Tensor) -> torch.Tensor:
        x[:, :, best.neuron] = kept[:, :, best.neuron]
        return x

    assert texts.edited(site, one, 1)[0] == pytest.approx(best.effect, abs=_near(lm))
    assert len(lm.taps) == 0
    json.loads(found.to_json())


def test_a_pattern_taken_from_the_same_text_changes_nothing(lm: LanguageModel) -> None:
    """Patching into itself is the identity: patterns, queries, keys and values alike."""
    from activations.analyses.patching import _taken, attention_of
    from activations.attention import attention_as

    texts = TwoTexts(lm, CLEAN, CORRUPT, "z", contrast="(")
    own = attention_of(texts, texts.base)
    for kind in ("query", "key", "value", "pattern"):
        with attention_as(lm, _taken(kind, 1, own[1][kind], [0, 1])):
            # the reference attention's softmax is in float32 in several families
            np.testing.assert_allclose(texts.shares(2), 0, atol=max(1e-5, _near(lm)))


def test_all_parts_of_attention_together_are_the_whole_of_it(llama: LanguageModel) -> None:
    """A head's values and pattern taken together make what the head computes."""
    from activations.analyses.patching import attention_of
    from activations.attention import AttentionCall, attention_as

    texts = TwoTexts(llama, CLEAN, CORRUPT, "z", contrast="(")
    source = attention_of(texts, texts.source)

    def both(call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
        if call.layer != 1:
            return call.compute(call.query, call.key, call.value)
        kept = source[1]
        return call.compute(kept["query"], kept["key"], kept["value"])

    with attention_as(llama, both):
        share = texts.shares(1)[0]
    kept = llama.capture(texts.source, None, ["head_out.1"])["head_out.1"]
    assert share == pytest.approx(texts.edited("head_out.1", lambda _x: kept.clone(), 1)[0], abs=1e-5)


def test_integrated_gradients_of_a_site_sum_to_its_exact_effect(lm: LanguageModel) -> None:
    found = attribute_patches(lm, CLEAN, CORRUPT, "z", contrast="(", steps=16)
    for kind, errors in found.errors.items():
        np.testing.assert_allclose(errors, 0, atol=max(1e-5, _near(lm)), err_msg=kind)
    np.testing.assert_allclose(found.heads, found.head_positions.sum(-1), atol=1e-12)
    assert len(lm.taps) == 0
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_the_tangent_is_the_slope_of_exact_patching(lm: LanguageModel) -> None:
    found = attribute_patches(lm, CLEAN, CORRUPT, "z", contrast="(")
    texts = TwoTexts(lm, CLEAN, CORRUPT, "z", contrast="(")
    little = 1e-3 if lm.name != "gemma2" else 1e-2
    for site, position, estimate in [
        ("resid_pre.1", 6, found.effects["resid_pre"][1, 6]),
        ("mlp_out.1", 4, found.effects["mlp_out"][1, 4]),
    ]:
        kept = lm.capture(texts.source, None, [site])[site]

        def slightly(x: torch.Tensor, kept: torch.Tensor = kept, position: int = position) -> torch.Tensor:
            x[:, position] += little * (kept[:, position] - x[:, position])
            return x

        assert texts.edited(site, slightly, 1)[0] / little == pytest.approx(estimate, rel=0.05, abs=0.02)


def test_where_the_rest_is_linear_the_tangent_is_exact() -> None:
    """What the last layer writes reaches a logit through the final norm alone; without it, linearly."""
    lm = LanguageModel(build("llama"), tokenizer())
    lm.model.model.norm = torch.nn.Identity()
    found = attribute_patches(lm, CLEAN, CORRUPT, "z", contrast="(")
    exact = patch_activations(lm, CLEAN, CORRUPT, "z", contrast="(", sites=["attn_out", "mlp_out"])
    np.testing.assert_allclose(found.effects["mlp_out"][-1], exact.effects["mlp_out"][-1], atol=1e-9)
    assert found.errors["mlp_out"][-1] == pytest.approx(0, abs=1e-9)
    agreement = patching_agreement(exact, found)
    assert agreement.kinds == ("attn_out", "mlp_out")
    assert (agreement.pearson <= 1 + 1e-12).all()
    json.loads(agreement.to_json())
    with pytest.raises(ValueError, match="different texts, targets or directions"):
        patching_agreement(exact, attribute_patches(lm, CLEAN, CORRUPT, "q", contrast="("))


def test_ablation_by_another_text_is_what_that_text_computes(lm: LanguageModel) -> None:
    references = ["class Head:", "x = [1, 2]"]
    found = ablate_components(lm, CLEAN, "z", how="resample", references=references)
    assert found.references == 2
    assert found.standard_errors is not None
    metric = Metric(lm, CLEAN, "z")
    left = []
    for text in references:
        kept = lm.capture(lm.tokenize(text).tokens[:, :9], None, ["mlp_out.1"])["mlp_out.1"]
        with lm.intervene({"mlp_out.1": lambda _x, kept=kept: kept.clone()}), torch.no_grad():
            left.append(found.value - float(metric(metric.tokens)))
    assert found.mlp[1] == pytest.approx(np.mean(left), abs=1e-4)
    assert found.standard_errors["mlp"][1] == pytest.approx(np.std(left, ddof=1) / np.sqrt(2), abs=1e-4)
    own = ablate_components(lm, CLEAN, "z", how="resample", references=[CLEAN])
    for values in own.by_kind().values():
        np.testing.assert_allclose(values, 0, atol=1e-5)


def test_all_heads_without_values_leave_the_projections_bias(lm: LanguageModel) -> None:
    """The sum over heads is all that attention writes but for its bias."""
    from activations.sites import submodule

    stack = lm.site_map.stacks[-1]
    project = submodule(stack.layers[1], stack.architecture.heads)
    tokens = lm.tokenize(CLEAN).tokens
    with lm.intervene({"head_out.1": torch.zeros_like}):
        path = next(name for name, each in lm.model.named_modules() if each is project)
        written = lm.capture(tokens, None, [path])[path]
    bias = getattr(project, "bias", None)
    expected = torch.zeros_like(written) if bias is None else bias.detach().expand_as(written)
    torch.testing.assert_close(written, expected.to(written))


def test_strategies_are_compared_component_by_component(llama: LanguageModel) -> None:
    found = compare_ablations(llama, CLEAN, "z", references=["class Head:"])
    assert found.strategies == ("mean", "zero", "mean_reference", "resample")
    assert found.effects.shape == (4, 3 * 4 + 3 + 3 + 9)
    np.testing.assert_allclose(np.diag(found.correlations), 1)
    zero = ablate_components(llama, CLEAN, "z", how="zero")
    assert found.effects[1, found.components.index("head 1.2")] == pytest.approx(zero.heads[1, 2])
    assert compare_ablations(llama, CLEAN, "z").strategies == ("mean", "zero")
    json.loads(found.to_json())
    with pytest.raises(ValueError, match="takes activations of other texts and got none"):
        ablate_components(llama, CLEAN, "z", how="resample")
    with pytest.raises(ValueError, match="none of the 1 reference texts has 9 tokens"):
        ablate_components(llama, CLEAN, "z", how="resample", references=["ab"])


def test_without_noise_nothing_is_lost_and_all_states_restore_all(lm: LanguageModel) -> None:
    still = trace_fact(lm, "the cat sat on", "cat", "z", noise=0, samples=2)
    assert still.total_effect == pytest.approx(0, abs=1e-6)
    for values in still.effects.values():
        np.testing.assert_allclose(values, 0, atol=1e-6)
    found = trace_fact(lm, "the cat sat on", "cat", "z", samples=3)
    assert found.subject_positions == (4, 5, 6)
    assert abs(found.total_effect) > 1e-6
    np.testing.assert_allclose(found.whole_layer["resid_post"], found.total_effect, atol=1e-6)
    if lm.kind == "decoder":
        np.testing.assert_allclose(found.effects["resid_post"][:, :4], 0, atol=1e-6)
        assert found.effects["resid_post"][-1, -1] == pytest.approx(found.total_effect, abs=1e-6)
    assert len(lm.taps) == 0
    json.loads(found.to_json())


def test_a_window_restores_the_layers_around_it(llama: LanguageModel) -> None:
    found = trace_fact(llama, "the cat sat on", "cat", "z", samples=2, window=3)
    assert found.windows == {"resid_post": 1, "mlp_out": 3, "attn_out": 3}
    metric = Metric(llama, "the cat sat on", "z", measure="log_probability")
    tokens = metric.tokens
    kept = llama.capture(tokens, None, [f"mlp_out.{layer}" for layer in range(3)])
    drawn = torch.randn((2, 3, 32), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def shake(x: torch.Tensor) -> torch.Tensor:
        x[:, [4, 5, 6]] += drawn * found.noise_std
        return x

    def restore(name: str):
        def edit(x: torch.Tensor) -> torch.Tensor:
            x[:, 5] = kept[name][0, 5]
            return x

        return edit

    with torch.no_grad(), llama.intervene({"embed": shake}):
        base = metric(tokens.expand(2, -1)).exp().mean()
        with llama.intervene({name: restore(name) for name in kept}):
            back = metric(tokens.expand(2, -1)).exp().mean()
    assert found.noised_probability == pytest.approx(float(base))
    assert found.effects["mlp_out"][1, 5] == pytest.approx(float(back - base), abs=1e-9)


def test_the_subject_is_found_by_its_characters(embedded_lm: LanguageModel) -> None:
    text = "The capital of France is"
    places = subject_positions(embedded_lm, text, "France")
    shown = embedded_lm.token_strings(embedded_lm.tokenize(text).tokens[0])
    assert "".join(shown[place] for place in places).strip() == "France"
    with pytest.raises(ValueError, match="the subject 'Spain' is not in the text"):
        subject_positions(embedded_lm, text, "Spain")
    with pytest.raises(ValueError, match="the subject ' ' is not in the text"):
        subject_positions(embedded_lm, text, " ")


def test_no_hook_survives_an_exception(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that fails in the middle leaves the model as it was."""
    before = lm.logits(lm.tokenize(CLEAN).tokens)
    calls = 0

    def breaking(logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("stop")
        return logits[:, -1, 5]

    for run in (
        lambda: patch_activations(lm, CLEAN, CORRUPT, breaking, sites=["pattern"]),
        lambda: patch_activations(lm, CLEAN, CORRUPT, breaking, neurons=2),
        lambda: attribute_patches(lm, CLEAN, CORRUPT, breaking, steps=4),
        lambda: ablate_components(lm, CLEAN, breaking, how="resample", references=[CORRUPT]),
    ):
        calls = 0
        with pytest.raises(RuntimeError, match="stop"):
            run()
        assert len(lm.taps) == 0
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    assert torch.equal(lm.logits(lm.tokenize(CLEAN).tokens), before)


def test_what_cannot_be_patched_is_said_in_one_line(llama: LanguageModel) -> None:
    with pytest.raises(ValueError, match="got site 'heads', expected some of embed"):
        patch_activations(llama, CLEAN, CORRUPT, sites=["heads"])
    neox = LanguageModel(build("gpt_neox"), tokenizer())
    with pytest.raises(ValueError, match=r"site 'resid_mid\.0' does not exist in gpt_neox models"):
        patch_activations(neox, CLEAN, CORRUPT, sites=["resid_mid"])
    with pytest.raises(ValueError, match="got steps=-1, expected 0"):
        attribute_patches(llama, CLEAN, CORRUPT, steps=-1)
    with pytest.raises(ValueError, match="samples=0"):
        trace_fact(llama, "the cat", "cat", samples=0)
