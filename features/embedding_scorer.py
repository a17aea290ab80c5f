"""The embedding scorer: do the windows in which a feature is active lie closer to its explanation than others?

Enters: an opened, explained dictionary and an embedding model. Leaves: rows of the table scores, under
`<method>, embedded by <model>`, and a report with means over features beside those of another feature's explanation.

A window's score is the cosine of embed(`QUERY` with the explanation) and embed(window's text); the figure is its AUC,
active windows against silent ones (`embedding`) and against hard ones (`embedding_hard`), on the same windows of test
documents as every other scorer. Every window is embedded once, whatever features it is drawn for.

Source: EleutherAI's delphi, scorers/embedding; docs/explanations.md.
"""

from __future__ import annotations

import time

import numpy as np

from activations.progress import progress
from features import labels
from features.dictionary import Dictionary
from features.embedders import Embedder
from features.score_run import LEAST_WINDOWS, Means, ScoreReport, chosen_features, derangement, stored_rules
from features.scoring import auc, document_weights, measure
from features.scoring_samples import ACTIVE, HARD, SILENT, FeatureWindows, ScoreConfig, ScoringText

EMBEDDING = "embedding"
QUERY = "Instruct: Retrieve sentences that could be related to the explanation.\nQuery:{explanation}"
BASELINE = "explanation of another feature"


class _WindowVectors:
    """Unit vectors of test windows, each embedded once; NaN where no answer came."""

    def __init__(self, embedder: Embedder, text: ScoringText) -> None:
        self._embedder, self._text = embedder, text
        self._known: dict[int, np.ndarray] = {}

    def of(self, drawn: FeatureWindows) -> np.ndarray:
        wanted = drawn.windows.tolist()
        new = sorted({window for window in wanted if window not in self._known})
        if new:
            texts = ["".join(tokens) for tokens in self._text.test.texts(np.array(new))]
            self._known |= dict(zip(new, self._embedder.embed(texts), strict=True))
        return np.stack([self._known[window] for window in wanted])


def score_embeddings(dictionary: Dictionary, embedder: Embedder, config: ScoreConfig | None = None) -> ScoreReport:
    """Scores the explanations of every method by their likeness to windows, and writes the table scores.

    Raises:
        ValueError: a dictionary without explanations, or one of too few documents.
    """
    config = config or ScoreConfig()
    started = time.perf_counter()
    text = ScoringText(dictionary, config, next(iter(stored_rules(dictionary).values())).seed)
    rows = dictionary.store.query("select method, feature, text from explanations order by method, feature").to_pylist()
    weights = document_weights(len(text.test.rows), config.seed)
    means = Means(config.seed, labels.now())
    vectors = _WindowVectors(embedder, text)
    scored = unscored = 0
    for method in dict.fromkeys(row["method"] for row in rows):
        texts = {row["feature"]: row["text"] for row in rows if row["method"] == method}
        chosen = chosen_features(np.array(sorted(texts)), config)
        others = derangement(np.array(sorted(texts)), config.seed)
        with progress("embed", chosen.size, "features") as advance:
            for feature in chosen.tolist():
                drawn = text.draw(feature)
                if min((drawn.kinds == ACTIVE).sum(), (drawn.kinds == SILENT).sum()) < LEAST_WINDOWS:
                    unscored += 1
                    advance(1)
                    continue
                scored += 1
                windows = vectors.of(drawn)
                asked = {method: texts[feature], f"{BASELINE}, {method}": texts[others[feature]]}
                queries = embedder.embed([QUERY.format(explanation=said) for said in asked.values()])
                for name, query in zip(asked, queries, strict=True):
                    likeness = cosines(windows, query)
                    for scorer, kind in ((EMBEDDING, SILENT), (f"{EMBEDDING}_hard", HARD)):
                        kept = (drawn.kinds == ACTIVE) | (drawn.kinds == kind)
                        found = measure(
                            auc,
                            np.nan_to_num(likeness[kept]),
                            drawn.kinds[kept] == ACTIVE,
                            drawn.documents[kept],
                            weights,
                            np.isnan(likeness[kept]),
                        )
                        if found is not None:
                            means.add(feature, f"{name}, embedded by {embedder.name}", scorer, found)
                advance(1)
    means.write(dictionary, [EMBEDDING])
    return ScoreReport(means.results(), scored, unscored, round(time.perf_counter() - started, 2))


def cosines(windows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """float64 [n]: products of unit vectors; NaN where either is not known."""
    if windows.shape[1] != query.size:  # an endpoint answered one of them not at all
        return np.full(windows.shape[0], np.nan)
    return windows.astype(np.float64) @ query.astype(np.float64)
