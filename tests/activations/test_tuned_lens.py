"""A tuned lens begins at the logit lens, learns, comes back from its file, and knows whose it is; the flow adds up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import TunedLens, analyze, logit_lens, stream_flow, train_tuned_lens

TEXT = "def f(x):"


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


def texts() -> Iterator[str]:
    """Random letters without end."""
    generator = np.random.default_rng(0)
    while True:
        yield "".join(map(chr, generator.integers(97, 123, 80)))


@pytest.fixture(scope="module")
def lens(llama: LanguageModel) -> TunedLens:
    return train_tuned_lens(llama, texts(), steps=40, batch_tokens=256, lr=1e-2)


def identity(lens: TunedLens) -> TunedLens:
    from dataclasses import replace

    return replace(lens, slopes=torch.zeros_like(lens.slopes), biases=torch.zeros_like(lens.biases))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2", "bert"])
def test_training_lowers_the_divergence_and_touches_no_weight(name: str) -> None:
    lm = LanguageModel(build(name), tokenizer())
    before = lm.weight_hash()
    found = train_tuned_lens(lm, texts(), steps=12, batch_tokens=256, lr=1e-2)
    lower = [found.training["heldout_kl"][site] < found.training["heldout_kl_before"][site] for site in found.sites]
    assert all(lower)
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert LanguageModel(lm.model, tokenizer()).weight_hash() == before
    assert len(lm.taps) == 0


def test_without_translation_it_is_the_logit_lens_and_with_it_nearer_the_end(
    llama: LanguageModel, lens: TunedLens
) -> None:
    plain = logit_lens(llama, TEXT)
    same = logit_lens(llama, TEXT, lens=identity(lens))
    np.testing.assert_array_equal(same.top_ids, plain.top_ids)
    np.testing.assert_allclose(same.divergences, plain.divergences, atol=1e-6)
    tuned = logit_lens(llama, "qwertyuiop", lens=lens)
    assert tuned.is_tuned
    assert tuned.divergences[:-1].mean() < logit_lens(llama, "qwertyuiop").divergences[:-1].mean() / 2
    assert (tuned.divergences[-1] == 0).all()
    found = analyze(llama, TEXT, ["lens"])
    assert not found.results["lens"].is_tuned


def test_it_comes_back_from_its_file_and_into_analyze(llama: LanguageModel, lens: TunedLens, tmp_path: Path) -> None:
    path = lens.save(tmp_path / "new" / "lens.safetensors")
    again = TunedLens.load(path)
    assert torch.equal(again.slopes, lens.slopes)
    assert again.training == lens.training
    assert again.sites == lens.sites
    found = analyze(llama, TEXT, ["tuned_lens"], settings={"tuned_lens": {"file": str(path)}}).results["tuned_lens"]
    np.testing.assert_array_equal(found.divergences, logit_lens(llama, TEXT, lens=lens).divergences)


def test_a_store_trains_it_too(tmp_path: Path) -> None:
    from activations.store import ActivationStore

    class Rows:
        path, sites, n_rows, shards = tmp_path, ["resid_post.0", "resid_post.2"], 96, (0, 1)

        def read_rows(self, index: int, sites: list[str]) -> dict[str, torch.Tensor]:
            tokens = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(index))
            return {site: rows.flatten(0, 1) for site, rows in lm.capture(tokens, None, sites).items()}

    lm = LanguageModel(build("llama"), tokenizer())
    last = lm.final_site
    Rows.sites = ["resid_post.0", last]
    store = object.__new__(type("Stored", (Rows, ActivationStore), {"sites": Rows.sites, "n_rows": 96}))
    found = train_tuned_lens(lm, store, sites=["resid_post.0"], steps=20, batch_tokens=32, lr=1e-2)
    assert found.training["heldout_kl"]["resid_post.0"] < found.training["heldout_kl_before"]["resid_post.0"]
    with pytest.raises(ValueError, match="the store at .* has no resid_pre.0, expected resid_pre.0, "):
        train_tuned_lens(lm, store, steps=1)


def test_what_is_no_lens_for_this_model_is_refused(llama: LanguageModel, lens: TunedLens, tmp_path: Path) -> None:
    other = LanguageModel(build("gpt2"), tokenizer())
    with pytest.raises(ValueError, match="the lens was trained on other weights .*, expected the same"):
        logit_lens(other, TEXT, lens=lens)
    with pytest.raises(ValueError, match=r"the lens has no resid_mid.0, expected one of resid_pre.0"):
        logit_lens(llama, TEXT, sites=["resid_mid.0"], lens=lens)
    with pytest.raises(FileNotFoundError, match="no tuned lens at"):
        TunedLens.load(tmp_path / "none")
    (tmp_path / "odd").write_text("odd")
    with pytest.raises(ValueError, match="odd cannot be read"):
        TunedLens.load(tmp_path / "odd")
    with pytest.raises(ValueError, match="the texts make 0 windows of 64 tokens, expected at least 2"):
        train_tuned_lens(llama, ["short"])
    with pytest.raises(ValueError, match="got steps=0"):
        train_tuned_lens(llama, texts(), steps=0)
    with pytest.raises(ValueError, match="tuned_lens was asked for without a file, expected one"):
        analyze(llama, TEXT, ["tuned_lens"])


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "gptj", "llama", "gemma2", "olmo2", "bert", "opt_post_norm"])
def test_what_layers_add_is_what_the_stream_is(name: str) -> None:
    lm = LanguageModel(build(name), tokenizer())
    found = stream_flow(lm, TEXT)
    if name in {"bert", "opt_post_norm"}:
        assert found.error is None
    else:
        assert found.error is not None
        assert found.error < 1e-6
    np.testing.assert_allclose(found.entering[1:], found.leaving[:-1], rtol=1e-6)
    for cosines in (found.attention_cosine, found.mlp_cosine, found.kept):
        assert (np.abs(cosines) <= 1 + 1e-9).all()
    assert len(found.rows()) == lm.n_layers


def test_cosines_say_whether_a_layer_writes_along_the_stream(llama: LanguageModel) -> None:
    scale = 2.5
    entering: list[torch.Tensor] = []

    def keep(rows: torch.Tensor) -> torch.Tensor:
        entering[:] = [rows]
        return rows

    with llama.intervene({"resid_pre.1": keep, "attn_out.1": lambda rows: -scale * entering[0]}):
        found = stream_flow(llama, TEXT)
    np.testing.assert_allclose(found.attention_cosine[1], -1, atol=1e-9)
    np.testing.assert_allclose(found.attention[1], scale * found.entering[1])
