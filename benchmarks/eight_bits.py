"""What int8 rows cost: the error of the rows, and of an SAE trained on them, beside bfloat16 and float32 ones.

    python -m benchmarks.eight_bits [--write] [--tokens N] [--site SITE]

The same tokens of the embedded model are harvested in each type; the same SAE, with the same seed and the same order of
rows, is trained on each store; all are measured on the same held-out rows in float32.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from activations import DataConfig, HarvestConfig, LanguageModel, harvest, token_rows
from activations.harvesting import iter_row_batches
from benchmarks.report import finish
from sae import SAEConfig, TrainConfig, evaluate, train

DTYPES = ("float32", "bfloat16", "int8")


def measure(lm: LanguageModel, data: DataConfig, site: str, d_sae: int, folder: Path) -> dict[str, Any]:
    """Returns error and explained variance by type."""
    rows = token_rows(lm, data)
    heldout = token_rows(lm, data, "heldout")
    measured = [batch.values[site].float().cpu() for batch in iter_row_batches(lm, heldout, [site], 8192)]
    stores = {
        dtype: harvest(lm, rows, replace(HarvestConfig(), dtype=dtype), folder / dtype, sites=[site])  # pyright: ignore
        for dtype in DTYPES
    }
    exact = torch.cat(list(stores["float32"].rows(site, shuffle=False)))
    found: dict[str, Any] = {}
    for dtype, store in stores.items():
        read = torch.cat(list(store.rows(site, shuffle=False))).float()
        relative = (read - exact).norm(dim=1) / exact.norm(dim=1)
        unexplained = float((read - exact).double().pow(2).sum() / (exact - exact.mean(0)).double().pow(2).sum())
        config = TrainConfig(
            sae=SAEConfig(architecture="batchtopk", d_in=lm.site_width(site), d_sae=d_sae, k=32),
            total_rows=store.n_rows // 2048 * 2048 * 2,
            device="cpu",
            out=str(folder / f"run_{dtype}"),
        )
        trained = train(config, store.rows(site, epochs=None)).sae
        found[dtype] = {
            "relative_error_median": round(float(relative.median()), 5),
            "relative_error_largest": round(float(relative.max()), 5),
            "variance_lost": round(unexplained, 7),
            "explained_variance": round(float(evaluate(trained, measured).explained_variance), 5),
            "bytes": sum(file.stat().st_size for file in store.path.glob("*.safetensors")),
        }
    return {"site": site, "tokens": rows.n_tokens, "heldout": heldout.n_tokens, "d_sae": d_sae, "types": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures under benchmarks/results/")
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--heldout-tokens", type=int, default=50_000)
    parser.add_argument("--site", default="resid_post.2")
    parser.add_argument("--d-sae", type=int, default=1024)
    given = parser.parse_args()
    data = DataConfig(total_tokens=given.tokens, heldout_tokens=given.heldout_tokens)
    with tempfile.TemporaryDirectory() as folder:
        lm = LanguageModel.load("embedded", device="cpu")
        finish("eight_bits", measure(lm, data, given.site, given.d_sae, Path(folder)), given.write)


if __name__ == "__main__":
    main()
