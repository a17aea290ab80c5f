"""`glassbox probe` trains, saves, scores and checks; its pages are whole, and hostile text is text in them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from activations import LanguageModel
from activations.analyses import neuron_attribution, neuron_logits
from activations.probes import ProbeReport, check_probe, concept_test, train_probes
from ui import cli
from ui.render import analysis, curves, heatmap, html, probes, results, tables

HOSTILE = "<script>alert(1)</script>\"';{x}$y"


@pytest.fixture(scope="module")
def report(tiny_lm: LanguageModel) -> ProbeReport:
    texts = [f"{letters} {number}" for number in range(12) for letters in (HOSTILE, "zzzz")]
    return train_probes(tiny_lm, texts, [HOSTILE, "other"] * 12, sites=["resid_post.0", "resid_post.2"], name=HOSTILE)


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {name for name, _ in attrs if name.startswith("on") or name in {"href", "srcset"}}


def _is_safe(page: str) -> None:
    seen = _Seen()
    seen.feed(page)
    assert not seen.tags & {"script", "iframe", "object", "link"}
    assert "default-src 'none'" in page
    assert "https://" not in page


def test_every_view_is_a_page_a_table_and_pictures(tiny_lm: LanguageModel, report: ProbeReport, tmp_path: Path) -> None:
    probe = report.best("mean_difference")
    check = check_probe(tiny_lm, probe, [HOSTILE, "abc"], "x", random_directions=2)
    concept = concept_test(tiny_lm, "resid_post.0", [HOSTILE] * 6, ["zz"] * 6, [HOSTILE], "x", runs=2)
    logits = neuron_logits(tiny_lm, 0, [0, 1], top=2)
    for view, found in (
        (probes.PROBES, report),
        (probes.CHECK, check),
        (probes.CONCEPT, concept),
        (probes.NEURON_LOGITS, logits),
    ):
        page = results.view_page(view, found)
        _is_safe(page)
        assert html.escape(view.heading) in page
        tables.show(*results.view_tables(view, found))
        assert len(results.view_figures(view, found)) == len(view.curves(found)) + len(view.maps(found))
        written = results.write_view(view, found, tmp_path / "deep" / "result.html")
        assert written.read_text() == page
        assert json.loads(written.with_suffix(".json").read_text()) == json.loads(found.to_json())
    assert report.n_test == 4
    for ending in (".png", ".svg", ".pdf"):
        assert results.write_view(probes.PROBES, report, tmp_path / f"curve{ending}").stat().st_size > 1000
    with pytest.raises(ValueError, match="this result has none, expected .html or .json"):
        results.write_view(probes.NEURON_LOGITS, logits, tmp_path / "no.png")
    with pytest.raises(ValueError, match="ends in `.txt`"):
        results.write_view(probes.PROBES, report, tmp_path / "no.txt")


def test_curves_are_drawn_three_ways_and_show_hostile_names_as_text(report: ProbeReport, tmp_path: Path) -> None:
    chart = probes.PROBES.curves(report)[0]
    assert len(chart.series["logistic"]) == 2
    assert "<script" not in curves.scatter_svg(chart)
    assert "<script" not in curves.plotly_scatter(chart).layout.title.text
    assert "<script" not in curves.save_scatter(chart, tmp_path / "c.svg").read_text()
    with pytest.raises(ValueError, match="ends in `.gif`"):
        curves.save_scatter(chart, tmp_path / "c.gif")


def test_neurons_are_drawn_among_the_analyses(tiny_lm: LanguageModel) -> None:
    found = neuron_attribution(tiny_lm, HOSTILE, "x", steps=4)
    drawing = analysis.DRAWINGS["neurons"]
    assert "<script" not in drawing.html(found)
    chart = drawing.maps(found)[0]
    assert len(chart.rows) == tiny_lm.n_layers
    assert "<svg" in heatmap.heatmap_svg(chart)


@pytest.mark.slow
def test_a_probe_goes_from_fit_to_check_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.jsonl"
    lines = [{"text": f"import {name}\n", "label": "code"} for name in "abcdefghijkl"]
    lines += [{"text": f"This is a {name} of prose.", "label": "prose"} for name in "abcdefghijkl"]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = ["--model", "embedded"]
    kept = str(tmp_path / "probe")
    fit = ["probe", "fit", str(texts), *base, "--sites", "resid_post.1", "--kinds", "mean_difference", "--json"]
    assert cli.run([*fit, "--save", kept, "--out", str(tmp_path / "p.html")]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["scores"][0]["auc"] == 1.0
    assert "Written" in told.err
    assert cli.run(["probe", "score", kept, "import os\n", "That is all.", "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert [row["reads"] for row in scored] == ["code", "prose"]
    assert cli.run(["probe", "check", kept, "import", "--target", " os", "--strengths", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["effects"]) == 2
    concept = ["probe", "concept", str(texts), "import", *base, "--label", "code", "--site", "resid_post.1"]
    assert cli.run([*concept, "--target", " os"]) == 0
    assert "TCAV" in capsys.readouterr().out
    assert cli.run(["probe", "neurons", *base, "--layer", "2", "--neuron", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["neurons"] == [5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fit", "nowhere.jsonl", "--model", "embedded"], "is no labelled set"),
        (["fit", "forms", "--model", "embedded", "--kinds", "svm"], "probe 'svm' is unknown"),
        (["score", "nowhere", "text"], "holds no probe"),
        (["check", "nowhere", "text", "--strengths", "much"], "is no list of numbers"),
        (["concept", "forms", "x", "--model", "embedded", "--label", "z", "--site", "embed"], "has no label 'z'"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["probe", *arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
