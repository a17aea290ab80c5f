"""What is active on a text: surprise is counted, effects are those that the model itself shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from features import Dictionary, build_index
from features.active import TextTooLong, events_at_least
from sae import SAE, SAEConfig

SITE = "resid_post.1"
TEXT = "import self\nvalue"


def test_surprise_is_the_rank_among_all_indexed_tokens(dictionary: Dictionary) -> None:
    found = dictionary.active_on(TEXT, top=500, by="surprise")
    n = dictionary.info["n_indexed_tokens"]
    events = dictionary.sql("select feature, abs(activation) as size from events")
    feature, size = events["feature"].to_numpy(), events["size"].to_numpy()
    bits: dict[int, float] = {}
    for entries, measures in zip(found.per_token, found.measures, strict=True):
        assert measures == sorted(measures, reverse=True)
        for (number, value), bit in zip(entries, measures, strict=True):
            sizes = size[feature == number]
            # the histogram knows the rank up to the events that share the value's bin, a quarter octave wide
            least, most = (sizes >= abs(value) * 1.26).sum(), (sizes >= abs(value) / 1.26).sum()
            assert -np.log2((most + 1) / (n + 1)) - 1e-9 <= bit <= -np.log2((least + 1) / (n + 1)) + 1e-9
            bits[number] = max(bits.get(number, 0.0), bit)
    assert {e.feature: pytest.approx(e.total) for e in found.ranked} == bits
    for entry in found.ranked:
        assert (entry.feature, found.activations(entry.feature)[entry.token]) in found.per_token[entry.token]


def test_ranks_in_a_histogram_are_exact_at_its_edges_and_never_rise_with_size() -> None:
    low, high = np.array([1, 1, 2, 4], np.float32), np.array([1.25, 1.25, 2.5, 5], np.float32)
    owner, count = np.array([3, 5, 5, 7]), np.array([90, 6, 4, 2])
    sizes = np.array([0.01, 1.0, 1.125, 1.2499, 1.5, 2.0, 2.25, 2.6, 100.0])
    found = events_at_least(np.full(9, 5), sizes, owner, low, high, count)
    assert found == pytest.approx([10, 10, 7, 4.0024, 4, 4, 2, 0, 0])
    others = events_at_least(np.array([7, 3, 4, 9, 7]), np.array([1.0, 1.0, 1.0, 1.0, 4.5]), owner, low, high, count)
    assert others.tolist() == [2, 90, 0, 0, 1]
    assert events_at_least(np.full(9, 5), sizes, owner[:0], low[:0], high[:0], count[:0]).tolist() == [0] * 9


def test_direct_effects_add_up_to_the_logit_at_the_last_site(
    tiny_lm: Any, rows: Any, tiny_sae: SAE, config: Any, tmp_path: Any
) -> None:
    sae = SAE(SAEConfig(architecture="topk", d_in=32, d_sae=96, k=6))
    sae.load_state_dict(tiny_sae.state_dict())
    sae.metadata.update(tiny_sae.metadata | {"site": "resid_post.2"})
    dictionary = build_index(sae, tiny_lm, rows, tmp_path / "last", config)
    target = tiny_lm.encode(["e"])[0][-1]
    found = dictionary.active_on(TEXT, top=500, by="effect", target="e")
    assert found.target == "e"
    batch = tiny_lm.tokenize(TEXT)
    x = tiny_lm.capture(batch.tokens, batch.mask, ["resid_post.2"])["resid_post.2"][0]
    codes = sae.encode(x)
    rest = x - codes.to_dense() @ sae.W_dec
    scale = (x.square().mean(1) + tiny_lm.model.config.rms_norm_eps).sqrt()
    u = tiny_lm.model.lm_head.weight[target] * tiny_lm.model.model.norm.weight
    effects = torch.tensor([sum(measures) for measures in found.measures])
    logits = tiny_lm.logits(batch.tokens)[0, :, target]
    assert torch.allclose(effects + (rest @ u / scale).float(), logits, atol=1e-4)
    totals = {entry.feature: entry.total for entry in found.ranked}
    sums: dict[int, float] = {}
    for entries, measures in zip(found.per_token, found.measures, strict=True):
        for (feature, _), effect in zip(entries, measures, strict=True):
            sums[feature] = sums.get(feature, 0.0) + effect
    assert totals == {f: pytest.approx(v) for f, v in sums.items()}
    assert [abs(e.total) for e in found.ranked] == sorted((abs(v) for v in totals.values()), reverse=True)
    dictionary.close()


def test_attribution_is_the_slope_of_the_logit_when_a_feature_is_moved(
    dictionary: Dictionary, tiny_lm: Any, tiny_sae: SAE
) -> None:
    found = dictionary.active_on(TEXT, top=500, by="attribution", target="e")
    batch = tiny_lm.tokenize(TEXT)
    target = tiny_lm.encode(["e"])[0][-1]

    def logit(place: int, feature: int, amount: float) -> float:
        def edit(x: torch.Tensor) -> torch.Tensor:
            moved = x.clone()
            moved[0, place] += amount * tiny_sae.W_dec[feature].detach()
            return moved

        with tiny_lm.intervene({SITE: edit}):
            return float(tiny_lm.logits(batch.tokens)[0, -1, target])

    checked = 0
    for place in (0, 5, len(found.tokens) - 1):
        for (feature, value), measure in zip(found.per_token[place], found.measures[place], strict=True):
            h = 1e-2
            slope = (logit(place, feature, h) - logit(place, feature, -h)) / (2 * h)
            assert measure == pytest.approx(value * slope, rel=2e-2, abs=2e-4)
            checked += 1
    assert checked > 6


def test_a_target_must_be_one_token_and_needs_a_measure_that_has_one(dictionary: Dictionary, tiny_lm: Any) -> None:
    expected = int(tiny_lm.logits(tiny_lm.tokenize(TEXT).tokens)[0, -1].argmax())
    assert dictionary.active_on(TEXT, by="effect").target == tiny_lm.token_strings([expected])[0]
    assert dictionary.active_on(TEXT, by="effect", target=expected).target == tiny_lm.token_strings([expected])[0]
    with pytest.raises(ValueError, match=r"'ab' is no single token of .* \(it is 'a', 'b'\).*, expected one"):
        dictionary.active_on(TEXT, by="effect", target="ab")
    with pytest.raises(ValueError, match="token id 100000 does not exist, expected 0 to"):
        dictionary.active_on(TEXT, by="effect", target=100_000)
    with pytest.raises(ValueError, match="measure 'beauty' is unknown, expected one of activation"):
        dictionary.active_on(TEXT, by="beauty")
    with pytest.raises(ValueError, match="target was given for the measure surprise, expected none"):
        dictionary.active_on(TEXT, by="surprise", target="a")


def test_a_text_too_long_says_how_long_it_is_and_brings_the_beginning_that_fits(dictionary: Dictionary) -> None:
    lm = dictionary.lm
    text = "import self value " * lm.context_tokens
    with pytest.raises(TextTooLong, match=f"tokens, .* takes at most {lm.context_tokens:,}: give a part of it") as told:
        dictionary.active_on(text)
    assert told.value.n_tokens == len(lm.encode([text])[0])
    assert text.startswith(told.value.beginning)
    assert lm.context_tokens - 3 <= len(lm.encode([told.value.beginning])[0]) <= lm.context_tokens
    assert dictionary.active_on(told.value.beginning).ranked


def test_special_tokens_are_named(dictionary: Dictionary) -> None:
    found = dictionary.active_on(TEXT)
    ids = dictionary.lm.encode([TEXT])[0]
    assert found.special == [place for place, token in enumerate(ids) if token in dictionary.lm.special_ids]
