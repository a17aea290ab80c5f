"""Dictionaries against the truth: every single-site architecture on a synthetic world whose features are known.

    nice python -m benchmarks.ground_truth [--preset small|16k] [--rows 4194304] [--world 1] [--seeds 0 1 2]
        [--architectures batchtopk …] [--l0 10] [--lr 1e-4 3e-4] [--train decay_frac=0.5] [--sae auxk_alpha=0]

Dictionaries train through the ordinary trainer, at the documented defaults unless `--lr`, `--train` or `--sae` change
them: for each seed (of the first weights and of the rows) all architectures, L0 and rates in one pass over the same
rows. They are scored on fresh rows of their world (`sae.synthetic.score`). One line for each goes to
benchmarks/results/ground_truth_<preset>.jsonl; what is there is not done again, and a killed run goes on from its
checkpoints. In the end the table over seeds is printed. Nothing but the trainer's own needs (torch, numpy, safetensors)
is imported, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
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
BATCH_ROWS = 1024
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
    parser.add_argument("--lr", type=float, nargs="+", help="peak learning rates, each an arm of its own")
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY=VALUE", help="training settings to change")
    parser.add_argument(
        "--sae", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the dictionary to change"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ground_truth"), help="folder of the dictionaries")
    parser.add_argument("--scored-rows", type=int, default=100_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    run = {
        "world": arguments.world,
        "rows": arguments.rows or ROWS[arguments.preset],
        "d_sae": WIDTHS[arguments.preset],
        "sae": _settings(arguments.sae),
    }
    rates = [{"lr": lr} for lr in arguments.lr or []] or [{}]
    arms = [
        run | {"architecture": architecture, "l0_wanted": l0, "train": _settings(arguments.train) | rate}
        for architecture in arguments.architectures
        for l0 in arguments.l0 or L0[arguments.preset]
        for rate in rates
    ]
    world = World(PRESETS[arguments.preset], arguments.world, arguments.device)
    results = RESULTS / f"ground_truth_{arguments.preset}.jsonl"
    results.parent.mkdir(exist_ok=True)
    for seed in arguments.seeds:
        done = {_key(record) for record in _records(results)}
        missing = [arm | {"seed": seed} for arm in arms if _key(arm | {"seed": seed}) not in done]
        if missing:
            scored = list(_train_and_score(world, arguments, missing))
            with results.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record | environment()) + "\n" for record in scored)
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
    world: World, arguments: argparse.Namespace, arms: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Trains all arms of one seed in one pass, then scores each."""
    total_rows, seed = arms[0]["rows"], arms[0]["seed"]
    names = [hashlib.sha256(_key(arm).encode()).hexdigest()[:12] for arm in arms]
    trainings = [
        Training(
            TrainConfig(
                sae=config_of(arm["architecture"], arm["l0_wanted"], world.config.d_in, arm["d_sae"], **arm["sae"]),
                total_rows=total_rows,
                seed=seed,
                out=str(arguments.out / name),
                device=arguments.device,
                **{"batch_rows": BATCH_ROWS, **arm["train"]},
            ),
            ("rows",),
        )
        for arm, name in zip(arms, names, strict=True)
    ]
    together = arguments.out / hashlib.sha256("".join(names).encode()).hexdigest()[:12]
    rows = ({"rows": piece} for piece in world.rows(total_rows, seed=seed))
    began = time.perf_counter()
    trained = train_together(trainings, rows, together, resume=True)
    seconds = round(time.perf_counter() - began, 1)
    for arm, result in zip(arms, trained, strict=True):
        truth = score(result.sae.to(world.device), world, arguments.scored_rows)
        yield arm | truth.to_dict() | {"seconds_of_all": seconds, "trained_together": len(arms)}


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
