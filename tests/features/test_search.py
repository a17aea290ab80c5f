"""Search by kind: what is found is what a plain count over tokens, text and words finds."""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from fake_endpoint import Fake, serving

from features import Dictionary, bm25, labels, patterns
from features.embedders import EndpointEmbedder, LocalEmbedder
from features.schema import TABLES

TEXTS = {
    1: "the word import, and import again",
    2: "import statements at the beginning of files",
    3: "numbers after a dash",
    4: "Ünïcode wörds; drop table labels",
    5: "names such as __import__ and open_file",
    6: "the the the the",
}


@pytest.fixture
def told(copied: Path) -> Iterator[Dictionary]:
    """A dictionary with explanations, and labels of which the newest counts."""
    opened = Dictionary.open(copied)
    rows = [
        {"feature": f, "method": "test", "text": t, "rule": None, "score": 0.5, "author": "", "created": ""}
        for f, t in TEXTS.items()
    ]
    labels.write_explanations(
        opened.store, pa.Table.from_pylist(rows, schema=TABLES["explanations"].arrow_schema()), "test"
    )
    opened.add_label(3, "import of an old opinion")
    opened.add_label(3, "dates")
    yield opened
    opened.close()


def hand_bm25(texts: dict[int, str], query: str, k1: float = 1.2, b: float = 0.75) -> dict[int, float]:
    words = {key: re.findall(r"[^\W_]+", text.lower()) for key, text in texts.items()}
    mean = sum(map(len, words.values())) / len(words)
    found: dict[int, float] = defaultdict(float)
    for term in set(re.findall(r"[^\W_]+", query.lower())):
        held = [key for key in words if term in words[key]]
        idf = math.log(1 + (len(words) - len(held) + 0.5) / (len(held) + 0.5))
        for key in held:
            times = Counter(words[key])[term]
            found[key] += idf * times * (k1 + 1) / (times + k1 * (1 - b + b * len(words[key]) / mean))
    return found


@pytest.mark.parametrize("query", ["import", "the IMPORT words", "ünïcode", "file numbers dates", "the", "__import__"])
def test_words_of_explanations_are_ranked_as_bm25_says(told: Dictionary, query: str) -> None:
    texts = TEXTS | {-3: "dates", -300: "import of an old opinion"}
    expected = hand_bm25(texts, query)
    hits = bm25.WordIndex(told.store).ranked(query, 100)
    found = {h.feature * (1 if not h.is_label else -1 if h.is_newest else -100): h.score for h in hits}
    assert found == {key: pytest.approx(score) for key, score in expected.items()}
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    named = told.search(query, kind="explanation")
    assert named
    assert all(word in query.lower() for hit in named for word in re.findall(r"[^\W_]+", hit.reason.split(" has ")[1]))


def test_an_earlier_label_is_told_as_one_and_hostile_queries_are_text(told: Dictionary) -> None:
    (earlier,) = told.search("opinion", kind="explanation")
    assert (earlier.feature, earlier.reason, earlier.explanation) == (3, "earlier label has opinion", "dates")
    assert told.search("dates")[0].feature == 3
    for kind in ("auto", "token", "text", "explanation"):
        for hostile in ["'; drop table labels; --", '"quoted"', "<script>", "a\x00b", "%_\\"]:
            told.search(hostile, kind=kind)
        with pytest.raises(ValueError, match="half a character at 1, expected Unicode"):
            told.search("a\ud800", kind=kind)
    assert told.sql("select count(*) as n from labels")["n"][0].as_py() == 2
    assert told.search("?!", kind="explanation") == []


def test_a_pattern_finds_the_tokens_and_the_places_that_python_finds(dictionary: Dictionary) -> None:
    pattern = r"[0-9]+|sel(?=f)"
    vocabulary = dictionary.text.vocabulary
    ids = {i for i, token in enumerate(vocabulary) if re.search(pattern, token)}
    shares: dict[int, float] = defaultdict(float)
    for row in dictionary.sql("select * from feature_tokens").to_pylist():
        if row["token_id"] in ids:
            shares[row["feature"]] += row["mass"]
    at: dict[tuple[int, int], int] = {}
    n = 0
    for document in dictionary.sql("select distinct document from tokens order by 1")["document"].to_pylist():
        rows = dictionary.sql(f"select token, position from tokens where document = {document} order by position")
        tokens = rows["token"].to_pylist()
        ends = np.cumsum([len(token) for token in tokens])
        for match in re.finditer(pattern, "".join(tokens)):
            first, last = np.searchsorted(ends, [match.start(), match.end() - 1], side="right")
            for place in range(first, last + 1):
                at[document, rows["position"][place].as_py()] = n
            n += 1
    mass: dict[int, float] = defaultdict(float)
    places: dict[int, set[int]] = defaultdict(set)
    for row in dictionary.sql("select * from events").to_pylist():
        if (number := at.get((row["document"], row["position"]))) is not None:
            mass[row["feature"]] += abs(row["activation"])
            places[row["feature"]].add(number)
    facts = {row["feature"]: row for row in dictionary.sql("select * from features").to_pylist()}
    scores = {
        f: max(shares.get(f, 0.0), min(1.0, mass[f] / facts[f]["max_activation"] / math.sqrt(facts[f]["count"] * n)))
        for f in {*shares, *mass}
    }
    hits = dictionary.search(pattern, limit=1000, kind="regex")
    assert {hit.feature: hit.score for hit in hits} == {
        f: pytest.approx(score, rel=1e-4) for f, score in scores.items()
    }
    for hit in hits:
        if hit.feature in places:
            assert f"active at {len(places[hit.feature]):,} of {n:,} matches" in hit.reason


def test_a_phrase_is_found_in_any_case_and_never_across_documents(dictionary: Dictionary) -> None:
    hits = dictionary.search("IMPORT", kind="text", limit=3)
    assert hits
    assert all("places of 'IMPORT'" in hit.reason for hit in hits)
    documents = [
        "".join(dictionary.sql(f"select token from tokens where document = {n} order by position")["token"].to_pylist())
        for n in (0, 1)
    ]
    seam = documents[0][-3:] + documents[1][:3]
    assert all(seam.lower() not in text.lower() for text in documents)
    inside = dictionary.search(seam, kind="text")
    assert all(len(seam) and "0 of" not in hit.reason for hit in inside)
    spans = [m.span() for m in re.finditer(re.escape(seam), dictionary.text.joined.text)]
    end = int(dictionary.text.joined.document_ends[0])
    assert (end - 3, end + 3) in spans
    if len(spans) == 1:
        assert inside == []


def test_patterns_that_are_broken_or_slow_are_refused_in_time() -> None:
    for broken in ["(", "*", "a{1,99999999999}", "(?P<1>a)", "\\"]:
        with pytest.raises(ValueError, match="is broken .*, expected a regular expression"):
            patterns.matches(broken, "abc", [3])
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"was stopped after 0\.5 s, expected matches within that time"):
        patterns.matches(r"(a+)+$", "a" * 40 + "b", [41], timeout_s=0.5)
    assert time.perf_counter() - began < 5
    found = patterns.matches("^b|x*", "a\x00b\ud800bb", [3, 6])
    assert found.strings.tolist() == []
    assert patterns.matches(r"^b|\x00", "a\x00bb\ud800b", [3, 6]).starts.tolist() == [1, 0]


def test_an_unknown_kind_and_a_semantic_search_without_a_model_are_refused(dictionary: Dictionary) -> None:
    with pytest.raises(ValueError, match="kind 'beauty' is unknown, expected one of auto, token, text"):
        dictionary.search("x", kind="beauty")
    with pytest.raises(ValueError, match="got no embedding model, expected a folder"):
        dictionary.search("x", kind="semantic")


class Counting:
    """Embeds a text as its counts of some letters; knows what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def to(self, letters: str) -> LocalEmbedder:
        self.letters = letters
        return LocalEmbedder(self)  # pyright: ignore[reportArgumentType]

    name = "counting"

    def embed(self, texts: Any) -> torch.Tensor:
        self.asked += texts
        rows = torch.tensor([[1.0, *(text.lower().count(letter) for letter in self.letters)] for text in texts])
        return torch.nn.functional.normalize(rows, dim=1)


def test_meaning_is_ranked_by_cosine_and_texts_are_embedded_once(told: Dictionary) -> None:
    model = Counting()
    query = "import statements at the beginning"
    hits = told.search(query, kind="semantic", embedder=model.to("aeiot"))
    texts = {f: text for f, text in TEXTS.items() if f != 3}
    expected = (model.embed([*texts.values()]) @ model.embed([query])[0]).tolist()
    found = {hit.feature: hit.score for hit in hits}
    assert all(found[f] == pytest.approx(cosine, abs=1e-6) for f, cosine in zip(texts, expected, strict=True))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert "means alike" in hits[0].reason
    model.asked.clear()
    assert told.search(query, kind="semantic", embedder=model.to("aeiot")) == hits
    assert query in model.asked
    assert not {*TEXTS.values()} & {*model.asked}
    told.add_label(9, "statements about images")
    told.search(query, kind="semantic", embedder=model.to("aeiot"))
    assert "statements about images" in model.asked
    assert TEXTS[1] not in model.asked
    told.search(query, kind="semantic", embedder=model.to("xyz"))  # another model of the same name
    assert TEXTS[1] in model.asked


def test_an_endpoint_that_fails_for_some_texts_is_named(told: Dictionary, tmp_path: Path) -> None:
    with serving() as url:
        embedder = EndpointEmbedder(url=url, model="e", cache=tmp_path, requests_per_minute=1e6, attempts=1)
        Fake.script = [(500, b"")] * 4
        with pytest.raises(OSError, match="gave no usable embedding for 2 of 2 texts, expected one each"):
            told.search("x", kind="semantic", embedder=embedder)


def test_a_search_sees_what_was_written_since_the_last_one(told: Dictionary) -> None:
    assert told.search("freshness", kind="explanation") == []
    before = told.sql("select count(*) as n from labels")["n"][0].as_py()
    told.add_label(5, "a label of some freshness", "me")
    (hit,) = told.search("freshness", kind="explanation")
    assert (hit.feature, hit.reason) == (5, "label has freshness")
    told.remove_labels(5, "me")
    assert told.search("freshness", kind="explanation") == []
    assert told.sql("select count(*) as n from labels")["n"][0].as_py() == before


@pytest.mark.parametrize("query", ["import", "e", "S", "\n", "  ", "q"])
def test_tokens_are_found_as_a_query_over_the_table_finds_them(dictionary: Dictionary, query: str) -> None:
    wanted = query.strip().lower()
    ids = [i for i, token in enumerate(dictionary.text.vocabulary) if wanted and wanted in token.lower()]
    exact = [i for i in ids if wanted == dictionary.text.vocabulary[i].strip().lower()]
    expected: dict[int, float] = {}
    for offset, some in ((0.0, [i for i in ids if i not in exact]), (1.0, exact)):
        rows = dictionary.sql(
            "select feature, sum(mass) as share from feature_tokens "
            f"where token_id in ({', '.join(map(str, some)) or 'null'}) group by feature"
        ).to_pylist()
        expected |= {row["feature"]: max(offset + row["share"], expected.get(row["feature"], 0)) for row in rows}
    hits = dictionary.search(query, limit=1_000, kind="token")
    assert {hit.feature: hit.score for hit in hits} == pytest.approx(expected)
    for hit in hits[:20]:
        strongest = dictionary.sql(
            f"select token_id from feature_tokens where feature = {hit.feature} and token_id in "
            f"({', '.join(map(str, exact if hit.score > 1 else [i for i in ids if i not in exact]))}) "
            "order by mass desc, token_id limit 1"
        )["token_id"][0].as_py()
        assert hit.reason.startswith(f"token {dictionary.text.vocabulary[strongest]!r}")
