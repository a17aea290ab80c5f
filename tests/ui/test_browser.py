"""The browser, driven: pages render, addresses restore them, nothing leaves the machine, nothing hostile runs.

The dictionaries are made up (`tests/ui/stand_in.py`); one module-wide server, a fresh browser context for each test.
Set GLASSBOX_SCREENSHOTS to a folder to keep pictures of every page.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.stand_in import CANARY, DEAD, TEMPLATES

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
WAIT_MS = 60_000  # a loaded machine of two cores is slow, and no test waits longer than it needs
TAB = "document.querySelector('[role=tab][aria-selected=true]').textContent.trim()"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server with two made-up dictionaries."""
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.ui.stand_in", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if server.poll() is not None:
                pytest.fail(f"the server ended: {server.stderr.read() if server.stderr else ''}")
            time.sleep(0.2)
        else:
            return
    pytest.fail("the server did not answer within two minutes")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM:
        message = "no Chromium on this machine: install Debian's chromium"
        pytest.fail(message) if os.environ.get("GLASSBOX_REQUIRE_BROWSER") else pytest.skip(message)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, and everything it asked for and complained about."""

    def __init__(self, context: Any, address: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.address = address
        self.requests: list[str] = []
        self.complaints: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog"), dialog.dismiss()))

    def complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    def open(self, query: str = "") -> Visit:
        self.page.goto(f"{self.address}/{query}")
        self.page.wait_for_selector("#feature-list table", state="attached")
        return self

    def feature(self, number: int) -> None:
        """Waits until the page of that feature is shown."""
        self.page.wait_for_function(
            "n => (document.querySelector('.feature-page h2')?.textContent || '').startsWith(`Feature ${n} `)"
            " && document.querySelector('.feature-page').checkVisibility()",
            arg=number,
        )

    def tab(self, name: str) -> None:
        """Waits until that tab is the open one."""
        self.page.wait_for_function(f"name => {TAB} === name", arg=name)

    def keep(self, name: str) -> None:
        """Keeps a picture where a folder for them is named."""
        if folder := os.environ.get("GLASSBOX_SCREENSHOTS"):
            self.page.wait_for_timeout(400)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Visit]:
    """A visit that must leave nothing behind: no request elsewhere, no complaint, no canary."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    visit = Visit(context, address)
    yield visit
    fired = visit.page.evaluate("window.canary")
    context.close()
    elsewhere = [url for url in visit.requests if not url.startswith((f"{address}/", "data:", "blob:"))]
    assert elsewhere == []
    assert visit.complaints == []
    assert fired is None


def test_the_listener_would_see_a_request_elsewhere(chromium: Any, address: str) -> None:
    context = chromium.new_context()
    visit = Visit(context, address).open()
    visit.page.evaluate("fetch('http://192.0.2.1/').catch(() => 0); 0")
    visit.page.wait_for_timeout(200)
    assert any("192.0.2.1" in url for url in visit.requests)
    context.close()


def test_the_canary_would_be_seen(chromium: Any, address: str) -> None:
    context = chromium.new_context()
    visit = Visit(context, address).open()
    visit.page.evaluate("html => { document.querySelector('#feature-list').innerHTML = html; }", CANARY)
    visit.page.wait_for_function("window.canary === 'fired'")
    context.close()


def test_the_list_pages_filters_and_searches(visit: Visit) -> None:
    page = visit.open().page
    rows = page.locator("#feature-list tbody tr")
    assert rows.count() == 50
    visit.keep("list")
    page.get_by_role("button", name="Next page").click()
    page.wait_for_function("document.querySelector('#feature-list tbody a').textContent === '51'")
    page.fill("#search input, #search textarea", "docstrings")
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('the best 50 for')")
    page.fill("#search input, #search textarea", "17")
    page.wait_for_function("document.querySelector('#feature-list tbody a').textContent === '17'")
    page.fill("#search input, #search textarea", CANARY + TEMPLATES)
    page.wait_for_function("document.querySelector('#feature-list').textContent.includes('found for <img')")


def test_a_link_opens_a_feature_and_the_address_names_it(visit: Visit) -> None:
    page = visit.open().page
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
    page.reload()
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
        visit.tab("Features")


def test_a_dead_feature_says_so(visit: Visit) -> None:
    page = visit.open(f"?feature={DEAD}").page
    visit.feature(DEAD)
    shown = page.inner_text(".feature-page")
    assert "never fired on the 1,234,567 tokens" in shown
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


def test_a_text_shows_its_features(visit: Visit) -> None:
    page = visit.open("?tab=text").page
    visit.tab("Active on a text")
    page.fill("#active-text textarea", f"def f(self):\n    return {CANARY} {TEMPLATES}")
    page.click("#active-run")
    page.wait_for_selector(".active-feature")
    visit.keep("text")
    assert CANARY in page.locator(".active-feature").first.inner_text()
    page.click('.active-feature a[data-feature="2"]')
    visit.feature(2)


def test_steering_streams_beside_the_plain_text_and_stops(visit: Visit) -> None:
    page = visit.open("?feature=3").page
    visit.feature(3)
    page.click("a[data-steer]")
    visit.tab("Steering")
    page.wait_for_selector("#strength-0 input")
    page.fill("#steer-find input, #steer-find textarea", "12")
    page.click("#steer-add")
    page.wait_for_selector("#strength-1 input")
    page.fill("#steer-tokens input[type=number]", "200")
    page.keyboard.press("Tab")
    page.click("#steer-run")
    page.wait_for_function("document.querySelector('#steer-changed').textContent.includes('steered5')")
    page.wait_for_function("document.querySelector('#steer-plain').textContent.includes('plain5')")
    visit.keep("steering")
    page.click("#steer-stop")
    page.wait_for_selector(".cursor", state="hidden")
    page.wait_for_timeout(500)
    length = len(page.inner_text("#steer-changed"))
    page.wait_for_timeout(700)
    assert len(page.inner_text("#steer-changed")) == length
    assert "steered199" not in page.inner_text("#steer-changed")
    assert CANARY in page.inner_text("#steer-changed")


def test_steering_without_a_feature_is_refused_in_words(visit: Visit) -> None:
    page = visit.open("?tab=steering").page
    page.click("#steer-run")
    page.wait_for_selector("text=Add a feature first")


def test_a_refusal_by_the_library_is_shown_as_text(visit: Visit) -> None:
    page = visit.open("?feature=9").page
    visit.feature(9)
    page.click("a[data-steer]")
    page.wait_for_selector("#strength-0 input[type=number]")
    page.fill("#strength-0 input[type=number]", "10")
    page.keyboard.press("Tab")
    page.click("#steer-run")
    page.wait_for_selector("text=is refused, expected less")
    visit.keep("refusal")
    page.click("[data-tab-id=text]")
    page.fill("#active-text textarea", "refuse")
    page.click("#active-run")
    page.wait_for_selector("text=is not there, expected it")
    assert page.locator("img[src=x]").count() == 0


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
    visit.open()
    visit.keep(f"phone_list_{scheme}")
    cells = page.eval_on_selector_all("#feature-list td", "cells => cells.map(c => c.getBoundingClientRect().right)")
    assert max(cells) <= 390
    context.close()


def test_only_the_password_opens_the_door() -> None:
    from ui import browser

    guard = browser._guard("geheim")
    assert guard("anyone", "geheim")
    assert not guard("anyone", "geheimer")
    assert not guard("anyone", "")
    assert browser._guard(None) is None


def test_files_of_the_machine_are_not_served(address: str) -> None:
    for path in ("/gradio_api/file=/etc/hostname", "/file=/etc/hostname", f"/gradio_api/file={ROOT}/pyproject.toml"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}{path}", timeout=30)
        refused.value.close()
        assert refused.value.code in (403, 404)


def test_a_report_opens_from_disk_without_scripts_or_requests(chromium: Any, tmp_path: Path) -> None:
    from tests.ui.stand_in import StandIn
    from ui.render import feature, html

    hostile = f"<p>{feature.feature_card(StandIn('d').feature(7))}</p>{CANARY}<script>window.canary = 'fired'</script>"  # type: ignore[arg-type]
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
