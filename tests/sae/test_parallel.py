"""Several processes learn what one learns, to rounding; a run that loses one goes on with any number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import divided_runs
import pytest
import torch
from ranks import run_ranks, start_ranks
from safetensors.torch import load_file

QUICK = ("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "standard", "latents, topk", "latents, nested")
GROUPS = {True: QUICK, False: tuple(kind for kind in divided_runs.KINDS if kind not in QUICK)}
KINDS = [pytest.param(kind, marks=() if kind in QUICK else (pytest.mark.slow,), id=kind) for kind in divided_runs.KINDS]
# sums over halves round otherwise than sums over wholes, and these steps of Adam carry that on
ROUNDING = dict(rtol=1e-3, atol=2e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a kind's group, with the runs of one process and of two below `1` and `2`."""
    made: dict[bool, Path] = {}

    def group_of(kind: str) -> Path:
        is_quick = kind in QUICK
        if is_quick not in made:
            out, kinds = tmp_path_factory.mktemp("divided"), ";".join(GROUPS[is_quick])
            divided_runs.train_kinds(str(out / "1"), "1", kinds)
            run_ranks("divided_runs:train_kinds", 2, out / "2", 2, kinds)
            made[is_quick] = out
        return made[is_quick]

    return group_of


def weights(run: Path) -> dict[str, torch.Tensor]:
    (path,) = run.glob("sae/*/*/sae_weights.safetensors")
    return load_file(path)


def assert_alike(one: Path, several: Path) -> None:
    expected, got = weights(one), weights(several)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(trained: Callable[[str], Path], kind: str) -> None:
    out = trained(kind)
    assert_alike(out / "1" / kind, out / "2" / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_two_processes_are_those_of_the_whole_batch(trained: Callable[[str], Path], kind: str) -> None:
    out = trained(kind)
    logged = [
        [json.loads(line) for line in (out / world / kind / "metrics.jsonl").read_text().splitlines()]
        for world in ("1", "2")
    ]
    assert [line["step"] for line in logged[0]] == [line["step"] for line in logged[1]]
    for one, two in zip(*logged, strict=True):
        for name in ("loss", "explained_variance", "mse", "l0", "dead_frac", "rows"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), (one["step"], name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["matryoshka_batchtopk", "latents, nested"])
def test_a_killed_process_ends_the_job_and_any_number_goes_on(tmp_path: Path, kind: str) -> None:
    divided_runs.train_one(str(tmp_path / "whole"), "1", kind)
    out = tmp_path / "cut"
    for world in (2, 1, 2):
        dies_at = {2: 256 * 12, 1: 256 * 19}[world] if world == 1 or not out.exists() else 0
        processes = start_ranks("divided_runs:train_one", world, out, world, kind, dies_at or "")
        said = [process.communicate(timeout=120)[1] for process in processes]
        codes = [process.returncode for process in processes]
        if not dies_at:
            assert codes == [0, 0], said
            continue
        assert codes[-1] == -9
        if world == 2:
            assert codes[0] == 1
            assert "another one of 2 processes is lost" in said[0]
            assert "any number of processes goes on" in said[0]
    assert_alike(tmp_path / "whole", out)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (dict(sae=dict(architecture="jumprelu")), "architecture `jumprelu`"),
        (dict(sae=dict(architecture="clt", k=4, n_sites=2)), "architecture `clt`"),
        (dict(sae=dict(k=4), optimizer="muon"), "optimizer=muon"),
        (dict(sae=dict(k=4), resample_fracs=[0.5]), "resample_fracs"),
        (dict(sae=dict(k=4), objective="kl"), "objective=kl"),
    ],
)
def test_latents_that_cannot_be_divided_are_refused_by_name(changes: dict, what: str) -> None:
    with pytest.raises(ValueError, match=rf"divide=latents got {what}.*divide rows instead"):
        divided_runs.config("topk", "unused", divide="latents", **changes)


def test_processes_that_read_other_rows_are_refused(tmp_path: Path) -> None:
    processes = start_ranks("divided_runs:train_on_other_rows", 2, tmp_path)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert all("process 1 reads other rows than process 0, expected the same" in words for words in said), said
    assert not list(tmp_path.glob("sae/*/*"))
