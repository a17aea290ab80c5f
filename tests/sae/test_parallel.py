"""Several processes learn what one learns, to rounding; a run that loses one goes on with any number."""

from __future__ import annotations

import json
from pathlib import Path

import divided_runs
import pytest
import torch
from ranks import run_ranks, start_ranks
from safetensors.torch import load_file

KINDS = list(divided_runs.KINDS)
# sums over halves round otherwise than sums over wholes, and these steps of Adam carry that on
ROUNDING = dict(rtol=1e-3, atol=2e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process and of two, below `1` and `2`."""
    out = tmp_path_factory.mktemp("divided")
    divided_runs.train_kinds(str(out / "1"), "1", ",".join(KINDS))
    run_ranks("divided_runs:train_kinds", 2, out / "2", 2, ",".join(KINDS))
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    (path,) = run.glob("sae/*/*/sae_weights.safetensors")
    return load_file(path)


def assert_alike(one: Path, several: Path) -> None:
    expected, got = weights(one), weights(several)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **ROUNDING, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(trained: Path, kind: str) -> None:
    assert_alike(trained / "1" / kind, trained / "2" / kind)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_two_processes_are_those_of_the_whole_batch(trained: Path, kind: str) -> None:
    logged = [
        [json.loads(line) for line in (trained / world / kind / "metrics.jsonl").read_text().splitlines()]
        for world in ("1", "2")
    ]
    assert [line["step"] for line in logged[0]] == [line["step"] for line in logged[1]]
    for one, two in zip(*logged, strict=True):
        for name in ("loss", "explained_variance", "mse", "l0", "dead_frac", "rows"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), (one["step"], name)


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_any_number_goes_on(tmp_path: Path) -> None:
    run_ranks("divided_runs:train_one", 1, tmp_path / "whole", 1, "matryoshka_batchtopk")
    out = tmp_path / "cut"
    for world in (2, 1, 2):
        dies_at = {2: 256 * 12, 1: 256 * 19}[world] if world == 1 or not out.exists() else 0
        processes = start_ranks("divided_runs:train_one", world, out, world, "matryoshka_batchtopk", dies_at or "")
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
