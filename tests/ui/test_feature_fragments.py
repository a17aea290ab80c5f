"""The list of features and the page of one as HTML, without a browser: structure, honesty and hostility."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from features import Dictionary
from features.labels import Explanation, Score
from features.records import Feature, Histogram
from tests.ui.served import CANARY, DEAD, HOSTILE, SEEDS, TEMPLATES
from ui.render import feature_parts, html
from ui.views import feature as page_view
from ui.views import features as list_view


class Parsed(HTMLParser):
    """Text, tags and attributes as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def is_harmless(page: str) -> None:
    parsed = Parsed(page)
    assert not {"img", "script", "iframe"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert not any(sign in page for sign in ("${", "{{", "`"))


@pytest.fixture(scope="module")
def dictionary(served_folder: Path) -> Iterator[Dictionary]:
    opened = Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")
    yield opened
    opened.close()


def test_a_hostile_feature_is_shown_as_text(dictionary: Dictionary) -> None:
    page = "".join(
        page_view.feature_parts(dictionary, HOSTILE, CANARY, {"context": "wider", "spaces": "1", "try": CANARY})
    )
    is_harmless(page)
    assert CANARY in Parsed(page).text
    assert TEMPLATES.strip() in Parsed(page).text


def test_a_hostile_question_is_shown_as_text(dictionary: Dictionary) -> None:
    for query in (CANARY + TEMPLATES, "'; drop table labels; --", "\x00", "“ \u202e"):
        for kind in ("Anything", "Token", "Words of explanations", "Number"):
            words = {"q": query, "kind": kind, "list": CANARY, "order": CANARY}
            is_harmless(list_view.feature_list(dictionary, words, 0, CANARY))
    assert dictionary.sql("select count(*) as n from labels")["n"].to_pylist() == [1]


def test_half_a_character_is_refused_on_the_page(dictionary: Dictionary) -> None:
    page = list_view.feature_list(dictionary, {"q": "\ud800"}, 0, "d")
    assert "half a character" in page


def test_a_dead_feature_is_shown_as_dead(dictionary: Dictionary) -> None:
    page = page_view.feature_page(dictionary, DEAD, "d")
    assert "never fired" in page
    assert '<span class="state">dead</span>' in page
    assert "Strongest" not in page
    assert "data-steer" not in page


def test_a_dense_feature_is_shown_as_dense() -> None:
    assert "fires on 25% of all tokens" in feature_parts.notices(_feature(density=0.25), 1000)
    assert feature_parts.notices(_feature(density=0.05), 1000) == ""


def test_a_feature_that_does_not_exist_is_named_with_the_range(dictionary: Dictionary) -> None:
    page = page_view.feature_page(dictionary, 240, "d")
    assert "There is no feature 240: this dictionary has 0 to 239." in page
    assert page_view.feature_parts(dictionary, None, "d").told == ""


def test_the_shown_explanation_comes_first_and_earlier_labels_are_folded() -> None:
    told = [
        Explanation("new", "label", None, "a", "2026-01-02"),
        Explanation("old", "label", None, "b", "2026-01-01"),
        Explanation("machine", "token-statistics", 0.5, "", ""),
    ]
    scores = [
        Score("token-statistics", "detection", 0.8, 0.7, 0.9, 40, 2, ""),
        Score("baseline", "detection", 0.5, None, None, None, None, ""),
    ]
    text = Parsed(feature_parts.explanations(_feature(explanations=told), scores)).text
    assert text.index("new") < text.index("machine") < text.index("1 earlier label") < text.index("old")
    assert "0.70 to 0.90" in text
    assert "40, 2 without an answer" in text
    assert text.index("Scores of baselines") < text.index("baseline: detection")


def test_effects_on_all_logits_are_counted_over_the_vocabulary(dictionary: Dictionary) -> None:
    found = dictionary.logit_histogram(3)
    effects = (dictionary.lm.logit_directions().float() @ dictionary.sae.W_dec[3].float()).detach()
    assert sum(found.counts) == effects.shape[0]
    assert found.edges[0] == pytest.approx(float(effects.min()))
    assert found.edges[-1] == pytest.approx(float(effects.max()))
    top = dictionary.feature(3).top_logits[0]
    assert top.logit == pytest.approx(found.edges[-1], abs=1e-3)


def test_tails_of_logit_effects_are_told_by_their_kurtosis() -> None:
    even = feature_parts.logit_histogram(Histogram([-2.0, -1.0, 0.0, 1.0, 2.0], [1, 1, 1, 1]))
    assert "kurtosis 1.64" in even
    assert "skewness 0" in even
    tailed = feature_parts.logit_histogram(Histogram([-1.0, 1.0, 3.0, 5.0], [98, 0, 2]))
    assert "kurtosis 48 " in tailed


def test_every_token_that_is_active_carries_its_value() -> None:
    shown = html.highlighted(["a", "b"], [0.0, 1.5], 3.0)
    assert shown.count("data-v") == 1
    assert 'data-v="1.5"' in shown


def test_pages_of_the_list_keep_the_question(dictionary: Dictionary) -> None:
    page = list_view.feature_list(dictionary, {"order": "Maximum", "show": "All", "score": "0.1"}, 1, "d")
    links = [value for key, value in Parsed(page).attributes if key == "href" and "at=" in (value or "")]
    assert links
    assert all("order=Maximum" in link and "score=0.1" in link for link in links)  # pyright: ignore[reportOperatorIssue]
    assert "page 1 of" in list_view.feature_list(dictionary, {"show": "All"}, 99, "d")


def _feature(density: float = 0.01, explanations: list[Explanation] | None = None) -> Feature:
    return Feature(
        id=3,
        density=density,
        mean_activation=1.0,
        std_activation=1.0,
        max_activation=2.0,
        count=3,
        documents=1,
        is_dead=False,
        decoder_norm=1.0,
        histogram=Histogram([], []),
        examples=[],
        top_logits=[],
        bottom_logits=[],
        neighbours=[],
        explanations=explanations or [],
    )
