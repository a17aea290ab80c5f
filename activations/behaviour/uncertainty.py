"""Is the model making it up? Uncertainty over meanings, and what other samples do not support.

    semantic_entropy(model, text, samples=10, same=…) -> SemanticEntropy
    selfcheck(model, text, samples=5, n=1) -> SelfCheck

Semantic entropy: sampled answers that mean the same (`same`, by default the same words; give an entailment model where
there is one) form a meaning, and the entropy is that of the meanings, −Σ p ln p in nats: by counts (`entropy`), and
where answers have log-probabilities also with p(meaning) ∝ Σ of its answers' length-normalised probabilities
(`weighted_entropy`). All answers alike: 0; all different: ln n. High entropy says that the model would say something
else next time.

SelfCheck: an n-gram model of the samples (with add-one smoothing, the answer included) is read over the answer. A
sentence's `mean_surprise` and `max_surprise` are −ln p of its n-grams; `unsupported` is the share of them that stand in
no sample at all: 0 where the samples say the same.

Both see what a model is unsure of, never what it is wrong about with certainty. Ten samples tell entropies apart by
about a third of a nat.

Sources: Kuhn, Gal & Farquhar 2023 (arXiv 2302.09664), Farquhar et al. 2024; Manakul et al. 2023, SelfCheckGPT
(arXiv 2303.08896), n-gram variant.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from activations.analyses.plain import to_json
from activations.behaviour.answers import Answer, BlackBox, Equivalence, ask, draw, same_answer
from activations.behaviour.consistency import grouped

SENTENCE = re.compile(r"\S[^.!?\n]*(?:[.!?]+|\n|$)")


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """Answers that mean the same."""

    answer: str
    """The first of them."""
    n: int
    share: float
    weight: float | None
    """Share of probability (length-normalised); None where answers come without."""
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SemanticEntropy:
    """How many things a model would say, and how evenly."""

    text: str
    samples: int
    entropy: float
    """Nats, by counts."""
    weighted_entropy: float | None
    largest: float
    """ln of the number of samples: all different."""
    meanings: tuple[Meaning, ...]
    """Most frequent first."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each meaning."""
        return [asdict(each) for each in self.meanings]

    def to_json(self) -> str:
        return to_json(self)


def semantic_entropy(
    model: BlackBox | Sequence[Answer],
    text: str,
    *,
    samples: int = 10,
    temperature: float = 1.0,
    same: Equivalence = same_answer,
    seed: int = 0,
) -> SemanticEntropy:
    """Draws answers to a text (or takes those given in the model's place) and measures the entropy of their meanings.

    Raises:
        ValueError: fewer than two samples.
    """
    drawn = draw(model, text, samples, temperature=temperature, seed=seed) if callable(model) else list(model)
    if len(drawn) < 2:
        raise ValueError(f"got {len(drawn)} samples, expected at least 2: entropy is of several answers")
    groups = sorted(grouped([each.text for each in drawn], same), key=lambda group: (-len(group), group[0]))
    weights = _weights(drawn, groups)
    shares = [len(group) / len(drawn) for group in groups]
    return SemanticEntropy(
        text=text,
        samples=len(drawn),
        entropy=_entropy(shares),
        weighted_entropy=None if weights is None else _entropy(weights),
        largest=math.log(len(drawn)),
        meanings=tuple(
            Meaning(
                answer=drawn[group[0]].text,
                n=len(group),
                share=shares[place],
                weight=None if weights is None else weights[place],
                answers=tuple(drawn[number].text for number in group),
            )
            for place, group in enumerate(groups)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class SentenceSupport:
    """What samples say of one sentence of the answer."""

    sentence: str
    mean_surprise: float
    """Nats per n-gram."""
    max_surprise: float
    unsupported: float
    """Share of its n-grams that stand in no sample."""
    words: tuple[str, ...]
    """The first words of n-grams that stand in no sample."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """An answer held against other samples of the same model."""

    text: str
    answer: str
    samples: tuple[str, ...]
    n: int
    unsupported: float
    """Over the whole answer."""
    sentences: tuple[SentenceSupport, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each sentence, in their order."""
        return [asdict(each) for each in self.sentences]

    def to_json(self) -> str:
        return to_json(self)


def selfcheck(
    model: BlackBox | Sequence[str],
    text: str,
    *,
    answer: str | None = None,
    samples: int = 5,
    n: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> SelfCheck:
    """Holds the model's answer (or the one given) against sampled ones (or those given in the model's place).

    Raises:
        ValueError: n below 1, no samples, an answer without words, samples without an answer.
    """
    if n < 1:
        raise ValueError(f"got n={n}, expected at least 1: n-grams are of one word or more")
    if callable(model):
        answer = ask(model, text).text if answer is None else answer
        others = [each.text for each in draw(model, text, samples, temperature=temperature, seed=seed)]
    else:
        others = list(model)
    if answer is None or not others:
        raise ValueError(f"got {len(others)} samples and answer={answer!r}, expected both: give what is checked")
    sentences = [match.group() for match in SENTENCE.finditer(answer) if _grams(match.group(), n)]
    if not sentences:
        raise ValueError(f"the answer {answer[:20]!r} has no {n}-grams of words, expected some: nothing can be checked")
    elsewhere = Counter(gram for other in others for gram in _grams(other, n))
    counts = elsewhere + Counter(gram for sentence in sentences for gram in _grams(sentence, n))
    total = sum(counts.values()) + len(counts)
    found = []
    for sentence in sentences:
        grams = _grams(sentence, n)
        surprises = [-math.log((counts[gram] + 1) / total) for gram in grams]
        alone = [gram for gram in grams if not elsewhere[gram]]
        found.append(
            SentenceSupport(
                sentence=sentence,
                mean_surprise=sum(surprises) / len(surprises),
                max_surprise=max(surprises),
                unsupported=len(alone) / len(grams),
                words=tuple(dict.fromkeys(gram[0] for gram in alone)),
            )
        )
    all_grams = [gram for sentence in sentences for gram in _grams(sentence, n)]
    return SelfCheck(
        text=text,
        answer=answer,
        samples=tuple(others),
        n=n,
        unsupported=sum(not elsewhere[gram] for gram in all_grams) / len(all_grams),
        sentences=tuple(found),
    )


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return [tuple(words[place : place + n]) for place in range(len(words) - n + 1)]


def _entropy(shares: Sequence[float]) -> float:
    return max(0.0, -math.fsum(share * math.log(share) for share in shares if share > 0))


def _weights(drawn: Sequence[Answer], groups: Sequence[Sequence[int]]) -> list[float] | None:
    """Each meaning's share of the samples' length-normalised probabilities."""
    means = [
        None
        if each.log_probabilities is None
        else math.fsum(each.log_probabilities) / max(1, len(each.log_probabilities))
        for each in drawn
    ]
    known = [mean for mean in means if mean is not None]
    if len(known) < len(means):
        return None
    top = max(known)
    masses = [math.fsum(math.exp(known[number] - top) for number in group) for group in groups]
    return [mass / math.fsum(masses) for mass in masses]
