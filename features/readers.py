"""Language models that write and judge explanations: one on this machine, or one behind an OpenAI-compatible endpoint.

Enters: prompts. Leaves: for each the probabilities of a few answers, or a text. Both kinds have `name`, `choose` and
`write`; what could not be answered is a row of NaN, or None, and is counted, never guessed. What leaves the machine,
and how often, is the concern of `features.endpoint`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.endpoint import REQUESTS_PER_MINUTE, Endpoint
from features.scoring_samples import LEVELS
from features.store import write_json

if TYPE_CHECKING:
    from activations import LanguageModel


UNKNOWN = "?\n"
SIMULATE = """A feature of a language model is active at: {explanation}

Below are the tokens of a piece of text, each followed by the feature's activation there from 0 to {most}.

"""
SIMULATE_LIST = """A feature of a language model is active at: {explanation}

How active is it at each of the following {n} tokens of a text, one in a line, from 0 to {most}? Most tokens have 0.
Answer with {n} whole numbers in the order of the tokens, separated by commas, and nothing else.

{tokens}"""


class LocalReader:
    """Asks a language model of this process; answers are read off its logits."""

    def __init__(self, lm: LanguageModel, cache: Path | None = None) -> None:
        """`cache` is a folder that keeps answers, so that a run that was stopped goes on without asking again."""
        self.lm = lm
        self.name = lm.name
        self._cache = cache

    def choose(self, prompts: Sequence[str], choices: Sequence[str]) -> np.ndarray:
        """float64 [prompts, choices]: probability of each answer among the choices."""
        from activations.choices import choice_probabilities

        if not prompts:
            return np.zeros((0, len(choices)))
        asked = {"prompts": list(prompts), "choices": list(choices)}
        found = self._kept(asked, lambda: choice_probabilities(self.lm, list(prompts), list(choices)).double().tolist())
        return np.array(found, dtype=np.float64)

    def write(self, prompt: str, max_new_tokens: int = 60) -> str | None:
        """The first line that the model writes after the prompt; None where it writes nothing."""

        def written() -> str:
            return self.lm.generate(prompt, max_new_tokens=max_new_tokens, stop="\n").strip()

        text = self._kept({"write": prompt, "max_new_tokens": max_new_tokens}, written)
        return text.splitlines()[0].strip() if text else None

    def levels(self, explanation: str, tokens: Sequence[str]) -> np.ndarray | None:
        """float64 [tokens]: expected activation of each token, Σ v·p(v), from 0 to `LEVELS`; one pass for a window.

        Where the model has no token for the largest level, the others are stretched over its range.
        """
        from activations.choices import choice_probabilities_after, known_choices

        values = [str(value) for value in range(LEVELS + 1)]
        values = values if known_choices(self.lm, values[-1:]) else values[:-1]
        prompt = SIMULATE.format(explanation=explanation, most=values[-1])
        pieces = [f"{_on_one_line(token)}\t" for token in tokens]
        found = self._kept(
            {"simulate": prompt, "pieces": pieces},
            lambda: choice_probabilities_after(self.lm, prompt, pieces, UNKNOWN, values).double().tolist(),
        )
        return np.array(found) @ np.arange(len(values)) * (LEVELS / (len(values) - 1))

    def _kept(self, asked: dict[str, Any], answer: Callable[[], Any]) -> Any:
        """The answer to a question, from the folder where it is there."""
        if self._cache is None:
            return answer()
        key = hashlib.sha256(json.dumps([self.lm.weight_hash(), asked], sort_keys=True).encode()).hexdigest()
        path = self._cache / key[:2] / f"{key}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"answer": answer()})
        return json.loads(path.read_text(encoding="utf-8"))["answer"]


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

    def levels(self, explanation: str, tokens: Sequence[str]) -> np.ndarray | None:
        """float64 [tokens]: expected activation of each token from 0 to `LEVELS`; None without a usable answer.

        Σ v·p(v) from the endpoint's log-probabilities where it gives some, else the numbers that it wrote.
        """
        listed = "\n".join(_on_one_line(token) for token in tokens)
        prompt = SIMULATE_LIST.format(explanation=explanation, tokens=listed, n=len(tokens), most=LEVELS)
        reply = self._ask(prompt, 4 * len(tokens) + 16, {"logprobs": True, "top_logprobs": 15})
        found = None if reply is None else _levels(reply, len(tokens))
        if found is None:
            self.cost.failures += 1
        return found

    def _ask(self, prompt: str, max_tokens: int, more: dict[str, Any]) -> dict[str, Any] | None:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0, **more}
        return self.ask("chat/completions", body, _kept)


def _kept(content: dict[str, Any]) -> dict[str, Any] | None:
    """The parts of an answer that are used; None where it has no text."""
    choice = content["choices"][0]
    text = choice["message"]["content"]
    places = (choice.get("logprobs") or {}).get("content") or []
    likely = [[[t["token"], float(t["logprob"])] for t in place.get("top_logprobs") or []] for place in places]
    written = [str(place.get("token") or "") for place in places]
    return {"text": text, "likely": likely, "written": written} if isinstance(text, str) else None


def _chosen(reply: dict[str, Any], choices: Sequence[str]) -> list[float] | None:
    """Probabilities of the choices in an answer; None where it names none of them."""
    first = reply["likely"][0] if reply["likely"] else []
    mass = [sum(math.exp(p) for token, p in first if token.strip() == choice) for choice in choices]
    if sum(mass) > 0:
        return [share / sum(mass) for share in mass]
    said = reply["text"].strip().strip(".'\"`*")
    return [float(said == choice) for choice in choices] if said in choices else None


def _levels(reply: dict[str, Any], n: int) -> np.ndarray | None:
    """The `n` activations that an answer names; None where it names another number of them, or none from 0 to 10."""
    expected = []
    for token, likely in zip(reply["written"], reply["likely"], strict=True):
        if not token.strip().isdecimal():
            continue
        levels = [(int(said), math.exp(p)) for said, p in ((said.strip(), p) for said, p in likely) if _is_level(said)]
        mass = sum(p for _, p in levels)
        expected.append(sum(value * p for value, p in levels) / mass if mass > 0 else math.nan)
    if len(expected) == n and not any(map(math.isnan, expected)):
        return np.array(expected)
    # a level of two tokens, or no log-probabilities: what was written counts
    said = re.findall(r"-?\d+(?:\.\d+)?", reply["text"])
    values = np.array([float(value) for value in said])
    return values if values.size == n and ((values >= 0) & (values <= LEVELS)).all() else None


def _is_level(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= LEVELS


def _on_one_line(token: str) -> str:
    return token.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


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

    return LocalReader(LanguageModel.load(where, device=device), cache)
