"""Explanations: planted rules are found and told, scores are what they say, and the texts are for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_events import plant

from features import Dictionary
from features.attributes import (
    PLACE_BREAK,
    PLACE_LINE_START,
    REGIONS,
    Tokens,
    attributes_of,
    token_classes,
)
from features.explain import METHOD, ExplainConfig, explain
from features.phrases import Member, quoted, rule_text, tokens_text
from features.rules import CHOOSE, FIT, TEST, Predictor, Rule, divide_documents

VOCABULARY = [
    "",
    "import",
    " os",
    "\n",
    "def",
    " f",
    "(",
    ")",
    ":",
    "\n    ",
    "return",
    " 1",
    "# note",
    '"""',
    "doc",
    "42",
    "7",
]


def tokens(*texts: str, name: str = "a.py") -> Tokens:
    ids = np.array([VOCABULARY.index(text) for text in texts], dtype=np.int32)
    return Tokens(ids, np.zeros(ids.size, dtype=np.int32), np.arange(ids.size, dtype=np.int32), [name])


def values(attributes: list[Any], name: str) -> list[Any]:
    found = next(a for a in attributes if a.name == name)
    return [found.keys[c] for c in found.categories]


def test_attributes_are_read_off_the_text() -> None:
    text = tokens(
        "import",
        " os",
        "\n",
        "def",
        " f",
        "(",
        ")",
        ":",
        "\n    ",
        '"""',
        "doc",
        '"""',
        "\n    ",
        "return",
        " 1",
        "# note",
    )
    found = attributes_of(text, VOCABULARY)
    assert values(found, "line")[:8] == ["import", "import", "import", "def", "def", "def", "def", "def"]
    assert values(found, "line")[13] == "return"
    assert values(found, "region")[10] == "docstring"
    assert values(found, "region")[15] == "comment"
    assert values(found, "region")[4] == "code"
    assert values(found, "previous")[:3] == [-1, 1, 2]
    assert values(found, "next")[-1] == -1
    assert values(found, "pair")[1] == (1, 2)
    assert values(found, "place")[3] == PLACE_LINE_START
    assert values(found, "place")[13] == PLACE_LINE_START + 1
    assert values(found, "place")[8] == PLACE_BREAK + 1
    assert values(found, "word")[10] == "doc"
    assert set(values(attributes_of(tokens("import", " os", name="a.txt"), VOCABULARY), "region")) == {"prose"}
    assert all(len(a.categories) == 16 and a.categories.max() < a.size for a in found)
    assert set(values(found, "region")) <= set(REGIONS)


def test_documents_do_not_touch_each_other() -> None:
    ids = np.array([1, 2, 4, 5], dtype=np.int32)
    two = Tokens(ids, np.array([0, 0, 1, 1], dtype=np.int32), np.arange(4, dtype=np.int32), ["a.py", "b.py"])
    assert values(attributes_of(two, VOCABULARY), "previous") == [-1, 1, -1, 4]
    assert values(attributes_of(two, VOCABULARY), "next") == [2, -1, 5, -1]


def test_classes_of_tokens() -> None:
    from features.attributes import CLASSES

    texts = [" 42", "\n    ", "   ", "(", ").", "self", " self", "Error", "HTTP", "a_b", "==", "émile", ""]
    names = [CLASSES[c][0] for c in token_classes(texts)]
    assert names[:11] == [
        "number",
        "line break",
        "blank",
        "opening bracket",
        "closing bracket",
        "word piece",
        "word",
        "Capitalised",
        "CAPITALS",
        "name with underscore",
        "comparison",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" import", "`import`"),
        ("\n        ", "a line break and 8 spaces"),
        ("\n\n", "an empty line"),
        ("    ", "4 spaces"),
        (" ", "a space"),
        ("a`b", "`aˋb`"),
        ("x\n", "`x⏎`"),
    ],
)
def test_tokens_are_spelled_for_people(text: str, shown: str) -> None:
    assert quoted(text) == shown


def test_sets_of_tokens_are_summed_up() -> None:
    assert tokens_text([(" return", 0.7), ("Return", 0.3)]) == "the word `return` in any case"
    assert tokens_text([("1", 0.5), (" 2", 0.3), ("33", 0.2)]) == "numbers: `1`, `2` and `33`"
    assert tokens_text([("going", 0.5), (" sing", 0.3), ("ring", 0.2)]).startswith("words ending in `ing`")
    assert rule_text("previous", [Member(1, 1.0)], VOCABULARY) == "the token after the word `import`"
    assert rule_text("pair", [Member((5, 6), 1.0)], VOCABULARY) == "`(` after `f`"
    assert rule_text("line and token", [Member(("def", 6), 1.0)], VOCABULARY) == "`(` on lines beginning with `def`"
    assert rule_text("region", [Member("docstring", 1.0)], VOCABULARY) == "text in docstrings"


@pytest.fixture
def explained(copied: Path) -> Any:
    opened = Dictionary.open(copied)
    report = explain(opened, ExplainConfig(min_events=3))
    yield opened, report
    opened.close()


def test_every_live_feature_is_explained_and_no_dead_one(explained: Any) -> None:
    opened, report = explained
    live = opened.sql("select feature from features where not is_dead order by feature")["feature"].to_pylist()
    written = opened.sql("select feature, text from explanations order by feature")
    assert written["feature"].to_pylist() == live
    assert all(text and "\n" not in text for text in written["text"].to_pylist())
    assert report.explained == len(live)
    assert report.dead == 96 - len(live)
    assert opened.feature(live[0]).explanation == written["text"][0].as_py()
    assert sum(row["features"] for row in report.rows()) + report.rare == report.explained


def test_explaining_again_replaces_and_keeps_labels(explained: Any) -> None:
    opened, report = explained
    opened.add_label(0, "mine")
    explain(opened, ExplainConfig(min_events=3))
    count = opened.sql(f"select count(*) as n from explanations where method = '{METHOD}'")["n"][0].as_py()
    assert count == report.explained
    assert opened.feature(0).explanations[0].text == "mine"
    assert opened.feature(0).explanations[1].method == METHOD


@pytest.mark.parametrize(
    ("where", "attribute", "words"),
    [
        ("token = 'x'", "token", "`x`"),
        ("token in ('1', '2')", "token", "`1`"),
        (
            "(document, position - 1) in (select (document, position) from tokens where token = '(')",
            "previous",
            "the token after `(`",
        ),
    ],
)
def test_a_planted_rule_is_found_told_and_scored(copied: Path, where: str, attribute: str, words: str) -> None:
    opened = plant(copied, where)
    explain(opened, ExplainConfig(min_events=3))
    found = opened.feature(7).explanations[0]
    assert found.rule is not None
    assert words in found.text
    rule = Rule.from_json(found.rule)
    assert rule.attribute == attribute
    assert (rule.precision, rule.recall) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found.score == pytest.approx(1.0)
    noise = opened.feature(8).explanations[0]
    assert noise.score is None or abs(noise.score - 0.5) < 0.35
    scores = opened.sql("select scorer, score from scores where feature = 7 order by scorer").to_pylist()
    assert [(s["scorer"], s["score"]) for s in scores] == [("auc", 1.0), ("balanced_accuracy", 1.0)]
    opened.close()


def test_the_score_is_the_auc_of_the_rule_on_documents_held_apart(copied: Path) -> None:
    from features.explain import _Sample

    opened = Dictionary.open(copied)
    config = ExplainConfig(min_events=3)
    explain(opened, config)
    sample = _Sample(opened, config)
    checked = 0
    for feature in range(0, 92, 4):
        explanations = opened.feature(feature).explanations
        if not explanations:
            continue
        explanation = explanations[0]
        if explanation.rule is None or explanation.score is None:
            continue
        events = opened.sql(f"select document, position from events where feature = {feature}")
        ordinals = opened.text.ordinals(events["document"].to_numpy(), events["position"].to_numpy())
        active = np.zeros(opened.text.n_tokens, dtype=bool)
        active[ordinals] = True
        part = (sample.splits == TEST) & sample.is_indexed
        rule = Rule.from_json(explanation.rule)
        predicted = rule.predict(sample.tokens, sample.vocabulary)[part]
        truth = active[sample.ordinals][part]
        better = (predicted[truth][:, None] > predicted[~truth][None]).mean()
        ties = (predicted[truth][:, None] == predicted[~truth][None]).mean()
        # the stored rule keeps the categories inside S only; the score also orders those outside
        assert explanation.score >= better + ties / 2 - 0.35
        balanced = opened.sql(f"select score from scores where feature = {feature} and scorer = 'balanced_accuracy'")[
            "score"
        ][0].as_py()
        inside = predicted > 0
        assert balanced == pytest.approx((inside[truth].mean() + (~inside[~truth]).mean()) / 2, abs=1e-4)
        checked += 1
    assert checked >= 3


def test_a_rule_predicts_the_mean_training_activation_of_each_member(copied: Path) -> None:
    from features.explain import _Sample

    opened = plant(copied, "token in ('x', '1')")
    config = ExplainConfig(min_events=3)
    explain(opened, config)
    stored = opened.feature(7).explanations[0].rule
    assert stored is not None
    rule = Rule.from_json(stored)
    assert Rule.from_json(rule.to_json()) == rule
    assert rule.promotes
    sample = _Sample(opened, config)
    events = opened.sql("select document, position, activation from events where feature = 7")
    truth = np.zeros(opened.text.n_tokens)
    truth[opened.text.ordinals(events["document"].to_numpy(), events["position"].to_numpy())] = events["activation"]
    train = (sample.splits != TEST) & sample.is_indexed
    for key, activation in zip(rule.keys, rule.activations, strict=True):
        where = train & (sample.tokens.ids == key)
        assert activation == pytest.approx(truth[sample.ordinals][where].mean(), abs=1e-4)
    everywhere = rule.predict(sample.tokens, sample.vocabulary)
    assert set(np.unique(everywhere)) == {0.0, *rule.activations}
    some = np.array([[3, 1], [4, 1]])
    assert np.array_equal(Predictor(sample.attributes).at(rule, some), everywhere[some])
    opened.close()


def test_a_rule_of_an_earlier_version_is_refused() -> None:
    with pytest.raises(ValueError, match="names no division of documents, expected one: run `glassbox explain`"):
        Rule.from_json('{"attribute": "token", "keys": [1], "activations": [1], "precision": 1, "recall": 1}')


@pytest.mark.parametrize("n", [5, 14, 1003])
def test_any_five_documents_in_a_row_are_three_to_fit_one_to_choose_and_one_to_test(n: int) -> None:
    division = divide_documents(n, seed=3)
    for start in range(n - 4):
        assert sorted(division.parts[division.order[start : start + 5]].tolist()) == [FIT, FIT, FIT, CHOOSE, TEST]
    assert sorted(division.order.tolist()) == list(range(n))
