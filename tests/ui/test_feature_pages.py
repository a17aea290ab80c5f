"""The list of features and the page of one, in a browser."""

from __future__ import annotations

import pytest

from tests.ui.conftest import Visit
from tests.ui.served import CANARY, DEAD, TEMPLATES

pytestmark = pytest.mark.browser


def test_the_list_pages_filters_and_searches(visit: Visit) -> None:
    page = visit.open("?view=features").page
    rows = page.locator("#feature-list tbody tr")
    assert rows.count() == 50
    visit.keep("list")
    page.get_by_role("button", name="Next page").click()
    page.wait_for_function("document.querySelector('#feature-list tbody a').textContent === '51'")
    assert "at=1" in page.url
    page.fill("#search input, #search textarea", "def")
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('found for def')")
    assert "q=def" in page.url
    assert "at=" not in page.url
    page.fill("#search input, #search textarea", "17")
    page.wait_for_function("document.querySelector('#feature-list tbody a').textContent === '17'")
    page.fill("#search input, #search textarea", CANARY + TEMPLATES)
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('found for <img')")


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


def test_a_label_is_kept_and_shown_as_text(visit: Visit) -> None:
    page = visit.open("?feature=20").page
    visit.feature(20)
    page.click("text=Name this feature yourself")
    page.get_by_label("Label").fill(CANARY)
    page.get_by_role("button", name="Save").click()
    page.wait_for_function("document.querySelector('.feature-page').textContent.includes('label by anonymous')")
    assert CANARY in page.inner_text(".feature-page")
