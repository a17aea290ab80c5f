"""The page, the tables and the pictures of an analysis show it whole, and show hostile text as text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from activations import LanguageModel, analyze
from activations.analyses.running import Analysis
from ui.render import analysis, heatmap, tables
from ui.render.heatmap import Heatmap

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert(1)</script>\"';{x}$y"
OTHER = "<script>alert(2)</script>\"';{z}$y"


@pytest.fixture(scope="module")
def result(tiny_lm: LanguageModel) -> Analysis:
    return analyze(tiny_lm, HOSTILE, compare=OTHER)


@pytest.fixture(scope="module")
def page(result: Analysis) -> str:
    return analysis.analysis_page(result)


class _Seen(HTMLParser):
    """Collects what a browser would make elements and attributes of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_page_has_a_section_for_every_method_and_fetches_nothing(result: Analysis, page: str) -> None:
    assert page.count("<section>") == len(result.results) - len(analysis.ATTRIBUTIONS) + 1
    for name in analysis.ATTRIBUTIONS.values():
        assert name in page
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page


def test_hostile_tokens_come_out_as_text_everywhere(result: Analysis, page: str) -> None:
    seen = _Seen()
    seen.feed(page)
    assert not seen.tags & {"script", "iframe", "object", "link"}
    assert not {name for name in seen.attributes if name.startswith("on") or name in {"href", "srcset"}}
    for name, found in result.results.items():
        for chart in analysis.heatmaps(name, found):
            drawn = _Seen()
            drawn.feed(heatmap.heatmap_svg(chart))
            assert drawn.tags <= {"svg", "rect", "title", "text"}


def test_a_method_alone_makes_a_page_and_tables(tiny_lm: LanguageModel) -> None:
    for method in ("gradient_norm", "roles", "lens", "attention"):
        found = analyze(tiny_lm, "ab", [method])
        assert analysis.analysis_page(found).count("<section>") == 1
        assert analysis.analysis_tables(found)
    one = analyze(tiny_lm, "a")
    assert analysis.analysis_page(one).count("was left out") == 1  # nothing can be left out of one token


def test_the_terminal_shows_every_method(result: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(*analysis.analysis_tables(result))
    shown = capsys.readouterr().out
    for heading in ("Integrated gradients", "Logit lens", "Attention", "Ablation", "Activation patching"):
        assert heading in shown
    assert "<script>alert(1)</script>" in shown


def test_every_method_has_a_drawing_and_a_word_in_the_help() -> None:
    from activations.analyses.methods import METHODS
    from ui import analyzing

    assert set(analysis.DRAWINGS) == set(METHODS)
    assert not [name for name in METHODS if name not in (analyzing.analyze.__doc__ or "")]


def test_causal_methods_on_request_draw_hostile_words_as_text(
    tiny_lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"tracing": {"subject": "<script>", "samples": 2}, "patching": {"places": "all", "neurons": 2}}
    methods = ["ablation_strategies", "tracing", "patching", "attribution_patching"]
    found = analyze(tiny_lm, HOSTILE, methods, compare=OTHER, settings=settings)
    page, seen = analysis.analysis_page(found), _Seen()
    seen.feed(page)
    assert not seen.tags & {"script", "iframe"}
    assert "Causal trace" in page
    assert "Patterns of heads" in page
    assert "Heads by position" in page
    tables.show(*analysis.analysis_tables(found))
    assert "Patching by gradients" in capsys.readouterr().out
    with pytest.raises(ValueError, match="tracing was given no subject"):
        analyze(tiny_lm, HOSTILE, ["tracing"])
    with pytest.raises(ValueError, match=r"patching\.places is 'some'"):
        analyze(tiny_lm, HOSTILE, ["patching"], compare=OTHER, settings={"patching": {"places": "some"}})


def test_every_method_is_saved_as_pictures_and_drawn_by_plotly(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    found = analyze(tiny_lm, HOSTILE, ["gradient_norm", "routes"])
    files = analysis.save_pictures(found, tmp_path / "pictures")
    assert [file.name for file in files] == ["gradient_norm-1.svg", "routes-1.svg"]
    assert "<script" not in files[0].read_text(encoding="utf-8")
    for name, each in found.results.items():
        assert analysis.figures(name, each)


def test_a_report_lies_beside_its_json(result: Analysis, tmp_path: Path) -> None:
    path = analysis.write_analysis_report(result, tmp_path / "new" / "why.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert content["text"] == HOSTILE
    assert set(content["results"]) == set(result.results)


CHART = Heatmap(
    title="T",
    x_label="x",
    y_label="y",
    unit="u",
    columns=["<b>", "$a$", "\n"],
    rows=["one", "two"],
    values=[[1.0, -2.0, None], [0.0, 0.5, 1.5]],
)


def test_a_heat_map_draws_every_number_in_all_three_ways(tmp_path: Path) -> None:
    drawn = heatmap.heatmap_svg(CHART)
    assert drawn.count("<rect") == 5
    assert drawn.count('class="cold"') == 1
    assert "&lt;b&gt;" in drawn
    figure = heatmap.plotly_heatmap(CHART)
    assert figure.data[0].zmin == -2  # pyright: ignore
    assert figure.data[0].text[0][0] == "&lt;b&gt;"  # pyright: ignore
    for ending in (".png", ".svg", ".pdf"):
        file = heatmap.save_heatmap(CHART, tmp_path / f"map{ending}")
        assert file.stat().st_size > 500
    with pytest.raises(ValueError, match=r"expected one of .png, .svg, .pdf: rename it"):
        heatmap.save_heatmap(CHART, tmp_path / "map.bmp")
    with pytest.raises(ValueError, match="has 1 × 1 values for 2 rows and 3 columns, expected one each"):
        Heatmap(title="T", x_label="", y_label="", unit="", columns=list("abc"), rows=["1", "2"], values=[[1.0]])


def test_pixels_are_a_picture_of_the_numbers() -> None:
    import base64
    from io import BytesIO

    from PIL import Image

    tag = heatmap.pixels([[0.0, 0.5], [1.0, 2.0], [0.25, 0.0]], 1.0, "#102030")
    picture = Image.open(BytesIO(base64.b64decode(tag.split("base64,")[1].split('"')[0])))
    assert picture.size == (2, 3)
    assert picture.getpixel((1, 0)) == (16, 32, 48, 128)
    assert picture.getpixel((1, 1)) == (16, 32, 48, 255)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ui.cli", "analyze", "--model", "embedded", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.slow
def test_the_command_answers_and_refuses_in_one_line(tmp_path: Path) -> None:
    done = run("--text", "def f(x):", "--methods", "lens,leave_one_out", "--json", "--out", str(tmp_path / "a.html"))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["results"]) == {"lens", "leave_one_out"}
    assert (tmp_path / "a.html").exists()
    for arguments, said in (
        (("--text", "x", "--methods", "lense"), "method 'lense' is unknown (nearest: lens)"),
        (("--text", "x", "--target", "no such token"), "is no single token of embedded"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
