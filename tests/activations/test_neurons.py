"""Neurons' logits add up to the MLP's direct effect, and attributions to what the layer's neurons make."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import Continuation, direct_logit_attribution, neuron_attribution, neuron_logits
from activations.analyses.neurons import neuron_outputs
from activations.analyses.targets import Metric

TEXT = "def f(x): return x"
FAMILIES = ("gpt2", "gpt_neox", "llama", "gemma2", "bert")


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_neurons_logits_add_up_to_the_mlps_direct_effect(family: str) -> None:
    lm = LanguageModel(build(family), tokenizer())
    tokens = lm.tokenize(TEXT).tokens
    direct = direct_logit_attribution(lm, TEXT, target="z")
    target = direct.target_id
    scale = lm.final_norm_scale(lm.capture(tokens, None, [lm.final_site])[lm.final_site][0, -1:])
    for layer in range(lm.n_layers):
        found = neuron_logits(lm, layer, top=lm.vocab_size)
        place = [row.index(lm.token_strings([target])[0]) for row in found.top_tokens]
        effects = torch.tensor([row[at] for row, at in zip(found.top_effects, place, strict=True)]).double()
        held = lm.capture(tokens, None, [f"mlp_act.{layer}"])[f"mlp_act.{layer}"][0, -1].double()
        bias = getattr(lm.site_map.binding(f"mlp_act.{layer}").module, "bias", None)
        constant = 0.0 if bias is None else float(lm.logit_directions()[target] @ bias.detach().float())
        total = (float(effects @ held) + constant) / float(scale)
        assert total == pytest.approx(float(direct.mlp[layer]), rel=1e-4, abs=1e-5)


def test_what_neurons_write_is_what_the_mlp_writes(lm: LanguageModel) -> None:
    if lm.site_map.family == "gemma2":
        pytest.skip("a norm stands behind its MLP: rows are known up to that norm's scale")
    tokens = lm.tokenize(TEXT).tokens
    at = lm.capture(tokens, None, ["mlp_act.1", "mlp_out.1"])
    bias = getattr(lm.site_map.binding("mlp_act.1").module, "bias", None)
    written = at["mlp_act.1"].float() @ neuron_outputs(lm, 1) + (0 if bias is None else bias.detach().float())
    torch.testing.assert_close(written, at["mlp_out.1"].float(), rtol=1e-4, atol=1e-5)


def test_rows_behind_a_norm_point_where_the_mlp_writes() -> None:
    lm = LanguageModel(build("gemma2", torch.float32), tokenizer())
    tokens = lm.tokenize(TEXT).tokens
    at = lm.capture(tokens, None, ["mlp_act.1", "mlp_out.1"])
    written = at["mlp_act.1"][0, -1] @ neuron_outputs(lm, 1)
    assert float(torch.cosine_similarity(written, at["mlp_out.1"][0, -1], dim=0)) == pytest.approx(1.0, abs=1e-5)


def test_integrated_gradients_of_a_layer_sum_to_what_its_neurons_make(lm: LanguageModel) -> None:
    target = dict(target="z", contrast="q")
    found = neuron_attribution(lm, TEXT, **target, steps=32)
    metric = Metric(lm, TEXT, "z", contrast="q")
    for layer in found.layers:
        with lm.intervene({f"mlp_act.{layer}": lambda x: 0 * x}), torch.no_grad():
            without = float(metric(metric.tokens))
        rounding = 1e-9 if lm.dtype == torch.float64 else 1e-4
        assert found.errors is not None
        assert found.effects[layer].sum() + found.errors[layer] == pytest.approx(found.value - without, abs=rounding)
        assert abs(found.errors[layer]) < 1e-3 * max(0.1, abs(found.value - without))


def test_gradients_are_finite_differences_and_ablation_is_exact(lm: LanguageModel) -> None:
    found = neuron_attribution(lm, TEXT, "z", method="gradient_x_activation", top=3)
    metric = Metric(lm, TEXT, "z")
    for effect in found.top:
        site = f"mlp_act.{effect.layer}"

        def scaled(x: torch.Tensor, by: float, neuron: int = effect.neuron) -> torch.Tensor:
            x[..., neuron] *= by
            return x

        values = []
        for by in (0.0, 1 - 1e-2, 1 + 1e-2):
            with lm.intervene({site: lambda x, by=by: scaled(x, by)}), torch.no_grad():
                values.append(float(metric(metric.tokens)))
        assert effect.ablated == pytest.approx(found.value - values[0], abs=1e-5)
        assert effect.effect == pytest.approx((values[2] - values[1]) / 2e-2, rel=2e-2, abs=1e-4)
        held = lm.capture(metric.tokens, None, [site])[site][0, effect.position, effect.neuron]
        assert effect.activation == pytest.approx(float(held))
    assert len(lm.taps) == 0


def test_the_first_neurons_are_the_largest_and_leave_as_json() -> None:
    lm = LanguageModel(build("llama"), tokenizer())
    found = neuron_attribution(lm, TEXT, Continuation("yz"), layers=[0, 2], top=5)
    assert found.layers == (0, 2)
    sizes = [abs(effect.effect) for effect in found.top]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(float(np.abs(found.effects).max()))
    assert len(json.loads(found.to_json())["top"]) == len(found.rows()) == 5
    logits = neuron_logits(lm, 1, [3], top=2)
    effects = (lm.logit_directions() @ neuron_outputs(lm, 1)[3]).double()
    assert logits.top_tokens[0][0] == lm.token_strings([int(effects.argmax())])[0]
    assert logits.bottom_effects[0][0] == pytest.approx(float(effects.min()))
    centred = effects - effects.mean()
    assert float(logits.kurtoses[0]) == pytest.approx(
        float(centred.pow(4).mean() / centred.square().mean() ** 2), rel=1e-4
    )
    json.loads(logits.to_json())


def test_unusable_questions_are_told_in_one_line(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="neuron 64 does not exist, expected 0 to 63"):
        neuron_logits(tiny_lm, 0, [64])
    with pytest.raises(ValueError, match="got method='lime'"):
        neuron_attribution(tiny_lm, TEXT, method="lime")
    with pytest.raises(ValueError, match="mlp_act.9"):
        neuron_attribution(tiny_lm, TEXT, layers=[9])
    with pytest.raises(ValueError, match="mlp_act"):
        neuron_logits(LanguageModel(build("mixtral"), tokenizer()), 0)
    with pytest.raises(ValueError, match="no linear map from the residual stream"):
        neuron_logits(LanguageModel(build("bert"), tokenizer()), 0)
