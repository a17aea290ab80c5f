"""The browser's frame: addresses, history, sessions, what it lets out and in."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import ROOT, Visit
from tests.ui.served import CANARY, HOSTILE, SEEDS, TEMPLATES

pytestmark = pytest.mark.browser


def test_the_listener_would_see_a_request_elsewhere(chromium: Any, address: str) -> None:
    context = chromium.new_context(bypass_csp=True)
    visit = Visit(context, address).open()
    visit.page.evaluate("fetch('http://192.0.2.1/').catch(() => 0); 0")
    visit.page.wait_for_timeout(200)
    assert any("192.0.2.1" in url for url in visit.requests)
    context.close()


def test_the_policy_stops_a_request_elsewhere(chromium: Any, address: str) -> None:
    context = chromium.new_context()
    page = Visit(context, address).open().page
    stopped = """() => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
        fetch("http://192.0.2.1/").catch(() => 0);
    })"""
    assert page.evaluate(stopped) == "http://192.0.2.1/"
    context.close()


def test_the_canary_would_be_seen(chromium: Any, address: str) -> None:
    context = chromium.new_context()
    visit = Visit(context, address).open("?view=features")
    visit.page.evaluate("html => { document.querySelector('#feature-list').innerHTML = html; }", CANARY)
    visit.page.wait_for_function("window.canary === 'fired'")
    context.close()


def test_a_link_opens_a_feature_and_the_address_names_it(visit: Visit) -> None:
    page = visit.open("?view=features").page
    page.click('#feature-list a[data-feature="7"]')
    visit.feature(7)
    assert "feature=7" in page.url
    assert page.title() == "Feature 7 · Glassbox"
    shown = page.inner_text(".feature-page")
    assert CANARY in shown
    assert TEMPLATES.strip() in shown
    page.click("nav.nav >> text=Next")
    visit.feature(8)
    page.go_back()
    visit.feature(7)
    page.go_back()
    visit.tab("Features")
    page.go_forward()
    visit.feature(7)


def test_an_address_restores_its_feature(visit: Visit) -> None:
    page = visit.open("?dict=stdlib%20(2)&feature=12").page
    visit.feature(12)
    visit.tab("Feature")
    visit.keep("feature")
    assert page.locator("#top input").input_value() == "stdlib (2)"
    assert "feature=12" in page.url
    visit.reload()
    visit.feature(12)


def test_another_dictionary_can_be_chosen(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    page.click("#top input")
    page.get_by_role("option", name="stdlib (2)").click()
    page.wait_for_selector("text=Choose a feature from the list")
    assert "dict=stdlib+%282%29" in page.url
    assert "feature=" not in page.url
    page.click("[data-tab-id=features]")
    page.wait_for_selector('#feature-list a[href*="stdlib%20%282%29"]')
    page.click('#feature-list a[data-feature="4"]')
    visit.feature(4)


@pytest.mark.parametrize(
    "query", ["?feature=99999", "?feature=-1", "?feature=x", "?dict=%3Cimg%20src%3Dx%3E&feature=3"]
)
def test_a_wrong_address_is_answered_calmly(visit: Visit, query: str) -> None:
    page = visit.open(query).page
    if "99999" in query:
        page.wait_for_selector("text=There is no feature 99999")
    elif "dict" in query:
        visit.feature(3)
    else:
        page.wait_for_selector("text=Choose a feature from the list")


def test_two_sessions_do_not_see_each_other(visit: Visit, chromium: Any, address: str) -> None:
    visit.open("?feature=3")
    visit.feature(3)
    other = chromium.new_context()
    second = Visit(other, address).open("?feature=9")
    second.feature(9)
    visit.page.click("nav.nav >> text=Next")
    visit.feature(4)
    assert second.page.inner_text(".feature-page h2").startswith("Feature 9")
    other.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_reads_one_column_in_both_schemes(chromium: Any, address: str, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    visit = Visit(context, address).open("?feature=3")
    visit.feature(3)
    visit.keep(f"phone_{scheme}")
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.querySelector('.gb .card')).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    visit.open("?view=features")
    visit.keep(f"phone_list_{scheme}")
    cells = page.eval_on_selector_all("#feature-list td", "cells => cells.map(c => c.getBoundingClientRect().right)")
    assert max(cells) <= 390
    context.close()


def test_files_of_the_machine_are_not_served(address: str) -> None:
    for path in ("/gradio_api/file=/etc/hostname", "/file=/etc/hostname", f"/gradio_api/file={ROOT}/pyproject.toml"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}{path}", timeout=30)
        refused.value.close()
        assert refused.value.code in (403, 404)


def test_a_report_opens_from_disk_without_scripts_or_requests(
    chromium: Any, served_folder: Path, tmp_path: Path
) -> None:
    from features import Dictionary
    from ui.render import feature, html

    opened = Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")
    card = feature.feature_card(opened.feature(HOSTILE))
    opened.close()
    hostile = f"<p>{card}</p>{CANARY}<script>window.canary = 'fired'</script>"
    file = tmp_path / "report.html"
    file.write_text(html.page("Report", hostile), encoding="utf-8")
    context = chromium.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_timeout(300)
    assert page.evaluate("window.canary") is None  # even raw HTML runs nothing under the page's policy
    assert [url for url in asked if url != file.as_uri() and not url.endswith("/x")] == []
    assert "Feature 7" in page.inner_text("body")
    context.close()
