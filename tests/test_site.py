"""The site builds without a warning, runs its tutorials and examples, and asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Loaded(HTMLParser):
    """What a page loads by itself: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("search", "index", "next", "prev", "canonical"):
            return
        address = given.get("href") if tag == "link" else given.get("src") if tag != "a" else None
        if address:
            self.addresses.append(address)


def loads(page: Path) -> list[str]:
    parser = Loaded()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser.addresses


def test_what_a_page_loads_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<link rel=stylesheet href="https://a/b.css"><img src="c.png"><a href="https://d">d</a>')
    assert loads(page) == ["https://a/b.css", "c.png"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_site_builds_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "html"
    environment = os.environ | {"GLASSBOX_SHAPE_CHECKS": "0", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = list(out.rglob("*.html"))
    for page in pages:
        for address in loads(page):
            assert not re.match(r"(?:https?:)?//", address), f"{page} loads {address}"
            if not address.startswith("data:"):
                assert (page.parent / address.split("?")[0].split("#")[0]).exists(), f"{page} lacks {address}"
    for sheet in out.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    names = {page.relative_to(out).as_posix() for page in pages}
    tutorials = {f"docs/learn/{path.stem}.html" for path in (ROOT / "docs" / "tutorials").glob("*.py")}
    documents = {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert len(tutorials) >= 3
    assert tutorials | documents <= names
    assert {"docs/analyses/logit_lens.html", "docs/reference/sae.html", "docs/limits.html"} <= names
    assert "settled from resid_post" in (out / "docs/analyses/logit_lens.html").read_text(encoding="utf-8")


def test_every_example_belongs_to_a_method() -> None:
    methods = [ROOT / "docs" / f"{name}.md" for name in ("analyses", "circuits", "probes", "behaviour")]
    headings = [line for path in methods if path.exists() for line in path.read_text().splitlines()]
    slugs = {re.sub(r"\W+", "_", line[3:].lower()).strip("_") for line in headings if line.startswith("## ")}
    assert {path.stem for path in (ROOT / "docs" / "site" / "examples").glob("*.py")} <= slugs
