"""The sparsity–fidelity frontier: every single-site architecture on the embedded model's residual, at several L0.

    nice python -m benchmarks.frontier [--out runs/frontier] [--rows 1000000] [--d-sae 2048] [--l0 8 16 32 64 128]

Activations are harvested once into a store. Each architecture trains at all L0 in one pass over the rows, at its
defaults, and is measured on held-out documents: explained variance and recovered cross-entropy with standard errors,
each against the L0 that was reached. One line for each SAE goes to benchmarks/results/frontier_cpu.jsonl (or _gpu);
what is there is not done again, and a killed run goes on from its checkpoints. In the end the table is printed, and
whether each curve rises within one standard error of a step. Matching pursuit is trained last: its step costs k times
that of TopK.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from activations import ActivationStore, DataConfig, HarvestConfig, LanguageModel, harvest, token_rows
from activations.harvesting import iter_row_batches
from benchmarks.report import RESULTS, environment
from sae.config import SINGLE_SITE, TOP_K_FAMILY, SAEConfig, TrainConfig
from sae.evaluation import evaluate_together
from sae.trainer import Training, train_together

SITE = "resid_post.2"
L0 = (8, 16, 32, 64, 128)
ORDER = [name for name in SINGLE_SITE if name != "matching_pursuit"] + ["matching_pursuit"]
FIGURES = ("explained_variance", "ce_recovered")
HELDOUT = DataConfig(source="embedded", heldout_tokens=65_536, prepend_bos=True, heldout_percent=8)


def config_of(architecture: str, l0: int, d_in: int, d_sae: int) -> SAEConfig:
    """Returns an architecture's default recipe at one L0: its k, or the L0 that its penalty is adjusted for."""
    if architecture in (*TOP_K_FAMILY, "matching_pursuit"):
        return SAEConfig(d_in=d_in, d_sae=d_sae, architecture=architecture, k=l0)
    return SAEConfig(d_in=d_in, d_sae=d_sae, architecture=architecture, target_l0=float(l0))


def main() -> None:
    """Trains, measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"), help="folder of the store and the SAEs")
    parser.add_argument("--store", type=Path, help="use this activation store instead of harvesting one")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows each SAE trains on")
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--lr", type=float, help="peak learning rate instead of the default one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--l0", type=int, nargs="+", default=list(L0))
    parser.add_argument("--architectures", nargs="+", default=ORDER, choices=ORDER)
    parser.add_argument("--tokens", type=int, default=1_200_000, help="tokens to harvest")
    parser.add_argument("--loss-tokens", type=int, default=32_768, help="held-out tokens that losses are measured on")
    arguments = parser.parse_args()

    lm = LanguageModel.load("embedded")
    store = _store(lm, arguments)
    results = RESULTS / f"frontier_{'gpu' if torch.cuda.is_available() else 'cpu'}.jsonl"
    results.parent.mkdir(exist_ok=True)
    recipe = {name: getattr(arguments, name) for name in ("rows", "d_sae", "batch_rows", "lr", "seed", "loss_tokens")}
    for architecture in arguments.architectures:
        missing = [l0 for l0 in arguments.l0 if (architecture, l0) not in _measured(results, recipe)]
        if missing:
            with results.open("a", encoding="utf-8") as file:
                for record in _train_and_measure(lm, store, architecture, missing, arguments):
                    file.write(json.dumps(record | recipe | environment()) + "\n")
    print(table([record for record in _measured(results, recipe).values() if record["l0_wanted"] in arguments.l0]))


def _store(lm: LanguageModel, arguments: argparse.Namespace) -> ActivationStore:
    if arguments.store:
        return ActivationStore.open(arguments.store)
    data = replace(HELDOUT, total_tokens=arguments.tokens)
    return harvest(lm, token_rows(lm, data, "train"), HarvestConfig(), arguments.out / "store", sites=[SITE])


def _train_and_measure(
    lm: LanguageModel, store: ActivationStore, architecture: str, l0s: Iterable[int], arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    began = time.perf_counter()
    trainings = []
    for l0 in l0s:
        name = f"{architecture}_l0{l0}"
        config = TrainConfig(
            sae=config_of(architecture, l0, store.d_in(SITE), arguments.d_sae),
            batch_rows=arguments.batch_rows,
            total_rows=arguments.rows,
            lr=arguments.lr,
            seed=arguments.seed,
            out=str(arguments.out / "state" / name),
            checkpoint_every_steps=100,
        )
        metadata = {"site": SITE, "name": name, "model_name": "embedded", "data": asdict(HELDOUT)}
        trainings.append(Training(config, (SITE,), metadata=metadata))
    rows = store.rows([SITE], seed=arguments.seed, epochs=None)
    trained = train_together(trainings, rows, arguments.out / "state" / architecture, resume=True)
    seconds = time.perf_counter() - began
    saes = {str(l0): result.sae.to(lm.device) for l0, result in zip(l0s, trained, strict=True)}
    batches, tokens = _heldout(lm, arguments.loss_tokens)
    for l0, metrics in evaluate_together(saes, batches, lm=lm, tokens=tokens).items():
        yield {
            "architecture": architecture,
            "l0_wanted": int(l0),
            **{row["metric"]: row["value"] for row in metrics.rows()},
            "train_seconds_of_all": round(seconds, 1),
        }


@functools.cache
def _heldout(lm: LanguageModel, loss_tokens: int) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Returns rows and token batches of documents never trained on; read once for all architectures."""
    heldout = token_rows(lm, HELDOUT, "heldout")
    batches = [batch.values for batch in iter_row_batches(lm, heldout, [SITE], 4096)]
    scored = heldout[: loss_tokens // heldout.context_tokens].batches(16)
    return batches, [part.torch_tokens(lm.device) for part in scored]


def _measured(results: Path, recipe: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns the SAEs of this recipe that were measured before, by architecture and wanted L0."""
    if not results.exists():
        return {}
    records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    kept = [record for record in records if all(record[name] == value for name, value in recipe.items())]
    return {(record["architecture"], record["l0_wanted"]): record for record in kept}


def table(records: list[dict[str, Any]]) -> str:
    """Returns the frontier as text: a line for each SAE, and for each architecture whether its curves rise."""
    lines = ["architecture          L0 wanted  reached     EV       ±    CE rec.     ±    dead   rescale"]
    for architecture in [name for name in ORDER if any(record["architecture"] == name for record in records)]:
        curve = sorted((each for each in records if each["architecture"] == architecture), key=lambda each: each["l0"])
        for each in curve:
            lines.append(
                f"{architecture:22}{each['l0_wanted']:8} {each['l0']:9.2f}  {each['explained_variance']:.4f} "
                f"{each['explained_variance_se']:.4f}   {each['ce_recovered']:.4f} {each['ce_recovered_se']:.4f} "
                f"{each['dead_frac']:7.2%}  {each.get('rescale_median') or math.nan:.3f}"
            )
        falls = {figure: _falls(curve, figure) for figure in FIGURES}
        verdicts = [f"{figure} {f'FALLS at L0 {places}' if places else 'rises'}" for figure, places in falls.items()]
        lines.append(f"{architecture:22}{', '.join(verdicts)}")
    return "\n".join(lines)


def _falls(curve: list[dict[str, Any]], figure: str) -> str:
    """Returns the L0 at which a figure falls by more than the standard error of the step, or nothing."""
    falls = []
    for before, after in itertools.pairwise(curve):
        error = math.hypot(before[f"{figure}_se"], after[f"{figure}_se"])
        if after[figure] < before[figure] - error:
            falls.append(str(after["l0_wanted"]))
    return ", ".join(falls)


if __name__ == "__main__":
    main()
