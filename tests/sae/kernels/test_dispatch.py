"""The door of every kernel: where it runs and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from triton.compiler.errors import CompilationError

from sae.kernels import step, trial
from sae.kernels.dispatch import MAX_WIDTH, check_shapes, is_fused, rows_of, uses_triton
from sae.step import StepResult


def test_tensors_that_do_not_fit_are_named() -> None:
    first, second = torch.zeros(4, 3), torch.zeros(3)
    check_shapes("op", {"first": (first, (4, 3)), "second": (second, (3,))})
    with pytest.raises(ValueError, match=r"op got second of shape \(3,\), expected \(4,\): pass tensors of one batch"):
        check_shapes("op", {"first": (first, (4, 3)), "second": (second, (4,))})
    with pytest.raises(ValueError, match=r"op got first with strides \(1, 3\), expected contiguous memory: call"):
        check_shapes("op", {"first": (first.T, (3, 4))})
    with pytest.raises(ValueError, match=r"op got second on meta, expected cpu: move it there"):
        check_shapes("op", {"first": (first, (4, 3)), "second": (second.to("meta"), (3,))})


def test_the_reference_runs_on_a_cpu_unless_the_kernel_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not uses_triton("auto", torch.zeros(1))
    assert uses_triton("triton", torch.zeros(1))
    assert not uses_triton("reference", torch.zeros(1))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="a kernel was asked for on cpu, expected a CUDA device or TRITON_INTERPRET=1"):
        uses_triton("triton", torch.zeros(1))


def test_a_step_on_a_cpu_keeps_to_sparse_products(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(2, 3)
    assert not is_fused(rows, rows)
    monkeypatch.setattr("sae.kernels.dispatch.uses_triton", lambda backend, tensor: True)
    monkeypatch.setattr("sae.kernels.trial.kernels_hold", lambda device: True)
    assert is_fused(rows, rows)
    assert not is_fused(rows.double(), rows.double())
    assert not is_fused(rows, torch.zeros(2, MAX_WIDTH + 1))


def test_importing_the_operations_does_not_import_triton() -> None:
    code = (
        "import sys, pkgutil, importlib, sae.kernels\n"
        "for module in pkgutil.iter_modules(sae.kernels.__path__):\n"
        "    if not module.name.endswith(('_triton', 'tiles')):\n"
        "        importlib.import_module('sae.kernels.' + module.name)\n"
        "print('triton' in sys.modules, 'sae.kernels.decode_loss' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_places_beyond_the_last_code_belong_to_no_row() -> None:
    assert rows_of(torch.tensor([0, 2, 2, 3]), 5).tolist() == [0, 0, 2, 3, 3]


def test_kernels_that_fail_their_trial_are_named_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert trial._difference(torch.device("cpu")) == ""
    right = step.fused_step

    def wrong(*args: Any, backend: str, **kwargs: Any) -> StepResult:
        result = right(*args, backend="reference", **kwargs)
        if backend == "triton":
            result.gradients["W_dec"][3, 2] = float("nan")
        return result

    monkeypatch.setattr(step, "fused_step", wrong)
    trial.kernels_hold.cache_clear()
    with pytest.warns(
        RuntimeWarning, match=r"do not hold on cpu \(gradient of W_dec is off by nan .* install the triton"
    ):
        assert not trial.kernels_hold("cpu")

    def failing(*args: Any, **kwargs: Any) -> StepResult:
        raise CompilationError("", None, "no such instruction")  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(step, "fused_step", failing)
    trial.kernels_hold.cache_clear()
    with pytest.warns(RuntimeWarning, match="no such instruction"):
        assert not trial.kernels_hold("cpu")
    trial.kernels_hold.cache_clear()
