"""Texts as vectors: a local embedding model, pooled as its own files say.

Enters: texts. Leaves: one unit vector each, so that a product of two is their cosine.

A folder as sentence-transformers writes it says how its token states are pooled (`1_Pooling/config.json`: mean, first
or last token), how long a text may be (`sentence_bert_config.json`), and which steps follow (`modules.json`); any other
transformers folder is read with the mean over tokens, padding left out. The embedded language model serves too: a weak
embedding, but one that is always there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from activations.loading import open_encoder

BATCH_TOKENS = 8192
Pooling = Literal["mean", "first", "last"]
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "first",
    "cls_token": "first",
    "lasttoken": "last",
}
_STEPS = ("Transformer", "Pooling", "Normalize")


class EmbeddingModel:
    """A transformers model that turns texts into unit vectors."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, pooling: Pooling = "mean", max_tokens: int) -> None:
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.pooling: Pooling = pooling
        self.max_tokens = max_tokens
        """Longer texts are cut there."""

    @classmethod
    def load(cls, name: str = "embedded", *, device: str = "auto", revision: str | None = None) -> EmbeddingModel:
        """Opens a local folder (never touching the network), the embedded model, or a hub name.

        Raises:
            FileNotFoundError: no such model, or one without safetensors weights.
            ValueError: damaged weights, or a pooling or step behind it that is not known here.
        """
        model, tokenizer, folder = open_encoder(str(name), device, revision)
        assert folder is not None
        return cls(
            model,
            tokenizer,
            name=str(name),
            pooling=_pooling(folder),
            max_tokens=_max_tokens(folder, model, tokenizer),
        )

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self.model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Returns a float32 unit vector of each text, on the CPU; texts longer than the model takes are cut.

        Raises:
            ValueError: a text without tokens.
        """
        found = torch.empty(len(texts), self.width)
        if not texts:
            return found
        # a lone surrogate is no text to any tokenizer
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        ids = self.tokenizer(
            clean,
            add_special_tokens=True,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        for number, row in enumerate(ids):
            if not row:
                raise ValueError(f"text {number} ({texts[number][:20]!r}) has no tokens, expected some: leave it out")
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        first = 0
        while first < len(order):
            last = first + 1
            while last < len(order) and (last + 1 - first) * len(ids[order[last]]) <= BATCH_TOKENS:
                last += 1
            found[order[first:last]] = self._pooled([ids[number] for number in order[first:last]])
            first = last
        return found

    def _pooled(self, rows: list[list[int]]) -> Float[Tensor, "batch d"]:
        length = max(map(len, rows))
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        device = next(self.model.parameters()).device
        tokens, mask = tokens.to(device), mask.to(device)
        states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "mean":
            weights = mask[:, :, None].to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1)
        else:
            place = mask.sum(1) - 1 if self.pooling == "last" else torch.zeros_like(mask[:, 0])
            pooled = states[torch.arange(len(rows), device=device), place]
        return torch.nn.functional.normalize(pooled, dim=1).cpu()


def _pooling(folder: Path) -> Pooling:
    """How a folder's states are pooled; ValueError for what is not known here."""
    steps = [str(step.get("type", "")).rpartition(".")[2] for step in _read(folder / "modules.json", [])]
    if unknown := [step for step in steps if step not in _STEPS]:
        raise ValueError(
            f"embedding model {folder} has a step {unknown[0]!r}, expected only {', '.join(_STEPS)}: use another model"
        )
    settings = _read(folder / "1_Pooling" / "config.json", {})
    chosen = [settings["pooling_mode"]] if isinstance(settings.get("pooling_mode"), str) else []
    chosen += [key.removeprefix("pooling_mode_") for key, on in settings.items() if key[:13] == "pooling_mode_" and on]
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in _POOLINGS:
        raise ValueError(
            f"embedding model {folder} pools by {' and '.join(map(str, chosen))}, expected one of "
            f"{', '.join(_POOLINGS)}: use another model"
        )
    return _POOLINGS[chosen[0]]


def _max_tokens(folder: Path, model: Any, tokenizer: Any) -> int:
    said = _read(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    if isinstance(said, int) and said > 0:
        return said
    limits = [
        int(limit)
        for limit in (
            getattr(tokenizer, "model_max_length", None),
            getattr(model.config.get_text_config(), "max_position_embeddings", None),
        )
        if limit and 0 < limit < 1 << 30
    ]
    return min(limits, default=512)


def _read(path: Path, otherwise: Any) -> Any:
    """The content of a JSON file that may be missing; ValueError for one that cannot be read."""
    if not path.exists():
        return otherwise
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}), expected JSON: copy the model again") from None
    if not isinstance(content, type(otherwise)):
        raise ValueError(f"{path} holds another kind of JSON, expected a {type(otherwise).__name__}: copy it again")
    return content
