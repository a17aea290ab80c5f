"""What is active on a text, in a browser: texts, documents, tokens, features, two readings, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlparse

import pytest

from features import Dictionary
from tests.ui.conftest import Visit
from tests.ui.served import CANARY, SEEDS, TEMPLATES

pytestmark = pytest.mark.browser
TEXT = "def f(self):\n    return json.loads(self.text)\n"
HOSTILE_TEXT = f"def f(self):\n    return {CANARY} {TEMPLATES}"


def words(visit: Visit) -> dict[str, str]:
    return {key: value[0] for key, value in parse_qs(urlparse(visit.page.url).query).items()}


def tokens(visit: Visit, side: str = "a") -> Any:
    return visit.page.locator(f'gb-heat[data-side="{side}"] [data-i]')


def choose(visit: Visit, box: str, option: str) -> None:
    visit.page.click(f"{box} input")
    visit.page.get_by_role("option", name=option, exact=True).click()


def coloured(visit: Visit, side: str = "a") -> list[int]:
    found = visit.page.locator(f'gb-heat[data-side="{side}"] .t').evaluate_all("all => all.map(s => +s.dataset.i)")
    return sorted(found)


@pytest.fixture
def opened(served_folder: Path) -> Dictionary:
    return Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")


@pytest.fixture
def read(visit: Visit) -> Callable[[str], Visit]:
    def type_and_run(text: str) -> Visit:
        visit.open("?view=text")
        visit.tab("Text")
        visit.page.fill("#active-text textarea", text)
        visit.page.click("#active-run")
        visit.page.wait_for_selector("gb-heat")
        return visit

    return type_and_run


def test_a_hostile_text_is_read_as_text(visit: Visit) -> None:
    page = visit.open(f"?view=text&text={quote(HOSTILE_TEXT)}").page
    page.wait_for_selector("gb-heat")
    visit.keep("text")
    assert CANARY in page.locator(".reading").inner_text()
    page.locator(".reading [data-i]").filter(has_text="<img").first.click()
    page.wait_for_selector(".token-panel")
    assert "<img·src=x" in page.locator(".token-panel h3").inner_text()
    page.wait_for_selector(".lens-panel")
    link = page.locator(".features-here a[data-feature]").first
    number = int(link.get_attribute("data-feature") or "")
    link.click()
    visit.feature(number)


def test_a_token_shows_its_features_and_its_lens_and_a_feature_its_tokens(
    read: Callable[[str], Visit], opened: Dictionary
) -> None:
    visit = read(TEXT)
    page = visit.page
    found = opened.active_on(TEXT, top=16)
    assert tokens(visit).count() == len(found.tokens)
    lanes = page.locator(".heat-names [data-lane]").evaluate_all("all => all.map(b => +b.dataset.lane)")
    assert lanes == [entry.feature for entry in found.ranked]
    assert coloured(visit) == [cell.token for cell in found.cells(lanes[0])]

    page.locator(".heat-names [data-lane]").nth(3).click()
    assert coloured(visit) == [cell.token for cell in found.cells(lanes[3])]
    assert words(visit)["feature"] == str(lanes[3])

    tokens(visit).nth(4).click()
    page.wait_for_selector(".token-panel")
    assert words(visit)["token"] == "4"
    listed = page.locator(".features-here [data-lane]").evaluate_all("all => all.map(b => +b.dataset.lane)")
    assert listed == [feature for feature, _ in found.per_token[4]]
    page.wait_for_selector(".lens-panel tbody tr")
    assert page.locator(".lens-panel tbody tr").count() == opened.lm.n_layers + 1
    last = page.locator(".features-here [data-lane]").last
    last.click()
    assert coloured(visit) == [cell.token for cell in found.cells(listed[-1])]
    assert last.get_attribute("aria-pressed") == "true"


def test_an_address_brings_everything_back(visit: Visit, opened: Dictionary) -> None:
    found = opened.active_on(TEXT, top=8, by="surprise")
    shown = found.per_token[6][2][0]
    visit.open(f"?view=text&text={quote(TEXT)}&by=surprise&top=8&token=6&feature={shown}")
    page = visit.page
    page.wait_for_selector(".token-panel")
    assert page.input_value("#active-text textarea") == TEXT
    assert page.input_value("#text-by input") == "Surprise"
    assert page.input_value("#text-top input") == "8"
    assert tokens(visit).nth(6).get_attribute("aria-selected") == "true"
    assert coloured(visit) == [cell.token for cell in found.cells(shown)]
    page.wait_for_selector(".lens-panel")


def test_effects_have_a_target_and_refuse_several_tokens(visit: Visit, opened: Dictionary) -> None:
    visit.open(f"?view=text&text={quote(TEXT)}")
    page = visit.page
    page.wait_for_selector("gb-heat")
    assert not page.is_visible("#text-target")
    choose(visit, "#text-by", "Effect on a next token")
    page.fill("#text-target input, #text-target textarea", "self")
    page.click("#active-run")
    page.wait_for_selector('gb-heat[data-unit="effect on the logit"]')
    assert "self" in page.locator(".heat-names p").inner_text()
    assert words(visit)["by"] == "effect"
    page.fill("#text-target input, #text-target textarea", "json loads")
    page.click("#active-run")
    page.wait_for_selector("#active-result [role=alert]")
    assert "expected one" in page.locator("#active-result").inner_text()


def test_an_empty_text_is_refused_and_one_too_long_offers_its_beginning(visit: Visit, opened: Dictionary) -> None:
    visit.open("?view=text")
    page = visit.page
    page.click("#active-run")
    page.get_by_text("The text is empty").wait_for()
    page.fill("#active-text textarea", "self " * 700)
    page.click("#active-run")
    page.wait_for_selector("[data-first-part]")
    told = page.locator("#active-result [role=alert]").inner_text()
    assert f"the limit is {opened.lm.context_tokens}" in told
    page.click("[data-first-part]")
    page.wait_for_selector("gb-heat")
    assert 500 < tokens(visit).count() <= opened.lm.context_tokens
