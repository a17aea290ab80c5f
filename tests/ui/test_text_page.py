"""What is active on a text, in a browser."""

from __future__ import annotations

import pytest

from tests.ui.conftest import Visit
from tests.ui.served import CANARY, TEMPLATES

pytestmark = pytest.mark.browser


def test_a_text_shows_its_features(visit: Visit) -> None:
    page = visit.open("?view=text").page
    visit.tab("Text")
    page.fill("#active-text textarea", f"def f(self):\n    return {CANARY} {TEMPLATES}")
    page.click("#active-run")
    page.wait_for_selector(".active-feature")
    visit.keep("text")
    assert CANARY in page.locator(".active-feature").first.inner_text()
    link = page.locator(".active-feature a[data-feature]").first
    number = int(link.get_attribute("data-feature"))
    link.click()
    visit.feature(number)
