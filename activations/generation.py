"""Text from a language model, token by token.

Enters: a prompt, or a conversation where the tokenizer has a chat template. Leaves: pieces of the continuation as they
become readable. Decoding is greedy unless sampling is asked for; nothing from a checkpoint's generation defaults is
mixed in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from activations.capture import Session
from activations.chat import Message, chat_prompt_ids

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activations.capture import Edit, Intervention
    from activations.model import LanguageModel

CONTEXT_PIECES = 64
Prompt = str | Sequence[Message]
"""A text to continue, or a conversation that waits for the assistant's answer."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen and when to stop."""

    max_new_tokens: int = 20
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    use_cache: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}, expected 0 or more: raise it")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}, expected more than 0: leave do_sample off for greedy")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}, expected a share in (0, 1]: correct it")

    @property
    def stops(self) -> list[str]:
        given = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        return [text for text in given if text]


def generate_pieces(
    lm: LanguageModel, prompt: Prompt, how: Decoding, interventions: Mapping[str, Intervention | Edit]
) -> Iterator[str]:
    """Yields what becomes readable with each token of the continuation; closing the iterator ends the work.

    A piece is empty where its token makes nothing readable yet, so that who listens can stop after any token.
    """
    if lm.kind == "encoder":
        raise ValueError(f"{lm.name} is an encoder, expected a model that generates: use a decoder such as gpt2")
    ids = prompt_tokens(lm, prompt)
    lm.check_length(ids.shape[1] + (how.max_new_tokens if lm.kind == "decoder" else 0))
    tokens: list[int] = []
    shown = ""
    longest = max(map(len, how.stops), default=0)
    before = ids[0].tolist()[-CONTEXT_PIECES:] if lm.kind == "decoder" else []
    prefix = _decode(lm, before)
    for token in _tokens(lm, ids, how, interventions):
        tokens.append(token)
        text = _decode(lm, before + tokens)[len(prefix) :]
        ends = [text.find(stop) for stop in how.stops if stop in text]
        if ends:
            if min(ends) > len(shown):
                yield text[len(shown) : min(ends)]
            return
        # hold back what may still change: the start of a stop text, an unfinished character
        ready = text if longest == 0 else text[: max(len(shown), len(text) - longest + 1)]
        if ready.endswith("\ufffd") or not text.startswith(shown):
            ready = shown
        yield ready[len(shown) :]
        shown = ready
    text = _decode(lm, before + tokens)[len(prefix) :]
    if len(text) > len(shown):
        yield text[len(shown) :]


def prompt_tokens(lm: LanguageModel, prompt: Prompt) -> Int[Tensor, "1 seq"]:
    """Returns the tokens of a text, or of a conversation up to where the assistant is to speak."""
    if isinstance(prompt, str):
        return lm.tokenize(prompt).tokens
    return torch.tensor([chat_prompt_ids(lm, prompt)])


def _decode(lm: LanguageModel, ids: list[int]) -> str:
    return str(lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) if ids else ""


def _tokens(
    lm: LanguageModel, ids: Tensor, how: Decoding, interventions: Mapping[str, Intervention | Edit]
) -> Iterator[int]:
    generator = None
    if how.do_sample and how.seed is not None:
        generator = torch.Generator(lm.device).manual_seed(how.seed)
    ends = lm.end_ids
    session = Session(lm.taps)
    step = _decoder_steps(lm, ids.to(lm.device), how) if lm.kind == "decoder" else _t5_steps(lm, ids.to(lm.device))
    chosen: int | None = None
    for _ in range(how.max_new_tokens):
        # edits are installed for one pass at a time: generations that run side by side do not see each other's
        with lm.lock, torch.no_grad(), ExitStack() as stack, session:
            for site, edit in interventions.items():
                stack.enter_context(lm.taps.edit(lm.site_map.binding(site), edit))
            logits = step.send(chosen)
        chosen = _choose(logits, how, generator)
        if chosen in ends:
            return
        yield chosen


def _decoder_steps(lm: LanguageModel, ids: Tensor, how: Decoding) -> Any:
    """A coroutine: yields the logits after the prompt, then after each token that is sent to it."""
    past, given = None, ids
    while True:
        output = lm.model(input_ids=given, past_key_values=past, use_cache=how.use_cache)
        token = yield output.logits[0, -1].float()
        new = torch.tensor([[token]], device=ids.device)
        if how.use_cache:
            past, given = output.past_key_values, new
        else:
            given = torch.cat([given, new], dim=1)


def _t5_steps(lm: LanguageModel, ids: Tensor) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    given = torch.tensor([[lm.model.config.decoder_start_token_id]], device=ids.device)
    output = lm.model(input_ids=ids, decoder_input_ids=given, use_cache=True)
    encoded = BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)
    while True:
        token = yield output.logits[0, -1].float()
        given = torch.tensor([[token]], device=ids.device)
        output = lm.model(
            encoder_outputs=encoded,
            decoder_input_ids=given,
            past_key_values=output.past_key_values,
            use_cache=True,
        )


def _choose(logits: Tensor, how: Decoding, generator: torch.Generator | None) -> int:
    if bool(logits.isnan().any()):
        raise ValueError("the logits hold NaN, expected numbers: lower the strength of the intervention")
    if not how.do_sample:
        return int(logits.argmax())
    shares = torch.softmax(logits / how.temperature, dim=-1)
    if how.top_p is not None and how.top_p < 1:
        ranked, order = shares.sort(descending=True)
        # the token that crosses the threshold stays
        ranked = ranked.masked_fill(ranked.cumsum(0) - ranked >= how.top_p, 0)
        shares = torch.zeros_like(shares).scatter(0, order, ranked)
    return int(torch.multinomial(shares, 1, generator=generator))
