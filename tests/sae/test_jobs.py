"""A `saes` section expands into exactly the SAEs it asks for."""

from __future__ import annotations

import pytest

from sae import TrainSection
from sae.jobs import expand_saes, sites_of

WIDTHS = {"resid_post.1": 8, "mlp_out.0": 6, "mlp_in.0": 8, "mlp_in.1": 8, "mlp_out.1": 6, "compare:resid_post.1": 8}


def expand(*entries: dict) -> list:
    return expand_saes(entries, TrainSection(lr=2e-3, batch_rows=64), WIDTHS.__getitem__)


def test_lists_make_variants_at_every_site() -> None:
    jobs = expand({"sites": ["resid_post.1", "mlp_out.0"], "architecture": "topk", "d_sae": [16, 32], "k": [2, 4]})
    assert len(jobs) == 8
    assert {(job.site, job.sae.d_in) for job in jobs} == {("resid_post.1", 8), ("mlp_out.0", 6)}
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


def test_architectures_make_variants_named_after_themselves() -> None:
    jobs = expand({"sites": "resid_post.1", "d_sae": 16, "architecture": ["standard", "jumprelu"]})
    assert [job.name for job in jobs] == ["standard", "jumprelu"]
    named = expand({"sites": "resid_post.1", "d_sae": 16, "architecture": ["standard", "jumprelu"], "name": "a"})
    assert [job.name for job in named] == ["a_standard", "a_jumprelu"]


def test_a_list_that_is_one_setting_makes_no_variants() -> None:
    entry = {"sites": "resid_post.1", "d_sae": 16, "k": 2, "architecture": "matryoshka_batchtopk"}
    (job,) = expand({**entry, "matryoshka_widths": [4, 16]})
    assert job.sae.matryoshka_widths == [4, 16]
    jobs = expand({**entry, "matryoshka_widths": [[4, 16], [8, 16]]})
    assert [job.name for job in jobs] == [f"matryoshka_batchtopk_matryoshka_widths{w}" for w in ("4-16", "8-16")]


def test_a_warm_start_may_stand_in_an_entry() -> None:
    entry = {"sites": "resid_post.1", "architecture": "topk", "d_sae": 16, "k": 2}
    jobs = expand({**entry, "init_from": ["runs/a/topk", "runs/b/topk"]})
    assert [job.settings.init_from for job in jobs] == ["runs/a/topk", "runs/b/topk"]
    assert [job.name for job in jobs] == ["topk_init_fromruns-a-topk", "topk_init_fromruns-b-topk"]


def test_a_crosscoder_is_one_sae_over_all_its_sites() -> None:
    entry = {"architecture": "crosscoder", "d_sae": 16, "k": 2}
    (job,) = expand({**entry, "sites": ["resid_post.1", "compare:resid_post.1"]})
    assert (job.sae.n_sites, job.sae.d_in, job.folder) == (2, 8, "resid_post.1+compare.resid_post.1")
    assert job.all_sites == ("resid_post.1", "compare:resid_post.1")
    two = expand({**entry, "sites": [["mlp_in.0", "mlp_in.1"], ["mlp_out.0", "mlp_out.1"]]})
    assert [(job.folder, job.sae.d_in) for job in two] == [("mlp_in.0+mlp_in.1", 8), ("mlp_out.0+mlp_out.1", 6)]


def test_a_transcoder_writes_the_mlps_output_unless_told_otherwise() -> None:
    entry = {"architecture": ["transcoder", "skip_transcoder"], "d_sae": 16, "k": 2}
    jobs = expand({**entry, "sites": ["mlp_in.0", "mlp_in.1"]})
    assert [(job.name, job.wiring) for job in jobs] == [
        (name, ((f"mlp_in.{layer}",), (f"mlp_out.{layer}",)))
        for name in ("transcoder", "skip_transcoder")
        for layer in (0, 1)
    ]
    assert {(job.sae.d_in, job.sae.output_width) for job in jobs} == {(8, 6)}
    (other,) = expand({**entry, "architecture": "transcoder", "sites": "mlp_in.0", "target_sites": "resid_post.1"})
    assert other.wiring.target_sites == ("resid_post.1",)
    assert sites_of([{**entry, "sites": ["mlp_in.0"]}]) == ["mlp_in.0", "mlp_out.0"]


def test_a_cross_layer_transcoder_reads_and_writes_all_its_sites() -> None:
    (job,) = expand({"architecture": "clt", "sites": ["mlp_in.0", "mlp_in.1"], "d_sae": 16, "k": 2})
    assert job.wiring == (("mlp_in.0", "mlp_in.1"), ("mlp_out.0", "mlp_out.1"))
    assert (job.sae.n_sites, job.sae.d_in, job.sae.d_out) == (2, 8, 6)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"sites": ["resid_post.1", "mlp_out.0"], "architecture": "crosscoder", "d_sae": 16, "k": 2},
            "resid_post.1 is 8 wide and mlp_out.0 is 6, expected one width",
        ),
        ({"sites": "resid_post.1", "architecture": "crosscoder", "d_sae": 16, "k": 2}, "reads several sites"),
        (
            {"sites": "resid_post.1", "architecture": "transcoder", "d_sae": 16, "k": 2},
            "a transcoder that reads resid_post.1 has no usual target, expected target_sites",
        ),
        (
            {"sites": "mlp_in.0", "target_sites": ["mlp_out.0", "mlp_out.1"], "architecture": "transcoder", "k": 2},
            "expected one target for each site",
        ),
        ({"sites": "mlp_in.0", "target_sites": "mlp_out.0", "d_sae": 16, "k": 2}, "writes the sites it reads"),
        (
            {"sites": "mlp_in.0", "architecture": "transcoder", "d_out": 7, "d_sae": 16},
            "d_out=7 was given, but mlp_out",
        ),
        (
            {"sites": "mlp_in.0", "architecture": "transcoder", "d_sae": 16, "k": 2, "objective": "kl"},
            "expected an autoencoder of one site",
        ),
        (
            {"sites": "compare:resid_post.1", "d_sae": 16, "k": 2, "objective": "ce"},
            "at compare:resid_post.1, expected an autoencoder of one site of the first model",
        ),
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
    entry = {"sites": "resid_post.1", "architecture": "topk", "d_sae": 16, "k": 2}
    with pytest.raises(ValueError, match="two SAEs at resid_post.1 are named `topk`"):
        expand(entry, entry)
