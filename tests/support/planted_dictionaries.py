"""Dictionaries whose events and directions are given, over the text of a dictionary that was built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from features import Dictionary
from features.schema import TABLES
from features.store import describe_files


def indexed_tokens(built: Path) -> np.ndarray:
    """Numbers of the indexed tokens of a dictionary's text."""
    opened = Dictionary.open(built)
    found = np.flatnonzero(opened.text.column("is_indexed"))
    opened.close()
    return found


def write_planted(
    built: Path,
    out: Path,
    events: Mapping[int, np.ndarray],
    directions: torch.Tensor,
    values: Mapping[int, np.ndarray] | None = None,
    weight_hash: str | None = None,
) -> Path:
    """Copies a dictionary and puts other events (tokens of each feature, by number) and decoder rows into it."""
    shutil.copytree(built, out)
    opened = Dictionary.open(out)
    tokens = opened.sql("select document, position from tokens order by document, position")
    document, position = (column.to_numpy() for column in tokens.columns)
    sae, n = opened.sae, opened.n_features
    features = opened.sql("select * from features order by feature")
    n_indexed = len(indexed_tokens(built))
    opened.close()
    rows: dict[str, list[Any]] = {"feature": [], "document": [], "position": [], "activation": []}
    sizes: dict[int, np.ndarray] = {}
    for feature in sorted(events):
        order = np.argsort(events[feature])
        ordinals = events[feature][order]
        given = None if values is None else values.get(feature)
        sizes[feature] = 1.0 + (ordinals % 7) / 7 if given is None else given[order]
        rows["feature"] += [feature] * ordinals.size
        rows["document"] += document[ordinals].tolist()
        rows["position"] += position[ordinals].tolist()
        rows["activation"] += sizes[feature].tolist()
    build = opened.store.build
    pq.write_table(pa.table(rows).cast(TABLES["events"].arrow_schema()), build / "events.parquet")
    counts = np.array([events[i].size if i in events else 0 for i in range(n)])
    columns = {
        "count": counts,
        "density": counts / n_indexed,
        "mean_activation": np.array([sizes[i].mean() if counts[i] else 0.0 for i in range(n)]),
        "max_activation": np.array([sizes[i].max() if counts[i] else 0.0 for i in range(n)]),
        "is_dead": counts == 0,
        "decoder_norm": directions.norm(dim=1).numpy(),
        "first_event": np.cumsum(counts) - counts,
    }
    for name, column in columns.items():
        index = features.column_names.index(name)
        features = features.set_column(
            index, features.field(index), [column.astype(features.field(index).type.to_pandas_dtype())]
        )
    pq.write_table(features, build / "features.parquet")
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions)
    shutil.rmtree(build / "sae")
    sae.save(str(build / "sae"))
    manifest = json.loads((out / "dictionary.json").read_text())
    manifest["files"] = describe_files(build)
    if weight_hash is not None:
        manifest["model"] |= {"weight_hash": weight_hash, "name": "tuned"}
    (out / "dictionary.json").write_text(json.dumps(manifest))
    return out
