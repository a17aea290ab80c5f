"""Steering, in a browser: every control, what an address holds, and that Stop stops the model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from features import SteeringSpec
from tests.ui.conftest import Visit
from tests.ui.served import CANARY, DEAD

pytestmark = pytest.mark.browser
LONG = "&tokens=400&temperature=0"
SPEC = {"glassbox_steering": 1, "features": {"9": 1.5, "11": -2}, "mode": "clamp", "max_new_tokens": 9}


@pytest.fixture
def passes(server_folder: Path) -> Callable[[], int]:
    """How many passes the server's models have made so far."""
    return lambda: (server_folder / "passes").stat().st_size if (server_folder / "passes").exists() else 0


def words(visit: Visit) -> dict[str, str]:
    """What the address says now."""
    return {key: values[0] for key, values in parse_qs(urlsplit(visit.page.url).query).items()}


def said(visit: Visit, key: str, value: str) -> None:
    """Waits until the address says that."""
    visit.page.wait_for_function(
        "([key, value]) => new URLSearchParams(location.search).get(key) === value", arg=[key, value]
    )


def slots(visit: Visit, number: int) -> None:
    """Waits until so many features are chosen, with their lengths."""
    visit.page.wait_for_selector(f"#norm-{number - 1} .norm")
    visit.page.wait_for_selector(f"#strength-{number} input", state="hidden")


def writes(visit: Visit) -> None:
    """Waits until both texts grow."""
    for side in ("plain", "changed"):
        visit.page.wait_for_function(f"document.querySelector('#steer-{side} .text')?.textContent.length > 40")


def ended(passes: Callable[[], int], wait_s: float) -> bool:
    """Says whether the model rests after so long."""
    time.sleep(wait_s)
    before = passes()
    time.sleep(0.7)
    return passes() == before


def test_a_link_from_a_features_page_adds_to_those_chosen(visit: Visit) -> None:
    page = visit.open("?view=steer&features=12%3D2&prompt=kept").page
    slots(visit, 1)
    page.evaluate("window.glassbox.go('feature', {feature: '3'})")
    visit.feature(3)
    page.click("a[data-steer]")
    visit.tab("Steer")
    slots(visit, 2)
    assert words(visit)["features"] == "12=2,3=1"
    assert page.input_value("#steer-prompt textarea") == "kept"


def test_a_dead_feature_is_left_out_with_the_reason(visit: Visit) -> None:
    page = visit.open(f"?view=steer&features={DEAD},1,2,3,4,8,9,10,11").page
    page.wait_for_selector(f"text=feature {DEAD} is dead")
    slots(visit, 8)


def test_both_texts_stream_and_stop_ends_the_model(visit: Visit, passes: Callable[[], int]) -> None:
    page = visit.open(f"?view=steer&features=3,12{LONG}").page
    slots(visit, 2)
    page.fill("#steer-prompt textarea", f"def {CANARY}")
    page.click("#steer-run")
    writes(visit)
    visit.keep("steer")
    assert not ended(passes, 0)
    page.click("#steer-stop")
    assert ended(passes, 1.0)
    page.wait_for_selector("#steer-status >> text=Stopped")
    assert page.locator("#steer-changed .cursor").count() == 0
    assert CANARY in page.inner_text("#steer-changed")


def test_a_closed_page_ends_its_model(chromium: Any, address: str, passes: Callable[[], int]) -> None:
    context = chromium.new_context()
    visit = Visit(context, address).open(f"?view=steer&features=3{LONG}")
    slots(visit, 1)
    visit.page.click("#steer-run")
    writes(visit)
    visit.page.close()
    assert ended(passes, 2.5)
    context.close()


def test_a_sweep_fills_its_table_beside_asking_in_words(visit: Visit) -> None:
    page = visit.open("?view=steer&features=3&tokens=6&way=Sweep&factors=0,1,2").page
    slots(visit, 1)
    page.fill("#steer-asked :is(textarea, input)", CANARY)
    page.click("#steer-run")
    page.wait_for_selector("#steer-status >> text=Done.")
    assert page.locator("#steer-swept tbody tr").count() == 4
    assert page.locator("#steer-swept svg.scatter").count() == 3
    visit.keep("steer_sweep")
    page.fill("#steer-factors :is(textarea, input)", "0,x")
    page.click("#steer-run")
    page.wait_for_selector("#steer-status >> text=expected numbers with commas")


def test_a_chat_model_is_talked_with_in_turns(visit: Visit) -> None:
    page = visit.open("?view=steer&dict=stdlib+(2)&features=3%3D2&tokens=8&way=Conversation").page
    page.wait_for_selector("#steer-says textarea")
    slots(visit, 1)
    for turn in (1, 2):
        page.fill("#steer-says textarea", CANARY if turn == 1 else "again")
        page.click("#steer-run")
        page.wait_for_function(
            "n => document.querySelectorAll('#steer-changed .turn').length === n"
            " && !document.querySelector('#steer-changed .cursor')",
            arg=2 * turn,
        )
        page.wait_for_function("document.querySelector('#steer-says textarea').value === ''")
    assert CANARY in page.inner_text("#steer-plain")
    visit.keep("steer_talk")
    page.click("#steer-afresh")
    page.wait_for_selector("#steer-changed >> text=Nothing said yet")


def test_a_model_without_a_chat_template_says_why_there_is_no_conversation(visit: Visit) -> None:
    page = visit.open("?view=steer&features=3&way=Conversation").page
    page.wait_for_selector("#steer-no-chat >> text=has no chat template")
    assert page.locator("#steer-way >> text=Conversation").count() == 0
    page.wait_for_selector("#steer-prompt textarea")


def test_a_steering_is_kept_in_a_file_and_opened_from_it(visit: Visit, tmp_path: Path) -> None:
    page = visit.open("?view=steer&features=3%3D2&mode=clamp&tokens=9&prompt=abc").page
    slots(visit, 1)
    page.get_by_role("button", name="Keep and share").click()
    with page.expect_download() as waiting:
        page.click("#steer-save")
    spec = SteeringSpec.from_json(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert (spec.features, spec.mode, spec.max_new_tokens, spec.prompt) == ({3: 2.0}, "clamp", 9, "abc")
    file = tmp_path / "steering.json"
    file.write_text(json.dumps(SPEC | {"prompt": CANARY}))
    page.set_input_files("#steer-file", file)
    page.wait_for_selector("#steer-copied >> text=Opened: 2 features")
    slots(visit, 2)
    said(visit, "features", "9=1.5,11=-2")
    said(visit, "prompt", CANARY)
    assert page.input_value("#steer-prompt textarea") == CANARY
    file.write_text(json.dumps(SPEC | {CANARY: 1}))
    page.set_input_files("#steer-file", file)
    page.wait_for_selector("text=/a steering spec has no .*canary/")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#steer-copy")
    page.wait_for_selector("#steer-copied >> text=The link is copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_steering_without_a_feature_is_refused_in_words(visit: Visit) -> None:
    page = visit.open("?view=steer").page
    page.click("#steer-run")
    page.wait_for_selector("text=Add a feature first")


def test_refusals_are_shown_as_text(visit: Visit) -> None:
    page = visit.open("?view=steer&features=9&prompt=a&positions=%3Cimg%20src%3Dx%3E").page
    slots(visit, 1)
    page.fill("#steer-find :is(input, textarea)", "<zzqqzz>")
    page.press("#steer-find :is(input, textarea)", "Enter")
    page.wait_for_selector("text=No feature found for <zzqqzz>")
    visit.keep("refusal")
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_steers_in_one_column(chromium: Any, address: str, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    visit = Visit(context, address).open("?view=steer&features=3,12&tokens=6")
    slots(visit, 2)
    visit.page.click("#steer-run")
    visit.page.wait_for_selector("#steer-status .facts")
    visit.keep(f"steer_phone_{scheme}")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert re.search(r"of the activation", visit.page.inner_text("#norm-0"))
    context.close()
