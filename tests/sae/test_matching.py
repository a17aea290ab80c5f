"""The one-to-one matching is the best one there is."""

from __future__ import annotations

import itertools

import pytest
import torch

from sae.matching import assign


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (3, 6), (6, 6)])
def test_matching_equals_the_best_of_all(rows: int, columns: int) -> None:
    for seed in range(10):
        similarity = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
        best = max(
            float(similarity[torch.arange(rows), list(order)].sum())
            for order in itertools.permutations(range(columns), rows)
        )
        matched = assign(similarity)
        assert len(matched.unique()) == rows
        assert float(similarity[torch.arange(rows), matched].sum()) == pytest.approx(best, rel=1e-6)


def test_ties_are_matched_one_to_one() -> None:
    assert assign(torch.ones(5, 5)).sort().values.tolist() == [0, 1, 2, 3, 4]


def test_rows_beyond_the_columns_stay_alone() -> None:
    similarity = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.1, 0.6]])
    assert assign(similarity).tolist() == [0, 1, -1]


def test_a_shuffled_dictionary_is_found_again() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(200, 32, generator=generator), dim=1)
    order = torch.randperm(200, generator=generator)
    noisy = rows[order] + 0.05 * torch.randn(200, 32, generator=generator)
    assert torch.equal(assign(noisy @ rows.T), order)
