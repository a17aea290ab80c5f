"""Components' direct effects add up to the logit, and each is what removing it from the final stream takes away."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import DECODERS, build, tokenizer

from activations import LanguageModel
from activations.analyses import activation_norms, direct_logit_attribution, neuron_activations
from activations.readout import after_norm, final_norm

TEXT = "def f(x): ret"
ADDING = [name for name in (*DECODERS, "t5", "t5_gated") if name != "opt_post_norm"]


@pytest.mark.parametrize("name", ADDING)
def test_parts_sum_to_the_logit(name: str) -> None:
    lm = LanguageModel(build(name), tokenizer())
    tokens = lm.tokenize(TEXT).tokens
    logits = lm.logits(tokens)[0, -1].double()
    # most families' norms compute in float32 whatever the model's type
    tight = 1e-9 if name in {"gpt2", "gpt_neox", "gpt_neox_sequential", "opt"} else 2e-5
    found = direct_logit_attribution(lm, TEXT)
    assert found.target_id == int(logits.argmax())
    logit = found.logit if found.softcap is None else found.softcap * np.tanh(found.logit / found.softcap)
    assert logit == pytest.approx(float(logits.max()), abs=tight)
    assert abs(found.error) < tight
    assert sum(row["effect"] for row in found.rows()) == pytest.approx(found.logit, abs=tight)
    against = direct_logit_attribution(lm, TEXT, target="z", contrast="(", position=3)
    assert abs(against.error) < tight
    difference = direct_logit_attribution(lm, TEXT, target="z", position=3)
    other = direct_logit_attribution(lm, TEXT, target="(", position=3)
    assert against.heads == pytest.approx(difference.heads - other.heads, abs=tight)
    assert against.bias == pytest.approx(difference.bias - other.bias, abs=tight)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_a_part_is_what_its_absence_takes_from_the_final_stream_at_frozen_scale(name: str) -> None:
    lm = LanguageModel(build(name), tokenizer())
    tokens = lm.tokenize(TEXT).tokens
    found = direct_logit_attribution(lm, TEXT, target="z")
    target = found.target_id
    captured = lm.capture(tokens, None, ["mlp_out.1", "attn_out.2", lm.final_site])
    final = captured[lm.final_site][0, -1]
    norm = final_norm(lm)
    centre = (lambda x: x - x.mean()) if isinstance(norm, torch.nn.LayerNorm) else (lambda x: x)

    def frozen(row: torch.Tensor) -> float:
        """The uncapped logit of a row that is normed by the full stream's scale."""
        with torch.no_grad():
            # any vector of the full stream's size and mean square has its scale: normalise the row by hand
            scale = centre(final).square().mean().add(_eps(norm)).sqrt()
            gain = norm.weight + (1 if name == "gemma2" else 0)
            bias = getattr(norm, "bias", None)
            normed = gain * centre(row) / scale + (0 if bias is None else bias)
            return float(after_norm(lm, normed)[target])

    tight = 1e-4 if name == "gemma2" else 2e-5
    assert found.logit == pytest.approx(frozen(final), abs=tight)
    for site, effect in (("mlp_out.1", found.mlp[1]), ("attn_out.2", found.attention[2])):
        assert effect == pytest.approx(frozen(final) - frozen(final - captured[site][0, -1]), abs=tight)
    if name in {"gpt_neox", "llama"}:
        # a head alone: what attention writes less what it writes without this head
        with lm.intervene({"head_out.2": lambda z: torch.cat([z[:, :, :3], 0 * z[:, :, 3:]], dim=2)}):
            without = lm.capture(tokens, None, ["attn_out.2"])["attn_out.2"][0, -1]
        written = captured["attn_out.2"][0, -1] - without
        assert found.heads[2, 3] == pytest.approx(frozen(final) - frozen(final - written), abs=tight)


def _eps(norm: torch.nn.Module) -> float:
    return float(next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)))


@pytest.mark.parametrize("name", ["bert", "opt_post_norm"])
def test_a_stream_that_does_not_add_up_is_refused(name: str) -> None:
    lm = LanguageModel(build(name), tokenizer())
    with pytest.raises(ValueError, match="norms its residual stream in every layer, expected a stream that adds up"):
        direct_logit_attribution(lm, TEXT)


def test_results_are_json_and_positions_are_checked(tiny_lm: LanguageModel) -> None:
    found = direct_logit_attribution(tiny_lm, "<b>", position=1)
    assert json.loads(found.to_json())["position"] == 1
    assert abs(found.rows()[0]["effect"]) == max(abs(row["effect"]) for row in found.rows())
    with pytest.raises(ValueError, match="position 3 is outside of a text of 3 tokens"):
        direct_logit_attribution(tiny_lm, "<b>", position=3)
    assert not any(parameter.grad is not None for parameter in tiny_lm.model.parameters())


def test_norms_and_neurons_are_what_a_capture_holds(tiny_lm: LanguageModel) -> None:
    found = activation_norms(tiny_lm, TEXT)
    rows = tiny_lm.activations(TEXT, list(found.sites))
    for place, site in enumerate(found.sites):
        np.testing.assert_allclose(found.norms[place], rows[site][0].double().norm(dim=-1), rtol=1e-6)
    assert found.sites[:4] == ("resid_pre.0", "attn_out.0", "mlp_out.0", "resid_post.0")
    neurons = neuron_activations(tiny_lm, TEXT, 1, top=3)
    all_neurons = tiny_lm.activations(TEXT, ["mlp_act.1"])["mlp_act.1"][0]
    peaks = all_neurons.abs().amax(0)
    assert set(neurons.neurons) == set(peaks.topk(3).indices.tolist())
    np.testing.assert_allclose(neurons.values, all_neurons[:, list(neurons.neurons)].T)
    assert neuron_activations(tiny_lm, TEXT, 1, [5]).neurons == (5,)
    with pytest.raises(ValueError, match="neuron 64 does not exist, expected 0 to 63"):
        neuron_activations(tiny_lm, TEXT, 1, [64])
    json.loads(found.to_json())
    json.loads(neurons.to_json())
