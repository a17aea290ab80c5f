"""Explanations written and judged by a language model (`features.readers`).

Enters: an opened, explained dictionary and a reader. Leaves: explanations under the reader's name, and rows of the
table scores beside those of the rules (`features.score_run`), on the same windows.

* An explanation is written from active windows of the training documents, strongest quantile first, with the active
  tokens in `<<…>>`.
* Detection and fuzzing: one window a question; p = P("1") / (P("0") + P("1")), yes from one half on.
* Simulation: the activation that the reader expects at every token, Σ v·p(v) with v from 0 to 10, against the real one
  over all tokens of the simulated windows joined (`features.scoring.simulation`).
* Intruder, which needs no explanation: `CHOICES` windows, all but one from one part of the order of strength and one
  silent; the figure is the share of intruders found, against 1/`CHOICES` by chance.
* Surprisal (local reader only): how much easier a window's tokens become when the explanation stands before them
  instead of a sentence that says nothing; AUC of active against silent windows.

Source of the definitions: EleutherAI's delphi, without its fixed places of marks and its overlap of train and test.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from activations.progress import progress
from features import labels, schema
from features.dictionary import Dictionary
from features.endpoint import Cost
from features.explain import METHOD
from features.readers import EndpointReader, LocalReader
from features.rule_scorers import Answers
from features.score_run import (
    LEAST_WINDOWS,
    Means,
    ScoreReport,
    chosen_features,
    judged_by,
    stored_rules,
)
from features.scoring import Measure, accuracy, auc, document_weights, measure, simulation
from features.scoring_samples import (
    ACTIVE,
    LEVELS,
    SILENT,
    FeatureWindows,
    ScoreConfig,
    ScoringText,
    WindowedPart,
    rng_of,
)

Reader = LocalReader | EndpointReader
READER_SCORERS = ("detection", "fuzzing", "intruder", "simulation", "surprisal")
CHOICES = 5
SHOWN = 20
"""Training windows that an explanation is written from."""
NOTHING = "Various unrelated sentences."

EXPLAIN = """Below are pieces of text. The tokens between << and >> make one feature of a language model active.

{examples}

Say in one short phrase what those tokens, or the text before them, have in common.
The feature is active at"""
DETECT = """A feature of a language model is active at: {explanation}

Is it active anywhere in the following piece of text? Answer 1 for yes and 0 for no.

{text}

Answer (0 or 1):"""
FUZZ = """A feature of a language model is active at: {explanation}

Is it active at the tokens between << and >> in the following piece of text? Answer 1 for yes and 0 for no.

{text}

Answer (0 or 1):"""
INTRUDE = """All but one of these pieces of text have something in common. Answer with the number of the other one.

{texts}

Answer (1 to {n}):"""


def shown(tokens: Sequence[str], marks: np.ndarray) -> str:
    """A window's text with runs of marked tokens between << and >>."""
    pieces: list[str] = []
    for number, token in enumerate(tokens):
        before = number > 0 and bool(marks[number - 1])
        after = number + 1 < len(tokens) and bool(marks[number + 1])
        is_marked = bool(marks[number])
        pieces.append(("<<" if is_marked and not before else "") + token + (">>" if is_marked and not after else ""))
    return "".join(pieces)


@dataclass(frozen=True)
class ReaderReport:
    """What a reader wrote, judged and cost."""

    reader: str
    written: int | None
    """Explanations written; None where none were asked for."""
    unwritten: int
    """Features for which nothing usable was written."""
    scores: ScoreReport | None
    cost: Cost | None
    """What an endpoint took; None for a local model."""

    def rows(self) -> list[dict[str, Any]]:
        return [] if self.scores is None else self.scores.rows()

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def read(
    dictionary: Dictionary, reader: Reader, scorers: Sequence[str], config: ScoreConfig, write: bool = False
) -> ReaderReport:
    """Writes explanations (with `write`) and scores those, or else the token statistics' texts, with `scorers`."""
    check_reader_scorers(scorers, reader)
    method, written, unwritten = METHOD, None, 0
    if write:
        method, written, unwritten = explain_by(dictionary, reader, config)
    scores = score_by(dictionary, reader, scorers, config, method) if scorers and written != 0 else None
    return ReaderReport(
        reader.name, written, unwritten, scores, reader.cost if isinstance(reader, EndpointReader) else None
    )


def check_reader_scorers(scorers: Sequence[str], reader: Reader | None = None) -> None:
    """Refuses scorers that readers, or this one, do not have."""
    if unknown := [name for name in scorers if name not in READER_SCORERS]:
        raise ValueError(
            f"scorer {unknown[0]!r} is not a reader's, expected one of {', '.join(READER_SCORERS)}: choose among these"
        )
    if "surprisal" in scorers and isinstance(reader, EndpointReader):
        raise ValueError(
            "surprisal was asked of an endpoint, expected a local model, whose losses can be read: name one"
        )


class ModelReader:
    """Answers by a text that a language model reads; the counterpart of `features.rule_scorers.RuleReader`."""

    def __init__(self, reader: Reader, explanation: str, part: WindowedPart) -> None:
        self._reader, self._explanation, self._part = reader, explanation, part

    def detect(self, drawn: FeatureWindows) -> Answers:
        """Is the feature active anywhere in the window?"""
        texts = ["".join(tokens) for tokens in self._part.texts(drawn.windows)]
        return self._answers([DETECT.format(explanation=self._explanation, text=text) for text in texts])

    def fuzz(self, drawn: FeatureWindows, marks: np.ndarray) -> Answers:
        """Is the feature active at the marked tokens?"""
        texts = [shown(tokens, row) for tokens, row in zip(self._part.texts(drawn.windows), marks, strict=True)]
        return self._answers([FUZZ.format(explanation=self._explanation, text=text) for text in texts])

    def _answers(self, prompts: list[str]) -> Answers:
        yes = self._reader.choose(prompts, ("0", "1"))[:, 1]
        failed = np.isnan(yes)
        yes = np.where(failed, 0.0, yes)
        return Answers(yes >= 0.5, yes, failed)


def explain_by(dictionary: Dictionary, reader: Reader, config: ScoreConfig | None = None) -> tuple[str, int, int]:
    """Writes an explanation of each chosen feature; returns (method, explained, failures).

    Each is written as it comes, in the place of the same reader's earlier one; what a stopped run has asked is in the
    reader's folder and is not asked again. People's labels and other methods' texts are not touched.
    """
    config = config or ScoreConfig()
    rules = stored_rules(dictionary)
    text = ScoringText(dictionary, config, next(iter(rules.values())).seed)
    explained: list[int] = []
    failures = 0
    method = f"reader {reader.name}"
    chosen = chosen_features(np.array(sorted(rules)), config)
    with progress("explain", chosen.size, "features") as advance:
        for feature in chosen.tolist():
            drawn = text.draw(feature, text.train)
            drawn = drawn.select(np.flatnonzero(drawn.kinds == ACTIVE)[:SHOWN])
            if drawn.windows.size == 0:
                advance(1)
                continue
            examples = [
                shown(tokens, sizes >= 0.3 * sizes.max())
                for tokens, sizes in zip(text.train.texts(drawn.windows), drawn.activations, strict=True)
            ]
            written = reader.write(EXPLAIN.format(examples="\n---\n".join(examples)))
            if written is None:
                failures += 1
            else:
                row = {"feature": feature, "method": method, "text": written, "rule": None, "score": None}
                row |= {"author": reader.name, "created": labels.now()}
                table = pa.Table.from_pylist([row], schema=schema.TABLES["explanations"].arrow_schema())
                labels.write_explanations(dictionary.store, table, method, feature)
                explained.append(feature)
            advance(1)
    labels.keep_explanations(dictionary.store, method, explained)
    return method, len(explained), failures


def score_by(
    dictionary: Dictionary,
    reader: Reader,
    scorers: Sequence[str],
    config: ScoreConfig | None = None,
    method: str = METHOD,
) -> ScoreReport:
    """Lets a reader judge the explanations of `method`; figures stand under `<method>, read by <reader>`.

    Raises:
        ValueError: a scorer that a reader does not have, or a dictionary without explanations of the method.
    """
    check_reader_scorers(scorers, reader)
    config = config or ScoreConfig()
    started = time.perf_counter()
    seed = next(iter(stored_rules(dictionary).values())).seed
    rows = dictionary.store.query("select feature, text from explanations where method = ?", [method]).to_pylist()
    texts = {row["feature"]: row["text"] for row in rows}
    if not texts:
        raise ValueError(
            f"dictionary {dictionary.name} has no explanations by {method!r}, expected some: explain first"
        )
    text = ScoringText(dictionary, config, seed)
    weights = document_weights(len(text.test.rows), config.seed)
    means = Means(config.seed, labels.now())
    name = f"{method}, read by {reader.name}"
    chosen = chosen_features(np.array(sorted(texts)), config)
    scored = 0
    with progress("score", chosen.size, "features") as advance:
        for feature in chosen.tolist():
            drawn = text.draw(feature)
            if min((drawn.kinds == ACTIVE).sum(), (drawn.kinds == SILENT).sum()) < LEAST_WINDOWS:
                advance(1)
                continue
            scored += 1
            judge = ModelReader(reader, texts[feature], text.test)
            for scorer, found in judged_by(judge, drawn, text, scorers, weights):
                means.add(feature, name, scorer, found)
            if "intruder" in scorers and (found := _intruder(reader, drawn, text, weights)) is not None:
                means.add(feature, name, "intruder", found)
            if "surprisal" in scorers and isinstance(reader, LocalReader):
                for scorer, found in _surprisal(reader, texts[feature], drawn, text, weights):
                    means.add(feature, name, scorer, found)
            if "simulation" in scorers:
                maximum = float(dictionary.max_activations[feature])
                for scorer, found in _simulated(reader, texts[feature], feature, maximum, text, weights):
                    means.add(feature, name, scorer, found)
            advance(1)
    means.write(dictionary, scorers)
    return ScoreReport(means.results(), scored, int(chosen.size) - scored, round(time.perf_counter() - started, 2))


def _intruder(reader: Reader, drawn: FeatureWindows, text: ScoringText, weights: np.ndarray) -> Measure | None:
    """Share of intruders found: one silent window among `CHOICES` − 1 active ones of one part of the order."""
    rng = rng_of(text.config.seed, drawn.feature, 4)
    silent = rng.permutation(drawn.windows[drawn.kinds == SILENT])
    prompts, places, documents = [], [], []
    for part in np.unique(drawn.quantiles[drawn.kinds == ACTIVE]).tolist():
        group = drawn.windows[(drawn.kinds == ACTIVE) & (drawn.quantiles == part)]
        if group.size < CHOICES - 1 or len(prompts) >= silent.size:
            continue
        place = int(rng.integers(CHOICES))
        windows = np.insert(rng.permutation(group)[: CHOICES - 1], place, silent[len(prompts)])
        lines = [f"{n}: {''.join(tokens)}" for n, tokens in enumerate(text.test.texts(windows), 1)]
        prompts.append(INTRUDE.format(texts="\n".join(lines), n=CHOICES))
        places.append(place)
        documents.append(int(text.test.documents[windows[place]]))
    if not prompts:
        return None
    chosen = reader.choose(prompts, [str(n) for n in range(1, CHOICES + 1)])
    failed = np.isnan(chosen[:, 0])
    right = np.where(failed[:, None], -1.0, chosen).argmax(1) == np.array(places)
    return measure(accuracy, right, np.ones(right.size, dtype=bool), np.array(documents), weights, failed)


def _simulated(
    reader: Reader, explanation: str, feature: int, maximum: float, text: ScoringText, weights: np.ndarray
) -> Iterator[tuple[str, Measure]]:
    """Correlation and explained second moment of the activations that the reader expects, where it answered."""
    drawn = text.simulated(feature)
    answers = [reader.levels(explanation, tokens) for tokens in text.test.texts(drawn.windows)]
    answered = [number for number, answer in enumerate(answers) if answer is not None]
    if not drawn.activations[answered].any():
        return
    expected = np.stack([answer for answer in answers if answer is not None]) * (maximum / LEVELS)
    found = simulation(expected, drawn.activations[answered], drawn.documents[answered], weights)
    for name, each in zip(("simulation", "simulation_explained"), found, strict=True):
        yield name, each._replace(failures=len(answers) - len(answered))


def _surprisal(
    reader: LocalReader, explanation: str, drawn: FeatureWindows, text: ScoringText, weights: np.ndarray
) -> Iterator[tuple[str, Measure]]:
    kept = np.flatnonzero((drawn.kinds == ACTIVE) | (drawn.kinds == SILENT))
    windows = ["".join(tokens) for tokens in text.test.texts(drawn.windows[kept])]
    gain = _losses(reader, NOTHING, windows) - _losses(reader, explanation, windows)
    found = measure(auc, gain, drawn.kinds[kept] == ACTIVE, drawn.documents[kept], weights)
    if found is not None:
        yield "surprisal", found


def _losses(reader: LocalReader, before: str, windows: Sequence[str]) -> np.ndarray:
    """float64 [n]: mean loss of the windows' own tokens with `before` in front of them."""
    lm = reader.lm
    found = []
    for window in windows:
        batch = lm.tokenize(f"{before}\n\n{window}")
        own = sum(token not in lm.special_ids for token in lm.encode([window])[0])
        found.append(float(lm.token_losses(batch.tokens, batch.mask)[0, -own:].double().mean()))
    return np.array(found)
