"""Language models that write and judge explanations: one on this machine, or one behind an OpenAI-compatible endpoint.

Enters: prompts. Leaves: for each the probabilities of a few answers, or a text. Both kinds have `name`, `choose` and
`write`; what could not be answered is a row of NaN, or None, and is counted, never guessed. What leaves the machine,
and how often, is the concern of `features.endpoint`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.endpoint import REQUESTS_PER_MINUTE, Endpoint

if TYPE_CHECKING:
    from activations import LanguageModel


class LocalReader:
    """Asks a language model of this process; answers are read off its logits."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.name = lm.name

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        """float64 [prompts, choices]: probability of each answer among the choices."""
        from activations.choices import choice_probabilities

        if not prompts:
            return np.zeros((0, len(choices)))
        return choice_probabilities(self.lm, list(prompts), list(choices)).double().numpy()

    def write(self, prompt: str, max_new_tokens: int = 60) -> str | None:
        """The first line that the model writes after the prompt; None where it writes nothing."""
        text = self.lm.generate(prompt, max_new_tokens=max_new_tokens, stop="\n").strip()
        return text.splitlines()[0].strip() if text else None


class EndpointReader(Endpoint):
    """Asks an OpenAI-compatible endpoint (`POST {url}/chat/completions`)."""

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        """float64 [prompts, choices]: 0 or 1, or what the endpoint's log-probabilities say; NaN rows without answer."""
        found = np.full((len(prompts), len(choices)), np.nan)
        for number, prompt in enumerate(prompts):
            reply = self._ask(prompt, 4, {"logprobs": True, "top_logprobs": 10})
            row = None if reply is None else _chosen(reply, choices)
            if row is None:
                self.cost.failures += 1
            else:
                found[number] = row
        return found

    def write(self, prompt: str, max_new_tokens: int = 60) -> str | None:
        """The first line of the answer; None where none came."""
        reply = self._ask(prompt, max_new_tokens, {})
        lines = [] if reply is None else [line.strip() for line in reply["text"].splitlines() if line.strip()]
        if not lines:
            self.cost.failures += 1
            return None
        return lines[0]

    def _ask(self, prompt: str, max_tokens: int, more: dict[str, Any]) -> dict[str, Any] | None:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0, **more}
        return self.ask("chat/completions", body, _kept)


def _kept(content: dict[str, Any]) -> dict[str, Any] | None:
    """The parts of an answer that are used; None where it has no text."""
    choice = content["choices"][0]
    text = choice["message"]["content"]
    places = ((choice.get("logprobs") or {}).get("content") or [])[:1]
    first = [[top["token"], float(top["logprob"])] for place in places for top in place["top_logprobs"]]
    return {"text": text, "first": first} if isinstance(text, str) else None


def _chosen(reply: dict[str, Any], choices: Sequence[str]) -> list[float] | None:
    """Probabilities of the choices in an answer; None where it names none of them."""
    mass = [sum(math.exp(p) for token, p in reply["first"] if token.strip() == choice) for choice in choices]
    if sum(mass) > 0:
        return [share / sum(mass) for share in mass]
    said = reply["text"].strip().strip(".'\"`*")
    return [float(said == choice) for choice in choices] if said in choices else None


def reader_for(
    where: str,
    model: str | None,
    cache: Path,
    allow_host: str | None = None,
    device: str = "auto",
    requests_per_minute: float = REQUESTS_PER_MINUTE,
) -> LocalReader | EndpointReader:
    """The reader at `where`: an address, where `model` is the name there, or a local folder or hub name of a model."""
    if where.startswith(("http://", "https://")):
        if not model:
            raise ValueError(f"endpoint {where} was given without a model, expected its name there: name one")
        return EndpointReader(
            url=where, model=model, cache=cache, allow_host=allow_host, requests_per_minute=requests_per_minute
        )
    from activations import LanguageModel

    return LocalReader(LanguageModel.load(where, device=device))
