"""Two models read one text: sites of the second stand beside those of the first, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from activations import Document, HarvestConfig, LanguageModel, ModelPair, harvest, pack_documents, stream

SITES = ["resid_post.1", "compare:resid_post.1", "compare:mlp_act.0"]


def moved_copy(lm: LanguageModel) -> LanguageModel:
    """The same architecture and tokenizer with other weights."""
    import copy

    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return LanguageModel(model, lm.tokenizer, name="moved")


@pytest.fixture(scope="module")
def pair(tiny_lm: LanguageModel) -> ModelPair:
    return ModelPair(tiny_lm, moved_copy(tiny_lm))


def test_a_pair_answers_for_the_sites_of_both_models(pair: ModelPair, tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.tokenize(["some text", "more of it"])
    values = pair.capture(batch.tokens, batch.mask, SITES)
    assert list(values) == SITES
    alone = tiny_lm.capture(batch.tokens, batch.mask, ["resid_post.1"])
    other = pair.second.capture(batch.tokens, batch.mask, ["resid_post.1", "mlp_act.0"])
    assert torch.equal(values["resid_post.1"], alone["resid_post.1"])
    assert torch.equal(values["compare:resid_post.1"], other["resid_post.1"])
    assert torch.equal(values["compare:mlp_act.0"], other["mlp_act.0"])
    assert not torch.allclose(values["resid_post.1"], values["compare:resid_post.1"])
    assert pair.site_width("compare:mlp_act.0") == 64
    assert pair.has_site("compare:embed")
    assert not pair.has_site("compare:resid_post.9")
    assert {"resid_post.2", "compare:resid_post.2"} <= set(pair.sites())
    assert pair.weight_hash() == tiny_lm.weight_hash()


def test_an_edit_reaches_the_model_that_its_site_names(pair: ModelPair, tiny_lm: LanguageModel) -> None:
    batch = tiny_lm.tokenize("some text")
    clean = pair.capture(batch.tokens, batch.mask, ["resid_post.2", "compare:resid_post.2"])
    with pair.intervene({"compare:resid_post.1": torch.zeros_like}):
        edited = pair.capture(batch.tokens, batch.mask, ["resid_post.2", "compare:resid_post.2"])
    assert torch.equal(edited["resid_post.2"], clean["resid_post.2"])
    assert not torch.allclose(edited["compare:resid_post.2"], clean["compare:resid_post.2"])


def test_one_harvest_and_one_stream_hold_both_models(pair: ModelPair, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = pack_documents([Document("d", "word " * 60)], pair, 16)
    config = HarvestConfig(dtype="float32", batch_tokens=64, shard_rows=128, buffer_rows=64)
    store = harvest(pair, rows, config, tmp_path_factory.mktemp("pair") / "store", sites=SITES)
    stored: Any = next(iter(store.rows(SITES, shuffle=False)))
    values = pair.capture(rows.torch_tokens(), rows.torch_mask(), SITES)
    kept = torch.from_numpy(rows.trained_mask(pair.special_ids))
    for site in SITES:
        assert torch.allclose(stored[site], values[site][kept], atol=1e-5)
    streaming: Any = stream(pair, rows, SITES, config)
    streamed = torch.cat([chunk["compare:mlp_act.0"] for chunk in streaming])
    assert torch.allclose(streamed.sort(0).values, stored["compare:mlp_act.0"].sort(0).values, atol=1e-5)


def test_models_of_different_vocabularies_are_refused(tiny_lm: LanguageModel) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_lm.tokenizer)
    tokenizer.add_tokens(["<turn>"])
    other = LanguageModel(tiny_lm.model, tokenizer, name="other")
    with pytest.raises(ValueError, match="token '<turn>' has id None in .* expected one vocabulary"):
        ModelPair(tiny_lm, other)
