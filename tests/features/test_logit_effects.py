"""Effects on logits through the final norm are what autograd says of the model at the indexed text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build
from families import tokenizer as character_tokenizer

from activations import LanguageModel
from activations.corpus import Document
from activations.tokens import pack_documents
from features import Dictionary, IndexConfig, build_index, logit_effects
from features.corpus import arrange_corpus
from sae import SAE, SAEConfig


def random_sae(d_in: int) -> SAE:
    sae = SAE(SAEConfig(architecture="topk", d_in=d_in, d_sae=16, k=2))
    with torch.no_grad():
        for weight in (sae.W_enc, sae.W_dec):
            weight.copy_(
                torch.nn.functional.normalize(
                    torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)), dim=1
                )
            )
    sae.metadata["site"] = "resid_post.1"
    return sae


def gradient(lm: LanguageModel, rows: Any, is_counted: np.ndarray, of: list[int] | None = None) -> torch.Tensor:
    """Float[of, d_model]: what adding to the final stream of the counted tokens changes of their mean logits."""
    added = torch.zeros(lm.d_model, requires_grad=True)
    tokens = torch.from_numpy(rows.tokens.astype(np.int64))
    mask = torch.from_numpy(rows.documents >= 0)
    with lm.intervene({lm.final_site: lambda value: value + added}):
        logits = lm.forward(tokens, None if bool(mask.all()) else mask).logits
    means = logits[torch.from_numpy(is_counted)].mean(0)[slice(None) if of is None else of]
    return torch.stack([torch.autograd.grad(mean, added, retain_graph=True)[0] for mean in means])


def check(opened: Dictionary, effect: torch.Tensor, features: tuple[int, ...], k: int) -> None:
    for feature in features:
        found = opened.feature(feature)
        for entries, sign in ((found.top_normed_logits, 1), (found.bottom_normed_logits, -1)):
            assert len(entries) == k
            wanted = (sign * effect[:, feature]).topk(k)
            assert [entry.logit for entry in entries] == pytest.approx((sign * wanted.values).tolist(), rel=1e-3)
            for entry in entries:
                assert entry.logit == pytest.approx(float(effect[entry.token_id, feature]), rel=1e-3)


def test_the_table_is_the_gradient_of_the_mean_logits(
    dictionary: Dictionary, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig
) -> None:
    counted = (rows.documents >= 0) & ~np.isin(rows.tokens, list(tiny_lm.special_ids))
    effect = gradient(tiny_lm, rows, counted) @ tiny_sae.W_dec.detach().T
    check(dictionary, effect, (3, 40, 95), config.logits)
    raw = dictionary.feature(3).top_logits
    assert [entry.logit for entry in raw] != [entry.logit for entry in dictionary.feature(3).top_normed_logits]


def test_a_sample_of_rows_stands_for_a_long_text(tiny_lm: Any, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = arrange_corpus(rows, frozenset(tiny_lm.special_ids), None)
    whole = logit_effects.final_rows(tiny_lm, corpus, 96)
    assert len(whole) == corpus.n_indexed
    context = rows.tokens.shape[1]
    monkeypatch.setattr(logit_effects, "NORM_TOKENS", 3 * context)
    some = logit_effects.final_rows(tiny_lm, corpus, 96)
    chosen = np.arange(3) * len(rows.tokens) // 3
    at = np.concatenate([corpus.ordinal_of[row][corpus.ordinal_of[row] >= 0] for row in chosen])
    place = np.cumsum(corpus.is_indexed) - 1
    torch.testing.assert_close(some, whole[place[at[corpus.is_indexed[at]]]], rtol=1e-4, atol=1e-4)


def test_on_the_embedded_model_the_table_is_the_gradient_of_the_mean_logits(tmp_path: Path) -> None:
    lm = LanguageModel.load("embedded", dtype="float32")
    rows = pack_documents([Document("a.py", "import os\n\ndef f(x):\n    return x + 1\n" * 6)], lm, 64)
    sae = random_sae(lm.d_model)
    opened = build_index(sae, lm, rows, tmp_path / "dictionary", IndexConfig(logits=3))
    found = opened.feature(11)
    entries = [*found.top_normed_logits, *found.bottom_normed_logits]
    assert len({entry.logit for entry in entries}) == 6
    counted = (rows.documents >= 0) & ~np.isin(rows.tokens, list(lm.special_ids))
    expected = gradient(lm, rows, counted, [entry.token_id for entry in entries]) @ sae.W_dec[11].detach()
    assert [entry.logit for entry in entries] == pytest.approx(expected.tolist(), rel=1e-3)
    opened.close()


def test_without_a_linear_way_to_logits_both_tables_are_empty(rows: Any, config: IndexConfig, tmp_path: Path) -> None:
    bert = LanguageModel(build("bert"), character_tokenizer())
    small = dataclasses.replace(rows, tokens=rows.tokens % bert.vocab_size)
    sae = random_sae(bert.d_model)
    opened = build_index(sae, bert, small, tmp_path / "dictionary", config)
    assert opened.sql("from logits").num_rows == opened.sql("from normed_logits").num_rows == 0
    assert opened.sql("from events").num_rows
    opened.close()
