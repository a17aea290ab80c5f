"""What people read: features in context, search, and what is active on a text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from features import Dictionary, Feature
from sae import SAE

SITE = "resid_post.1"


def busiest(dictionary: Dictionary) -> Feature:
    return dictionary.feature(dictionary.features(order="density", limit=1).features[0]["feature"])


def test_examples_show_the_text_around_their_strongest_token(dictionary: Dictionary) -> None:
    feature = busiest(dictionary)
    top = feature.examples[0]
    assert top.activation == pytest.approx(feature.max_activation)
    assert [e.rank for e in feature.examples if e.stratum == 0] == list(range(6))
    for example in feature.examples:
        assert example.activations[example.center] == pytest.approx(example.activation)
        assert len(example.tokens) == len(example.activations)
        assert example.document_name.startswith("folder/file_")
        document = dictionary.sql(f"select token from tokens where document = {example.document} order by position")[
            "token"
        ].to_pylist()
        start = example.position - example.center
        assert document[start : start + len(example.tokens)] == example.tokens


def test_context_widens_an_example_without_moving_it(dictionary: Dictionary) -> None:
    example = busiest(dictionary).examples[0]
    narrow, wide = dictionary.context(example, 0, 0), dictionary.context(example, 10_000, 10_000)
    assert narrow.tokens == [example.tokens[example.center]]
    assert narrow.activations == [pytest.approx(example.activation)]
    assert wide.tokens[wide.center] == narrow.tokens[0]
    count = f"select count(*) as n from tokens where document = {example.document}"
    assert len(wide.tokens) == dictionary.sql(count)["n"][0].as_py()


def test_a_dead_feature_is_shown_as_dead(dictionary: Dictionary) -> None:
    feature = dictionary.feature(95)
    assert feature.is_dead
    assert (feature.count, feature.density, feature.max_activation) == (0, 0.0, 0.0)
    assert feature.examples == []
    assert feature.histogram.counts == []
    assert "dead" in feature.explanation
    assert feature.top_logits
    assert feature.neighbours


def test_an_id_that_does_not_exist_is_refused(dictionary: Dictionary) -> None:
    for wrong in (96, -1):
        with pytest.raises(ValueError, match="expected 0 to 95"):
            dictionary.feature(wrong)


def test_listing_pages_through_all_features_once(dictionary: Dictionary) -> None:
    seen = [row["feature"] for page in range(4) for row in dictionary.features(limit=25, offset=25 * page).features]
    assert sorted(seen) == list(range(96))
    densities = [row["density"] for row in dictionary.features(order="density", limit=96).features]
    assert densities == sorted(densities, reverse=True)
    assert dictionary.features(live_only=True, limit=1).total == dictionary.info["n_live"]
    with pytest.raises(ValueError, match="expected one of density"):
        dictionary.features(order="beauty")


def test_search_by_token_finds_those_that_spend_most_activation_there(dictionary: Dictionary) -> None:
    hits = dictionary.search("x", limit=5)
    rows = dictionary.sql(
        "select feature from feature_tokens join vocabulary using (token_id) where lower(token) = 'x' "
        "group by feature order by sum(mass) desc limit 5"
    )["feature"].to_pylist()
    assert [hit.feature for hit in hits] == rows
    assert all("`" in hit.reason or "'" in hit.reason for hit in hits)
    assert dictionary.search("") == []
    assert dictionary.search("   ") == []


def test_search_by_phrase_finds_features_active_in_it(dictionary: Dictionary) -> None:
    text = "".join(dictionary.sql("select token from tokens where document = 2 order by position")["token"].to_pylist())
    phrase = text[40:52].strip()
    hits = dictionary.search(phrase, limit=5)
    assert hits
    assert all(phrase in hit.reason for hit in hits)
    assert dictionary.search("no such phrase anywhere") == []


def test_active_on_equals_encoding_the_text(dictionary: Dictionary, tiny_lm: Any, tiny_sae: SAE) -> None:
    text = "import self"
    found = dictionary.active_on(text, top=200)
    batch = tiny_lm.tokenize(text)
    x = tiny_lm.capture(batch.tokens, batch.mask, [SITE])[SITE][0]
    dense = tiny_sae.encode(x).to_dense().detach().numpy()
    assert "".join(found.tokens) == text
    for place, entries in enumerate(found.per_token):
        assert {f for f, _ in entries} == set(np.flatnonzero(dense[place]).tolist())
        assert [v for _, v in entries] == sorted((v for _, v in entries), reverse=True)
    totals = {entry.feature: entry for entry in found.ranked}
    for feature in np.flatnonzero(dense.any(axis=0)).tolist():
        maximum = dictionary.max_activations[feature]
        wanted = dense[:, feature].sum() / maximum if maximum > 0 else 0.0
        assert totals[feature].total == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        assert totals[feature].max_activation == pytest.approx(dense[:, feature].max(), rel=1e-5)
        assert found.activations(feature)[totals[feature].token] == pytest.approx(totals[feature].max_activation)
    with pytest.raises(ValueError, match="text is empty"):
        dictionary.active_on("")


def test_results_become_records_and_json(dictionary: Dictionary) -> None:
    feature = busiest(dictionary)
    content = json.loads(feature.to_json())
    assert content["top_logits"][0].keys() == {"token", "token_id", "logit"}
    assert content["examples"][0]["tokens"] == feature.examples[0].tokens
    assert json.loads(dictionary.active_on("abc").to_json())["tokens"] == ["a", "b", "c"]
    assert feature.rows()[0]["activation"] == feature.examples[0].activation
    assert json.loads(dictionary.features(limit=2).to_json())["total"] == 96


def test_opening_and_reading_does_not_load_the_model(built: Any) -> None:
    opened = Dictionary.open(built)
    opened.feature(0)
    opened.search("x")
    assert opened._lm is None
    opened.close()


def test_threads_read_at_the_same_time(dictionary: Dictionary) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda f: dictionary.feature(f).to_json(), [1, 2, 3, 4] * 3))
    assert found[:4] == found[4:8] == found[8:]


def test_the_sae_inside_is_the_one_that_was_indexed(dictionary: Dictionary, tiny_sae: SAE) -> None:
    for name, tensor in tiny_sae.state_dict().items():
        assert torch.equal(dictionary.sae.state_dict()[name], tensor)
    assert dictionary.sae.metadata["site"] == SITE
