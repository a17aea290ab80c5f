"""Documents packed into rows of tokens, with provenance.

Enters: documents and a tokenizer. Leaves: `TokenRows`, a rectangle of token ids in which every token knows its document
and its position there. Documents follow each other without gaps, cut wherever a row ends; only the last row is padded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from activations.chat import chat_tokens
from activations.corpus import DataConfig, Document, Split, documents

if TYPE_CHECKING:
    from activations.model import LanguageModel

DOCUMENTS_PER_CALL = 64
CHARACTERS_PER_CALL = 1 << 20


@dataclass(frozen=True)
class TokenRows:
    """Rows of tokens and where each token comes from."""

    tokens: Int32[np.ndarray, "rows context"]
    """Token ids; padding holds the pad id."""
    documents: Int32[np.ndarray, "rows context"]
    """Index into `names`; −1 at padding."""
    positions: Int32[np.ndarray, "rows context"]
    """The token's position in its document, from 0; −1 at padding."""
    names: list[str]
    """Names of the documents, in order of their first token."""
    kept: Bool[np.ndarray, "rows context"] | None = None
    """True at tokens that are trained on, special ones aside; None for all (`data.roles` leaves some out)."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def context_tokens(self) -> int:
        return self.tokens.shape[1]

    @property
    def n_tokens(self) -> int:
        """Counts tokens, without padding."""
        return int(np.count_nonzero(self.documents >= 0))

    def mask(self) -> Bool[np.ndarray, "rows context"]:
        """Returns True at tokens, False at padding."""
        return self.documents >= 0

    def trained_mask(self, special_ids: Iterable[int]) -> Bool[np.ndarray, "rows context"]:
        """Returns True at the tokens that are trained on: neither padding nor special, nor left out by their role."""
        special = np.fromiter(special_ids, dtype=np.int32)
        trained = self.mask() & ~np.isin(self.tokens, special)
        return trained if self.kept is None else trained & self.kept

    def batches(self, batch_rows: int) -> Iterator[TokenRows]:
        """Yields slices of at most `batch_rows` rows (views, all with the same names)."""
        for start in range(0, len(self), batch_rows):
            yield self[start : start + batch_rows]

    def __getitem__(self, rows: slice | np.ndarray) -> TokenRows:
        kept = None if self.kept is None else self.kept[rows]
        return TokenRows(self.tokens[rows], self.documents[rows], self.positions[rows], self.names, kept)

    def torch_tokens(self, device: torch.device | str = "cpu") -> Int64[Tensor, "rows context"]:
        """Returns the ids as a tensor for a model."""
        return torch.from_numpy(self.tokens.astype(np.int64)).to(device)

    def torch_mask(self, device: torch.device | str = "cpu") -> Bool[Tensor, "rows context"] | None:
        """Returns the mask as a tensor, or None where nothing is padded."""
        mask = self.mask()
        return None if mask.all() else torch.from_numpy(mask).to(device)

    def unpacked(self) -> Iterator[tuple[str, Int32[np.ndarray, " tokens"]]]:
        """Yields each document's name and tokens: packing undone."""
        owners, tokens = self.documents.ravel(), self.tokens.ravel()
        cuts = np.flatnonzero(np.diff(owners)) + 1
        for piece, owner in zip(np.split(tokens, cuts), np.split(owners, cuts), strict=True):
            if len(owner) and owner[0] >= 0:
                yield self.names[owner[0]], piece

    def fingerprint(self) -> str:
        """Returns a sha256 over tokens and provenance."""
        state = hashlib.sha256(f"{self.tokens.shape}\n".encode())
        for array in (self.tokens, self.documents, self.positions):
            state.update(np.ascontiguousarray(array, dtype="<i4").data)
        state.update("\n".join(self.names).encode())
        if self.kept is not None:
            state.update(np.packbits(self.kept).data)
        return state.hexdigest()


def iter_token_rows(
    texts: Iterable[Document],
    lm: LanguageModel,
    context_tokens: int,
    prepend_bos: bool = False,
    total_tokens: int | None = None,
    chunk_rows: int = 4096,
    roles: Sequence[str] = (),
) -> Iterator[TokenRows]:
    """Packs documents into chunks of `chunk_rows` rows, holding no more than a chunk in memory.

    Document numbers run through all chunks; every chunk's `names` holds all names so far. With `total_tokens` the
    last document is cut to reach exactly that many tokens, where there are as many. With `roles`, of conversations only
    the tokens of these are kept for training.
    """
    if context_tokens > lm.context_tokens and lm.kind != "encoder-decoder":
        raise ValueError(
            f"context_tokens={context_tokens} is more than {lm.name} takes ({lm.context_tokens}): "
            "lower data.context_tokens"
        )
    names: list[str] = []
    held: list[np.ndarray] = []
    held_tokens, left = 0, total_tokens
    for number, (name, ids, chosen) in enumerate(_tokenised(texts, lm, prepend_bos, roles)):
        if left is not None:
            if left == 0:
                break
            ids = ids[:left]
            left -= len(ids)
        names.append(name)
        block = np.empty((4, len(ids)), dtype=np.int32)
        block[0], block[1], block[2], block[3] = ids, number, np.arange(len(ids)), 1
        if roles:
            block[3] = chosen[: len(ids)]
        held.append(block)
        held_tokens += len(ids)
        if held_tokens >= chunk_rows * context_tokens:
            joined = np.concatenate(held, axis=1)
            whole = chunk_rows * context_tokens
            while joined.shape[1] >= whole:
                yield _rectangle(joined[:, :whole], context_tokens, names, bool(roles))
                joined = joined[:, whole:]
            held, held_tokens = [joined], joined.shape[1]
    if held_tokens:
        joined = np.concatenate(held, axis=1)
        short = -joined.shape[1] % context_tokens
        padding = np.full((4, short), -1, dtype=np.int32)
        padding[0] = lm.pad_id
        yield _rectangle(np.concatenate([joined, padding], axis=1), context_tokens, names, bool(roles))


def _rectangle(block: np.ndarray, context_tokens: int, names: list[str], has_roles: bool) -> TokenRows:
    tokens, owners, positions, kept = (np.ascontiguousarray(part).reshape(-1, context_tokens) for part in block)
    return TokenRows(tokens, owners, positions, names, kept == 1 if has_roles else None)


def _tokenised(
    texts: Iterable[Document], lm: LanguageModel, prepend_bos: bool, roles: Sequence[str]
) -> Iterator[tuple[str, Int64[np.ndarray, " tokens"], list[bool]]]:
    """Yields each document's name, its ids, and which of them belong to `roles` (all of a plain text)."""
    bos = getattr(lm.tokenizer, "bos_token_id", None)
    if prepend_bos and bos is None:
        raise ValueError(
            f"prepend_bos is set, but the tokenizer of {lm.name} has no BOS token: set data.prepend_bos=false"
        )
    for chunk in _bounded(texts):
        plain = [document.text for document in chunk if not document.messages]
        encoded = iter(lm.encode(plain) if plain else ())
        for document in chunk:
            if document.messages:
                ids, chosen = chat_tokens(lm, document.messages, document.name, roles)
            else:
                ids = next(encoded)
                chosen = [True] * len(ids)
            if prepend_bos and ids[:1] != [bos]:
                ids, chosen = [bos, *ids], [not roles, *chosen]
            if ids:
                yield document.name, np.asarray(ids, dtype=np.int64), chosen


def _bounded(texts: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups documents for the tokenizer, few enough to bound memory."""
    source = iter(texts)
    while chunk := list(islice(source, 1)):
        size = len(chunk[0].text)
        while len(chunk) < DOCUMENTS_PER_CALL and size < CHARACTERS_PER_CALL and (more := next(source, None)):
            chunk.append(more)
            size += len(more.text)
        yield chunk


def pack_documents(
    texts: Iterable[Document],
    lm: LanguageModel,
    context_tokens: int,
    prepend_bos: bool = False,
    total_tokens: int | None = None,
    roles: Sequence[str] = (),
) -> TokenRows:
    """Packs documents into one `TokenRows`; ValueError if there is no token, or none of `roles`."""
    chunks = list(iter_token_rows(texts, lm, context_tokens, prepend_bos, total_tokens, roles=roles))
    if not chunks:
        raise ValueError("the documents hold no tokens, expected some: name another data source")
    parts = (
        np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("tokens", "documents", "positions")
    )
    kept = np.concatenate([chunk.kept for chunk in chunks if chunk.kept is not None]) if roles else None
    if kept is not None and not kept.any():
        raise ValueError(
            f"no message has a role among {', '.join(roles)}, expected some: correct data.roles, or leave it out"
        )
    return TokenRows(*parts, names=chunks[-1].names, kept=kept)


def token_rows(lm: LanguageModel, data: DataConfig, split: Split = "train") -> TokenRows:
    """Reads, tokenises and packs the documents of a config's `split`, up to the tokens it asks for."""
    limit = data.heldout_tokens if split == "heldout" else data.total_tokens
    return pack_documents(documents(data, split), lm, data.context_tokens, data.prepend_bos, limit, data.roles)
