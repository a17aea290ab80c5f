"""Which of a few short answers a language model prefers after a prompt: probabilities instead of parsed text.

Enters: prompts and answers such as "0" and "1". Leaves: the share of each answer in the probability that the model
gives to all of them as its next token.

One prompt at a time, never several in one: earlier questions do not sway later ones. The tokens that all prompts begin
with are computed once, and every prompt goes on from a copy of their keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from activations.model import LanguageModel


@torch.no_grad()
def choice_probabilities(
    lm: LanguageModel, prompts: Sequence[str], choices: Sequence[str]
) -> Float[Tensor, "prompts choices"]:
    """Probability of each choice as what follows each prompt, among the choices alone.

    Every token whose text is the choice, with or without blanks around it, counts for it.

    Raises:
        ValueError: a model that is no decoder, a choice without such a token, or a prompt that does not fit.
    """
    spelled = _spelled(lm, choices)
    ids = lm.encode(prompts)
    for row in ids:
        lm.check_length(len(row))
    shared = _shared_length(ids)
    found = torch.empty(len(ids), len(choices))
    past = None
    with lm.lock:
        if shared:
            head = torch.tensor([ids[0][:shared]], device=lm.device)
            past = lm.model(input_ids=head, use_cache=True).past_key_values
        for number, row in enumerate(ids):
            rest = torch.tensor([row[shared:]], device=lm.device)
            # a pass writes into the cache that it is given
            output = lm.model(input_ids=rest, past_key_values=copy.deepcopy(past), use_cache=True)
            logits = output.logits[0, -1].float()
            found[number] = torch.stack([logits[tokens].logsumexp(0) for tokens in spelled]).softmax(0).cpu()
    return found


@torch.no_grad()
def choice_probabilities_after(
    lm: LanguageModel, prompt: str, pieces: Sequence[str], between: str, choices: Sequence[str]
) -> Float[Tensor, "pieces choices"]:
    """Probability of each choice after each piece of a text, among the choices alone, from one pass.

    The model reads the prompt and then every piece followed by `between`, which stands where answers would.

    Raises:
        ValueError: as `choice_probabilities`.
    """
    spelled = _spelled(lm, choices)
    ids = lm.encode([prompt])[0]
    places = []
    filler = lm.tokenizer(between, add_special_tokens=False)["input_ids"]
    for piece in pieces:
        ids = ids + lm.tokenizer(piece, add_special_tokens=False)["input_ids"]
        places.append(len(ids) - 1)
        ids = ids + filler
    lm.check_length(places[-1] + 1)
    with lm.lock:
        logits = lm.model(input_ids=torch.tensor([ids[: places[-1] + 1]], device=lm.device), use_cache=False).logits[0]
    logits = logits[places].float()
    return torch.stack([logits[:, tokens].logsumexp(1) for tokens in spelled], dim=1).softmax(1).cpu()


def known_choices(lm: LanguageModel, choices: Sequence[str]) -> list[str]:
    """Those of the choices that are a token of the model's own."""
    texts = {text.strip() for text in lm.token_strings(range(lm.vocab_size))}
    return [choice for choice in choices if choice in texts]


def _spelled(lm: LanguageModel, choices: Sequence[str]) -> list[list[int]]:
    """The tokens whose text is each choice, with or without blanks around it."""
    if lm.kind != "decoder":
        raise ValueError(f"{lm.name} is no decoder, expected a model that continues text: use a decoder")
    wanted = set(choices)
    found: dict[str, list[int]] = {choice: [] for choice in choices}
    for token, text in enumerate(lm.token_strings(range(lm.vocab_size))):
        if text.strip() in wanted:
            found[text.strip()].append(token)
    for choice, tokens in found.items():
        if not tokens:
            raise ValueError(f"{lm.name} has no token for the answer {choice!r}, expected one: use another model")
    return [found[choice] for choice in choices]


def _shared_length(ids: list[list[int]]) -> int:
    """Tokens at the beginning that all rows share, at least one less than the shortest has."""
    if len(ids) < 2:
        return 0
    low, high = min(ids), max(ids)
    longest = min(map(len, ids)) - 1
    return next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b or n == longest), longest)
