"""A circuit's page, tables, pictures and files show it whole, and show hostile text as text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from activations import LanguageModel
from activations.circuits import Circuit, Pair, measure_circuit, prepare_pairs
from ui import cli
from ui.render import circuit as drawing
from ui.render import tables

HOSTILE = "<script>alert(1)</script>\"';{x}$y"
OTHER = "<script>alert(2)</script>\"';{z}$y"


@pytest.fixture(scope="module")
def found(tiny_lm: LanguageModel) -> Circuit:
    pairs = prepare_pairs(tiny_lm, [Pair(HOSTILE, OTHER, ("<",), (">",))], name="<b>task</b>$a$")
    edges = [
        ("embed", "head 0.1 v"),
        ("head 0.1", "mlp 1"),
        ("mlp 1", "logits"),
        ("embed", "head 2.0"),
        ("head 2.0", "logits"),
    ]
    return replace(
        measure_circuit(tiny_lm, pairs, edges), model="<i>m</i>", dropped={"<u>": 2}, curve=((1, 0.2), (3, 0.9))
    )


class _Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_page_holds_every_edge_and_no_foreign_element(found: Circuit) -> None:
    page = drawing.circuit_page(found)
    seen = _Seen()
    seen.feed(page)
    assert seen.tags.count("script") == 1  # ours, which the policy names by its hash
    assert "<i>m</i>" not in page
    assert not {name for name in seen.attributes if name.startswith("on") or name in {"href", "srcset"}}
    assert not re.search(r"https?://", page)
    assert "script-src 'sha256-" in page
    assert page.count("data-rank=") == page.count("data-edge=") == len(found.edges) == 7
    assert page.count('class="node"') == len(found.nodes) == 5
    assert "2 pairs were left out" in page


def test_every_component_has_a_place_of_its_own(found: Circuit) -> None:
    places, names, width, height = drawing.layout(found)
    assert len(set(places.values())) == len(found.nodes)
    assert all(0 < x < width and 0 < y < height for x, y in places.values())
    # later layers lie higher
    assert places["embed"][1] > places["head 0.1"][1] > places["mlp 1"][1] > places["head 2.0"][1] > places["logits"][1]
    assert [name for _, name in names if name] == ["layer 0", "layer 1", "layer 2"]


def test_pictures_figures_and_tables_are_made(
    found: Circuit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = drawing.write_circuit(found, tmp_path / "new" / "circuit.html")
    assert [file.suffix for file in files] == [".html", ".json", ".graphml", ".dot", ".svg"]
    assert json.loads(files[1].read_text())["task"] == "<b>task</b>$a$"
    assert drawing.save_circuit_picture(found, tmp_path / "c.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="expected one of .png"):
        drawing.save_circuit_picture(found, tmp_path / "c.bmp")
    figure = drawing.circuit_figure(found)
    assert len(figure.data) == len(found.edges) + 1  # pyright: ignore
    assert "<b>" not in str(figure.layout.title.text)  # pyright: ignore
    tables.show(*drawing.circuit_tables(found))
    assert "left out: <u>" in capsys.readouterr().out
    empty = replace(found, edges=(), nodes=(), curve=())
    assert "No edge is needed" in drawing.circuit_page(empty)


def test_the_command_explains_one_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.html"
    words = ["circuit", "--model", "embedded", "--clean", "for x in", "--corrupt", "if x in", "--target", " range"]
    assert cli.run([*words, "--method", "eap", "--edges", "3", "--out", str(out), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["method"] == "eap"
    assert content["pairs"] == 1
    assert out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "ioi"], "got no --model, expected --model and one of --task"),
        (["--model", "embedded"], "got nothing to ask about"),
        (["--model", "embedded", "--task", "ioi", "--clean", "a"], "got --task and --clean, --corrupt and --target"),
        (["--model", "embedded", "--clean", "a"], "got a part of a pair, expected --clean, --corrupt and --target"),
        (["--model", "embedded", "--task", "ioy"], "task 'ioy' is unknown (nearest: ioi)"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["circuit", *words]) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["circuit", "--tasks"]) == 0
    assert "greater_than" in capsys.readouterr().out
