"""The list of features and the page of one, in a browser."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from tests.ui.conftest import Visit
from tests.ui.served import CANARY, DEAD, HOSTILE, TEMPLATES

pytestmark = pytest.mark.browser
SEARCH = "#search input, #search textarea"


def test_the_list_pages_filters_and_searches(visit: Visit) -> None:
    page = visit.open("?view=features").page
    rows = page.locator("#feature-list tbody tr")
    assert rows.count() == 50
    visit.keep("list")
    page.get_by_role("link", name="Next page").click()
    page.wait_for_function("document.querySelector('#feature-list tbody a').textContent === '51'")
    assert "at=1" in page.url
    _write(page, "def")
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('found for def')")
    assert "q=def" in page.url
    assert "at=" not in page.url
    _write(page, "17")
    page.wait_for_function("document.querySelector('#feature-list tbody a').textContent === '17'")
    _write(page, CANARY + TEMPLATES)
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('found for <img')")


def test_filters_narrow_the_list_and_stand_in_the_address(visit: Visit) -> None:
    page = visit.open("?view=features&list=" + quote(CANARY)).page
    numbers = "[...document.querySelectorAll('#feature-list .id a')].map(link => link.textContent).join()"
    assert page.evaluate(numbers) == f"{HOSTILE},8"  # the dead one of the list is not live
    visit.open(f"?view=features&show=All&list={quote(CANARY)}")
    assert page.evaluate(numbers) == f"{DEAD},{HOSTILE},8"
    visit.open("?view=features&show=Silent")
    assert page.evaluate(numbers) == f"{DEAD}"
    visit.open("?view=features&order=Maximum&score=0.5")
    page.click("text=Filters")
    page.check("#labelled input")
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('No feature found')")
    assert "labelled=true" in page.url
    assert "score=0.5" in page.url
    assert page.input_value("#order input") == "Maximum"


def test_a_search_looks_where_it_is_told_to(visit: Visit) -> None:
    page = visit.open("?view=features&kind=Number&q=17").page
    assert page.inner_text("#feature-list .id >> nth=0") == "17"
    assert page.locator("#feature-list tbody tr").count() == 11
    visit.open("?view=features&kind=Regular%20expression&q=(")
    page.wait_for_selector("#feature-list >> text=is broken")
    page.click("#kind input")
    page.get_by_role("option", name="Token", exact=True).click()
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('found for (')")
    assert "kind=Token" in page.url


def test_a_dead_feature_says_so(visit: Visit) -> None:
    page = visit.open(f"?feature={DEAD}").page
    visit.feature(DEAD)
    shown = page.inner_text(".feature-page")
    assert "never fired on the " in shown
    assert "STRONGEST" not in shown.upper()
    assert page.locator("a[data-steer]").count() == 0
    visit.keep("dead")


def test_every_active_token_says_its_value(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    tips = page.eval_on_selector_all(".example .t", "spans => spans.map(span => span.title)")
    assert tips
    assert all(tip.startswith("activation ") and tip.endswith("% of maximum") for tip in tips)


def test_lines_break_on_request(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    height = page.locator(".example").first.bounding_box()["height"]
    page.click("[data-lines]")
    assert page.locator(".example").first.bounding_box()["height"] > height


def test_a_label_is_kept_remembers_its_author_and_can_be_taken_back(visit: Visit) -> None:
    page = visit.open("?feature=20").page
    visit.feature(20)
    page.click("text=Name this feature yourself")
    page.get_by_label("By").press_sequentially("Ada")
    for label in ("first words", CANARY):
        page.get_by_label("Label").fill(label)
        page.get_by_role("button", name="Save").click()
        page.wait_for_function(
            "told => document.querySelector('.feature-page .explanation').textContent.includes(told)", arg=label
        )
    assert "label by Ada" in page.inner_text(".feature-page")
    page.click("text=1 earlier label")
    assert "first words" in page.inner_text(".feature-page details[open]")
    visit.open("?feature=20")
    visit.feature(20)
    page.click("text=Name this feature yourself")
    page.get_by_label("Label").focus()
    page.wait_for_function("document.querySelector('#author input, #author textarea').value === 'Ada'")
    page.get_by_role("button", name="Remove my labels").click()
    page.wait_for_selector("text=Removed 2 of your labels.")
    assert "label by" not in page.inner_text(".feature-page")
    assert page.get_by_label("Label").input_value() == CANARY


def test_a_feature_is_put_on_a_list(visit: Visit) -> None:
    page = visit.open("?feature=21").page
    visit.feature(21)
    page.click("text=Put it on a list")
    page.fill("#to-list input", "found here")
    page.press("#to-list input", "Enter")
    page.get_by_label("Note").fill(CANARY)
    page.get_by_role("button", name="Add to the list").click()
    page.wait_for_selector(".on-lists >> text=found here")
    assert page.get_attribute(".on-lists .tag", "title") == CANARY


def test_scores_open_and_logits_are_counted(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    page.click(".explanation summary")
    assert "Windows" in page.inner_text(".explanation details[open]")
    page.click("text=Through the final norm")
    assert page.locator(".logits details[open] td").count() > 4
    page.get_by_role("button", name="Effects on all logits").click()
    page.wait_for_selector("#all-logits svg")
    assert "kurtosis" in page.inner_text("#all-logits")


def test_a_text_is_tried_as_one_types(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    page.locator("#try-text textarea").press_sequentially("def f():\n    pass")
    page.wait_for_function("document.querySelector('#try-result .t')")
    assert "of its maximum" in page.inner_text("#try-result")
    assert "try=def" in page.url
    visit.reload()
    visit.feature(3)
    page.wait_for_function("document.querySelector('#try-result .t')")
    assert page.input_value("#try-text textarea") == "def f():\n    pass"


def test_a_text_refused_or_hostile_is_shown_as_text(visit: Visit) -> None:
    page = visit.open("?feature=7").page
    visit.feature(7)
    page.locator("#try-text textarea").press_sequentially(CANARY)
    page.wait_for_function(
        "text => (document.querySelector('#try-result .tried')?.textContent || '').includes(text)", arg=CANARY
    )


def test_more_text_is_shown_on_request_and_the_address_says_so(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    short = len(page.inner_text(".example .text"))
    page.click("[data-context] >> text=Wider")
    page.wait_for_function("n => document.querySelector('.example .text').innerText.length > n", arg=short)
    assert "context=wider" in page.url
    page.click("[data-next]")
    visit.feature(4)
    assert "context=wider" in page.url
    assert page.inner_text("[data-context][aria-current]") == "Wider"


def test_spaces_are_drawn_and_kept_and_copies_are_as_in_the_text(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("[data-copy]")
    page.wait_for_selector("text=copied")
    before = page.evaluate("navigator.clipboard.readText()")
    assert "\n" in before
    assert "⏎" not in before
    page.click("[data-spaces]")
    page.wait_for_function("document.querySelector('.example .text').textContent.includes('·')")
    page.click("[data-copy]")
    page.wait_for_selector("text=copied")
    assert page.evaluate("navigator.clipboard.readText()") == before
    assert "spaces=1" in page.url
    page.click("[data-spaces]")
    page.wait_for_function("!document.querySelector('.example .text').textContent.includes('·')")


def test_a_token_stands_on_the_histogram(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    token = page.locator(".example .t").first
    token.hover()
    page.wait_for_selector(".histogram .here", state="attached")
    assert "activation" in page.inner_text("[data-readout]")
    place = float(page.get_attribute(".histogram .here", "x1"))
    assert 8 <= place <= 412
    page.hover(".feature-page h2")
    page.wait_for_selector(".histogram .here", state="detached")


def test_previous_and_next_pass_over_the_dead(visit: Visit) -> None:
    page = visit.open(f"?feature={DEAD - 1}").page
    visit.feature(DEAD - 1)
    page.click("[data-next]")
    visit.feature(DEAD + 1)
    page.click("[data-previous]")
    visit.feature(DEAD - 1)


def test_an_example_leads_to_its_source_and_to_steering(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    source = page.get_attribute(".example [data-source]", "href")
    assert "view=text" in source
    assert "document=" in source
    page.click(".example >> text=steer from here >> nth=0")
    visit.tab("Steer")
    assert "features=3" in page.url
    assert "prompt=" in page.url


def test_relatives_lead_to_their_pages(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    for title in ("Nearest by encoder", "Active on the same tokens", "Where in the context it fires"):
        page.click(f"summary >> text={title}")
    assert "Jaccard" in page.inner_text(".relations")
    link = page.locator(".relations a[data-feature]").first
    number = int(link.get_attribute("data-feature"))
    link.click()
    visit.feature(number)


def test_keys_go_through_features_search_and_help(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    page.keyboard.press("j")
    visit.feature(4)
    page.keyboard.press("k")
    visit.feature(3)
    page.keyboard.press("?")
    page.wait_for_selector("#keys-help[open]")
    visit.keep("help")
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys-help", state="hidden")
    page.keyboard.press("/")
    visit.tab("Features")
    page.wait_for_function("document.activeElement.closest('#search')")
    page.keyboard.type("j?/k")
    assert page.input_value(SEARCH) == "j?/k"
    assert page.locator("#keys-help[open]").count() == 0


def test_keys_walk_the_rows_of_the_list(visit: Visit) -> None:
    page = visit.open("?view=features").page
    page.wait_for_selector("#feature-list tbody tr")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "1"
    page.keyboard.press("Enter")
    visit.feature(1)


def _write(page: Any, text: str) -> None:
    """Types a search over what stood there."""
    page.locator(SEARCH).press("Control+a")
    page.keyboard.type(text)
