"""Dictionaries against the truth: every single-site architecture on a synthetic world whose features are known.

    nice python -m benchmarks.ground_truth [--preset small|16k] [--rows 4194304] [--world 1] [--seeds 0 1 2]
        [--architectures batchtopk …] [--l0 10] [--train lr=3e-4] [--sae auxk_alpha=0]

Each architecture trains through the ordinary trainer, at its documented defaults unless `--train` or `--sae` change one
of them, at all L0 in one pass over the same rows, once for each seed (of the first weights and of the rows). It is
scored on fresh rows of its world (`sae.synthetic.score`). One line for each dictionary goes to
benchmarks/results/ground_truth_<preset>.jsonl; what is there is not done again. In the end the table over seeds is
printed. Nothing but the trainer's own needs (torch, numpy, safetensors) is imported, so that it runs on a bare GPU
machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import RESULTS, environment
from sae.config import SINGLE_SITE, TOP_K_FAMILY, SAEConfig, TrainConfig
from sae.synthetic import PRESETS, World, score
from sae.trainer import Training, train_together

WIDTHS = {"small": 512, "16k": 4096}
ROWS = {"small": 4_194_304, "16k": 200_000_000}
BATCH_ROWS = {"small": 2048, "16k": 1024}
L0 = {"small": (8, 10, 13), "16k": (20, 25)}
ORDER = [name for name in SINGLE_SITE if name != "matching_pursuit"] + ["matching_pursuit"]
KEYS = ("world", "rows", "d_sae", "architecture", "l0_wanted", "seed", "train", "sae")
FIGURES = ("f1", "mcc", "uniqueness", "explained_variance", "l0", "l0_error", "shrinkage", "dead_frac")


def main() -> None:
    """Trains, scores, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=sorted(PRESETS))
    parser.add_argument("--rows", type=int, help="rows each dictionary trains on")
    parser.add_argument(
        "--world", type=int, default=1, help="seed of the world; 0 is the one that recipes are tuned on"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--architectures", nargs="+", default=ORDER, choices=ORDER)
    parser.add_argument("--l0", type=int, nargs="+")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="training settings to change")
    parser.add_argument(
        "--sae", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the dictionary to change"
    )
    parser.add_argument("--scored-rows", type=int, default=100_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    run = {
        "world": arguments.world,
        "rows": arguments.rows or ROWS[arguments.preset],
        "d_sae": WIDTHS[arguments.preset],
        "train": _settings(arguments.train),
        "sae": _settings(arguments.sae),
    }
    l0s = arguments.l0 or list(L0[arguments.preset])
    world = World(PRESETS[arguments.preset], arguments.world, arguments.device)
    results = RESULTS / f"ground_truth_{arguments.preset}.jsonl"
    results.parent.mkdir(exist_ok=True)
    for seed in arguments.seeds:
        for architecture in arguments.architectures:
            one = run | {"architecture": architecture, "seed": seed}
            done = {_key(record) for record in _records(results)}
            missing = [l0 for l0 in l0s if _key(one | {"l0_wanted": l0}) not in done]
            if missing:
                with results.open("a", encoding="utf-8") as file:
                    for record in _train_and_score(world, arguments, one, missing):
                        file.write(json.dumps(record | environment()) + "\n")
                print(f"{architecture} seed {seed} done", flush=True)
    print(table(_records(results)))


def config_of(architecture: str, l0: int, d_in: int, d_sae: int, **changed: Any) -> SAEConfig:
    """Returns an architecture's default recipe at one L0: its k, or the L0 that its penalty is adjusted for."""
    sparsity: dict[str, Any] = (
        {"k": l0} if architecture in (*TOP_K_FAMILY, "matching_pursuit") else {"target_l0": float(l0)}
    )
    return SAEConfig(d_in=d_in, d_sae=d_sae, architecture=architecture, **(sparsity | changed))


def _settings(pairs: Iterable[str]) -> dict[str, Any]:
    """Reads KEY=VALUE with JSON values."""
    return {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def _train_and_score(
    world: World, arguments: argparse.Namespace, one: dict[str, Any], l0s: list[int]
) -> Iterator[dict[str, Any]]:
    settings = {"batch_rows": BATCH_ROWS[arguments.preset], **one["train"]}
    with tempfile.TemporaryDirectory() as folder:
        trainings = [
            Training(
                TrainConfig(
                    sae=config_of(one["architecture"], l0, world.config.d_in, one["d_sae"], **one["sae"]),
                    total_rows=one["rows"],
                    seed=one["seed"],
                    out=str(Path(folder) / str(l0)),
                    device=arguments.device,
                    checkpoint_every_steps=1_000_000,
                    **settings,
                ),
                ("rows",),
            )
            for l0 in l0s
        ]
        rows = ({"rows": piece} for piece in world.rows(one["rows"], seed=one["seed"]))
        began = time.perf_counter()
        trained = train_together(trainings, rows, Path(folder) / "state")
        seconds = time.perf_counter() - began
    for l0, result in zip(l0s, trained, strict=True):
        truth = score(result.sae.to(world.device), world, arguments.scored_rows)
        yield (
            one | {"l0_wanted": l0} | truth.to_dict() | {"seconds_of_all": round(seconds, 1), "dictionaries": len(l0s)}
        )


def _records(results: Path) -> list[dict[str, Any]]:
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def _key(record: dict[str, Any]) -> str:
    return json.dumps([record[name] for name in KEYS], sort_keys=True)


def table(records: list[dict[str, Any]]) -> str:
    """Returns the scores as Markdown: mean ± standard deviation over seeds, a line for each recipe and L0."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(_key(record | {"seed": None}), []).append(record)
    lines = [
        f"| world | rows | architecture | changed | L0 wanted | seeds | {' | '.join(FIGURES)} |",
        f"| --- | --- | --- | --- | --- | --- |{' --- |' * len(FIGURES)}",
    ]
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    for group in sorted(groups.values(), key=lambda each: _place(each[0], ranks)):
        first = group[0]
        changed = " ".join(f"{key}={value}" for key, value in (first["train"] | first["sae"]).items())
        cells = [_spread([record[figure] for record in group]) for figure in FIGURES]
        lines.append(
            f"| {first['world']} | {first['rows']:,} | {first['architecture']} | {changed} | {first['l0_wanted']} | "
            f"{len(group)} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _place(record: dict[str, Any], ranks: dict[str, int]) -> tuple[Any, ...]:
    changed = json.dumps([record["train"], record["sae"]], sort_keys=True)
    return record["world"], record["rows"], record["l0_wanted"], ranks[record["architecture"]], changed


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
