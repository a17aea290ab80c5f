"""Lists in a browser: stars, notes, downloads, imports."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from features import Dictionary
from features.lists import feature_numbers
from tests.ui.conftest import Visit
from tests.ui.served import CANARY, HOSTILE, SEEDS
from ui import exports

browser = pytest.mark.browser


def test_numbers_are_read_as_people_write_them() -> None:
    assert feature_numbers("7, 12 40-42,7") == [7, 12, 40, 41, 42]
    for wrong in ("", "a", "3-", "-3", "5-1", "1-99999999", "1;drop table lists", "²"):
        with pytest.raises(ValueError, match=r"expected numbers|rising: write fewer"):
            feature_numbers(wrong)


@pytest.mark.parametrize("kind", exports.FORMATS)
def test_a_download_is_whole_and_leaves_no_file(served_folder: Path, kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")
    made = exports.download(opened, kind, CANARY)
    opened.close()
    assert list(tmp_path.iterdir()) == []
    assert "<" not in made.name
    if kind == "json":
        content = json.loads(made.content)
        assert {HOSTILE, 8} <= {feature["feature"] for feature in content["features"]}
    elif kind == "html":
        assert b"<img" not in made.content
    else:
        (tmp_path / "a.zip").write_bytes(made.content)
        assert zipfile.ZipFile(tmp_path / "a.zip").testzip() is None


def test_a_download_that_is_too_large_names_the_command(served_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "DOWNLOAD_FEATURES", 5)
    opened = Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")
    with pytest.raises(ValueError, match="glassbox dict export DICT --format json"):
        exports.download(opened, "json")
    opened.close()


def shown(visit: Visit, words: str) -> None:
    visit.page.wait_for_function(
        "words => document.querySelector('#lists-shown').textContent.includes(words)", arg=words
    )


def said(visit: Visit, words: str) -> None:
    visit.page.wait_for_function(
        "words => document.querySelector('#lists-said').textContent.includes(words)", arg=words
    )


@browser
def test_a_list_is_made_filled_renamed_sorted_and_deleted(visit: Visit) -> None:
    page = visit.open("?view=lists").page
    shown(visit, CANARY)
    visit.keep("lists")
    page.click("text=New list")
    page.get_by_label("Name", exact=True).fill(f"mine {CANARY}")
    page.get_by_label("What it is for").fill(CANARY)
    page.get_by_role("button", name="Create").click()
    said(visit, "Made the list")
    page.get_by_label("Add features").fill("40-42, 9")
    page.get_by_label("Note").fill("<b>why</b>")
    page.get_by_role("button", name="Add", exact=True).click()
    said(visit, "4 new of 4 features")
    shown(visit, "<b>why</b>")
    assert "list=mine" in page.url
    page.locator("button[data-unlist]").first.click()
    said(visit, "Took feature 40 off; its notes were: <b>why</b>")
    page.click("#lists-sort input")
    page.get_by_role("option", name="Number").click()
    page.wait_for_function("document.querySelector('#lists-shown tbody a').textContent === '9'")
    page.get_by_label("New name").fill("theirs")
    page.get_by_role("button", name="Rename").click()
    page.wait_for_function("document.querySelector('#lists-shown h2').textContent === 'theirs'")
    page.wait_for_url("**list=theirs**")
    visit.reload()
    page.wait_for_function("document.querySelector('#lists-shown h2')?.textContent === 'theirs'")
    assert page.locator("#lists-shown tbody a").first.inner_text() == "9"
    page.get_by_role("button", name="Delete list").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name="Delete list").click()
    page.wait_for_selector("text=Delete theirs with its 3 features")
    page.get_by_role("button", name="Delete it").click()
    said(visit, "Deleted theirs")


@browser
def test_a_star_bookmarks_a_feature(visit: Visit) -> None:
    page = visit.open("?feature=33").page
    visit.feature(33)
    page.click('button[data-star="33"]')
    page.wait_for_selector('button[data-star="33"][aria-pressed="true"]')
    page.click("[data-tab-id=lists]")
    page.wait_for_selector("#lists-index >> text=bookmarks")
    page.click("#lists-index >> text=bookmarks")
    page.wait_for_selector('#lists-shown a[data-feature="33"]')
    page.go_back()
    visit.open("?feature=33")
    visit.feature(33)
    page.click('button[data-star="33"][aria-pressed="true"]')
    page.wait_for_selector('button[data-star="33"][aria-pressed="false"]')


def choose(page: Any, file: Path) -> None:
    with page.expect_file_chooser() as asked:
        page.get_by_role("button", name="Choose a file").click()
    asked.value.set_files(str(file))


@browser
def test_an_export_comes_back_as_an_import(visit: Visit, tmp_path: Path) -> None:
    page = visit.open(f"?view=lists&dict=stdlib&list={CANARY}").page
    shown(visit, CANARY)
    page.get_by_label("Export as").click()
    page.get_by_role("option", name="json").click()
    with page.expect_download() as caught:
        page.get_by_role("button", name="Export", exact=True).click()
    file = tmp_path / "list.json"
    caught.value.save_as(file)
    assert json.loads(file.read_text())["features"]
    page.get_by_role("button", name="Import").click()
    choose(page, file)
    said(visit, "Imported: nothing new")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    choose(page, broken)
    page.wait_for_selector(".toast-body, [data-testid=toast-body]")
