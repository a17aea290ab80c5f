"""Whether the kernels give, compiled on this very device, what their references give: tried once in every process.

A compiler or driver that fails, or a result that is off, costs speed and a warning, never a wrong dictionary.
"""

from __future__ import annotations

import warnings
from functools import cache
from subprocess import SubprocessError

import torch
from torch import Tensor

from sae.kernels.cases import random_codes
from sae.kernels.dispatch import Backend
from sae.step import Auxiliary, StepResult

ROWS, WIDTH, LATENTS, MOST = 16, 24, 64, 6
TOLERANCE = 1e-3
"""Of the largest entry: products in float32 or TF32 differ by less, a wrong kernel by more."""


@cache
def kernels_hold(device: str) -> bool:
    """Says whether two small steps come out as those of the references; warns if not.

    One is nested and has dead latents, the other has all entries above floors.
    """
    from triton.errors import TritonError

    # what a compiler, its C compiler, the driver and a launch are known to raise
    failures = (TritonError, RuntimeError, ValueError, TypeError, AttributeError, ImportError, OSError, SubprocessError)
    try:
        trouble = _difference(torch.device(device))
    except failures as error:
        trouble = f"{type(error).__name__}: {error}"
    if trouble:
        warnings.warn(
            f"the Triton kernels do not hold on {device} ({trouble}), expected the results of their references: "
            "training takes sparse matrix products instead, which are slower; install the triton that belongs to this "
            f"torch ({torch.__version__})",
            RuntimeWarning,
            stacklevel=2,
        )
    return not trouble


def _difference(device: torch.device) -> str:
    for got, expected in zip(_trial_steps(device, "triton"), _trial_steps(device, "reference"), strict=True):
        pairs = {"loss": (got.loss, expected.loss), "fired": (got.fired.float(), expected.fired.float())}
        pairs |= {f"gradient of {name}": (got.gradients[name], value) for name, value in expected.gradients.items()}
        for name, (value, wanted) in pairs.items():
            largest = float(wanted.abs().max())
            off = float((value - wanted).abs().max())
            if not off <= TOLERANCE * largest:  # false for NaN too
                return f"{name} is off by {off:.3g} at a largest entry of {largest:.3g}"
    return ""


def _trial_steps(device: torch.device, backend: Backend) -> tuple[StepResult, StepResult]:
    from sae.kernels.above_select import above_select
    from sae.kernels.step import fused_step, penalised_step

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    parameters = {
        "W_enc": normal(LATENTS, WIDTH),
        "W_dec": normal(LATENTS, WIDTH),
        "b_enc": normal(LATENTS),
        "b_dec": normal(WIDTH),
    }
    x = normal(ROWS, WIDTH)
    codes = random_codes(ROWS, LATENTS, MOST, frequent=1, device=device)
    dead = torch.arange(LATENTS, device=device) >= LATENTS - LATENTS // 4
    nested = fused_step(
        parameters,
        x,
        x,
        codes,
        widths=[LATENTS // 4, LATENTS],
        weights=torch.tensor([0.25, 0.75], device=device),
        auxiliary=Auxiliary(dead, k=4, alpha=0.03, capacity=LATENTS // 4),
        backend=backend,
    )
    # given, not multiplied: what lies near a floor must not differ between the two
    above, _ = above_select(normal(ROWS, LATENTS), normal(LATENTS).abs(), ROWS * LATENTS // 2, backend=backend)
    return nested, penalised_step(parameters, x, x, above, above.values.sum(), slopes=above.values, backend=backend)[0]
