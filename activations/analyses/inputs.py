"""What people give an analysis: one text, one token, as the model reads them.

Enters: strings (or tokens already made). Leaves: ids, or `ValueError` in one line.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from activations.model import LanguageModel


def tokens_of(lm: LanguageModel, text: str | Int[Tensor, "1 seq"]) -> Int[Tensor, "1 seq"]:
    """Returns the tokens of one text, as the tokenizer's defaults make them, on the model's device.

    Raises:
        ValueError: the text is empty, or longer than the model's context.
    """
    if isinstance(text, Tensor):
        if text.ndim != 2 or text.shape[0] != 1 or text.shape[1] == 0:
            raise ValueError(f"got tokens of shape {tuple(text.shape)}, expected (1, seq): give one sequence")
        tokens = text
    else:
        if not text.strip():
            raise ValueError("the text is empty, expected some words: give a text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds half of a surrogate pair at character {error.start}, expected Unicode: leave it out"
            ) from error
        tokens = lm.tokenize(text).tokens
    if tokens.shape[1] > lm.context_tokens:
        raise ValueError(
            f"the text has {tokens.shape[1]:,} tokens, {lm.name} takes at most {lm.context_tokens:,}: shorten the text"
        )
    return tokens.to(lm.device, torch.long)


def token_id(lm: LanguageModel, token: str | int) -> int:
    """Returns the id of a token given by its faithful text (`lm.token_strings`), or by its id.

    A text that several ids spell (bytes and letters) is the one that the tokenizer makes of it.

    Raises:
        ValueError: no such id, or a text of several tokens (which it names).
    """
    if isinstance(token, int):
        if not 0 <= token < lm.vocab_size:
            raise ValueError(f"token id {token} does not exist, expected 0 to {lm.vocab_size - 1}: give one of these")
        return token
    if not token:
        raise ValueError("the target token is empty, expected the text of one token: give one")
    made = [each for each in lm.encode([token])[0] if each not in lm.special_ids] or lm.encode([token])[0]
    if len(made) == 1 and lm.token_strings(made)[0] == token:
        return made[0]
    vocabulary = lm.token_strings(range(lm.vocab_size))
    if token in vocabulary:
        return vocabulary.index(token)
    if len(made) == 1:
        return made[0]
    pieces = ", ".join(map(repr, lm.token_strings(made))) or "no tokens"
    near = difflib.get_close_matches(token, vocabulary, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]!r})" if near else ""
    raise ValueError(
        f"{token!r} is no single token of {lm.name} (it is {pieces}){hint}, expected one: name one of its tokens"
    )


def expected_ids(lm: LanguageModel, tokens: Int[Tensor, "1 seq"]) -> list[int]:
    """Returns the id that the logits at each position are about: a decoder's next token (−1 behind the last), the
    token itself for models that read both sides and for T5, whose decoder's input is shifted."""
    ids = tokens[0].tolist()
    return [*ids[1:], -1] if lm.kind == "decoder" else ids


def read_ids(lm: LanguageModel, tokens: Int[Tensor, "1 seq"]) -> list[int]:
    """Returns the ids that stand at the positions of the (last) stack: T5's decoder reads a start token first."""
    ids = tokens[0].tolist()
    return [int(lm.model.config.decoder_start_token_id), *ids[:-1]] if lm.kind == "encoder-decoder" else ids
