"""The logit lens ends at the model's own prediction, in every family, and measures what it says it measures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from families import FAMILIES, build, tokenizer

from activations import LanguageModel
from activations.analyses import lens, logit_lens
from activations.readout import readout, stream_sites

TEXT = "def f(x): return x"


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer())


def test_the_end_of_the_lens_is_the_models_own_prediction(lm: LanguageModel) -> None:
    tokens = lm.tokenize(TEXT).tokens
    logits = lm.logits(tokens)
    rows = lm.capture(tokens, None, [lm.final_site])[lm.final_site]
    with torch.no_grad():
        assert torch.equal(readout(lm, rows), logits)
    found = logit_lens(lm, TEXT, top=3)
    own = torch.log_softmax(logits[0], -1)
    assert np.array_equal(found.top_probabilities[-1], own.topk(3).values.exp().numpy())
    assert np.array_equal(found.top_ids[-1], own.topk(3).indices.numpy())
    assert np.array_equal(found.divergences[-1], np.zeros(tokens.shape[1]))
    assert found.sites == tuple(stream_sites(lm))
    assert len(found.sites) == lm.n_layers + 1


def test_figures_are_those_of_the_distribution_at_each_layer(lm: LanguageModel) -> None:
    tokens = lm.tokenize(TEXT).tokens
    found = logit_lens(lm, TEXT, target="z")
    target = lm.token_strings(range(lm.vocab_size)).index("z")
    final = torch.log_softmax(lm.logits(tokens)[0].double(), -1)
    for place, site in enumerate(found.sites):
        with torch.no_grad():
            here = torch.log_softmax(readout(lm, lm.capture(tokens, None, [site])[site])[0].double(), -1)
        tight = dict(rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.entropies[place], -(here.exp() * here).sum(-1), **tight)
        np.testing.assert_allclose(found.divergences[place], (final.exp() * (final - here)).sum(-1), **tight)
        np.testing.assert_allclose(found.target_probabilities[place], here[:, target].exp(), **tight)
        assert found.target_ranks[place].tolist() == (here > here[:, target, None]).sum(-1).tolist()
    for position in range(len(found.tokens)):
        first = int(found.converged_at[position])
        choices = found.top_ids[:, position, 0]
        assert (choices[first:] == choices[-1]).all()
        assert first == 0 or choices[first - 1] != choices[-1]


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


def test_a_decoder_is_asked_for_the_next_token_and_bert_for_the_token_itself(llama: LanguageModel) -> None:
    found = logit_lens(llama, "abc")
    assert found.target_tokens == ("b", "c", None)
    assert np.isnan(found.target_probabilities[:, 2]).all()
    assert (found.target_ranks[:, 2] == -1).all()
    expected = torch.softmax(llama.logits(llama.tokenize("abc").tokens)[0], -1)[0, int(found.target_ids[0])]
    assert found.target_probabilities[-1, 0] == float(expected)
    bert = LanguageModel(build("bert"), tokenizer())
    assert logit_lens(bert, "abc").target_tokens == ("a", "b", "c")


def test_many_chunks_are_one(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logit_lens(llama, TEXT)
    monkeypatch.setattr(lens, "CHUNK_VALUES", 3 * llama.vocab_size)
    parts = logit_lens(llama, TEXT)
    np.testing.assert_allclose(parts.entropies, whole.entropies, rtol=1e-12)
    assert np.array_equal(parts.top_ids, whole.top_ids)


def test_the_lens_sees_interventions_and_chosen_sites(llama: LanguageModel) -> None:
    plain = logit_lens(llama, TEXT, sites=["resid_mid.1"])
    assert plain.sites == ("resid_mid.1", "resid_post.2")
    with llama.intervene({"resid_mid.1": lambda x: x + 1}):
        moved = logit_lens(llama, TEXT, sites=["resid_mid.1"])
    assert not np.array_equal(plain.entropies[0], moved.entropies[0])
    assert len(llama.taps) == 0


def test_records_are_json_that_names_what_is_missing(llama: LanguageModel) -> None:
    found = logit_lens(llama, "<b>\"'", top=2)
    content = json.loads(found.to_json())
    assert content["tokens"] == ["<", "b", ">", '"', "'"]
    assert content["target_probabilities"][0][-1] is None
    rows = found.rows()
    assert len(rows) == 4 * 5
    assert rows[-1]["site"] == "resid_post.2"
    assert rows[-1]["target_rank"] is None
    assert rows[-1]["is_final_choice"]
    assert len(rows[0]["top"]) == 2
    json.dumps(rows, allow_nan=False)


def test_what_cannot_be_read_is_said_in_one_line(llama: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"the text is empty, expected some words: give a text"):
        logit_lens(llama, "  ")
    with pytest.raises(ValueError, match=r"has 65 tokens, .* takes at most 64: shorten the text"):
        logit_lens(llama, "x" * 65)
    with pytest.raises(ValueError, match=r"'ab' is no single token of .* \(it is 'a', 'b'\).*name one of its tokens"):
        logit_lens(llama, TEXT, target="ab")
    with pytest.raises(ValueError, match=r"token id 99 does not exist, expected 0 to 98"):
        logit_lens(llama, TEXT, target=99)
    with pytest.raises(ValueError, match=r"'mlp_out.0' is no part of the residual stream"):
        logit_lens(llama, TEXT, sites=["mlp_out.0"])
    with pytest.raises(ValueError, match=r"got top=0, expected at least 1"):
        logit_lens(llama, TEXT, top=0)


def test_a_head_that_is_read_wrongly_is_refused() -> None:
    lm = LanguageModel(build("gemma2"), tokenizer())
    # a cap that the model applies and its config no longer names
    cap, lm.model.config.final_logit_softcapping = lm.model.config.final_logit_softcapping, None
    lm.model.register_forward_hook(
        lambda _m, _a, out: out.__setitem__("logits", torch.tanh(out.logits / cap) * cap * 0.5)
    )
    with pytest.raises(ValueError, match=r"makes its logits otherwise than its final norm and head do"):
        logit_lens(lm, TEXT)


def test_chosen_positions_read_as_they_do_among_all(lm: LanguageModel) -> None:
    whole, part = logit_lens(lm, TEXT), logit_lens(lm, TEXT, positions=[3, 1])
    assert part.positions == (3, 1)
    assert part.tokens == (whole.tokens[3], whole.tokens[1])
    np.testing.assert_allclose(part.target_probabilities, whole.target_probabilities[:, [3, 1]], rtol=1e-4)
    np.testing.assert_array_equal(part.target_ranks, whole.target_ranks[:, [3, 1]])
    assert [row["position"] for row in part.rows()[:2]] == [3, 1]
    with pytest.raises(ValueError, match="positions .*expected some of 0 to"):
        logit_lens(lm, TEXT, positions=[99])
