"""A `saes` section expands into exactly the SAEs it asks for."""

from __future__ import annotations

import pytest

from sae import TrainSection
from sae.jobs import expand_saes, sites_of

WIDTHS = {"resid_post.1": 8, "mlp_out.0": 6}


def expand(*entries: dict) -> list:
    return expand_saes(entries, TrainSection(lr=2e-3, batch_rows=64), WIDTHS.__getitem__)


def test_lists_make_variants_at_every_site() -> None:
    jobs = expand({"sites": ["resid_post.1", "mlp_out.0"], "d_sae": [16, 32], "k": [2, 4]})
    assert len(jobs) == 8
    assert {(job.site, job.sae.d_in) for job in jobs} == set(WIDTHS.items())
    assert {job.name for job in jobs} == {f"topk_width{d}_k{k}" for d in (16, 32) for k in (2, 4)}


def test_train_settings_of_an_entry_win_over_the_section() -> None:
    jobs = expand({"sites": "resid_post.1", "d_sae": 16, "k": 2, "seed": [0, 1], "lr": 5e-3})
    assert [(job.settings.seed, job.settings.lr, job.settings.batch_rows) for job in jobs] == [
        (0, 5e-3, 64),
        (1, 5e-3, 64),
    ]
    assert jobs[1].train_config(640, "x").seed == 1


def test_sites_are_listed_once() -> None:
    assert sites_of([{"sites": ["b", "a"]}, {"sites": "b"}]) == ["b", "a"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"sites": "resid_post.1", "d_sae": 16, "k": 2, "widht": 3}, "unknown key `widht`"),
        ({"sites": "resid_post.1", "d_sae": 16, "k": 2, "d_in": 9}, "d_in=9 was given, but resid_post.1 is 8 wide"),
        ({"d_sae": 16, "k": 2}, "names sites=None"),
        ({"sites": "resid_post.1", "d_sae": 16}, "needs k"),
    ],
)
def test_entries_that_cannot_be_honoured_are_named(entry: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand(entry)


def test_no_entries_and_equal_names_are_refused() -> None:
    with pytest.raises(ValueError, match="`saes` is empty"):
        expand()
    entry = {"sites": "resid_post.1", "d_sae": 16, "k": 2}
    with pytest.raises(ValueError, match="two SAEs at resid_post.1 are named `topk`"):
        expand(entry, entry)
