"""Runs one function in several processes that know of each other, as a launcher starts them.

`run_ranks("module:function", world, argument)` imports the module from this folder's path in every process and calls
the function with the argument; `python ranks.py` is what each of them runs.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **{name: str(value) for name, value in places.items()}, "PYTHONPATH": path}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start_ranks(function: str, world: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Starts the processes; one alone gets no launcher's environment."""
    port = free_port()
    command = [sys.executable, str(HERE / "ranks.py"), function, *map(str, arguments)]
    plain = {name: value for name, value in environment(0, 1, port).items() if name not in ("RANK", "WORLD_SIZE")}
    return [
        subprocess.Popen(
            command,
            env={**(plain if world == 1 else environment(rank, world, port)), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def run_ranks(function: str, world: int, *arguments: object, timeout: float = 300) -> None:
    """Runs `module:function` in `world` processes; an assertion error with their last words where one fails."""
    processes = start_ranks(function, world, *arguments)
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"process {rank} of {world}: {said[rank][-2000:]}"


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), name)(*sys.argv[2:])
