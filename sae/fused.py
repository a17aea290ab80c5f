"""A whole training step of the top-k family on a GPU: chosen, decoded, summed and moved without a gradient in memory.

Enters: scaled rows, and where in its run the step stands. Leaves: weights and moments moved in place, counters taken
further. The host waits for nothing:

1. Rates, weights of nested losses and the step's number are scalars on the device, filled before each step.
2. The step is captured as a CUDA graph and replayed. A graph belongs to one k, one list of nested widths and one room
   for dead latents: where a schedule changes these, the first such step runs kernel by kernel, the second is captured.
3. How much room dead latents need follows from a count that was sent to the host some steps ago (`DeadRoom`).

The results are those of `Architecture.step` and Adam, to rounding. On a CPU the same path runs through the kernels'
references or the interpreter, where tests ask for it (`sae.kernels.dispatch.default_backend`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.architectures import Moment
from sae.architectures.topk import TopK
from sae.config import TOP_K_FAMILY, TrainConfig
from sae.density import Late
from sae.kernels.dispatch import is_fused, uses_triton
from sae.kernels.encode import FP8, fp8_trouble
from sae.kernels.latent_adam import Adam, Moments, copy_into, factors, move
from sae.kernels.step import fused_update
from sae.sparse import RaggedCodes
from sae.step import Auxiliary, StepResult

MATRICES = ("W_enc", "W_dec")
MAX_GRAPHS = 4
"""Captured steps that are kept; the one longest unused makes room."""
MOST_STEPS_BETWEEN_COUNTS = 32
LEAST_ROOM, LARGEST_FULL_ROOM, LARGEST_SHARE = 64, 4096, 4
"""Room for dead latents: at least the first; for all up to the second, beyond it for one in the third of them."""
_MOMENTS = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}
_COPIES = {
    "float32": {},
    "bfloat16": {"W_enc": torch.bfloat16, "W_dec": torch.bfloat16},
    "fp8": {"W_enc": FP8, "W_dec": torch.bfloat16},
}


def trouble(config: TrainConfig, device: torch.device, has_objective: bool) -> str:
    """Returns why a run's steps are not fused with their update; empty where they are."""
    sae = config.sae
    rows = torch.empty(0, max(sae.d_in * sae.n_sites, sae.output_width * sae.n_sites), device=device)
    if sae.mechanism not in TOP_K_FAMILY or sae.architecture == "clt":
        return f"architecture `{sae.architecture}` has another step"
    for name, is_other in (
        ("optimizer", config.optimizer != "adam"),
        ("schedule_free", config.schedule_free),
        ("clip_norm", config.clip_norm is not None),
        ("objective", has_objective),
    ):
        if is_other:
            return f"{name}={getattr(config, name)} needs stored gradients"
    if not is_fused(rows, rows):
        return f"no kernels run on {device}"
    return ""


def require(config: TrainConfig, device: torch.device, why: str) -> None:
    """Raises `ValueError` where settings ask for what only the fused step has, or for fp8 where it does not run."""
    for name in ("moments", "compute_dtype"):
        if why and getattr(config, name) != "float32":
            raise ValueError(
                f"{name}={getattr(config, name)} belongs to the fused step on a GPU, which this run does not take "
                f"({why}): set {name}=float32"
            )
    sae = config.sae
    if config.compute_dtype == "fp8" and (unfit := fp8_trouble(device, sae.d_in * sae.n_sites, sae.d_sae)):
        raise ValueError(f"compute_dtype=fp8 does not run here ({unfit}): set compute_dtype=bfloat16")


class DeadRoom:
    """How many dead latents a step makes room for, known without waiting for the device.

    Every few steps latents are counted that have been silent for so long that they may be dead by the time the count is
    used up; the number arrives while later steps run. Rooms are powers of two, so that graphs can be used again.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._every = max(1, min(MOST_STEPS_BETWEEN_COUNTS, config.auxk_after_rows // config.batch_rows // 4))
        self._silent_for = config.auxk_after_rows - (2 * self._every - 1) * config.batch_rows
        d_sae = config.sae.d_sae
        self._most = min(d_sae, max(LARGEST_FULL_ROOM, d_sae // LARGEST_SHARE))
        self._room, self._pending = 0, Late()
        self._asked_at: int | None = None

    def at(self, step: int, silent_rows: Int[Tensor, " d_sae"]) -> int:
        """Returns the room of a step that is about to be taken."""
        is_due = step % self._every == 0 and step != self._asked_at
        self._asked_at = step
        if is_due or not self._pending.is_sent:
            counted = (silent_rows >= self._silent_for).sum()
            count = self._pending.read() if self._pending.is_sent else int(counted)
            room = min(self._most, len(silent_rows), max(LEAST_ROOM, 1 << max(0, count - 1).bit_length()))
            self._room = room if count else 0
            self._pending.send(counted)
        return self._room

    def state(self) -> Int[Tensor, " 2"]:
        """Returns room and count, −1 where none is on its way."""
        return torch.tensor([self._room, self._pending.read() if self._pending.is_sent else -1])

    def restore(self, state: Int[Tensor, " 2"]) -> None:
        """Takes up a saved state."""
        self._room, count = (int(value) for value in state)
        if count >= 0:
            self._pending.send(state[1])


@dataclass
class _Replay:
    """A captured step and what it leaves behind."""

    graph: torch.cuda.CUDAGraph
    result: StepResult
    noted: dict[str, Tensor]


class FusedTraining:
    """Weights, Adam's moments and the captured steps of one SAE."""

    def __init__(
        self,
        config: TrainConfig,
        architecture: TopK,
        parameters: dict[str, Tensor],
        silent_rows: Int[Tensor, " d_sae"],
        count: Callable[[StepResult], None],
    ) -> None:
        """`silent_rows` and what `count` changes must stay where they are: captured steps hold their addresses."""
        self._config, self._architecture, self._parameters = config, architecture, parameters
        self._silent_rows, self._count = silent_rows, count
        self._device = silent_rows.device
        self._adam = Adam(config.beta1, config.beta2, is_unit=config.sae.has_unit_decoder)
        small = _MOMENTS[config.moments]
        self.moments = {n: Moments.zeros(v, small if n in MATRICES else None) for n, v in parameters.items()}
        self._copies = {n: torch.empty_like(parameters[n], dtype=d) for n, d in _COPIES[config.compute_dtype].items()}
        self._lr = torch.zeros((), dtype=torch.float64, device=self._device)
        self._taken = torch.zeros((), dtype=torch.int64, device=self._device)
        self._inputs: list[Tensor] = []
        self._weights: dict[int, Tensor] = {}
        self._replays: dict[object, _Replay | None] = {}
        # references wait for the device
        self._captures = self._device.type == "cuda" and uses_triton("auto", silent_rows)
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        self.restart()

    @torch.no_grad()
    def take(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"], moment: Moment, lr: float) -> StepResult:
        """Moves the weights by one step; `y` may be `x` itself."""
        self._lr.fill_(lr)
        self._taken.add_(1)
        widths, weights = self._architecture.group_weights(moment, x)
        if weights is not None:
            weights = self._weights.setdefault(len(weights), torch.empty_like(weights)).copy_(weights)
        if not self._captures:
            return self._step(x, y, moment, widths, weights)
        key = (self._architecture.k(moment), tuple(widths), weights is None, moment.room, y is x)
        x, y = self._held(x, y)
        if key not in self._replays:
            # compiles kernels and copies constants to the device, which a capture must not
            self._remember(key, None)
            return self._step(x, y, moment, widths, weights)
        replay = self._replays[key] or self._captured(x, y, moment, widths, weights)
        self._remember(key, replay)
        replay.graph.replay()
        self._architecture.noted = dict(replay.noted)
        return replay.result

    def _held(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Copies a batch to where captured steps read it."""
        if not self._inputs:
            self._inputs = [torch.empty_like(x)] if y is x else [torch.empty_like(x), torch.empty_like(y)]
        for held, given in zip(self._inputs, (x, y), strict=False):
            held.copy_(given)
        return self._inputs[0], self._inputs[-1]

    def _remember(self, key: object, replay: _Replay | None) -> None:
        self._replays.pop(key, None)
        self._replays[key] = replay
        while len(self._replays) > MAX_GRAPHS:
            del self._replays[next(iter(self._replays))]

    def _captured(self, x: Tensor, y: Tensor, moment: Moment, widths: list[int], weights: Tensor | None) -> _Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self._step(x, y, moment, widths, weights)
        return _Replay(graph, result, dict(self._architecture.noted))

    def _step(self, x: Tensor, y: Tensor, moment: Moment, widths: list[int], weights: Tensor | None) -> StepResult:
        architecture, parameters, sae = self._architecture, self._parameters, self._config.sae
        codes = architecture.choose({**parameters, **self._copies}, architecture.centre(parameters, x), moment)
        dead = self._silent_rows >= self._config.auxk_after_rows
        result = fused_update(
            parameters,
            self.moments,
            self._lr,
            self._taken,
            self._adam,
            x,
            y,
            RaggedCodes(*codes),
            copies=self._copies,
            is_signed=architecture.is_signed,
            subtracts_b_dec=sae.subtracts_b_dec,
            widths=widths,
            weights=weights,
            ranks=architecture.ranks(),
            auxiliary=Auxiliary(dead, sae.auxk_latents, sae.auxk_alpha, moment.room),
        )
        pace = factors(self._lr, self._taken, self._adam, x.dtype)
        for name, gradient in result.gradients.items():
            move(parameters[name], gradient, self.moments[name], pace, self._adam)
        self._count(result)
        return result

    # What an `Optimizer` offers

    def kept(self) -> dict[str, Tensor]:
        """Returns the parameters that training is for."""
        return self._parameters

    def restart(self) -> None:
        """Takes the parameters as they now stand, after they were set from outside."""
        for name, copy in self._copies.items():
            copy_into(copy, self._parameters[name])

    def forget(self, latents: Tensor) -> None:
        """Clears what is remembered of some latents (row indices), whose weights were set from outside."""
        d_sae = len(self._parameters["W_dec"])
        for moments in self.moments.values():
            for part in moments:
                if part is not None and len(part) == d_sae:
                    part[latents] = 0
        self.restart()

    def state(self) -> dict[str, Tensor]:
        """Returns everything that the next step depends on, named as by `Optimizer`."""
        tensors: dict[str, Tensor] = {}
        for place, name in enumerate(self._parameters):
            moments = self.moments[name]
            tensors |= {f"0/{place}/exp_avg": moments.mean, f"0/{place}/exp_avg_sq": moments.square}
            tensors[f"0/{place}/step"] = self._taken.float()
            if moments.units is not None:
                tensors[f"0/{place}/units"] = moments.units
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a saved state."""
        for place, name in enumerate(self._parameters):
            parts = (tensors.get(f"0/{place}/{part}") for part in ("exp_avg", "exp_avg_sq", "units"))
            for held, saved in zip(self.moments[name], parts, strict=True):
                if held is not None and saved is not None:
                    held.copy_(saved)
        if (taken := tensors.get("0/0/step")) is not None:
            self._taken.fill_(int(taken))
        self.restart()
