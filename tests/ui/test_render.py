"""Rendering: what comes from the corpus is text wherever it is shown, and pages need nothing from outside."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from features import Dictionary
from features.evaluation_run import Evaluation, Pair
from features.side_by_side import SideBySide
from sae import SAE, SAEConfig, evaluate
from sae.probing import ProbeScore, ProbingReport
from sae.stability import compare
from tests.ui.served import CANARY, DEAD, HOSTILE, N_FEATURES, SEEDS, TEMPLATES
from ui.render import curves, figures, html, tables
from ui.render import evaluation as evaluation_render
from ui.views import feature as feature_view
from ui.views import features as features_view
from ui.views import steer as steer_view
from ui.views.shelf import Shelf, find


class Parsed(HTMLParser):
    """The tags, attributes and text that a browser would see."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def is_harmless(source: str) -> None:
    """Asserts that nothing in `source` could run or fetch."""
    parsed = Parsed(source)
    assert not {"img", "script", "iframe", "object", "embed", "link", "form", "base"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name == "src"]
    assert "${" not in source
    assert "{{" not in source
    assert "`" not in source


def drawn(part: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


@given(st.text())
@example('" onload="x')
@example("' onload='x")
def test_escaped_text_is_only_text(text: str) -> None:
    for quote in "\"'":
        parsed = Parsed(f"<p title={quote}{html.escape(text)}{quote}>{html.escape(text)}</p>")
        assert parsed.tags == ["p"]
        assert [name for name, _ in parsed.attributes] == ["title"]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_escaping_loses_nothing_that_can_be_seen(text: str) -> None:
    assert Parsed(f"<p>{html.escape(text)}</p>").text == text


def test_signs_of_gradios_templates_are_escaped() -> None:
    assert not set("{}$`") & set(html.escape("${a} {{b}} `"))


def test_text_that_would_turn_its_neighbours_around_is_shown_as_its_code() -> None:
    assert html.escape("a\u202eb\x00c") == "a\\u202eb\\x00c"


def test_line_ends_and_spaces_are_marked() -> None:
    shown = Parsed(html.visible("\n\tif x", spaces=True)).text
    assert shown == "⏎⇥\tif·x"


def test_colour_and_tooltip_follow_the_activation() -> None:
    shown = html.highlighted(["a", "b", "c"], [0.0, 2.0, -1.0], scale=4.0, peak=1)
    assert 'title="activation 2 · 50% of maximum"' in shown
    assert re.search(r'class="t peak" style="--a:0.5\d"', shown)
    assert "t cold" in shown
    assert Parsed(shown).text == "abc"


def test_a_highlight_with_too_few_values_is_a_defect() -> None:
    with pytest.raises(ValueError, match="shorter"):
        html.highlighted(["a", "b"], [1.0], scale=1.0)


@pytest.fixture(scope="module")
def dictionary(served_folder: Path) -> Iterator[Dictionary]:
    opened = Dictionary.open(served_folder / str(SEEDS[0]) / "stdlib")
    yield opened
    opened.close()


def test_a_hostile_feature_page_is_harmless(dictionary: Dictionary) -> None:
    page = feature_view.feature_page(dictionary, HOSTILE, CANARY)
    is_harmless(page)
    assert CANARY in Parsed(page).text
    assert TEMPLATES.strip() in Parsed(page).text


def test_hostile_lists_searches_and_continuations_are_harmless(dictionary: Dictionary) -> None:
    shelf = Shelf([dictionary])
    for query in ("", "return", CANARY, TEMPLATES):
        is_harmless(features_view.feature_list(shelf.get(None), {"q": query}, 0, CANARY))
    written = SideBySide((TEMPLATES,), (CANARY,), is_running=True)
    is_harmless(steer_view.side(CANARY, written, steered=True))
    is_harmless(steer_view.suggestions(dictionary, CANARY, []))
    is_harmless(steer_view.conversation([{"role": CANARY, "content": TEMPLATES}], CANARY, running=True))
    is_harmless(steer_view.slot(shelf.get(None), HOSTILE, CANARY))


def test_a_dead_feature_is_shown_as_dead(dictionary: Dictionary) -> None:
    page = feature_view.feature_page(dictionary, DEAD, "d")
    assert "never fired" in page
    assert f"{dictionary.info['n_indexed_tokens']:,} tokens" in page
    assert "Strongest" not in page
    assert "data-steer" not in page


def test_a_feature_that_does_not_exist_is_named_with_the_range(dictionary: Dictionary) -> None:
    shown = feature_view.feature_page(dictionary, N_FEATURES, "d")
    assert f"There is no feature {N_FEATURES}: this dictionary has 0 to {N_FEATURES - 1}." in shown


def test_examples_stand_by_stratum_with_their_source(dictionary: Dictionary) -> None:
    found = dictionary.feature(3)
    page = Parsed(feature_view.feature_page(dictionary, 3, "d")).text
    order = [page.index(words) for words in ("Strongest", "Sample of strong", "Sample of weakest")]
    assert order == sorted(order)
    strongest = found.examples[0]
    assert strongest.document_name in page
    assert f"token {strongest.position}" in page


def test_neighbours_are_links_with_addresses(dictionary: Dictionary) -> None:
    page = feature_view.feature_page(dictionary, 3, "a b")
    near = dictionary.feature(3).neighbours[0].feature
    assert re.search(rf'href="[^"]*dict=a%20b&amp;feature={near}"[^>]*data-feature="{near}"', page)


def test_a_search_for_a_number_finds_that_feature_first(dictionary: Dictionary) -> None:
    found = find(dictionary, "12", 5)
    assert found[0]["feature"] == 12
    assert found[0]["explanation"]


def test_two_dictionaries_of_one_name_are_told_apart(dictionary: Dictionary) -> None:
    shelf = Shelf([dictionary, dictionary])
    assert shelf.names == ["stdlib", "stdlib (2)"]
    assert shelf.get("nonsense") is shelf.by_name["stdlib"]
    with pytest.raises(ValueError, match="expected at least one folder"):
        Shelf([])


def test_a_page_is_whole_and_forbids_scripts_and_requests() -> None:
    page = html.page(CANARY, "<p>body</p>")
    is_harmless(re.sub("<style>.*</style>", "", page, flags=re.S))
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"https?://|@import|url\(", page)


def test_light_and_dark_have_the_same_colours() -> None:
    assert set(html.LIGHT) == set(html.DARK)
    used = set(re.findall(r"var\(--gb-(\w+)", html.asset("style.css"))) - {"sans", "mono"}
    assert used <= set(html.LIGHT)


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two hexadecimal colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [html.LIGHT, html.DARK])
@pytest.mark.parametrize("name", ["ink", "muted", "accent", "good", "bad"])
@pytest.mark.parametrize("ground", ["paper", "card"])
def test_text_can_be_read_on_its_ground(palette: dict[str, str], name: str, ground: str) -> None:
    assert contrast(palette[name], palette[ground]) >= 4.5  # WCAG AA


CHARTS = [
    figures.histogram_chart([0.5, 1, 2, 4], [3, 0, 5]),
    figures.histogram_chart([0.0, 1, 2], [0, 0]),
    figures.density_chart([0.1, 0.02, 1e-6, 0.0]),
    figures.density_chart([]),
    figures.Chart(title="t", x_label="x", y_label="y", kind="line", x=[0, 1, 2], y=[1.0, -0.5, 2.0]),
]


@pytest.mark.parametrize("chart", CHARTS, ids=range(len(CHARTS)))
def test_a_chart_is_drawn_three_ways(chart: figures.Chart, tmp_path: Path) -> None:
    drawing = figures.svg(chart)
    is_harmless(drawing)
    assert "nan" not in drawing
    figure = figures.plotly_figure(chart)
    assert len(figure.data[0].y) == len(chart.y)
    for ending in figures.STATIC_FORMATS:
        file = figures.save_static(chart, tmp_path / f"chart{ending}")
        assert file.stat().st_size > 500
    assert not list(tmp_path.glob("*.partial"))


def test_every_live_feature_is_in_the_density_chart() -> None:
    assert sum(figures.density_chart([1.0, 0.5, 0.001, 0.0]).y) == 3


def test_empty_ends_of_a_histogram_are_left_out() -> None:
    chart = figures.histogram_chart([1, 2, 4, 8, 16], [0, 3, 4, 0])
    assert (list(chart.x), list(chart.y)) == ([2, 4, 8], [3, 4])


def test_a_chart_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 3: mend x"):
        figures.Chart(title="t", x_label="", y_label="", kind="bars", x=[1, 2], y=[1, 2])
    with pytest.raises(ValueError, match="expected one of .png, .svg, .pdf: rename it"):
        figures.save_static(CHARTS[0], tmp_path / "a.bmp")


def test_terminal_cells_show_controls_and_take_no_markup() -> None:
    shown = drawn(tables.records_table("", [{"token": "[red]\x1b[31m\n", "n": 3, "x": 0.123456, "none": None}]))
    assert "[red]\\x1b[31m⏎" in shown
    assert "0.1235" in shown
    assert "\x1b" not in shown


ANSWER = pa.table({"feature": [1, 2], "token": ["a,b", '"q"\n'], "value": [0.5, math.pi]})


def test_answers_leave_in_every_format(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for name in tables.FORMATS:
        tables.write_table(ANSWER, name, tmp_path / f"out.{name}")
    import csv

    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["token"] for row in csv.DictReader(file)] == ["a,b", '"q"\n']
    assert json.loads((tmp_path / "out.json").read_text())[1]["value"] == math.pi
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").equals(ANSWER)
    assert pyarrow.ipc.open_stream((tmp_path / "out.arrow").read_bytes()).read_all().equals(ANSWER)
    assert "a,b" in (tmp_path / "out.table").read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_a_long_answer_says_what_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    tables.write_table(pa.table({"n": list(range(tables.ROWS_SHOWN + 5))}), "table", None)
    captured = capsys.readouterr()
    assert f"{tables.ROWS_SHOWN + 5} rows, {tables.ROWS_SHOWN} shown" in captured.err


def test_steered_text_stands_beside_the_models_own() -> None:
    comparison = SimpleNamespace(unsteered=" one [b]", steered=" two", unsteered_perplexity=2.0, steered_perplexity=7.5)
    shown = drawn(tables.steering_table("prompt", comparison))
    assert "prompt one [b]" in shown
    assert "prompt two" in shown
    assert "steered 7.5" in shown


def measured(names: list[str]) -> Evaluation:
    """SAEs of one site, measured: figures, probes, stability and refusals of every kind."""
    torch.manual_seed(0)
    saes = {}
    for number, name in enumerate(names):
        saes[name] = SAE(SAEConfig(architecture="topk", d_in=16, d_sae=64, k=2 + number), {"site": "resid_post.1"})
        for value in saes[name].parameters():
            torch.nn.init.normal_(value)
    metrics = {
        name: replace(evaluate(sae, torch.randn(3, 50, 16)), ce_recovered=0.9 + 0.01 * len(name), ce_recovered_se=0.004)
        for name, sae in saes.items()
    }
    facts = {
        "architecture": CANARY,
        "target_sites": ["resid_post.1"],
        "d_sae": 64,
        "model": CANARY,
        "data": TEMPLATES,
        "folder": ".",
    }
    score = ProbeScore(
        labelled=CANARY,
        label="a",
        k=2,
        accuracy=0.875,
        auc=0.9,
        latents=(1, 2),
        dense_accuracy=1.0,
        dense_auc=1.0,
        coordinates_accuracy=0.7,
        random_accuracy=0.5,
        shuffled_accuracy=0.5,
        n_test=40,
    )
    first, second = names
    return Evaluation(
        metrics=metrics,
        facts=dict.fromkeys(names, facts),
        stability=(
            Pair(first=first, second=second, sites=("resid_post.1",), stability=compare(saes[first], saes[second])),
        ),
        probing={first: [ProbingReport((score,))]},
        refused={first: [f"absorption: {CANARY}"]},
    )


def test_the_evaluation_page_compares_saes_and_is_harmless() -> None:
    evaluation = measured([CANARY, "b"])
    page = evaluation_render.evaluation_page(evaluation)
    is_harmless(re.sub("<style>.*</style>", "", page, flags=re.S))
    shown = Parsed(page).text
    for metrics in evaluation.metrics.values():
        assert f"{metrics.explained_variance:.4f}" in shown
    assert f"{evaluation.stability[0].stability.mcc:.3f}" in shown
    assert "0.875" in shown
    assert f"absorption: {CANARY}" in shown
    assert page.count('class="scatter"') == 2
    assert len(re.findall(r"<g>(?:<line[^>]*>)?<circle", page)) == 4  # two SAEs on two panels
    table = drawn(tables.evaluation_table(evaluation))
    assert "explained_variance" in table
    assert "0.875" in table
    assert all("b" in drawn(part) or CANARY in drawn(part) for part in tables.comparison_tables(evaluation))


def test_the_evaluation_page_leaves_its_numbers_beside_it(tmp_path: Path) -> None:
    evaluation = measured(["a", "b"])
    page = evaluation_render.write_evaluation_report(evaluation, tmp_path / "new" / "report.html")
    content = json.loads(page.with_suffix(".json").read_text())
    assert content["saes"]["a"]["metrics"]["l0"] == evaluation.metrics["a"].l0
    assert content["stability"][0]["mcc"] == evaluation.stability[0].stability.mcc
    assert content["saes"]["a"]["probing"][0]["mean"][0]["accuracy"] == 0.875


def test_one_sae_alone_makes_no_frontier() -> None:
    whole = measured(["a", "b"])
    alone = replace(whole, metrics={"a": whole.metrics["a"]}, facts={"a": whole.facts["a"]}, stability=())
    page = evaluation_render.evaluation_page(alone)
    assert "scatter" not in re.sub("<style>.*</style>", "", page, flags=re.S)
    assert f"Probe on {html.escape(CANARY)}, 2 latents" in page


def test_points_stand_where_their_numbers_are() -> None:
    series = {"s": [curves.Point("low", 8, 0.5, 0.1), curves.Point("high", 128, 0.9)]}
    picture = curves.scatter_svg(curves.Scatter(title="t", x_label="x", y_label="y", series=series, log_x=True))
    marks = [(float(x), float(y)) for x, y in re.findall(r'<circle [^>]*cx="([\d.]+)" cy="([\d.]+)"', picture)]
    assert marks[0][0] < marks[1][0]
    assert marks[0][1] > marks[1][1]  # pixels grow downwards
    error = re.search(r'<line style="[^"]*" x1="[\d.]+" x2="[\d.]+" y1="([\d.]+)" y2="([\d.]+)"', picture)
    assert error is not None
    assert float(error[1]) > marks[0][1] > float(error[2])
    ticks = re.findall(r">([^<]+)</text>", picture)
    assert {"8", "16", "32", "64", "128"} <= set(ticks)
    assert curves.scatter_svg(curves.Scatter(title="t", x_label="x", y_label="y", series={})) == ""
