"""Why the model said that, in a browser."""

from __future__ import annotations

import pytest

from tests.ui.conftest import Visit
from tests.ui.served import CANARY

pytestmark = pytest.mark.browser


def test_a_text_is_analysed_method_by_method_and_its_address_restores_it(visit: Visit) -> None:
    page = visit.open("?view=analyse&methods=norms,lens,features&text=for%20x%20in%20range(").page
    assert page.input_value("#analyse-text textarea") == "for x in range("
    checked = page.eval_on_selector_all("#analyse-methods input:checked", "boxes => boxes.length")
    assert checked == 3
    page.click("#analyse-run")
    page.wait_for_selector("#analyse-result [data-running=false]", timeout=60_000)
    headings = [heading.lower() for heading in page.locator("#analyse-result h2").all_inner_texts()]
    assert any("lens" in heading for heading in headings)
    assert "features" in headings
    visit.keep("analyse")
    page.get_by_label("Ablation", exact=True).check()
    page.wait_for_function("window.location.search.includes('ablation')")
    link = page.locator("#analyse-result a[data-feature]").first
    number = int(link.get_attribute("data-feature") or "")
    link.click()
    visit.feature(number)


def test_two_texts_are_compared_by_patching(visit: Visit) -> None:
    page = visit.open("?view=analyse&methods=norms").page
    page.fill("#analyse-text textarea", "for x in range(")
    page.fill("#analyse-compare textarea", "for x in sorted(")
    page.click("#analyse-run")
    page.wait_for_selector("#analyse-result [data-running=false], .toast-body", timeout=60_000)
    assert page.locator(".toast-body").count() == 0
    assert "patch" in page.inner_text("#analyse-result").lower()


def test_two_texts_stand_side_by_side_with_heads_to_choose_and_files_to_save(visit: Visit) -> None:
    page = visit.open("?view=analyse&methods=attention&beside=The%20second%20text").page
    page.fill("#analyse-text textarea", "for x in range(")
    page.fill("#analyse-compare textarea", "<b>for</b> x")
    page.click("#analyse-run")
    page.wait_for_selector("#analyse-result [data-running=false]", timeout=60_000)
    assert page.locator("#analyse-result .pair > .stack").count() == 2
    page.wait_for_selector("#analyse-pattern svg", timeout=60_000)
    assert "Head 0.0" in page.inner_text("#analyse-pattern")
    page.fill("#analyse-head input[type=number]", "1")
    page.wait_for_function("document.querySelector('#analyse-pattern').innerText.includes('Head 0.1')")
    page.locator("#analyse-result [data-at='2']").first.click()
    page.wait_for_function("document.querySelector('#analyse-position input, #analyse-position textarea').value == '2'")
    for kind in ("json", "html"):
        with page.expect_download() as got:
            page.click(f"#analyse-{kind}")
        assert got.value.suggested_filename == f"glassbox-analysis.{kind}"
    page.click("#analyse-run")
    page.wait_for_selector("#analyse-result [data-running=true]", timeout=60_000)
    page.wait_for_selector("#analyse-result [data-running=false]", timeout=60_000)
    visit.keep("analyse-pair")


def test_settings_reach_their_method(visit: Visit) -> None:
    page = visit.open("?view=analyse&methods=ablation").page
    page.get_by_text("Settings of the methods").click()
    page.get_by_label("ablation.how").fill("half")
    page.get_by_label("ablation.how").press("Enter")
    page.click("#analyse-run")
    page.wait_for_selector("text=how='half' is unknown", timeout=60_000)


def test_hostile_texts_are_shown_and_refusals_are_words(visit: Visit) -> None:
    page = visit.open("?view=analyse&methods=norms").page
    page.fill("#analyse-text textarea", CANARY)
    page.click("#analyse-run")
    page.wait_for_selector("#analyse-result [data-running=false]", timeout=60_000)
    assert "onerror" in page.inner_text("#analyse-result")
    page.fill("#analyse-target input, #analyse-target textarea", "two words of it")
    page.click("#analyse-run")
    page.wait_for_selector("text=expected")
    page.fill("#analyse-text textarea", "")
    page.fill("#analyse-target input, #analyse-target textarea", "")
    page.click("#analyse-run")
    page.wait_for_selector("text=the text is empty")
