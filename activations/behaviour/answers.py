"""What is asked and what answers: any callable from text to text, a language model among them.

Enters: a black box (a callable that takes a text and returns a text, or an `Answer` where it can say more). Leaves:
`Answer`s. Nothing here looks inside a model; `Answering` makes a black box of a `LanguageModel`, which tells its
answers' log-probabilities and the distribution of the next token as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from activations.model import LanguageModel

REST = "(rest)"
"""The name of all choices that are not listed."""
TOP = 1000


@dataclass(frozen=True)
class Answer:
    """An answer, and what is known of it."""

    text: str
    log_probabilities: tuple[float, ...] | None = None
    """Of the answer's tokens, in nats."""
    choices: Mapping[str, float] | None = None
    """Probabilities of what could come first (next tokens, classes); what is missing to 1 stands under `(rest)`."""

    @property
    def log_probability(self) -> float | None:
        """Of the whole answer, in nats."""
        return None if self.log_probabilities is None else float(sum(self.log_probabilities))


BlackBox = Callable[[str], "str | Answer"]
"""Where it also has `sample`, as `Samples` has, answers are drawn by seed; where it has
`log_probability(text, answer)`, in nats, answers to changed texts are measured by it."""
Equivalence = Callable[[str, str], bool]


@runtime_checkable
class Samples(Protocol):
    """A black box that draws several answers by seed."""

    def sample(self, text: str, n: int, *, temperature: float, seed: int) -> list[Answer]: ...


def ask(model: BlackBox, text: str) -> Answer:
    """Returns the answer to one text.

    Raises:
        ValueError: the callable returned something else than a text or an `Answer`.
    """
    found = model(text)
    if isinstance(found, Answer):
        return found
    if not isinstance(found, str):
        raise ValueError(f"the model returned {type(found).__name__}, expected a text or an Answer: mend the callable")
    return Answer(found)


def draw(model: BlackBox, text: str, n: int, *, temperature: float = 1.0, seed: int = 0) -> list[Answer]:
    """Returns `n` answers to one text: sampled where the model can, else asked for `n` times.

    Raises:
        ValueError: n below 1, or a callable that returns something else than text.
    """
    if n < 1:
        raise ValueError(f"got n={n} samples, expected at least 1: raise it")
    if isinstance(model, Samples):
        return model.sample(text, n, temperature=temperature, seed=seed)
    return [ask(model, text) for _ in range(n)]


def normalised(text: str) -> str:
    """Returns a text in lower case without articles, signs and surplus spaces, for comparing answers."""
    words = re.findall(r"\w+", text.casefold())
    return " ".join(word for word in words if word not in {"a", "an", "the"}) or " ".join(text.split())


def same_answer(a: str, b: str) -> bool:
    """Says whether two answers are the same words (`normalised`)."""
    return normalised(a) == normalised(b)


class Answering:
    """A language model as a black box: greedy answers with log-probabilities and the next token's distribution."""

    def __init__(
        self,
        lm: LanguageModel,
        *,
        max_new_tokens: int = 20,
        stop: str | Sequence[str] | None = "\n",
        top: int = TOP,
    ) -> None:
        """`top` is the number of next tokens that are listed by name; `stop` ends an answer.

        Raises:
            ValueError: a model that does not generate.
        """
        if lm.kind != "decoder":
            raise ValueError(f"{lm.name} is no decoder, expected a model that continues text: use one such as gpt2")
        self.lm = lm
        self.max_new_tokens = max_new_tokens
        self.stop = stop
        self.top = top

    def __call__(self, text: str) -> Answer:
        """Returns the greedy continuation."""
        answer = self.lm.generate(text, max_new_tokens=self.max_new_tokens, stop=self.stop)
        return Answer(answer, self.token_log_probabilities(text, answer), self.choices(text))

    def sample(self, text: str, n: int, *, temperature: float = 1.0, seed: int = 0) -> list[Answer]:
        """Returns `n` sampled continuations."""
        how = {"max_new_tokens": self.max_new_tokens, "stop": self.stop, "do_sample": True, "temperature": temperature}
        drawn = [self.lm.generate(text, **how, seed=seed + number) for number in range(n)]
        return [Answer(answer, self.token_log_probabilities(text, answer)) for answer in drawn]

    def log_probability(self, text: str, answer: str) -> float:
        """Returns ln p(answer | text), 0 for an empty answer."""
        return float(sum(self.token_log_probabilities(text, answer)))

    def token_log_probabilities(self, text: str, answer: str) -> tuple[float, ...]:
        """Returns ln p of each token of an answer behind a text."""
        special = self.lm.special_ids
        behind = [each for each in self.lm.encode([answer])[0] if each not in special] if answer else []
        if not behind:
            return ()
        before = self.lm.tokenize(text).tokens
        tokens = torch.cat([before, torch.tensor([behind])], dim=1)
        logits = self.lm.logits(tokens)[0, before.shape[1] - 1 : -1]
        log_p = torch.log_softmax(logits.double(), dim=-1).cpu()
        return tuple(log_p[torch.arange(len(behind)), torch.tensor(behind)].tolist())

    def choices(self, text: str) -> dict[str, float]:
        """Returns the probabilities of the next token by its text (tokens of one text together)."""
        logits = self.lm.logits(self.lm.tokenize(text).tokens)[0, -1]
        shares = torch.softmax(logits.double(), dim=-1).cpu()
        best = shares.topk(min(self.top, len(shares)))
        found: dict[str, float] = {}
        for token, share in zip(self.lm.token_strings(best.indices), best.values.tolist(), strict=True):
            found[token] = found.get(token, 0.0) + share
        rest = 1.0 - float(best.values.sum())
        return found | ({REST: rest} if rest > 1e-12 else {})
