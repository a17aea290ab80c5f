"""Steering, in a browser."""

from __future__ import annotations

import pytest

from tests.ui.conftest import Visit
from tests.ui.served import CANARY

pytestmark = pytest.mark.browser


def test_steering_streams_beside_the_plain_text_and_stops(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    page.click("a[data-steer]")
    visit.tab("Steer")
    page.wait_for_selector("#strength-0 input")
    page.fill("#steer-find input, #steer-find textarea", "12")
    page.click("#steer-add")
    page.wait_for_selector("#strength-1 input")
    page.fill("#steer-tokens input[type=number]", "200")
    page.keyboard.press("Tab")
    page.fill("#steer-prompt textarea", f"def {CANARY}")
    page.click("#steer-run")
    for side in ("plain", "changed"):
        page.wait_for_function(f"document.querySelector('#steer-{side}').textContent.length > 80")
    visit.keep("steer")
    page.click("#steer-stop")
    page.wait_for_selector(".cursor", state="hidden")
    page.wait_for_timeout(1000)
    length = len(page.inner_text("#steer-changed"))
    page.wait_for_timeout(700)
    assert len(page.inner_text("#steer-changed")) == length
    assert CANARY in page.inner_text("#steer-changed")


def test_steering_without_a_feature_is_refused_in_words(visit: Visit) -> None:
    page = visit.open("?view=steer").page
    page.click("#steer-run")
    page.wait_for_selector("text=Add a feature first")


def test_a_refusal_by_the_library_is_shown_as_text(visit: Visit) -> None:
    page = visit.open("?view=steer&features=9").page
    page.wait_for_selector("#strength-0 input[type=number]")
    page.fill("#steer-find input, #steer-find textarea", "<zzqqzz>")
    page.click("#steer-add")
    page.wait_for_selector("text=No feature found for <zzqqzz>")
    visit.keep("refusal")
    assert page.locator("img[src=x]").count() == 0
