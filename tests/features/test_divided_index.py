"""Several processes build the dictionary that one builds, also after one of them was lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import run_ranks, start_ranks

from features import Dictionary

TABLES = ("events", "features", "examples", "histograms", "feature_tokens", "tokens", "documents", "neighbours")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dictionary that one process builds, with as many threads as the others have: their number rounds sums."""
    out = tmp_path_factory.mktemp("alone") / "one"
    run_ranks("divided_runs:index_tiny", 1, out, 1)
    return out


def assert_same(built: Path, other: Path) -> None:
    expected, got = Dictionary.open(built), Dictionary.open(other)
    got.verify()
    for name in TABLES:
        assert got.sql(f"select * from {name}").equals(expected.sql(f"select * from {name}")), name
    changing = ("created", "seconds", "files", "name", "fingerprint", "build")
    facts = [{key: value for key, value in opened.info.items() if key not in changing} for opened in (expected, got)]
    assert facts[0] == facts[1]
    expected.close()
    got.close()


def test_two_processes_build_the_dictionary_of_one(alone: Path, tmp_path: Path) -> None:
    run_ranks("divided_runs:index_tiny", 2, tmp_path / "two", 2)
    assert_same(alone, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [1, 3])
def test_a_build_that_lost_a_process_goes_on_with_any_number(alone: Path, tmp_path: Path, goes_on: int) -> None:
    out = tmp_path / "cut"
    processes = start_ranks("divided_runs:index_tiny", 2, out, 2, 4)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -9]
    assert "another one of 2 processes is lost" in said[0]
    with pytest.raises(FileNotFoundError, match="unfinished build"):
        Dictionary.open(out)
    chunks = [path.name for path in out.glob("build-*/spill/chunk-*")]
    assert len(chunks) > 1
    run_ranks("divided_runs:index_tiny", goes_on, out, goes_on)
    assert_same(alone, out)
