"""The picture of a map: its own scripts run, and nothing else; explanations are text."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from features.feature_map import Cluster, FeatureMap
from ui.render.feature_map import map_figure, map_page, write_map

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> %{x} ${1} `a`"


@pytest.fixture
def found() -> FeatureMap:
    n = 60
    return FeatureMap(
        features=list(range(n)),
        x=[float(i % 10) for i in range(n)],
        y=[float(i // 10) for i in range(n)],
        cluster=[0] * 40 + [1] * 10 + [-1] * 10,
        explanations=[HOSTILE, "", *(f"fires on word {i}" for i in range(2, n))],
        clusters=[Cluster(0, 40, [" import", "<b>x</b>", "\n"]), Cluster(1, 10, [HOSTILE, "%{text}", ""])],
    )


def test_points_stand_in_traces_of_their_clusters(found: FeatureMap) -> None:
    traces = map_figure(found).to_plotly_json()["data"]
    assert [len(trace["x"]) for trace in traces] == [10, 40, 10]
    assert [trace["type"] for trace in traces] == ["scatter"] * 3
    assert traces[0]["name"] == "in no cluster · 10"
    assert traces[1]["name"] == "·import &lt;b&gt;x&lt;/b&gt; ⏎ · 40"
    assert 'onerror="document' in traces[1]["text"][0], "quotes as they are: plotly knows no reference for them"
    assert traces[1]["text"][1] == "<b>Feature 1</b><br>no explanation<br><i>·import &lt;b&gt;x&lt;/b&gt; ⏎</i>"
    tags = {tag for trace in traces for text in trace["text"] for tag in re.findall("<[^>]*>", text)}
    assert tags == {"<b>", "</b>", "<br>", "<i>", "</i>"}


def test_the_page_allows_its_two_scripts_and_fetches_nothing(found: FeatureMap, tmp_path: Path) -> None:
    page = write_map(found, HOSTILE, tmp_path / "map.html").read_text(encoding="utf-8")
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall("sha256-([^']*)'", policy[1]) == hashes
    assert len(hashes) == 2
    assert "default-src 'none'" in policy[1]
    assert "unsafe-eval" not in policy[1]
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page.replace(scripts[0], ""))


def test_many_points_are_drawn_by_the_graphics_card(found: FeatureMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.render.feature_map.SVG_POINTS", 50)
    assert {trace["type"] for trace in map_figure(found).to_plotly_json()["data"]} == {"scattergl"}
    assert "'unsafe-eval'" in map_page(found, "x")


@pytest.mark.browser
def test_hostile_explanations_are_shown_as_text_on_hover(found: FeatureMap, tmp_path: Path, chromium: Any) -> None:
    path = write_map(found, "a dictionary", tmp_path / "map.html")
    page = chromium.new_page(viewport={"width": 1200, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url[:4] == "http" else None)
    page.goto(path.as_uri(), timeout=180_000)
    point = page.locator("#map .scatterlayer .trace").nth(1).locator("path.point").first
    point.wait_for(timeout=120_000)
    assert page.locator("#map path.point").count() == 60
    box = point.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = page.locator("#map .hoverlayer text").first
    hover.wait_for(timeout=120_000)
    told = hover.text_content() or ""
    assert "Feature 0" in told
    assert "".join(HOSTILE.split())[:60] in "".join(told.split())
    assert page.title().startswith("a dictionary")
    assert not complaints, json.dumps(complaints)[:400]
    if folder := os.environ.get("GLASSBOX_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / "map.png"))
    page.close()
