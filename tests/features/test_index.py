"""The index equals a naive recomputation of every table."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch

from features import Dictionary, IndexConfig, build_index
from sae import SAE

SITE = "resid_post.1"


@pytest.fixture(scope="module")
def naive(tiny_lm: Any, tiny_sae: SAE, rows: Any) -> dict[int, dict[tuple[int, int], float]]:
    """{feature: {(document, position): activation}}, one row and one token at a time."""
    found: dict[int, dict[tuple[int, int], float]] = defaultdict(dict)
    for ids, documents, positions in zip(rows.tokens, rows.documents, rows.positions, strict=True):
        x = tiny_lm.capture(
            torch.from_numpy(ids.astype(np.int64))[None], torch.from_numpy(documents >= 0)[None], [SITE]
        )
        dense = tiny_sae.encode(x[SITE][0]).to_dense().detach()
        for column in range(len(ids)):
            if documents[column] < 0 or int(ids[column]) in tiny_lm.special_ids:
                continue
            for feature in dense[column].nonzero().flatten().tolist():
                key = int(documents[column]), int(positions[column])
                found[feature][key] = float(dense[column, feature])
    return found


def test_events_are_every_nonzero_code_in_order(dictionary: Dictionary, naive: dict[int, dict]) -> None:
    events = dictionary.sql("select feature, document, position, activation from events").to_pylist()
    wanted = [(f, d, p) for f in sorted(naive) for d, p in sorted(naive[f])]
    assert [(e["feature"], e["document"], e["position"]) for e in events] == wanted
    values = [naive[f][d, p] for f, d, p in wanted]
    np.testing.assert_allclose([e["activation"] for e in events], values, rtol=1e-4)


def test_statistics_equal_naive_ones(dictionary: Dictionary, naive: dict[int, dict], rows: Any, tiny_lm: Any) -> None:
    special = list(tiny_lm.special_ids)
    n = int(((rows.documents >= 0) & ~np.isin(rows.tokens, special)).sum())
    assert dictionary.info["n_indexed_tokens"] == n
    assert dictionary.info["n_tokens"] == int((rows.documents >= 0).sum())
    for record in dictionary.sql("select * from features").to_pylist():
        values = np.array(list(naive.get(record["feature"], {}).values()))
        assert record["count"] == values.size
        assert record["is_dead"] == (values.size == 0)
        assert record["density"] == pytest.approx(values.size / n)
        if values.size:
            assert record["max_activation"] == pytest.approx(values.max(), rel=1e-5)
            assert record["mean_activation"] == pytest.approx(values.mean(), rel=1e-5)
            assert record["std_activation"] == pytest.approx(values.std(), rel=1e-4, abs=1e-6)
            assert record["documents"] == len({d for d, _ in naive[record["feature"]]})
    assert dictionary.info["n_live"] == sum(bool(events) for events in naive.values())


def peaks_of(events: dict[tuple[int, int], float], window_tokens: int) -> list[tuple[float, int, int]]:
    """The strongest event of each window, strongest first, earlier first among equals."""
    windows: dict[tuple[int, int], tuple[float, int, int]] = {}
    for (document, position), value in sorted(events.items()):
        key = document, position // window_tokens
        if key not in windows or value > windows[key][0]:
            windows[key] = value, document, position
    return sorted(windows.values(), key=lambda peak: (-peak[0], peak[1], peak[2]))


def top_of(peaks: list[tuple[float, int, int]], top: int, per_document: int) -> list[tuple[float, int, int]]:
    taken: dict[int, int] = defaultdict(int)
    chosen = []
    for peak in peaks:
        if taken[peak[1]] < per_document and len(chosen) < top:
            taken[peak[1]] += 1
            chosen.append(peak)
    return chosen


def test_top_examples_are_the_strongest_windows(
    dictionary: Dictionary, naive: dict[int, dict], config: IndexConfig
) -> None:
    stored = defaultdict(list)
    for r in dictionary.sql("select * from examples where stratum = 0 order by feature, rank").to_pylist():
        stored[r["feature"]].append((r["document"], r["position"]))
    for feature, events in naive.items():
        wanted = top_of(peaks_of(events, config.window_tokens), config.examples, config.per_document)
        assert stored[feature] == [(d, p) for _, d, p in wanted]
    assert set(stored) == set(naive)


def test_strata_are_samples_of_equal_parts_of_the_other_windows(
    dictionary: Dictionary, naive: dict[int, dict], config: IndexConfig
) -> None:
    stored = defaultdict(lambda: defaultdict(list))
    for r in dictionary.sql("select * from examples where stratum > 0 order by feature, stratum, rank").to_pylist():
        stored[r["feature"]][r["stratum"]].append((r["document"], r["position"]))
    seen = 0
    for feature, events in naive.items():
        peaks = peaks_of(events, config.window_tokens)
        top = top_of(peaks, config.examples, config.per_document)
        others = [(d, p) for v, d, p in peaks if (v, d, p) not in top]
        edges = [len(others) * i // config.strata for i in range(config.strata + 1)]
        for stratum in range(1, config.strata + 1):
            part = others[edges[stratum - 1] : edges[stratum]]
            chosen = stored[feature][stratum]
            seen += len(chosen)
            assert [key for key in part if key in chosen] == chosen
            if len(part) >= config.stratum_examples * 2:
                assert len(chosen) == config.stratum_examples
    assert seen > 50


def test_histograms_count_every_event_between_their_edges(dictionary: Dictionary, naive: dict[int, dict]) -> None:
    for feature, events in list(naive.items())[::5]:
        histogram = dictionary.feature(feature).histogram
        values = np.array(list(events.values()))
        assert sum(histogram.counts) == values.size
        counts, _ = np.histogram(values, bins=histogram.edges)
        assert abs(counts - histogram.counts).sum() <= 2  # values that rounding moves across an edge
        assert len(histogram.edges) == len(histogram.counts) + 1


def test_neighbours_are_the_largest_cosines(dictionary: Dictionary, tiny_sae: SAE, config: IndexConfig) -> None:
    unit = torch.nn.functional.normalize(tiny_sae.W_dec.detach(), dim=1)
    cosine = unit @ unit.T - 9 * torch.eye(len(unit))
    for feature in (0, 17, 95):
        stored = dictionary.feature(feature).neighbours
        wanted = cosine[feature].topk(config.neighbours)
        assert [n.feature for n in stored] == wanted.indices.tolist()
        np.testing.assert_allclose([n.cosine for n in stored], wanted.values, atol=1e-5)


def test_logits_are_the_extreme_direct_effects(
    dictionary: Dictionary, tiny_lm: Any, tiny_sae: SAE, config: IndexConfig
) -> None:
    effect = tiny_lm.logit_directions() @ tiny_sae.W_dec.detach().T
    for feature in (3, 40):
        f = dictionary.feature(feature)
        assert [t.token_id for t in f.top_logits] == effect[:, feature].topk(config.logits).indices.tolist()
        lowest = effect[:, feature].topk(config.logits, largest=False).indices.tolist()
        assert [t.token_id for t in f.bottom_logits] == lowest
        assert f.top_logits[0].token == tiny_lm.token_strings([f.top_logits[0].token_id])[0]


def test_tokens_are_the_text_with_its_documents(dictionary: Dictionary, rows: Any, tiny_lm: Any) -> None:
    stored = dictionary.sql("select * from tokens order by document, position").to_pylist()
    real = rows.documents >= 0
    assert [r["token_id"] for r in stored] == rows.tokens[real].tolist()
    assert [r["token"] for r in stored] == tiny_lm.token_strings(rows.tokens[real].tolist())
    names = dictionary.sql("select name from documents order by document")["name"].to_pylist()
    assert names == rows.names


def test_feature_tokens_hold_the_shares_of_activation(
    dictionary: Dictionary, naive: dict[int, dict], rows: Any
) -> None:
    real = rows.documents >= 0
    token_at = dict(
        zip(
            zip(rows.documents[real].tolist(), rows.positions[real].tolist(), strict=True),
            rows.tokens[real].tolist(),
            strict=True,
        )
    )
    for feature in (0, 5, 60):
        mass: dict[int, float] = defaultdict(float)
        for key, value in naive.get(feature, {}).items():
            mass[token_at[key]] += value / sum(naive[feature].values())
        query = f"select token_id, mass from feature_tokens where feature = {feature}"
        stored = {r["token_id"]: r["mass"] for r in dictionary.sql(query).to_pylist()}
        for token, share in sorted(mass.items(), key=lambda item: -item[1])[:20]:
            assert stored[token] == pytest.approx(share, rel=1e-4)


def test_encoder_neighbours_are_the_largest_cosines_of_encoder_rows(
    tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig, tmp_path: Any
) -> None:
    sae = copy.deepcopy(tiny_sae)
    with torch.no_grad():
        sae.W_enc.add_(0.4 * torch.randn(sae.W_enc.shape, generator=torch.Generator().manual_seed(8)))
    opened = build_index(sae, tiny_lm, rows, tmp_path / "dictionary", config)
    unit = torch.nn.functional.normalize(sae.W_enc.detach(), dim=1)
    cosine = unit @ unit.T - 9 * torch.eye(len(unit))
    differs = 0
    for feature in (0, 17, 95):
        found = opened.feature(feature)
        wanted = cosine[feature].topk(config.neighbours)
        assert [n.feature for n in found.encoder_neighbours] == wanted.indices.tolist()
        np.testing.assert_allclose([n.cosine for n in found.encoder_neighbours], wanted.values, atol=1e-5)
        differs += found.encoder_neighbours != found.neighbours
    assert differs
    opened.close()
