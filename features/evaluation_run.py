"""Evaluation of trained SAEs on held-out documents, from their folders.

Enters: folders of SAEs. Leaves: metrics, and `metrics.json` in each folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from features.origin import check_site, data_of, model_of
from features.store import write_json
from sae import SAE, Metrics, evaluate

if TYPE_CHECKING:
    from activations import LanguageModel


def run_evaluate(
    sae_dir: str | Path, model: str | None = None, data: str | None = None, *, lm: LanguageModel | None = None
) -> Metrics:
    """Measures a trained SAE on held-out documents and writes `metrics.json` beside it.

    Model and text default to those recorded in the SAE. Cross-entropy is measured where the model is a decoder.

    Raises:
        FileNotFoundError: no SAE there.
        ValueError: the SAE does not say what it was trained on, or the model lacks its site.
    """
    from activations import token_rows
    from activations.harvesting import iter_row_batches

    folder = Path(sae_dir)
    sae = SAE.load(str(folder))
    lm = lm or model_of(sae, folder, model)
    config = data_of(sae, folder, data)
    site = sae.site
    check_site(sae, lm, folder)
    sae.to(lm.device)
    rows = token_rows(lm, config, "heldout")
    whole = rows.mask().all(axis=1)
    batch_rows = max(1, 4096 // rows.context_tokens)
    tokens = (part.torch_tokens(lm.device) for part in rows[: int(whole.sum())].batches(batch_rows) if len(part))
    batches = (
        batch.values[site].float().to(lm.device)
        for batch in iter_row_batches(lm, rows, [site], 8192, config.exclude_special_tokens)
    )
    scored = lm.kind == "decoder" and bool(whole.any())
    metrics = evaluate(sae, batches, lm=lm if scored else None, tokens=tokens if scored else None)
    write_json(folder / "metrics.json", json.loads(metrics.to_json()))
    return metrics
