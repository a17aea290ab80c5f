"""Two dictionaries side by side, in a browser; comparisons that are kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from features import Dictionary, comparison_store
from features.comparison import CompareConfig
from tests.ui.conftest import Visit
from tests.ui.served import CANARY, HOSTILE, N_FEATURES, SEEDS
from ui.views import compare as view


def test_a_kept_comparison_is_the_one_that_was_made(served_folder: Path, tmp_path: Path) -> None:
    opened = []
    for seed in SEEDS:
        shutil.copytree(served_folder / str(seed) / "stdlib", tmp_path / str(seed))
        opened.append(Dictionary.open(tmp_path / str(seed)))
    a, b = opened
    config = CompareConfig(examples=2)
    assert comparison_store.kept_comparison(a, b, config) is None
    made = comparison_store.compare_and_keep(a, b, config)
    kept_one = comparison_store.kept_comparison(a, b, config)
    assert kept_one is not None
    assert kept_one.to_json() == made.to_json()
    assert kept_one.matched == made.matched
    assert comparison_store.kept_comparison(b, a, config) is None
    assert comparison_store.kept_comparison(a, b, CompareConfig(examples=3)) is None
    pair = view.Pair([a, b], [CANARY, "b"])
    for kind in view.KINDS:
        page = view.comparison(made, pair, kind, 99)
        assert "<img" not in page
    assert "<img" not in view.side_by_side(pair, HOSTILE, HOSTILE)
    assert f"it has 0 to {N_FEATURES - 1}" in view.side_by_side(pair, 0, N_FEATURES)
    kept = next((tmp_path / str(SEEDS[0]) / comparison_store.FOLDER).iterdir())
    kept.write_text("{")
    assert comparison_store.kept_comparison(a, b, config) is None
    for each in opened:
        each.close()


@pytest.mark.browser
def test_two_dictionaries_are_compared_and_every_relation_is_shown(visit: Visit) -> None:
    page = visit.open("?view=compare").page
    page.wait_for_selector("text=Choose two dictionaries and press Compare")
    page.click("#compare-run")
    page.wait_for_selector(".comparison .kinds", timeout=60_000)
    visit.keep("compare")
    for kind, title in view.KINDS.items():
        page.click(f".kinds >> text={title}")
        page.wait_for_selector(f".kinds a[aria-current=page] >> text={title}")
        assert f"kind={kind}" in page.url
    page.click(".kinds >> text=Matched")
    page.wait_for_selector(".kinds a[aria-current=page] >> text=Matched")
    page.locator(".comparison >> text=side by side").first.click()
    page.wait_for_selector(".side-by-side .pair article >> nth=1")
    visit.keep("side_by_side")
    visit.reload()
    page.wait_for_selector(".side-by-side .pair article >> nth=1")
    page.click("text=All relations")
    page.wait_for_selector(".comparison .kinds")


@pytest.mark.browser
def test_a_dictionary_is_not_compared_with_itself(visit: Visit) -> None:
    page = visit.open("?view=compare&a=stdlib").page
    page.click("#compare-b input")
    page.get_by_role("option", name="stdlib", exact=True).click()
    page.click("#compare-run")
    page.wait_for_selector("text=Both sides are the same dictionary")
