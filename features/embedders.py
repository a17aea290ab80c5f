"""Embedding models: one on this machine, or one behind an OpenAI-compatible endpoint.

Enters: texts. Leaves: a unit vector each, float32; texts without a usable answer are rows of NaN, and are counted. Both
kinds have `name` and `embed`. What leaves the machine, and how often, is the concern of `features.endpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.endpoint import REQUESTS_PER_MINUTE, Endpoint

if TYPE_CHECKING:
    from activations.embedding import EmbeddingModel

TEXTS_AT_ONCE = 64


class LocalEmbedder:
    """Embeds with a model of this process (`activations.embedding`)."""

    def __init__(self, model: EmbeddingModel) -> None:
        self.model = model
        self.name = model.name

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d]: a unit vector of each text."""
        return self.model.embed(texts).numpy()


class EndpointEmbedder(Endpoint):
    """Asks an OpenAI-compatible endpoint (`POST {url}/embeddings`)."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d]: a unit vector of each text; NaN rows without a usable answer, [n, 0] where all are."""
        replies: list[list[list[float]] | None] = []
        pieces = [list(texts[first : first + TEXTS_AT_ONCE]) for first in range(0, len(texts), TEXTS_AT_ONCE)]
        for piece in pieces:
            clean = [text.encode("utf-8", "replace").decode() for text in piece]
            reply = self.ask("embeddings", {"input": clean}, partial(_vectors, len(clean)))
            replies.append(None if reply is None else reply["vectors"])
        width = next((len(reply[0]) for reply in replies if reply), 0)
        found: list[np.ndarray] = []
        for piece, reply in zip(pieces, replies, strict=True):
            if reply is None or len(reply[0]) != width:
                self.cost.failures += len(piece)
                found.append(np.full((len(piece), width), np.nan, dtype=np.float32))
            else:
                vectors = np.array(reply, dtype=np.float64)
                found.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
        return np.concatenate(found) if found else np.zeros((0, 0), dtype=np.float32)


Embedder = LocalEmbedder | EndpointEmbedder


def embedder_for(
    where: str,
    model: str | None = None,
    cache: Path | None = None,
    allow_host: str | None = None,
    device: str = "auto",
    requests_per_minute: float = REQUESTS_PER_MINUTE,
) -> LocalEmbedder | EndpointEmbedder:
    """The embedding model at `where`: an address, where `model` is the name there and `cache` the folder that keeps its
    answers, or a local folder, `embedded`, or a hub name.

    Raises:
        ValueError: an address without a model's name, or on another machine that was not named in `allow_host`.
    """
    if where.startswith(("http://", "https://")):
        if not model or cache is None:
            raise ValueError(
                f"endpoint {where} was given without a model or a folder for its answers, expected both: name them"
            )
        return EndpointEmbedder(
            url=where, model=model, cache=cache, allow_host=allow_host, requests_per_minute=requests_per_minute
        )
    from activations.embedding import EmbeddingModel

    return LocalEmbedder(EmbeddingModel.load(where, device=device))


def _vectors(n: int, content: dict[str, Any]) -> dict[str, Any] | None:
    """The vectors of an answer in the order of the texts; None where one is missing, or is none."""
    rows = sorted((int(entry["index"]), entry["embedding"]) for entry in content["data"])
    if [index for index, _ in rows] != list(range(n)):
        return None
    vectors = np.array([vector for _, vector in rows], dtype=np.float64)
    if vectors.ndim != 2 or not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        return None
    return {"vectors": vectors.tolist()}
