"""Processes find each other however they are launched, and a launch that is not what it seems is refused."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import free_port

from activations import processes
from activations.processes import ALONE, Processes
from ui import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*processes.PLACES, "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes, "_joined", None)
    return monkeypatch


def test_without_a_launcher_there_is_one_process(unlaunched: pytest.MonkeyPatch) -> None:
    assert processes.current() is ALONE
    done: list[int] = []
    ALONE.on_first(lambda: done.append(1))
    ALONE.wait()
    assert done == [1]
    assert not ALONE.are_several


@pytest.mark.parametrize(("count", "world", "unit"), [(10, 3, 1), (2, 5, 1), (0, 2, 1), (96, 4, 16), (80, 3, 16)])
def test_shares_are_all_things_in_order_each_once(count: int, world: int, unit: int) -> None:
    cut = [Processes(rank, world).share(count, unit) for rank in range(world)]
    assert [thing for part in cut for thing in range(count)[part]] == list(range(count))
    assert all(part.start % unit == 0 for part in cut)
    sizes = [part.stop - part.start for part in cut]
    assert max(sizes) - min(sizes) <= unit


def test_the_launch_that_starts_one_process_of_several_is_refused(unlaunched: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --num_processes 2 --cpu` leaves in the environment (accelerate 1.15)."""
    unlaunched.setenv("ACCELERATE_MIXED_PRECISION", "no")
    unlaunched.setenv("MASTER_PORT", "29500")
    with pytest.raises(ValueError, match=r"asked for several processes and has started one.*--multi_gpu"):
        processes.current()


def test_half_a_launcher_is_refused(unlaunched: pytest.MonkeyPatch) -> None:
    unlaunched.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2 is set and RANK is not"):
        processes.current()


def test_another_count_than_the_launcher_s_is_refused(unlaunched: pytest.MonkeyPatch) -> None:
    unlaunched.setenv("WORLD_SIZE", "2")
    assert not processes.launch(2, "ui.cli", [])
    with pytest.raises(ValueError, match="has started 2 processes, --processes says 3"):
        processes.launch(3, "ui.cli", [])


def test_commands_of_one_process_refuse_several(
    unlaunched: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unlaunched.setenv("WORLD_SIZE", "4")
    assert cli.run(["explain", "nowhere"]) == 1
    assert "`glassbox explain` was started in 4 processes, expected one" in capsys.readouterr().err


SETTINGS = [
    "data.total_tokens=6000",
    "data.context_tokens=64",
    "harvest.shard_rows=1024",
    "train.batch_rows=256",
    "train.device=cpu",
    "model.device=cpu",
    "train.checkpoint_every_steps=5",
    "saes=[{sites: [resid_post.2], name: one, d_sae: 512, k: 8}]",
]
COMMANDS = {"torchrun": ["torch.distributed.run"], "accelerate": ["accelerate.commands.launch"]}


def documented(beginning: str, **other: str) -> list[str]:
    """Returns the line of docs/parallel.md that begins so, for two small processes that harvest."""
    page = (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(beginning)]
    words = [word for word in shlex.split(line, comments=True) if "=" not in word]
    told = {"8": "2", "train": "harvest", "CONFIG": "demo", "launch": "", **other}
    words = [told.get(word, word) for word in words]
    return [sys.executable, "-m", *COMMANDS[words[0]], *(word for word in words[1:] if word)]


def environment() -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def assert_shared(run: Path) -> None:
    written = {path.name: path.read_text().count("\n") for path in (run / "store").glob("shards-*.jsonl")}
    assert written == {"shards-00000.jsonl": 3, "shards-00001.jsonl": 3}


@pytest.mark.slow
@pytest.mark.parametrize("line", ["torchrun --standalone", "ACCELERATE_USE_CPU=true accelerate"])
def test_the_documented_lines_start_two_processes_that_share_the_harvest(tmp_path: Path, line: str) -> None:
    command = [*documented(line), f"out={tmp_path / 'run'}", *SETTINGS]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_shared(tmp_path / "run")
    assert done.stdout.count("Store: ") == 1


@pytest.mark.slow
def test_the_documented_lines_for_two_machines_share_the_harvest(tmp_path: Path) -> None:
    here = {"10.0.0.1": "127.0.0.1", "29500": str(free_port()), "8": "1"}
    lines = [documented(f"torchrun --nnodes 2 --nproc_per_node 8 --node_rank {node}", **here) for node in (0, 1)]
    jobs = [
        subprocess.Popen([*line, f"out={tmp_path / 'run'}", *SETTINGS], env=environment(), cwd=ROOT) for line in lines
    ]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    assert_shared(tmp_path / "run")


@pytest.mark.slow
def test_the_command_itself_starts_processes_and_says_when_one_dies(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ui.cli", "train", "demo", f"out={out}", *SETTINGS, "train.epochs=40"]
    job = subprocess.Popen(
        [*command, "--processes", "2"], env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while job.poll() is None and not list(out.glob("state/pass_*/rows.safetensors")):
        time.sleep(0.1)
    victim = next(
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and _is_last_of(folder, str(out))
    )
    os.kill(victim, 9)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 1
    assert said.strip().splitlines()[-1].startswith("error: one of 2 processes has failed, expected all to finish")
    assert "give the same command again (training: with --resume)" in said
    resumed = subprocess.run([*command, "--resume"], env=environment(), cwd=ROOT, capture_output=True, check=False)
    assert resumed.returncode == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def _is_last_of(folder: Path, out: str) -> bool:
    """Says whether a process is the second worker of the run in `out`."""
    try:
        command, place = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"out={out}".encode() in command and b"RANK=1" in place
