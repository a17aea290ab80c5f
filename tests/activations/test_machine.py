"""What the machine is said to have."""

from __future__ import annotations

import json

from activations.machine import machine


def test_a_machine_has_cores_and_multiplies() -> None:
    found = machine()
    assert found.cores >= 1
    assert found.float32_gflops > 0
    assert found.memory_gb is None or found.memory_gb > 0.1
    assert {row["fact"] for row in found.rows()} >= {"cores", "float32 gflops", "triton"}
    assert json.loads(found.to_json())["cores"] == found.cores


def test_a_model_twice_as_large_reads_half_as_fast() -> None:
    found = machine()
    assert found.tokens_per_s(2e6) * 2 == found.tokens_per_s(1e6)
