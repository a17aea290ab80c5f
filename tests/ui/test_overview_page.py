"""The overview: where a newcomer begins, and what is told of the dictionary."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from features import Dictionary, schema
from features.overview import frontier, metrics_of
from tests.ui.conftest import Visit
from tests.ui.served import CANARY, N_FEATURES, SEEDS
from ui.views import about
from ui.views import features as features_view
from ui.views import overview as view


@pytest.fixture
def dictionary(served_folder: Path, tmp_path: Path) -> Iterator[Dictionary]:
    """A copy that may be written, in the folders of a run."""
    shutil.copytree(served_folder / str(SEEDS[0]) / "stdlib", tmp_path / "dictionary" / "stdlib")
    opened = Dictionary.open(tmp_path / "dictionary" / "stdlib")
    yield opened
    opened.close()


def evaluated(run: Path, site: str, name: str, l0: float) -> None:
    folder = run / "sae" / site / name
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps({"d_sae": N_FEATURES, "metadata": {"site": site, "name": name}}))
    (folder / "metrics.json").write_text(json.dumps({"l0": l0, "explained_variance": 0.875, "ce_recovered": None}))


def test_every_live_feature_is_in_one_bin_of_density(dictionary: Dictionary) -> None:
    densities = dictionary.sql("select density from features where density > 0")["density"].to_pylist()
    bins = dictionary.overview.densities
    for entry in bins[:-1]:
        assert entry.features == sum(entry.low <= density < entry.high for density in densities)
    assert sum(entry.features for entry in bins) == len(densities)
    assert all(one.high == other.low for one, other in itertools.pairwise(bins))


def test_a_range_of_densities_lists_its_features_alone(dictionary: Dictionary) -> None:
    tallest = max(dictionary.overview.densities, key=lambda entry: entry.features)
    words = {"low": f"{tallest.low:.6g}", "high": f"{tallest.high:.6g}"}
    shown = features_view.feature_list(dictionary, words, 0, "d")
    assert f"{tallest.features:,}" in shown
    whole = features_view.feature_list(dictionary, {}, 0, "d")
    assert f"{N_FEATURES - 1:,}" in whole
    assert f"{N_FEATURES - 1:,}" not in shown


def test_quality_that_nobody_measured_is_said_to_be_missing(dictionary: Dictionary) -> None:
    assert metrics_of(dictionary) is None
    assert "Not recorded: no evaluation stands beside this dictionary" in view.overview(dictionary, "d")


def test_quality_is_that_of_the_same_sae_alone(dictionary: Dictionary, tmp_path: Path) -> None:
    evaluated(tmp_path, "resid_post.1", "stdlib", 99.0)  # another site
    assert metrics_of(dictionary) is None
    evaluated(tmp_path, "resid_post.2", "stdlib", 8.0)
    evaluated(tmp_path, "resid_post.2", "wider", 16.0)
    assert metrics_of(dictionary) == {"l0": 8.0, "explained_variance": 0.875}
    points = {(point.name, point.l0): point.opened for point in frontier([dictionary])}
    assert points == {("stdlib", 8.0): 0, ("wider", 16.0): None, ("stdlib", 99.0): None}
    shown = view.overview(dictionary, "d")
    assert "0.875" in shown
    assert "not recorded" in shown  # of the loss
    assert 'class="scatter"' in shown
    (tmp_path / "sae" / "resid_post.2" / "stdlib" / "metrics.json").write_text("{")
    assert metrics_of(dictionary) is None


def test_a_stored_map_is_handed_over_whole(dictionary: Dictionary) -> None:
    assert view.map_points(dictionary) == {}
    assert "glassbox dict map" in view.overview(dictionary, "d")
    store_map(dictionary)
    handed = view.map_points(dictionary)
    assert handed["n"] == N_FEATURES - 1
    assert set(handed["clusters"]) == {"0", "1"}
    shown = view.overview(dictionary, CANARY)
    assert "data-map" in shown
    assert "<img" not in shown
    assert view.told(dictionary, 10**6) == ""


def store_map(dictionary: Dictionary) -> None:
    """Two clusters on a line, which no library had to lay out."""
    live = dictionary.store.query("select feature from features where not is_dead order by feature")["feature"]
    n = len(live)
    columns = [live.to_numpy(), [i / n for i in range(n)], [i % 7 / 7 for i in range(n)]]
    columns += [[i % 2 for i in range(n)], [0] * n, ["2026-01-01T00:00:00+00:00"] * n]
    rows = pa.table(columns, schema=schema.TABLES["feature_map"].arrow_schema())
    dictionary.store.write_labels("feature_map", rows, replace_where="true")


def test_the_page_about_limits_names_privacy_and_versions() -> None:
    shown = about.about()
    for words in ("Nothing leaves this machine", "What the methods cannot say", "Steering responsibly", "gradio"):
        assert words in shown
    assert not re.search(r"https?://|<script", shown)


@pytest.mark.browser
def test_the_start_leads_to_a_feature_a_text_and_a_preset(visit: Visit) -> None:
    page = visit.open().page
    page.wait_for_selector(".start a")
    visit.keep("overview")
    assert page.locator(".start a").count() == 3
    page.locator(".start a").first.click()
    page.wait_for_function("document.querySelector('.feature-page')?.checkVisibility()")
    page.go_back()
    visit.tab("Overview")
    for number, tab in ((1, "Text"), (2, "Steer")):
        page.locator(".start a").nth(number).click()
        visit.tab(tab)
        page.go_back()
        visit.tab("Overview")


@pytest.mark.browser
def test_a_bar_and_a_range_of_bars_list_their_features(visit: Visit) -> None:
    page = visit.open().page
    bars = page.locator("[data-density] a")
    bars.first.wait_for()
    low = bars.first.get_attribute("data-low")
    bars.first.click()
    visit.tab("Features")
    assert f"low={low}" in page.url
    page.go_back()
    visit.tab("Overview")
    bars.first.focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    high = bars.nth(2).get_attribute("data-high")
    page.keyboard.press("Enter")
    visit.tab("Features")
    assert f"low={low}" in page.url
    assert f"high={high}" in page.url


@pytest.mark.browser
def test_the_other_dictionary_is_a_link_away(visit: Visit) -> None:
    page = visit.open().page
    page.locator('.overview-page table a[href*="stdlib%20%282%29"]').first.click()
    page.wait_for_function("document.querySelector('.overview-page h2').textContent === 'stdlib (2)'")
    assert "dict=stdlib" in page.url


@pytest.mark.browser
def test_the_page_about_this_can_be_opened(visit: Visit) -> None:
    page = visit.open("?view=about").page
    page.wait_for_selector(".about >> text=What the methods cannot say")
    visit.keep("about")
