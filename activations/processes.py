"""The processes of one job: who takes part, and what they say to each other.

torchrun, `accelerate launch --multi_gpu` and `glassbox … --processes N` start the same command several times and tell
each process its place through the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). `current()`
joins them: gloo carries tensors on CPUs, NCCL those on GPUs. Without such an environment there is one process, and
everything here does nothing.

Every process must come by the same calls in the same order. One that dies leaves the others with `LostProcess`.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch import Tensor

STEP_PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others within a training step."""
STAGE_PATIENCE = timedelta(days=7)
"""How long it waits where their shares of a long stage may differ; one that dies is noticed at once all the same."""
PLACES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LostProcess(ConnectionError):
    """Another process of the job has ended or does not answer."""


@dataclass(frozen=True)
class Processes:
    """The processes that work on one job, seen from one of them."""

    rank: int = 0
    """This process's number, from 0."""
    world: int = 1
    """How many there are."""
    aside: Any = None
    """A second line (gloo), for stages and for threads beside the training step."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks for all."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        return self.world > 1

    def share(self, count: int, unit: int = 1) -> slice:
        """Returns this process's part of `count` things in their order, cut between multiples of `unit`."""
        units = count // unit
        first, last = (rank * units // self.world for rank in (self.rank, self.rank + 1))
        return slice(first * unit, last * unit)

    def sum(self, *tensors: Tensor) -> None:
        """Replaces each tensor by its sum over all processes."""
        if not self.are_several:
            return
        from torch.distributed import all_reduce

        with self._answers():
            waiting = [all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in waiting:
                assert work is not None
                work.wait()

    def gather(self, tensor: Tensor, *, aside: bool = False) -> list[Tensor]:
        """Returns the tensors of all processes in their order; they must have one shape.

        `aside` uses the second line, which is for tensors on the CPU.
        """
        if not self.are_several:
            return [tensor]
        from torch.distributed import all_gather

        made = [torch.empty_like(tensor) for _ in range(self.world)]
        with self._answers():
            all_gather(made, tensor.contiguous(), group=self.aside if aside else None)
        return made

    def collect(self, tensor: Tensor) -> list[Tensor] | None:
        """Returns the tensors of all processes, which are on the CPU and of one shape, in the first; None elsewhere."""
        if not self.are_several:
            return [tensor]
        from torch.distributed import gather

        made = [torch.empty_like(tensor) for _ in range(self.world)] if self.is_first else None
        with self._answers():
            gather(tensor.contiguous(), made, group=self.aside, group_dst=0)
        return made

    def with_another_line(self) -> Processes:
        """Returns the same processes with a second line of their own, for a thread; all must ask for it."""
        if not self.are_several:
            return self
        return replace(self, aside=_line())

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.are_several:
            self._agree(True)

    def on_first(self, action: Callable[[], object]) -> None:
        """Runs `action` in the first process once all have come here, while the others wait; where it fails, all fail.

        Raises:
            LostProcess: the action failed, in all processes but the first, which raises its own error.
        """
        self.wait()
        done = False
        try:
            if self.is_first:
                action()
            done = True
        finally:
            everywhere = self._agree(done) if self.are_several else done
        if not everywhere:
            raise LostProcess(f"process 0 of {self.world} has failed, expected it to go on: see its error")

    def _agree(self, holds: bool) -> bool:
        """Says whether `holds` is true in all processes."""
        from torch.distributed import ReduceOp, all_reduce

        flag = torch.tensor(int(holds))
        with self._answers():
            all_reduce(flag, ReduceOp.MIN, group=self.aside)
        return bool(flag)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            _give_up()
            reason = str(error).strip().splitlines()[0][-120:]
            raise LostProcess(
                f"another one of {self.world} processes is lost ({reason}), expected all to answer: see what ended it, "
                "then give the same command again (training: with --resume); any number of processes "
                "goes on"
            ) from error


ALONE = Processes()
_joined: Processes | None = None
_is_given_up = False


def current() -> Processes:
    """Returns the job's processes, and joins them at the first call.

    Raises:
        ValueError: the launcher started fewer processes than it was asked for, or says too little; or there are more
            processes than GPUs on this machine.
        LostProcess: the others cannot be reached.
    """
    global _joined
    if _joined is None:
        _joined = _join()
    return _joined


def is_launched() -> bool:
    """Says whether a launcher has started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Says whether this process speaks for all, without joining them."""
    return not is_launched() or os.environ.get("RANK", "0") == "0"


def _join() -> Processes:
    if not is_launched():
        _refuse_trap()
        return ALONE
    from torch import distributed

    if missing := [name for name in PLACES if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set and {missing[0]} is not, expected {', '.join(PLACES)}: "
            "launch with torchrun, see docs/parallel.md"
        )
    _take_gpu()
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            distributed.init_process_group(backend, timeout=STEP_PATIENCE)
        except RuntimeError as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise LostProcess(
                f"the other processes are not to be met at {where} "
                f"({str(error).splitlines()[0][:120]}), expected all {os.environ['WORLD_SIZE']} to meet there: check "
                "that the machines reach that address"
            ) from error
        atexit.register(_leave)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _stopped)
    return Processes(distributed.get_rank(), distributed.get_world_size(), _line())


def _line() -> Any:
    from torch.distributed import new_group

    return new_group(backend="gloo", timeout=STAGE_PATIENCE)


def _refuse_trap() -> None:
    """Refuses a launch by accelerate that names several processes and starts one (`--cpu` without `--multi_gpu`)."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
        raise ValueError(
            "accelerate was asked for several processes and has started one, expected all of them: launch with "
            "`accelerate launch --multi_gpu` or torchrun, see docs/parallel.md"
        )


def _take_gpu() -> None:
    """Makes the GPU of this process's number on its machine the current one."""
    if not torch.cuda.is_available():
        return
    local, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= available:
        raise ValueError(
            f"process {local} of this machine has no GPU among {available}, expected one for each process: start "
            f"{available} on it, or set CUDA_VISIBLE_DEVICES= to work on its CPUs"
        )
    torch.cuda.set_device(local)


def _give_up() -> None:
    global _is_given_up
    _is_given_up = True


def _leave() -> None:
    global _joined
    from torch import distributed

    # an orderly farewell waits for those that are lost
    if distributed.is_initialized() and not _is_given_up:
        # a line that is still held would end its threads after the interpreter has gone, where one that frees a tensor
        # ends the process with an error
        _joined = None
        distributed.destroy_process_group()


def _stopped(number: int, frame: FrameType | None) -> None:
    _give_up()
    raise LostProcess(
        f"one of {os.environ['WORLD_SIZE']} processes was told to stop, expected it to go on: another one has ended; "
        "see why, then give the same command again (training: with --resume); any number of processes goes on"
    )


def launch(count: int | None, module: str, arguments: Sequence[str]) -> bool:
    """Runs `python -m module arguments` in `count` processes of this machine; says whether it did.

    There is nothing to launch without a count, with a count of 1, or where the processes run already.

    Raises:
        ValueError: the processes run already and are not `count`.
        LostProcess: one of them has failed.
    """
    if count is None:
        return False
    if is_launched():
        if int(os.environ["WORLD_SIZE"]) != count:
            raise ValueError(
                f"the launcher has started {os.environ['WORLD_SIZE']} processes, --processes says {count}, expected "
                "one number: leave --processes out"
            )
        return False
    if count == 1:
        return False
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **os.environ}
    if subprocess.run([*launcher, "-m", module, *arguments], env=environment, check=False).returncode:
        raise LostProcess(
            f"one of {count} processes has failed, expected all to finish: see its error above, then give the same "
            "command again (training: with --resume); any number of processes goes on"
        )
    return True
