"""The embedding scorer: AUC of cosines, as reckoned by hand; each window is embedded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_events import plant

from features import Dictionary
from features.embedders import EndpointEmbedder
from features.embedding_scorer import BASELINE, QUERY, score_embeddings
from features.explain import METHOD, ExplainConfig, explain
from features.scoring_samples import ACTIVE, HARD, SILENT, ScoreConfig, ScoringText

CONFIG = ScoreConfig(window_tokens=8, actives=16, silent=8, quantiles=2)


class Counting(EndpointEmbedder):
    """Vectors whose first coordinate says whether x or 1 stands in a text; one text it does not answer."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        found = []
        for text in texts:
            noise = np.random.default_rng(abs(hash(text)) % 2**32).normal(size=4)
            says = text.startswith("Instruct") or "x" in text or "1" in text
            vector = np.concatenate([[3.0 * says], noise])
            found.append(vector / np.linalg.norm(vector))
        return np.array(found, dtype=np.float32)


@pytest.fixture
def planted(copied: Path) -> Iterator[Dictionary]:
    opened = plant(copied, "token in ('x', '1')")
    explain(opened, ExplainConfig(min_events=3))
    yield opened
    opened.close()


def test_the_figure_is_the_auc_of_cosines_with_the_instructed_explanation(planted: Dictionary) -> None:
    embedder = Counting()
    report = score_embeddings(planted, embedder, CONFIG)
    windows = [text for text in embedder.asked if not text.startswith("Instruct")]
    assert len(windows) == len(set(windows)) or len(windows) <= report.scored * 30
    text = ScoringText(planted, CONFIG, 0)
    drawn = text.draw(7)
    said = planted.sql("select text from explanations where feature = 7").to_pylist()[0]["text"]
    query = embedder.embed([QUERY.format(explanation=said)])[0]
    cosine = embedder.embed(["".join(tokens) for tokens in text.test.texts(drawn.windows)]) @ query
    rows = planted.sql("select * from scores where feature = 7 and scorer like 'embedding%'").to_pylist()
    found = {row["scorer"]: row for row in rows if row["method"] == f"{METHOD}, embedded by counting"}
    for scorer, kind in (("embedding", SILENT), ("embedding_hard", HARD)):
        active, other = cosine[drawn.kinds == ACTIVE], cosine[drawn.kinds == kind]
        expected = np.mean((active[:, None] > other) + (active[:, None] == other) / 2)
        assert found[scorer]["score"] == pytest.approx(expected, abs=1e-6)
        assert found[scorer]["n"] == active.size + other.size
    assert found["embedding"]["score"] > 0.9
    assert any(mean.method.startswith(BASELINE) for mean in report.means)


def test_windows_without_an_answer_are_failures(planted: Dictionary, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Counting()
    whole = embedder.embed

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = whole(texts)
        found[[text.endswith("x") for text in texts]] = np.nan
        return found

    monkeypatch.setattr(embedder, "embed", embed)
    score_embeddings(planted, embedder, CONFIG)
    rows: list[dict[str, Any]] = planted.sql("select * from scores where scorer = 'embedding'").to_pylist()
    assert sum(row["failures"] for row in rows) > 0
    assert all(np.isfinite(row["score"]) for row in rows)
