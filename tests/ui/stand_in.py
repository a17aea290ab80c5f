"""A dictionary made up on the spot, hostile where it can be: the browser's tests need no model.

It answers what the browser asks, with the records of `features`; feature 5 is dead; tokens, document names, labels
and the model's output carry HTML that would run if anything showed it unescaped.

usage: python -m tests.ui.stand_in PORT    serves two of them
"""

from __future__ import annotations

import random
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from features.labels import Explanation
from features.records import (
    ActiveFeature,
    ActiveFeatures,
    Example,
    Feature,
    FeatureList,
    Histogram,
    LogitToken,
    Neighbour,
)
from features.search import SearchHit

CANARY = "<img src=x onerror=\"window.canary='fired'\">"
TEMPLATES = "${window.canary='fired'} {{value}} {{{value}}} `"
SOURCE = (
    'def read_header(path, *, encoding="utf-8"):\n    """Return the first line of a file.\n\n    Raises OSError if the '
    'file cannot be opened.\n    """\n    with open(path, encoding=encoding) as stream:\n        for line in stream:\n'
    "            if line.strip():\n                return line\n    raise ValueError('empty file: %r' % path)\n"
)
DEAD = 5
N_FEATURES = 240


def tokens_of(text: str) -> list[str]:
    """Cuts text roughly as a BPE tokenizer for code would."""
    import re

    return re.findall(r"\n+ *|\s?\w+|\s?[^\w\s]+|\s+", text)


class StandInModel:
    """Streams text slowly enough to be stopped."""

    name = "stand-in"

    def stream(self, prompt: str, max_new_tokens: int = 20, interventions: Any = None, **options: Any):
        """Yields numbered words, and a canary."""
        for number in range(max_new_tokens):
            time.sleep(0.03)
            yield f" {'steered' if interventions else 'plain'}{number}" + (CANARY if number == 3 else "")


class StandIn:
    """Answers like `features.Dictionary`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_features = N_FEATURES
        self.site = "resid_post.2"
        self.lm = StandInModel()
        self.labels: dict[int, list[Explanation]] = {}
        self.info: dict[str, Any] = {
            "n_features": N_FEATURES,
            "n_live": N_FEATURES - 1,
            "n_tokens": 1_234_567,
            "n_indexed_tokens": 1_234_567,
            "n_documents": 321,
            "n_events": 1_234_567 * 28,
            "model": {"name": "stand-in"},
            "site": self.site,
            "sae": {"architecture": "topk"},
        }
        draw = random.Random(name)
        self.densities = [0.0 if i == DEAD else 10 ** draw.uniform(-4.5, -1) for i in range(N_FEATURES)]
        self.maxima = [0.0 if i == DEAD else draw.uniform(2, 30) for i in range(N_FEATURES)]

    @property
    def max_activations(self) -> np.ndarray:
        """float32 [n_features]."""
        return np.array(self.maxima, dtype=np.float32)

    def check_feature(self, feature: int) -> int:
        """Returns the number."""
        return feature

    def explanation_texts(self, feature: int) -> list[Explanation]:
        """Labels, then a computed text."""
        if feature == DEAD:
            return []
        words = ["docstrings that begin with a verb", "`self` before an attribute", "indentation after a colon"]
        text = CANARY + TEMPLATES if feature == 7 else f"{words[feature % 3]}, mostly at ' return' (kind {feature})"
        computed = Explanation(text, "token-statistics", 0.81, "glassbox", "2026-01-01T00:00:00+00:00")
        return [*self.labels.get(feature, []), computed]

    def explanations_of(self, features: Any) -> dict[int, str]:
        """The text to show for each."""
        found = {feature: self.explanation_texts(feature) for feature in features}
        return {feature: texts[0].text for feature, texts in found.items() if texts}

    def feature(self, number: int) -> Feature:
        """Everything about one feature."""
        draw = random.Random(number)
        dead = number == DEAD
        words = tokens_of(SOURCE) + ([CANARY, TEMPLATES] if number == 7 else [])
        top = self.maxima[number]
        examples = []
        for stratum, count in ((0, 12), (1, 4), (2, 4)):
            for rank in range(0 if dead else count):
                center = draw.randrange(4, len(words) - 4) if number != 7 else len(words) - 2
                peak = top * (1 - 0.3 * stratum) * (1 - 0.02 * rank)
                values = [0.0] * len(words)
                values[center] = peak
                for near in (center - 2, center + 1):
                    values[near] = peak * draw.random()
                name = f"asyncio/streams_{rank}.py" if number != 7 else CANARY
                examples.append(
                    Example(number, rank, name, 100 + rank, peak, stratum, rank, list(words), values, center)
                )
        counts = [] if dead else [int(2000 * draw.random()) + 1 for _ in range(24)]
        edges = [] if dead else [top * 2 ** ((i - 24) / 4) for i in range(25)]
        logits = [(" return", 5), ("\n    ", 6), ("self", 7), (" raise", 8), (CANARY if number == 7 else "(", 9)]
        return Feature(
            id=number,
            density=self.densities[number],
            mean_activation=top / 3,
            std_activation=top / 9,
            max_activation=top,
            count=int(self.densities[number] * 1_234_567),
            documents=0 if dead else 40,
            is_dead=dead,
            decoder_norm=1.0,
            histogram=Histogram(edges, counts),
            examples=examples,
            top_logits=[LogitToken(token, i, 2.1 - 0.2 * i) for i, (token, _) in enumerate(logits * 2)],
            bottom_logits=[LogitToken(token, i, -1.1 - 0.1 * i) for i, (token, _) in enumerate(logits * 2)],
            neighbours=[Neighbour((number + 11 * i) % N_FEATURES, 0.9 - 0.07 * i) for i in range(1, 9)],
            explanations=self.explanation_texts(number),
            tokens=[(token, 0.5 / (i + 1), 40) for i, (token, _) in enumerate(logits)] if not dead else [],
        )

    def record(self, number: int) -> dict[str, Any]:
        """A row of the listing."""
        texts = self.explanation_texts(number)
        return {
            "feature": number,
            "density": self.densities[number],
            "mean_activation": self.maxima[number] / 3,
            "max_activation": self.maxima[number],
            "count": 1,
            "is_dead": number == DEAD,
            "explanation": texts[0].text if texts else "dead",
            "score": 0.81 if texts else None,
        }

    def features(self, order: str = "feature", where: Any = None, limit: int = 50, offset: int = 0, live_only=False):
        """A page of features."""
        numbers = [i for i in range(N_FEATURES) if not (live_only and i == DEAD)]
        if order == "density":
            numbers.sort(key=lambda i: -self.densities[i])
        return FeatureList(len(numbers), [self.record(i) for i in numbers[offset : offset + limit]])

    def search(self, query: str, limit: int = 20) -> list[SearchHit]:
        """Features whose explanation holds the query."""
        texts = {i: e[0].text for i in range(N_FEATURES) if (e := self.explanation_texts(i))}
        return [SearchHit(i, "explanation", 1.0, text) for i, text in texts.items() if query in text][:limit]

    def sql(self, query: str) -> pa.Table:
        """Answers the browser's own questions."""
        if query.startswith("select density"):
            return pa.table({"density": [d for d in self.densities if d]})
        if "where is_dead" in query:
            return pa.Table.from_pylist([self.record(DEAD)])
        inside = query.partition(" in (")[2].partition(")")[0]
        return pa.Table.from_pylist([self.record(int(number)) for number in inside.split(",")])

    def active_on(self, text: str, top: int = 10) -> ActiveFeatures:
        """Feature n is active at token n."""
        if text.startswith("refuse"):
            raise OSError(f"model {CANARY} is not there, expected it: bring it back")
        tokens = tokens_of(text)
        per_token = [[(i % 20, 2.0), ((i * 3 + 1) % 20, 1.0)] for i in range(len(tokens))]
        ranked = [
            ActiveFeature(i, 1.0, 2.0, min(i, len(tokens) - 1), self.explanations_of([i]).get(i, ""))
            for i in range(min(top, 9))
        ]
        return ActiveFeatures(text, tokens, per_token, ranked)

    def add_label(self, feature: int, text: str, author: str | None = None) -> Explanation:
        """Keeps a label in memory."""
        label = Explanation(text, "label", None, author or "", "")
        self.labels.setdefault(feature, []).insert(0, label)
        return label


def main(port: int) -> None:
    """Serves two dictionaries of the same name until ended."""
    import features
    from ui import browser

    class Steering:
        def __init__(self, dictionary: Any, strengths: dict[int, float], mode: str = "add") -> None:
            self.dictionary = dictionary
            if strengths.get(9) == 10:
                raise ValueError(f"strength of {CANARY} is refused, expected less: lower it")

        def stream(self, prompt: str, **options: Any):
            return self.dictionary.lm.stream(prompt, interventions=SimpleNamespace(), **options)

    features.Steering = Steering  # type: ignore[misc, assignment]
    browser.serve([StandIn("stdlib"), StandIn("stdlib")], host="127.0.0.1", port=port)  # type: ignore[list-item]


if __name__ == "__main__":
    main(int(sys.argv[1]))
