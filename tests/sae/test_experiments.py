"""Run folders are read as they are: finished, unfinished, several below each other, and nothing that is none."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import pytest
import torch

from sae import SAEConfig, TrainConfig, train
from sae.experiments import read_experiments, to_json
from ui.render.experiments import experiments_page, write_experiments_page

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", f"second{HOSTILE.replace('/', '')}")):
        sae = SAEConfig(architecture="topk", d_in=16, d_sae=64, k=4)
        config = TrainConfig(
            sae=sae, total_rows=4096, batch_rows=256, out=str(folder / name / "run"), device="cpu", seed=seed
        )
        train(
            config, (torch.randn(512, 16) for _ in range(8)), metadata={"site": "resid_post.1", "model_name": HOSTILE}
        )
    return folder


def test_every_sae_of_every_run_is_listed_with_its_curve(runs: Path) -> None:
    found = read_experiments([runs])
    assert [each.run for each in found] == ["first/run", f"second{HOSTILE.replace('/', '')}/run"]
    for each in found:
        assert (each.sae, each.architecture, each.d_sae) == ("resid_post.1/topk", "topk", 64)
        assert each.is_finished
        assert not each.is_evaluated
        assert each.curve[-1]["rows"] == 4096
        assert each.row()["explained_variance"] == each.curve[-1]["explained_variance"]
        assert each.row()["state"] == "trained"
    assert json.loads(to_json(found))[0]["curve"][-1]["rows"] == 4096


def test_a_folder_named_twice_counts_once(runs: Path) -> None:
    assert len(read_experiments([runs, runs / "first"])) == 2


def test_a_killed_run_counts_with_what_it_logged(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    run.mkdir()
    (run / "provenance.json").write_text('{"commit": "abc", "metadata": {"model_name": "m"}}')
    (run / "metrics.jsonl").write_text('{"sae": "a/b", "rows": 5, "l0": 3.0}\n{"sae": "a/b", "ro')
    (one,) = read_experiments([run])
    assert (one.run, one.sae, one.model, one.is_finished) == ("killed", "a/b", "m", False)
    assert one.curve == ({"rows": 5, "l0": 3.0},)
    assert one.row()["state"] == "unfinished"


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent is not a folder, expected a run folder"):
        read_experiments([tmp_path / "absent"])
    with pytest.raises(FileNotFoundError, match=r"holds no run: expected folders with metrics\.jsonl"):
        read_experiments([tmp_path])
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("{}\nnot json\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is no JSON"):
        read_experiments([tmp_path])
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"line 1 of .* holds a list, expected an object"):
        read_experiments([tmp_path])


def test_the_page_shows_all_of_them_as_text(runs: Path, tmp_path: Path) -> None:
    found = read_experiments([runs])
    (runs / "first" / "run" / "report.html").write_text("a report")
    try:
        page = write_experiments_page(read_experiments([runs]), tmp_path / "deep" / "page.html").read_text()
    finally:
        (runs / "first" / "run" / "report.html").unlink()
    assert HOSTILE not in page
    assert HOSTILE in unescape(page)
    link = page.split('<a href="')[1].split('"')[0]
    assert (tmp_path / "deep" / link).resolve() == (runs / "first" / "run" / "report.html").resolve()
    plain = experiments_page(found, tmp_path)
    assert '<a href="' not in plain
    assert plain.count('<svg class="scatter"') == 3
