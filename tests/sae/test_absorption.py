"""Planted absorption is found, its absence gives zero, and models that know no letters are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from sae import SAE, SAEConfig
from sae.absorption import NotMeasurable, main_latents, measure_absorption, vocabulary_words, word_activations
from sae.concept_removal import spurious_correlation_removal, targeted_probe_perturbation
from sae.labelled_text import labelled_text
from sae.pooling import Pooled, pool_texts

LETTERS = "abcd"
WORDS, KINDS = 200, 10
"""Words of a letter, and kinds of special words of each letter: as many as make no kind a split of the letter."""
D = 4 + 4 * KINDS + 8


def special_place(letter: int, kind: int) -> int:
    return 4 + KINDS * letter + kind


def words(special: float = 0.2) -> tuple[Tensor, list[str]]:
    """Words of four letters: a direction for each letter; some of each letter's words have one of their kind too."""
    generator = torch.Generator().manual_seed(0)
    letters = [letter for letter in LETTERS for _ in range(WORDS)]
    x = 0.02 * torch.randn(len(letters), D, generator=generator)
    for number, letter in enumerate(letters):
        place = LETTERS.index(letter)
        x[number, place] += 3
        if number % WORDS < special * WORDS:
            x[number, special_place(place, number % KINDS)] += 3
    return x, letters


def letter_sae(is_absorbing: bool, share: float = 1.0) -> SAE:
    """The first four latents stand for letters, the rest for kinds of special words.

    An absorbing SAE silences the letter's latent by `share` on special words and writes that share of the letter's
    direction with their own latent instead; reconstruction is the same.
    """
    d_sae = 4 + 4 * KINDS
    sae = SAE(SAEConfig(d_in=D, d_sae=d_sae, k=d_sae, architecture="topk"))
    encoder, decoder = torch.eye(d_sae, D), torch.eye(d_sae, D)
    for letter in range(4 if is_absorbing else 0):
        for kind in range(KINDS):
            encoder[letter, special_place(letter, kind)] = -share
            decoder[special_place(letter, kind), letter] = share
    sae.W_enc.data, sae.W_dec.data = encoder, decoder
    sae.b_enc.data.fill_(-0.2)  # noise fires nothing
    return sae


def test_planted_absorption_is_found_in_full() -> None:
    x, letters = words()
    report = measure_absorption(letter_sae(True), x, letters, min_letters=4)
    assert [each.letter for each in report.letters] == list(LETTERS)
    for place, each in enumerate(report.letters):
        assert each.main_latents == (place,)
        assert {(latent - 4) // KINDS for latent in each.absorbers} == {place}
        assert each.probe_f1 > 0.95
        assert each.full_absorption == pytest.approx(each.absorption_fraction, abs=0.02)
    # half of the words, drawn by seed, are tested; a fifth of all are special
    assert report.absorption_fraction == pytest.approx(0.2, abs=0.05)
    assert json.loads(json.dumps(report.to_json()))["main_latents"] == 1


def test_without_absorption_there_is_none() -> None:
    x, letters = words()
    report = measure_absorption(letter_sae(False), x, letters, min_letters=4)
    assert report.full_absorption == 0
    # the probe itself leans a little on the kinds of words, whose latents then carry some of its direction
    assert report.absorption_fraction < 0.03
    assert report.main_latents == 1


def test_half_an_absorption_is_half_a_fraction_and_not_full() -> None:
    x, letters = words()
    report = measure_absorption(letter_sae(True, share=0.5), x, letters, min_letters=4)
    assert report.full_absorption == 0
    assert report.absorption_fraction == pytest.approx(0.2 * 0.5, abs=0.03)


def test_decoder_scale_does_not_change_what_is_absorbed() -> None:
    x, letters = words()
    sae = letter_sae(True)
    before = measure_absorption(sae, x, letters, min_letters=4)
    sae.W_dec.data *= 7
    sae.W_enc.data /= 7
    sae.b_enc.data /= 7
    after = measure_absorption(sae, x, letters, min_letters=4)
    assert after.absorption_fraction == pytest.approx(before.absorption_fraction, abs=1e-3)


def test_a_split_letter_has_two_main_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    y, half = torch.rand(400, generator=generator) < 0.5, torch.rand(400, generator=generator) < 0.5
    codes = torch.zeros(400, 10)
    codes[y & half, 3], codes[y & ~half, 6] = 1.0, 1.0
    codes[:, 8] = torch.rand(400, generator=generator)
    train = torch.rand(400, generator=generator) < 0.5
    rows, latents = codes.nonzero(as_tuple=True)
    chosen, quality = main_latents(Pooled(codes, rows, latents, codes[rows, latents], 10), y, train)
    assert sorted(chosen.tolist()) == [3, 6]
    assert quality == 1


def test_a_model_that_does_not_know_letters_is_refused_by_what_it_lacks(tiny_lm: Any) -> None:
    x, letters = words()
    with pytest.raises(NotMeasurable, match="reads 4 of 4 first letters of the model .* expected at least 20"):
        measure_absorption(letter_sae(True), x, letters)
    with pytest.raises(NotMeasurable, match="reads 0 of 4"):
        measure_absorption(letter_sae(True), torch.randn(len(x), D), letters, min_letters=4, min_probe_f1=0.7)
    with pytest.raises(NotMeasurable, match="holds 0 words of one token"):
        word_activations(tiny_lm, letter_sae(True))
    with pytest.raises(ValueError, match="799 letters for 800 words"):
        measure_absorption(letter_sae(True), x, letters[1:])
    wired = SAE(SAEConfig(d_in=D, d_sae=8, k=8, architecture="transcoder", activation="topk"))
    with pytest.raises(NotMeasurable, match="`transcoder` writes elsewhere than it reads"):
        measure_absorption(wired, x, letters)


def test_words_of_the_embedded_vocabulary_are_read_at_themselves(embedded_lm: Any) -> None:
    sae = SAE(
        SAEConfig(architecture="topk", d_in=embedded_lm.d_model, d_sae=64, k=8),
        {"site": "embed", "data": {"prepend_bos": True}},
    )
    found = dict(vocabulary_words(embedded_lm))
    assert len(found) > 1000
    assert all(word.strip().isalpha() for word in found.values())
    x, letters = word_activations(embedded_lm, sae, max_words=40)
    assert x.shape == (40, embedded_lm.d_model)
    # at the embedding, a row is its token's own: each must be that of a word with the letter
    embeddings = embedded_lm.model.get_input_embeddings().weight.detach().float()
    for row, letter in zip(x, letters, strict=True):
        token = int((embeddings - row).square().sum(1).argmin())
        assert found[token].strip()[0].lower() == letter


def texts(n: int = 240, cue: float = 3.0) -> tuple[Pooled, list[str], list[str]]:
    """Texts with a wanted label at latent 0, an unwanted one at 1, its opposite at 2; latents are coordinates."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, generator=generator) < 0.5 for _ in range(2))
    x = 0.3 * torch.randn(n, 12, generator=generator).abs()
    x[:, 0] += a.float()
    x[:, 1] += cue * b.float()
    x[:, 2] += cue * (~b).float()
    entries, latents = (x > 0).nonzero(as_tuple=True)
    pooled = Pooled(x, entries, latents, x[entries, latents], 12)
    return pooled, ["a1" if each else "a0" for each in a], ["b1" if each else "b0" for each in b]


def coordinates(d: int = 12) -> SAE:
    sae = SAE(SAEConfig(architecture="topk", d_in=d, d_sae=d, k=d))
    sae.W_enc.data, sae.W_dec.data = torch.eye(d), torch.eye(d)
    return sae


def test_taking_out_the_planted_cue_restores_the_wanted_label() -> None:
    pooled, a, b = texts()
    report = spurious_correlation_removal(coordinates(), pooled, a, b, ns=(2, 4))
    first = report.removals[0]
    assert report.clean_accuracy > 0.9
    assert first.unintended < 0.75  # misled by the cue
    assert first.score > 0.5
    assert first.score == pytest.approx(
        (first.intended - first.unintended) / (report.clean_accuracy - first.unintended), abs=1e-6
    )


def test_an_sae_that_mixes_both_labels_removes_less() -> None:
    pooled, a, b = texts()
    mixed = coordinates()
    # the cue's latent writes the wanted direction too: taking it out hurts what should stay
    mixed.W_dec.data[1, 0] = 1.0
    clean, spoilt = (
        spurious_correlation_removal(sae, pooled, a, b, ns=(2,)).removals[0].score for sae in (coordinates(), mixed)
    )
    assert spoilt < clean - 0.2


def test_where_the_cue_costs_nothing_there_is_nothing_to_remove() -> None:
    pooled, a, b = texts(cue=0.0)
    with pytest.raises(NotMeasurable, match="offers no pair of labels"):
        spurious_correlation_removal(coordinates(), pooled, a, b)
    pooled, a, b = texts(n=20)
    with pytest.raises(NotMeasurable, match=r"the rarest pair has \d+ texts"):
        spurious_correlation_removal(coordinates(), pooled, a, b)


def classes(overlap: float = 0.0) -> tuple[Pooled, list[str]]:
    generator = torch.Generator().manual_seed(0)
    labels = [str(number % 4) for number in range(200)]
    x = 0.1 * torch.rand(200, 12, generator=generator)
    for number, label in enumerate(labels):
        x[number, int(label)] += 1
    entries, latents = (x > 0).nonzero(as_tuple=True)
    return Pooled(x, entries, latents, x[entries, latents], 12), labels


def test_taking_out_a_class_own_latent_hits_its_probe_alone() -> None:
    pooled, labels = classes()
    report = targeted_probe_perturbation(coordinates(), pooled, labels, ns=(1, 12))
    assert report.clean_accuracy > 0.98
    alone, everything = report.removals
    assert alone.intended > 0.3
    assert abs(alone.unintended) < 0.1
    assert alone.score == pytest.approx(alone.intended - alone.unintended)
    assert everything.n == 12


def test_an_sae_whose_latents_write_every_class_cannot_hit_one() -> None:
    pooled, labels = classes()
    smeared = coordinates()
    smeared.W_dec.data = torch.full((12, 12), 1 / 12)
    targeted = targeted_probe_perturbation(coordinates(), pooled, labels, ns=(1,)).removals[0].score
    untargeted = targeted_probe_perturbation(smeared, pooled, labels, ns=(1,)).removals[0].score
    assert untargeted < targeted / 2


def test_tpp_is_refused_where_probes_fail_or_classes_are_few() -> None:
    pooled, labels = classes()
    shuffled = [labels[place] for place in torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()]
    with pytest.raises(NotMeasurable, match="mean accuracy of 0"):
        targeted_probe_perturbation(coordinates(), pooled, shuffled)
    with pytest.raises(NotMeasurable, match="has 2 classes"):
        targeted_probe_perturbation(coordinates(), pooled, ["a", "b"] * 100)
    wired = SAE(SAEConfig(d_in=12, d_sae=12, k=2, architecture="transcoder", activation="topk"))
    with pytest.raises(NotMeasurable, match="TPP: architecture `transcoder`"):
        targeted_probe_perturbation(wired, pooled, labels)


def test_the_embedded_model_carries_tpp_on_the_shipped_topics(embedded_lm: Any) -> None:
    sae = coordinates(embedded_lm.d_model)
    sae.metadata["site"] = "resid_post.2"
    labelled = labelled_text("topics")
    pooled = pool_texts(embedded_lm, {"a": sae}, labelled.texts)["a"]
    report = targeted_probe_perturbation(sae, pooled, labelled.labels, name="topics", ns=(2, 50), min_accuracy=0.6)
    assert [row["n"] for row in report.rows()] == [2, 50]
