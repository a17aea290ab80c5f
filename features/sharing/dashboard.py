"""SAEDashboard's feature files, as its runner writes them and Neuronpedia's older import reads them.

Enters: an opened dictionary. Leaves: a new folder of `batch-0.json`, `batch-1.json`, …, `BATCH_FEATURES` features each

    {"model_id", "layer", "sae_set", "features": [{"feature_index", "activations": [{"tokens", "values", …}], …}]}

with exactly the fields that its classes take, which refuse others. `features.sharing.foreign` reads them back. Lists
that this dictionary cannot fill are empty: correlated neurons and features, the histogram over all logits, weights of
heads.

Source: jbloomAus/SAEDashboard 0.8, `sae_dashboard/neuronpedia/neuronpedia_dashboard.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from activations.progress import progress
from features.dictionary import Dictionary
from features.records import Example
from features.sharing.documents import partial_folder, short
from features.sharing.figures import Sizes, alignment, figures, interval_of, intervals, sizes_of
from features.sharing.neuronpedia import CONTEXT, Upload, layer_of, named
from features.sharing.reading import read_features

BATCH_FEATURES = 128


def write_dashboard(dictionary: Dictionary, features: Sequence[int], out: Path, upload: Upload | None = None) -> Path:
    """Writes the folder `out` and returns it; `upload` names model and set as for Neuronpedia.

    Raises:
        ValueError: a name that Neuronpedia does not take.
        FileExistsError: `out` exists already.
    """
    upload = named(dictionary, upload or Upload())
    info = dictionary.info
    head = {"model_id": upload.model, "layer": layer_of(dictionary), "sae_set": upload.source_set}
    context = max(int(info["context_tokens"]), 1)
    tokens = (info.get("imported") or {}).get("tokens") or int(info["n_tokens"])
    text = {
        "n_prompts_total": -(-tokens // context),
        "n_tokens_in_prompt": context,
        "dataset": str(info["data"].get("source") or ""),
    }
    aligned = alignment(dictionary, features)
    bounds = dictionary.store.event_bounds()
    with partial_folder(out) as folder, progress("export", len(features), "features") as advance:
        for number in range(0, len(features), BATCH_FEATURES):
            rows: list[dict[str, Any]] = []
            for feature in read_features(dictionary, features[number : number + BATCH_FEATURES], *CONTEXT):
                sizes = sizes_of(dictionary, feature, bounds)
                ends = intervals(feature.examples)
                pieces = [_activation(example, sizes, ends[example.stratum]) for example in feature.examples]
                fields = figures(feature, sizes, aligned.get(feature.id))
                rows.append({"feature_index": feature.id, **fields, **text, "activations": pieces})
                advance(1)
            content = json.dumps(head | {"features": rows}, ensure_ascii=False, allow_nan=False)
            (folder / f"batch-{number // BATCH_FEATURES}.json").write_text(content, encoding="utf-8")
    return out


def _activation(example: Example, sizes: Sizes, ends: tuple[float, float]) -> dict[str, Any]:
    low, high, share = interval_of(example, sizes, ends)
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "tokens": example.tokens,
        "values": [short(value) for value in example.activations],
        "qualifying_token_index": example.center,
    }
