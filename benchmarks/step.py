"""The sparse training step against a dense torch step: same loss, same AuxK, same decoder norm, fused Adam, float32.

    python -m benchmarks.step [--write] [--curve]

On the CPU; a GPU's numbers are those of `benchmarks.step_gpu`. Parity is checked first; nothing is printed when it is
red.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Records, interleaved, spread
from sae.architectures import Architecture
from sae.config import SAEConfig, TrainConfig
from sae.learner import Learner

CASES = [
    dict(architecture="topk", d_in=256, d_sae=4096, k=32, batch_rows=2048),
    dict(architecture="topk", d_in=512, d_sae=16384, k=32, batch_rows=2048),
    dict(architecture="batchtopk", d_in=256, d_sae=4096, k=32, batch_rows=2048),
    dict(architecture="matryoshka_batchtopk", d_in=256, d_sae=4096, k=32, batch_rows=2048),
    dict(architecture="jumprelu", d_in=256, d_sae=4096, target_l0=32.0, batch_rows=2048),
    dict(architecture="standard", d_in=256, d_sae=4096, target_l0=32.0, batch_rows=2048),
]
CURVE: list[dict[str, Any]] = [
    *(
        dict(architecture="topk", d_in=256, d_sae=d_sae, k=32, batch_rows=2048)
        for d_sae in (1024, 2048, 4096, 8192, 16384)
    ),
    *(dict(architecture="topk", d_in=256, d_sae=4096, k=32, batch_rows=rows) for rows in (512, 1024, 4096, 8192)),
]
"""Steps whose cost for each latent and row must not rise."""


def dense_learner(config: TrainConfig, device: str) -> Learner:
    """Returns a learner whose step is the dense reference under autograd."""
    learner = Learner(config, torch.device(device))
    architecture = learner.architecture
    dense = Architecture.step.__get__(architecture)
    architecture.step = dense
    return learner


def rows(d_in: int, n: int, device: str) -> Tensor:
    """Returns sparse sums of random directions: activations with something to learn."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in, generator=generator), dim=1)
    active = (torch.rand(n, 4 * d_in, generator=generator) < 0.02) * torch.rand(n, 4 * d_in, generator=generator)
    return (active @ features).to(device)


def config_of(case: dict[str, Any], device: str) -> TrainConfig:
    """Returns a long run's config."""
    return TrainConfig(
        sae=SAEConfig(**{name: value for name, value in case.items() if name != "batch_rows"}),
        batch_rows=case["batch_rows"],
        total_rows=case["batch_rows"] * 10_000,
        out=tempfile.gettempdir(),
        device=device,
    )


def measure(case: dict[str, Any], device: str, repeats: int) -> dict[str, object]:
    """Times both steps on one case."""
    config = config_of(case, device)
    batch = {"rows": rows(case["d_in"], case["batch_rows"], device)}
    sparse, dense = Learner(config, torch.device(device)), dense_learner(config, device)
    for learner in (sparse, dense):
        learner.take(batch)
        learner.silent_rows[: case["d_sae"] // 50] = config.dead_after_rows  # two in a hundred latents are dead
    check_parity(sparse, batch["rows"])
    times = interleaved({"sparse": lambda: sparse.take(batch), "dense": lambda: dense.take(batch)}, repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **case,
        "sparse": spread(times["sparse"]),
        "dense": spread(times["dense"]),
        "ratio": round(medians["dense"] / medians["sparse"], 2),
        "sparse_rows_per_s": round(case["batch_rows"] / medians["sparse"]),
    }


def curve(device: str, repeats: int) -> Iterator[dict[str, object]]:
    """Yields the sparse step's time at every size."""
    for case in CURVE:
        learner = Learner(config_of(case, device), torch.device(device))
        batch = {"rows": rows(case["d_in"], case["batch_rows"], device)}
        learner.take(batch)
        times = interleaved({"sparse": lambda take=learner.take, batch=batch: take(batch)}, repeats)
        yield {**case, "sparse": spread(times["sparse"])}


def check_parity(learner: Learner, rows: Tensor) -> None:
    """Compares the sparse step's loss and gradients with autograd's before anything is timed.

    In float64 entry by entry. In float32, where rounding may put an entry at the very edge of a threshold in or out, by
    the norm of the difference.
    """
    scaled, moment, architecture = rows * learner.scale_in, learner._moment(), learner.architecture
    for dtype in (torch.float64, torch.float32):
        parameters = {name: value.to(dtype) for name, value in learner.parameters.items()}
        x = scaled.to(dtype)
        result = architecture.step(parameters, x, x, moment)
        expected = Architecture.step(architecture, parameters, x, x, moment)
        if dtype == torch.float32:
            torch.testing.assert_close(result.loss, expected.loss, rtol=1e-4, atol=1e-6)
            for name, gradient in expected.gradients.items():
                assert float((result.gradients[name] - gradient).norm()) <= 0.02 * float(gradient.norm()), name
            continue
        torch.testing.assert_close(result.loss, expected.loss, rtol=1e-9, atol=0)
        for name, gradient in expected.gradients.items():
            # sums in another order: the error is measured against the gradient's own size
            tolerance = 1e-9 * float(gradient.abs().max())
            torch.testing.assert_close(result.gradients[name], gradient, rtol=1e-6, atol=tolerance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--curve", action="store_true", help="time the sparse step alone, at many sizes")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    if arguments.curve:
        records = Records("curve", arguments.write)
        for figures in curve("cpu", arguments.repeats):
            records.add("case", **figures)
        return
    records = Records("step", arguments.write)
    for case in CASES:
        records.add("case", **measure(case, "cpu", arguments.repeats))


if __name__ == "__main__":
    main()
