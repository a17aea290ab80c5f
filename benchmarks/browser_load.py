"""Many people at once: clients of the browser's API, each an action a second, against one server.

    python -m benchmarks.browser_load DICT [--clients 20] [--seconds 120] [--write]

The server is `glassbox browse DICT` in a process of its own; the clients speak the client API's protocol over HTTP in
one other process (`gradio_client` takes 90 ms of processor time for a call, and would measure itself). Each client
draws its actions by a seed of its own: six of ten open a feature, two search (a token that the dictionary holds), one
lists features, one asks what is active on a short text where the dictionary's model is there (a feature otherwise). An
action begins a second after the one before began, or at once where that took longer. Told: actions, errors, the median
and the 95th percentile of each kind in milliseconds, and the server's memory at the start (after every client has asked
once), in the middle and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import httpx

from benchmarks.report import finish
from benchmarks.serving import wait_for
from features import Dictionary
from ui import serving

TEXT = "def read(path):\n    with open(path) as file:\n        return file.read()\n"
KINDS = ["feature"] * 6 + ["search"] * 2 + ["features", "active_on"]


class Visitors:
    """The clients, and what they saw."""

    def __init__(self, address: str, features: list[int], words: list[str], has_model: bool) -> None:
        self.address, self.features, self.words = address, features, words
        self.kinds = [kind if kind != "active_on" or has_model else "feature" for kind in KINDS]
        self.times: dict[str, list[float]] = defaultdict(list)
        self.errors: list[str] = []

    async def run(self, clients: int, seconds: float, watch: Callable[[float], None]) -> None:
        """Lets them come one by one, then ask together; `watch(share)` is told every second how much time is gone."""
        visits = [httpx.AsyncClient(base_url=self.address, timeout=60) for _ in range(clients)]
        for kind in dict.fromkeys(self.kinds):  # what is loaded at first use is loaded before the clock runs
            await self._act(visits[0], random.Random(0), kind)
        for visit in visits:
            await self._act(visit, random.Random(0), "features")
        running = [
            asyncio.create_task(self._visit(visit, random.Random(seed), seconds)) for seed, visit in enumerate(visits)
        ]
        began = time.monotonic()
        while not all(task.done() for task in running):
            watch((time.monotonic() - began) / seconds)
            await asyncio.sleep(1)
        await asyncio.gather(*running, *(visit.aclose() for visit in visits))

    async def _visit(self, client: httpx.AsyncClient, draw: random.Random, seconds: float) -> None:
        await asyncio.sleep(draw.random())
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            kind = draw.choice(self.kinds)
            self.times[kind].append(await self._act(client, draw, kind))
            await asyncio.sleep(max(began + 1 - time.monotonic(), 0))

    async def _act(self, client: httpx.AsyncClient, draw: random.Random, kind: str) -> float:
        """Asks for one thing as the client API's protocol says: the question, then the stream that answers it."""
        given: list[Any] = {
            "feature": [draw.choice(self.features), ""],
            "search": [draw.choice(self.words), "", "auto", 20],
            "features": ["", "feature", True, 50, 0],
            "active_on": [TEXT, "", 10, "activation", ""],
        }[kind]
        began = time.monotonic()
        try:
            asked = await client.post(f"/gradio_api/call/{kind}", json={"data": given, "session_hash": str(id(client))})
            asked.raise_for_status()
            answer = await client.get(f"/gradio_api/call/{kind}/{asked.json()['event_id']}")
            answer.raise_for_status()
            if "event: complete" not in answer.text:
                self.errors.append(f"{kind}: {answer.text[:200]}")
        except httpx.HTTPError as error:
            self.errors.append(f"{kind}: {error!r}")
        return time.monotonic() - began


def memory_mib(process: int) -> float:
    """Returns the resident memory of a process."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def percentile(times: list[float], share: float) -> float:
    """Returns the smallest time that this share of them does not exceed."""
    return sorted(times)[min(int(share * len(times)), len(times) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dictionary")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--write", action="store_true", help="keep the figures in benchmarks/results")
    given = parser.parse_args()
    opened = Dictionary.open(given.dictionary)
    features = opened.sql("select feature from features where not is_dead using sample 2000 (reservoir, 0)")
    words = opened.sql(
        "select token from vocabulary where length(token) > 2 and token not like '%\n%' order by token limit 400"
    )
    n_features = opened.n_features
    has_model = True
    try:
        opened.lm  # noqa: B018 - loads it, or says why not
    except (OSError, ValueError):
        has_model = False
    opened.close()
    port = serving.claim_port(None)
    command = [sys.executable, "-m", "ui.cli", "browse", given.dictionary, "--port", str(port), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, server)
            visitors = Visitors(
                address,
                features["feature"].to_pylist(),
                [word.strip() for word in words["token"].to_pylist()],
                has_model,
            )
            memory: list[tuple[float, float]] = []
            asyncio.run(
                visitors.run(given.clients, given.seconds, lambda share: memory.append((share, memory_mib(server.pid))))
            )
        finally:
            server.terminate()
    everything = [took for times in visitors.times.values() for took in times]
    for error in visitors.errors[:5]:
        print(error, flush=True)
    middle = min(memory, key=lambda entry: abs(entry[0] - 0.5))[1]
    figures = {
        "clients": given.clients,
        "seconds": given.seconds,
        "n_features": n_features,
        "has_model": has_model,
        "actions": len(everything),
        "errors": len(visitors.errors),
        "memory_mib": [round(memory[0][1]), round(middle), round(memory[-1][1])],
        **_told(everything),
        "kinds": {kind: _told(times) for kind, times in sorted(visitors.times.items())},
    }
    finish("browser_load", figures, given.write)


def _told(times: list[float]) -> dict[str, int]:
    return {
        "n": len(times),
        "median_ms": round(1e3 * statistics.median(times)),
        "p95_ms": round(1e3 * percentile(times, 0.95)),
    }


if __name__ == "__main__":
    main()
