"""Exported pages: self-contained, small, searchable, and hostile text in them does nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from features import Dictionary
from features.lists import ListEntry, NamedList
from tests.ui.served import CANARY, DEAD, SEEDS, TEMPLATES
from ui.render import dictionary_pages


@pytest.fixture(scope="module")
def opened(served_folder: Path) -> Iterator[Dictionary]:
    """The hostile dictionary of the browser's tests."""
    dictionary = Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")
    yield dictionary
    dictionary.close()


def shown(*features: int) -> NamedList:
    time = "2026-01-01T00:00:00+00:00"
    return NamedList(CANARY, CANARY, time, CANARY, [ListEntry(f, CANARY, time, CANARY) for f in features])


def test_one_file_holds_few_features_and_nothing_outside_is_named(opened: Dictionary, tmp_path: Path) -> None:
    path = dictionary_pages.write_pages(opened, [7, DEAD, 9], tmp_path / "three.html", shown(7))
    text = path.read_text(encoding="utf-8")
    assert "<img" not in text
    assert not re.search(r"(?:src|href)=[\"'](?!#)", text)
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", text)
    assert len(re.findall("<script", text)) == 1
    assert "never fired" in text
    one = dictionary_pages.write_pages(opened, [9], tmp_path / "one.html").read_text(encoding="utf-8")
    assert "<script" not in one
    with pytest.raises(ValueError, match="expected at most 100: name a folder"):
        dictionary_pages.write_pages(opened, list(range(101)), tmp_path / "many.html")


def test_many_features_are_a_folder_of_pages_that_lead_to_each_other(opened: Dictionary, tmp_path: Path) -> None:
    index = dictionary_pages.write_pages(opened, list(range(50)), tmp_path / "pages")
    names = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert names == ["features-0000.html", "features-0001.html", "features-0002.html", "index.html"]
    for name in names:
        page = (tmp_path / "pages" / name).read_text(encoding="utf-8")
        for address in re.findall(r'href="([^"]*)"', page):
            target, _, anchor = address.partition("#")
            text = (tmp_path / "pages" / (target or name)).read_text(encoding="utf-8")
            assert not anchor or f'id="{anchor}"' in text, address
    assert 'href="features-0002.html#f49"' in index.read_text(encoding="utf-8")
    pages = sum((tmp_path / "pages" / name).stat().st_size for name in names)
    assert pages < sum(len(opened.feature(feature).to_json().encode()) for feature in range(50))
    with pytest.raises(FileExistsError, match="exists already"):
        dictionary_pages.write_pages(opened, [1], tmp_path / "pages")
    with pytest.raises(ValueError, match="expected at most 20,000"):
        dictionary_pages.write_pages(opened, list(range(20_001)), tmp_path / "new")


def test_strings_of_templates_are_shown_as_they_are(opened: Dictionary, tmp_path: Path) -> None:
    text = dictionary_pages.write_pages(opened, [7], tmp_path / "a.html").read_text(encoding="utf-8")
    assert TEMPLATES not in text


@pytest.mark.browser
def test_the_pages_search_sort_and_let_nothing_hostile_run(opened: Dictionary, tmp_path: Path, chromium: Any) -> None:
    index = dictionary_pages.write_pages(opened, list(range(45)), tmp_path / "pages", shown(7, 8))
    dictionary_pages.write_pages(opened, [7, 8], tmp_path / "two.html", shown(7))
    page = chromium.new_page(viewport={"width": 390, "height": 900})
    told: list[str] = []
    page.on("request", lambda request: told.append(request.url) if not request.url.startswith("file://") else None)
    page.on("dialog", lambda dialog: (told.append("dialog"), dialog.dismiss()))
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    for path in (index, tmp_path / "pages" / "features-0000.html", tmp_path / "two.html"):
        page.goto(path.as_uri())
        assert page.evaluate("window.canary") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
    assert CANARY in page.inner_text("body")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(index.as_uri())
    assert page.inner_text("#found") == "45 of 45"
    page.fill("#words", "never fired")
    assert page.inner_text("#found") == "1 of 45"
    assert page.inner_text("tbody tr:not([hidden]) td") == str(DEAD)
    page.fill("#words", CANARY.lower())
    assert page.inner_text("#found") == "1 of 45"
    page.fill("#words", "")
    page.click("th:nth-child(3) button")
    order = page.eval_on_selector_all("tbody tr", "rows => rows.map(row => Number(row.cells[0].textContent))")
    density = dict(opened.sql("select feature, density from features").to_pandas().to_numpy().tolist())
    assert sorted(order) == list(range(45))
    assert all(density[a] >= density[b] * 0.999 for a, b in itertools.pairwise(order))
    page.click("th:nth-child(1) button")
    page.click("th:nth-child(1) button")
    assert page.inner_text("tbody tr:first-child td") == "0"
    page.click("tbody tr:first-child a")
    page.wait_for_selector("#f0")
    assert page.url.endswith("features-0000.html#f0")
    page.close()
    assert told == []
