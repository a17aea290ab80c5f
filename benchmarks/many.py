"""Eight SAEs in one pass over the model against what that pass cannot do without: one harvest and eight bare steps.

    python -m benchmarks.many [--write]

The pass is `sae.trainer.train_together` on a stream from the embedded model, with its shuffle buffer, checks, logs and
finished files; the bare parts are the truncated forward passes over the same tokens and the steps on rows in memory.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activations import DataConfig, HarvestConfig, LanguageModel, TokenRows, stream, token_rows
from activations.harvesting import iter_row_batches
from benchmarks.report import finish, interleaved, spread
from sae.config import SAEConfig, TrainConfig
from sae.learner import Learner
from sae.trainer import Training, train_together

SITES = ("resid_post.1", "resid_post.2")
VARIANTS = tuple(itertools.product(("topk", "batchtopk"), (16, 32)))
BATCH_ROWS, D_SAE, BUFFER_ROWS = 2048, 1024, 32_768


def trainings(lm: LanguageModel, n_rows: int, out: Path) -> list[Training]:
    """Returns two sites × two architectures × two k."""
    made = []
    for site, (architecture, k) in itertools.product(SITES, VARIANTS):
        sae = SAEConfig(architecture=architecture, d_in=lm.site_width(site), d_sae=D_SAE, k=k)
        config = TrainConfig(
            sae=sae,
            batch_rows=BATCH_ROWS,
            total_rows=n_rows // BATCH_ROWS * BATCH_ROWS,
            checkpoint_every_steps=10_000,
            device=str(lm.device),
            out=str(out / site / f"{architecture}_{k}"),
        )
        made.append(Training(config, (site,), (), {"site": site}))
    return made


def one_pass(lm: LanguageModel, rows: TokenRows) -> None:
    """Trains all SAEs in one pass over a stream."""
    harvest = HarvestConfig(store=False, buffer_rows=BUFFER_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        source: Any = stream(lm, rows, SITES, harvest, exclude_special_tokens=False)
        train_together(trainings(lm, rows.n_tokens, Path(folder)), source, Path(folder) / "rows")


def harvest_alone(lm: LanguageModel, rows: TokenRows) -> None:
    """Runs the model up to the deepest site and reads both."""
    for _ in iter_row_batches(lm, rows, SITES, 8192, exclude_special_tokens=False):
        pass


def held_rows(lm: LanguageModel, rows: TokenRows) -> dict[str, Tensor]:
    """Returns all rows of both sites, shuffled."""
    batches = [batch.values for batch in iter_row_batches(lm, rows, SITES, 8192, exclude_special_tokens=False)]
    order = torch.randperm(rows.n_tokens, generator=torch.Generator().manual_seed(0))
    return {site: torch.cat([values[site] for values in batches])[order.to(lm.device)] for site in SITES}


def bare_steps(lm: LanguageModel, held: dict[str, Tensor]) -> None:
    """Trains the same SAEs on rows in memory, step by step and nothing else."""
    n_rows = len(held[SITES[0]])
    with tempfile.TemporaryDirectory() as folder:
        learners = [
            Learner(training.config, torch.device(lm.device), training.sites)
            for training in trainings(lm, n_rows, Path(folder))
        ]
    for first in range(0, n_rows - BATCH_ROWS + 1, BATCH_ROWS):
        batch = {site: value[first : first + BATCH_ROWS] for site, value in held.items()}
        for learner in learners:
            learner.take(batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=131_072)
    arguments = parser.parse_args()
    lm = LanguageModel.load("embedded")
    rows = token_rows(lm, DataConfig(total_tokens=arguments.tokens))
    rows = rows[: arguments.tokens // rows.context_tokens]
    held = held_rows(lm, rows)
    candidates = {
        "one_pass": lambda: one_pass(lm, rows),
        "harvest": lambda: harvest_alone(lm, rows),
        "bare_steps": lambda: bare_steps(lm, held),
    }
    times = interleaved(candidates, arguments.repeats, warmup=1)
    median = {name: statistics.median(values) for name, values in times.items()}
    figures = {
        "saes": len(SITES) * len(VARIANTS),
        "sites": list(SITES),
        "d_in": lm.site_width(SITES[0]),
        "d_sae": D_SAE,
        "batch_rows": BATCH_ROWS,
        "rows": rows.n_tokens,
        **{name: spread(values) for name, values in times.items()},
        "ratio": round(median["one_pass"] / (median["harvest"] + median["bare_steps"]), 3),
        "rows_per_s": round(rows.n_tokens / median["one_pass"]),
    }
    finish("many", figures, arguments.write)


if __name__ == "__main__":
    main()
