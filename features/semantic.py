"""Labels and explanations that mean something like a query, by the cosine of their embeddings.

Enters: a query and an embedding model (`features.embedders`). Leaves: the closest texts.

Every text is embedded once: vectors are kept in `DICT/answers` by a hash of the text, beside the vector of a sentence
that tells whether the model is still the same. An endpoint sees all labels and explanations; it is asked on this
machine only, unless another host is named.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.embedders import Embedder
from features.store import Store

ANSWERS = "answers"
PROBE = "The features of a dictionary."


class SemanticHit(NamedTuple):
    """A text close to a query."""

    feature: int
    text: str
    is_label: bool
    cosine: float


def closest_texts(store: Store, embedder: Embedder, query: str, limit: int) -> list[SemanticHit]:
    """The newest label and the explanations whose embeddings are closest to the query's, one for each feature.

    Raises:
        OSError: an endpoint that is out of reach, or gave no usable answer for some text.
    """
    rows = store.query(
        """
        select feature, text, true as is_label from labels
        qualify row_number() over (partition by feature order by created desc, rowid desc) = 1
        union all
        select feature, text, false from explanations order by is_label desc, feature
        """
    ).to_pylist()
    if not rows:
        return []
    vectors, asked = _vectors(store.folder / ANSWERS, embedder, [row["text"] for row in rows], query)
    cosines = vectors @ asked
    found: dict[int, SemanticHit] = {}
    for place in np.argsort(-cosines, kind="stable").tolist():
        row = rows[place]
        found.setdefault(row["feature"], SemanticHit(**row, cosine=float(cosines[place])))
        if len(found) == limit:
            break
    return list(found.values())


def _vectors(folder: Path, embedder: Embedder, texts: list[str], query: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 [texts, d] and [d]: the vectors of the texts, those that were kept among them, and of the query."""
    keys = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in texts]
    path = folder / f"embeddings-{hashlib.sha256(embedder.name.encode()).hexdigest()[:16]}.npz"
    probe, asked = _embedded(embedder, [PROBE, query])
    kept: dict[str, np.ndarray] = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            if file["probe"].shape == probe.shape and np.allclose(file["probe"], probe, atol=1e-3):
                kept = dict(zip(file["keys"].tolist(), file["vectors"], strict=True))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in kept}
    if missing:
        kept |= dict(zip(missing, _embedded(embedder, list(missing.values())), strict=True))
        folder.mkdir(exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with open(partial, "wb") as file:
            np.savez(file, probe=probe, keys=np.array(list(kept)), vectors=np.stack(list(kept.values())))
        os.replace(partial, path)
    return np.stack([kept[key] for key in keys]), asked


def _embedded(embedder: Embedder, texts: list[str]) -> np.ndarray:
    found = embedder.embed(texts)
    failed = int(np.isnan(found).any(axis=1).sum()) if found.size else len(texts)
    if failed:
        raise OSError(
            f"{embedder.name} gave no usable embedding for {failed} of {len(texts)} texts, expected one each: ask "
            "again, what was answered is kept; or choose another embedding model"
        )
    return found
