"""The sparse training step against a dense torch step: same loss, same AuxK, same decoder norm, fused Adam, float32.

    python -m benchmarks.step [--write]

Parity is checked first; nothing is printed when it is red.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import torch
from torch import Tensor

from benchmarks.report import finish, interleaved, spread
from sae.config import SAEConfig, TrainConfig
from sae.step import Parameters, StepResult, reference_loss, sparse_step
from sae.trainer import _Trainer

CASES = [
    dict(d_in=256, d_sae=4096, k=32, batch_rows=2048),
    dict(d_in=512, d_sae=16384, k=32, batch_rows=2048),
]


class DenseTrainer(_Trainer):
    """The same trainer with the dense reference and autograd in place of the sparse step."""

    def take(self, batch: Tensor) -> None:
        x = batch * self.scale
        leaves = Parameters(*(value.requires_grad_() for value in self.parameters))
        loss = reference_loss(
            leaves,
            x,
            self.config.sae.active,
            dead=self.silent_rows >= self.config.dead_after_rows,
            auxk_k=self.config.sae.auxk_latents,
            auxk_alpha=self.config.sae.auxk_alpha,
        )
        gradients = Parameters(*torch.autograd.grad(loss, leaves))
        with torch.no_grad():
            for value in self.parameters:
                value.requires_grad_(False)
            nothing = torch.zeros((), device=x.device)
            fired = torch.zeros(self.config.sae.d_sae, dtype=torch.bool, device=x.device)
            self._apply(StepResult(gradients, loss.detach(), nothing, nothing, fired, nothing))
        self.step += 1


def rows(d_in: int, n: int, device: str) -> Tensor:
    """Returns sparse sums of random directions: activations with something to learn."""
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in, generator=generator), dim=1)
    active = (torch.rand(n, 4 * d_in, generator=generator) < 0.02) * torch.rand(n, 4 * d_in, generator=generator)
    return (active @ features).to(device)


def measure(case: dict[str, int], device: str, repeats: int) -> dict[str, object]:
    """Times both steps on one case."""
    config = TrainConfig(
        sae=SAEConfig(d_in=case["d_in"], d_sae=case["d_sae"], k=case["k"]),
        batch_rows=case["batch_rows"],
        total_rows=case["batch_rows"] * 10_000,
        out=tempfile.gettempdir(),
        device=device,
    )
    x = rows(case["d_in"], case["batch_rows"], device)
    sparse, dense = _Trainer(config, torch.device(device)), DenseTrainer(config, torch.device(device))
    for trainer in (sparse, dense):
        trainer._calibrate(x)
        trainer.silent_rows[: case["d_sae"] // 50] = config.dead_after_rows  # two in a hundred latents are dead
    check_parity(sparse, x)
    times = interleaved({"sparse": lambda: sparse.take(x), "dense": lambda: dense.take(x)}, repeats)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **case,
        "sparse": spread(times["sparse"]),
        "dense": spread(times["dense"]),
        "ratio": round(medians["dense"] / medians["sparse"], 2),
        "sparse_rows_per_s": round(case["batch_rows"] / medians["sparse"]),
    }


def check_parity(trainer: _Trainer, x: Tensor) -> None:
    """Compares the sparse step's loss and gradients with autograd's before anything is timed."""
    auxk_k, auxk_alpha = trainer.config.sae.auxk_latents, trainer.config.sae.auxk_alpha
    dead = trainer.silent_rows >= trainer.config.dead_after_rows
    x = x * trainer.scale
    result = sparse_step(
        trainer.parameters, x, trainer.config.sae.active, dead=dead, auxk_k=auxk_k, auxk_alpha=auxk_alpha
    )
    leaves = Parameters(*(value.clone().requires_grad_() for value in trainer.parameters))
    loss = reference_loss(leaves, x, trainer.config.sae.active, dead=dead, auxk_k=auxk_k, auxk_alpha=auxk_alpha)
    gradients = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(result.loss, loss.detach(), rtol=1e-4, atol=1e-6)
    for got, expected in zip(result.gradients, gradients, strict=True):
        # float32 sums in another order: the error is measured against the gradient's own size
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    cases = [measure(case, arguments.device, arguments.repeats) for case in CASES]
    finish("step", {"cases": cases}, arguments.write)


if __name__ == "__main__":
    main()
