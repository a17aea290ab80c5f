"""How many entries of a batch are above their floors, and by that which step of a thresholded kind is taken on a GPU.

A dense step costs what d_sae costs, a sparse one what its entries cost, and how many these are only the device knows.

1. Every `EVERY_STEPS` steps the entries of the batch are counted on the device. The number travels while later steps
   run and is read when the next is sent: nothing waits for it.
2. Where it is below `SPARSE_SHARE` of all entries, the following steps are sparse, with room for `SURPLUS` times as
   many, rounded up to a power of two so that memory is used again.
3. A sparse step sends off whether its own entries fitted as soon as they are chosen, and reads the answer when all its
   work has been handed to the device, which so has something to do meanwhile. Where they did not fit, its result is
   dropped and the dense step taken, as up to the next count. No step on cut-off entries is ever applied.

All of it follows from the rows and the weights, and processes that share a batch count and decide together: a resumed
run changes over at the same step, and all processes do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels.above_select import Entries, above_select, row_counts
from sae.kernels.encode import product
from sae.shares import batch_rows, over_rows
from sae.sparse import RaggedCodes
from sae.step import StepResult

EVERY_STEPS = 16
SPARSE_SHARE = 1 / 64
"""Of all entries. Not measured yet: float32 products of 55 TFLOP/s and memory of 4 TB/s would break even at 1/27."""
SURPLUS = 1.25
LEAST_ROOM = 1024


class Late:
    """A number on its way from the device."""

    def __init__(self) -> None:
        self._value: Tensor | None = None
        self._arrival: torch.cuda.Event | None = None

    @property
    def is_sent(self) -> bool:
        return self._value is not None

    def send(self, value: Int[Tensor, ""]) -> None:
        if not value.is_cuda:
            self._value, self._arrival = value.clone(), None
            return
        self._value = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
        self._arrival = torch.cuda.Event()
        self._arrival.record()

    def read(self) -> int:
        """Returns the number; waits only where it was sent a moment ago."""
        assert self._value is not None
        if self._arrival is not None:
            self._arrival.synchronize()
        return int(self._value)


class Density:
    """What is known of a batch's entries; −1 is nothing."""

    def __init__(self) -> None:
        self._known, self._pending = -1, Late()

    def expected(self, step: int) -> int:
        """Returns how many entries the whole batch of this step is taken to have; −1 where the step is to be dense."""
        if self.is_due(step) and self._pending.is_sent:
            self._known = self._pending.read()
        return self._known

    def is_due(self, step: int) -> bool:
        """Says whether this step's entries are to be counted."""
        return step % EVERY_STEPS == 0

    def send(self, count: Int[Tensor, ""]) -> None:
        """Takes the whole batch's count."""
        self._pending.send(count)

    def refuse(self) -> None:
        """Takes note that there were more entries than expected."""
        self._known = -1

    def state(self) -> Int[Tensor, " 2"]:
        """Returns what is known and what is on its way."""
        return torch.tensor([self._known, self._pending.read() if self._pending.is_sent else -1])

    def restore(self, state: Int[Tensor, " 2"]) -> None:
        """Takes up a saved state."""
        self._known, pending = (int(value) for value in state)
        self._pending = Late()
        if pending >= 0:
            self._pending.send(state[1])


@torch.no_grad()
def step_by_density(
    density: Density,
    step: int,
    centred: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    floor: Float[Tensor, "*latents"],
    *,
    sparse: Callable[[RaggedCodes], StepResult],
    dense: Callable[[], StepResult],
    floors_are_positive: bool = False,
) -> StepResult:
    """Returns the result of `sparse` on the entries above `floor` where they are few, else that of `dense`.

    With `floors_are_positive` the sparse step is right only where all floors are; where one is not, more entries count
    than any room has.
    """
    room = _room(density.expected(step), centred, len(W_enc))
    is_due = density.is_due(step)
    if not (room or is_due):
        return dense()
    pre, floors = product(centred, W_enc, b_enc), floor.expand(len(W_enc)).contiguous()
    no_room = pre.numel() + 1  # more than any room

    def counted(count: Tensor) -> Int[Tensor, ""]:
        return torch.where(floors.min() > 0, count, no_room) if floors_are_positive else count

    if not room:
        density.send(over_rows(counted(row_counts(pre, floors).sum())))
        del pre
        return dense()
    found: Entries = above_select(pre, floors, room)
    count, too_many = counted(found.count), Late()
    too_many.send(over_rows((count > room).int()))
    if is_due:
        density.send(over_rows(count.clone()))
    del pre
    result = sparse(found.codes)
    if too_many.read():
        density.refuse()
        return dense()
    return result


def _room(expected: int, centred: Tensor, d_sae: int) -> int:
    """Returns the room for this process's share of the entries; 0 where they are too many, or unknown."""
    n, whole = len(centred), batch_rows(centred)
    if not 0 <= expected <= SPARSE_SHARE * whole * d_sae:
        return 0
    wanted = max(LEAST_ROOM, int(SURPLUS * expected * n / whole) + 1)
    return min(n * d_sae, 1 << (wanted - 1).bit_length())
