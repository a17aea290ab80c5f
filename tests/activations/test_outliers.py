"""Rows of outlying norm are left out at all sites at once, and where a run was left it goes on without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from activations import (
    ActivationStore,
    DataConfig,
    Document,
    HarvestConfig,
    LanguageModel,
    TokenRows,
    WithoutOutliers,
    harvest,
    norm_limits,
    pack_documents,
    within_limits,
)

SITES = ["resid_post.1", "mlp_act.0"]


@pytest.fixture(scope="module")
def rows(tiny_lm: LanguageModel) -> TokenRows:
    corpus = [Document(f"d{number}", f"document {number}: " + "word " * number) for number in range(20)]
    return pack_documents(corpus, tiny_lm, 16, prepend_bos=True)


@pytest.fixture(scope="module")
def store(tiny_lm: LanguageModel, rows: TokenRows, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    config = HarvestConfig(dtype="float32", batch_tokens=64, shard_rows=128)
    return harvest(tiny_lm, rows, config, tmp_path_factory.mktemp("outliers") / "store", sites=SITES)


def whole(store: ActivationStore, site: str) -> torch.Tensor:
    return torch.cat(list(store.rows(site, shuffle=False)))


def test_limits_are_multiples_of_the_median_norm(tiny_lm: LanguageModel, rows: TokenRows, store: Any) -> None:
    limits = norm_limits(tiny_lm, rows, SITES, 1.5, batch_tokens=64)
    assert list(limits) == SITES
    for site in SITES:
        assert limits[site] == pytest.approx(1.5 * float(whole(store, site).norm(dim=1).median()), rel=1e-5)


def test_a_row_that_is_outlying_at_one_site_is_left_out_at_all(store: ActivationStore) -> None:
    norms = {site: whole(store, site).norm(dim=1) for site in SITES}
    limits = {site: float(value.quantile(0.9)) for site, value in norms.items()}
    expected = (norms[SITES[0]] <= limits[SITES[0]]) & (norms[SITES[1]] <= limits[SITES[1]])
    assert 0 < int((~expected).sum()) < len(expected) // 2
    chunks = list(WithoutOutliers(store.rows(SITES, shuffle=False, chunk_rows=40), limits))
    for site in SITES:
        assert torch.equal(torch.cat([chunk[site] for chunk in chunks]), whole(store, site)[expected])


def test_a_site_without_a_limit_loses_no_row(store: ActivationStore) -> None:
    values = {site: whole(store, site) for site in SITES}
    assert bool(within_limits(values, {}).all())
    assert not bool(within_limits(values, {SITES[1]: 1e-9}).any())


@pytest.mark.parametrize("taken", [0, 1, 6])
def test_rows_without_outliers_go_on_where_they_were_left(store: ActivationStore, taken: int) -> None:
    limits = {site: float(whole(store, site).norm(dim=1).quantile(0.8)) for site in SITES}

    def fresh() -> WithoutOutliers:
        return WithoutOutliers(store.rows(SITES, chunk_rows=40, epochs=2), limits)

    everything = list(fresh())
    left = fresh()
    iterator = iter(left)
    for _ in range(taken):
        next(iterator)
    state = left.state()
    taken_up = WithoutOutliers(store.rows(SITES, chunk_rows=40, epochs=2), dict.fromkeys(SITES, 1.0))
    taken_up.restore(state)
    assert taken_up.limits == limits
    for rest, chunk in zip(taken_up, everything[taken:], strict=True):
        assert all(torch.equal(rest[site], chunk[site]) for site in SITES)
    with pytest.raises(ValueError, match="holds 2 limits of norms, expected 1"):
        WithoutOutliers(store.rows(SITES[:1]), {SITES[0]: 1.0}).restore(state)


def test_a_multiple_that_would_leave_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exclude_outlier_norms=1.0, expected a multiple of the median above 1"):
        DataConfig(exclude_outlier_norms=1.0)
