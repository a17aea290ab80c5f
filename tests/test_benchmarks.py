"""The GPU benchmark runs from end to end at tiny sizes, and the page of figures says what was found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import index_events, report, step_gpu

ROOT = Path(__file__).resolve().parents[1]


def page_writer() -> Any:
    spec = importlib.util.spec_from_file_location("performance", ROOT / "docs" / "performance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_gpu_benchmark_runs_at_tiny_sizes_and_fills_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    step_gpu.main(["--smoke", "--write"])
    (path,) = tmp_path.glob("step_*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = {line["kind"] for line in lines}
    assert kinds >= {"parity", "machine", "step", "variant", "memory", "density", "curve", "kernel", "chunk"}
    assert "skipped" not in kinds
    assert all(line["torch"] and line["device"] for line in lines)
    path.rename(tmp_path / "step_gpu.jsonl")
    writer = page_writer()
    writer.RESULTS = tmp_path
    for name in ("gpu steps", "gpu variants", "gpu density", "gpu curve", "gpu kernels"):
        assert writer.MISSING not in writer.TABLES[name](), name


def test_the_events_of_the_index_benchmark_are_what_it_says(tmp_path: Path) -> None:
    corpus = index_events.corpus_of(4096, 0)
    drawn = list(index_events.batches(corpus, 512, 8, 1))
    assert sum(len(ordinals) for _, _, ordinals in drawn) == 4096
    for indices, values, _ in drawn:
        filled = indices >= 0
        assert filled.mean() > 0.9
        assert (filled == (values > 0)).all()
        assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in indices.tolist() for row in [np.array(row)])
    counts = np.bincount(np.concatenate([indices[indices >= 0] for indices, _, _ in drawn]), minlength=512)
    assert np.sort(counts)[-51:].sum() > 0.3 * counts.sum(), "a tenth of the features holds much of the events"
    for kind in ("examples", "all"):
        made = index_events.build(corpus, drawn, 512, kind, tmp_path / kind)
        assert made["events"] == counts.sum()


def test_the_performance_page_is_what_the_results_say() -> None:
    writer = page_writer()
    assert writer.markdown() == writer.PAGE.read_text(encoding="utf-8"), "run python docs/performance.py"


def test_what_was_not_measured_is_marked(tmp_path: Path) -> None:
    writer = page_writer()
    writer.RESULTS = tmp_path
    assert all(writer.MISSING in make() for make in writer.TABLES.values())
