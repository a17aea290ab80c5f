"""What is active on a text, in a browser: texts, documents, tokens, features, two readings, files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlparse

import pytest

from features import Dictionary
from features.active_documents import active_in
from tests.ui.conftest import Visit
from tests.ui.served import CANARY, SEEDS, TEMPLATES

pytestmark = pytest.mark.browser
TEXT = "def f(self):\n    return json.loads(self.text)\n"
OTHER_TEXT = "import json as other"
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


def selected(visit: Visit, side: str = "a") -> list[int]:
    found = visit.page.locator(f'gb-heat[data-side="{side}"] [aria-selected=true]')
    return found.evaluate_all("all => all.map(s => +s.dataset.i)")


def panel_says(visit: Visit, words: str) -> None:
    visit.page.wait_for_function(
        "words => document.querySelector('#text-panel')?.textContent.includes(words)", arg=words
    )


def test_a_document_is_found_by_its_name_and_read_where_an_address_points(visit: Visit, opened: Dictionary) -> None:
    page = visit.open("?view=text").page
    field = page.locator("#text-find :is(textarea, input)")
    field.press_sequentially("part_1.")
    page.click("#text-hits >> text=library/part_1.py")
    page.wait_for_selector("gb-heat >> text=library/part_1.py")
    assert words(visit)["document"] == "1"
    assert "token" not in words(visit)
    part = active_in(opened, 1, None, 16)
    assert tokens(visit).count() == len(part.tokens)
    lanes = page.locator(".heat-names [data-lane]").evaluate_all("all => all.map(b => +b.dataset.lane)")
    assert lanes == [entry.feature for entry in part.ranked]
    # another place, another document: the same element shows another reading
    for document, at in ((1, 200), (2, 30)):
        visit.open(f"?view=text&document={document}&at={at}") if document == 1 else page.evaluate(
            "at => window.glassbox.go('text', {document: '2', at: String(at)})", at
        )
        panel_says(visit, f"position {at}")
        assert selected(visit) == [at]
        read = active_in(opened, document, at, 16)
        assert tokens(visit).count() == len(read.tokens)
        assert coloured(visit) == [cell.token for cell in read.cells(read.ranked[0].feature)]
    field.fill("")
    field.press_sequentially("<zzz>")
    page.wait_for_selector("#text-hits >> text=No document has such a name")


def test_a_document_is_ranked_by_effect_where_a_model_reads_it(visit: Visit) -> None:
    page = visit.open("?view=text&document=2&at=30&by=effect&target=self").page
    page.wait_for_selector('gb-heat[data-unit="effect on the logit"]')
    assert "self" in page.locator(".heat-names p").inner_text()


def test_two_texts_stand_beside_each_other_and_both_open_their_tokens(visit: Visit, opened: Dictionary) -> None:
    page = visit.open("?view=text").page
    page.locator("#active-text textarea").fill(TEXT)
    choose(visit, "#text-beside", "Another text")
    page.fill("#text-second textarea", OTHER_TEXT)
    page.click("#active-run")
    page.wait_for_selector('gb-heat[data-side="b"]')
    assert words(visit)["text"] == TEXT
    assert words(visit)["second"] == OTHER_TEXT
    for side, text, index in (("b", OTHER_TEXT, 2), ("a", TEXT, 4), ("b", OTHER_TEXT, 1)):
        found = opened.active_on(text, top=16)
        tokens(visit, side).nth(index).click()
        page.wait_for_function(
            "([index, n]) => document.querySelector('.token-panel')?.textContent.includes(`token ${index}`)"
            " && document.querySelectorAll('.features-here tbody tr').length === n",
            arg=[index, len(found.per_token[index])],
        )
        listed = page.locator(".features-here [data-lane]").evaluate_all("all => all.map(b => +b.dataset.lane)")
        assert listed == [feature for feature, _ in found.per_token[index]]
        assert selected(visit, side) == [index]
        assert selected(visit, "ab".replace(side, "")) == []
        page.wait_for_selector(".lens-panel")
    assert words(visit)["token"] == "b1"
    # a lane of one text shows the same feature in the other
    page.locator('gb-heat[data-side="b"] .heat-names [data-lane]').first.click()
    number = int(words(visit)["feature"])
    for side, text in (("a", TEXT), ("b", OTHER_TEXT)):
        assert coloured(visit, side) == [cell.token for cell in opened.active_on(text, top=16).cells(number)]
    page.wait_for_selector(".comparison-of-readings >> text=Only in the second text")
    visit.keep("text_two")
    visit.reload()
    panel_says(visit, "token 1")
    assert selected(visit, "b") == [1]
    assert words(visit)["token"] == "b1"


def test_one_text_is_read_by_two_dictionaries(visit: Visit, served_folder: Path) -> None:
    page = visit.open("?view=text").page
    page.locator("#active-text textarea").fill(TEXT)
    choose(visit, "#text-beside", "Another dictionary")
    page.wait_for_selector("#text-other")
    page.click("#active-run")
    page.wait_for_selector('gb-heat[data-side="b"]')
    with closing(Dictionary.open(served_folder / str(SEEDS[1]) / "stdlib")) as second:
        found = second.active_on(TEXT, top=16)
    lanes = page.locator('gb-heat[data-side="b"] .heat-names [data-lane]')
    assert lanes.evaluate_all("all => all.map(b => +b.dataset.lane)") == [entry.feature for entry in found.ranked]
    tokens(visit, "b").nth(3).click()
    panel_says(visit, "token 3")
    link = page.locator(".features-here a[data-feature]").first
    assert "stdlib%20%282%29" in (link.get_attribute("href") or "")
    page.wait_for_selector(".comparison-of-readings >> text=Counterparts on this text")
    visit.keep("text_two_dictionaries")


@pytest.mark.parametrize("token", ["99", "zz", "b0", CANARY])
def test_a_token_that_the_text_has_not_is_said(visit: Visit, token: str) -> None:
    visit.open(f"?view=text&text={quote('def f')}&token={quote(token)}")
    panel_says(visit, f"The address names the token “{token[:20]}”, expected one of 0 to 1")
    assert selected(visit) == []
    tokens(visit).nth(1).click()
    visit.page.wait_for_selector(".token-panel")


def test_what_is_pasted_and_what_is_deleted_reaches_the_address(visit: Visit) -> None:
    page = visit.open("?view=text").page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("text => navigator.clipboard.writeText(text)", CANARY)
    page.click("#active-text textarea")
    page.keyboard.press("Control+V")
    address_says(visit, "text", CANARY)
    page.keyboard.press("Backspace")
    address_says(visit, "text", CANARY[:-1])
    page.keyboard.type("x\ny")
    address_says(visit, "text", CANARY[:-1] + "x\ny")


def address_says(visit: Visit, key: str, value: str) -> None:
    visit.page.wait_for_function(
        "([key, value]) => new URLSearchParams(location.search).get(key) === value", arg=[key, value]
    )


def test_of_several_askings_the_last_is_answered(visit: Visit) -> None:
    page = visit.open("?view=text").page
    page.evaluate("""() => {
        const go = (text) => window.glassbox.go("text", { text, token: "1" });
        for (const text of ["the first", "the second", "the last one"]) go(text);
    }""")
    page.wait_for_function("document.querySelector('.reading')?.textContent === 'the last one'")
    panel_says(visit, "token 1")
    assert page.input_value("#active-text textarea") == "the last one"
    page.wait_for_selector(".lens-panel")
    page.evaluate("for (const token of [0, 2, 1, 2]) document.querySelector(`.reading [data-i='${token}']`).click()")
    panel_says(visit, "token 2")
    assert selected(visit) == [2]


def test_a_reading_leaves_as_files_and_as_a_table(visit: Visit, opened: Dictionary) -> None:
    page = visit.open(f"?view=text&text={quote(HOSTILE_TEXT)}").page
    page.wait_for_selector("gb-heat")
    found = opened.active_on(HOSTILE_TEXT, top=16)
    files = {}
    for kind in ("json", "csv"):
        with page.expect_download() as waiting:
            page.click(f"#text-{kind}")
        files[kind] = Path(waiting.value.path()).read_text(encoding="utf-8")
    said = json.loads(files["json"])
    assert said["readings"][0]["tokens"] == found.tokens
    rows = list(csv.DictReader(io.StringIO(files["csv"])))
    assert [int(row["feature"]) for row in rows] == [row["feature"] for row in found.cell_rows()]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#text-copy")
    page.wait_for_function(
        "navigator.clipboard.readText().then((text) => text.startsWith('reading') || text.length > 50)"
    )
    assert page.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n") == files["csv"].replace("\r\n", "\n")


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
