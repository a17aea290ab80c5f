"""`glassbox behave` answers on the embedded model; its pages are whole, and hostile text is text in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from activations import LanguageModel
from activations.behaviour import (
    Answer,
    calibrate,
    check_consistency,
    compare_models,
    compare_outputs,
    failure_report,
    knowledge_boundaries,
    measure_confidence,
    part_importance,
    profile_model,
    reasoning_faithfulness,
    selfcheck,
    semantic_entropy,
)
from ui import cli
from ui.render import behaviour, html, results, tables

HOSTILE = "<script>alert(1)</script>\"';{x}$y"


def echo(text: str) -> Answer:
    return Answer(f"{HOSTILE} {text}", (-1.0,), {HOSTILE: 0.75, "b": 0.25})


def shown(tiny_lm: LanguageModel) -> list[tuple[results.View, Any]]:
    return [
        (behaviour.IMPORTANCE, part_importance(echo, f"a {HOSTILE}")),
        (behaviour.CONSISTENCY, check_consistency(echo, ["{} is", "is {}"], [HOSTILE, "b"], expected=["x", "y"])),
        (behaviour.KNOWLEDGE, knowledge_boundaries(echo, ["{}"], {HOSTILE: HOSTILE})),
        (behaviour.CONFIDENCE, measure_confidence(echo, [HOSTILE, "b"])),
        (behaviour.OUTPUTS, compare_outputs(echo, [HOSTILE], ["b"])),
        (behaviour.CALIBRATION, calibrate([0.2, 0.9, 0.8], [False, True, False], name=HOSTILE)),
        (behaviour.ENTROPY, semantic_entropy(echo, HOSTILE, samples=3)),
        (behaviour.SELFCHECK, selfcheck(echo, HOSTILE, samples=2)),
        (behaviour.REASONING, reasoning_faithfulness(echo, HOSTILE, reasoning=f"{HOSTILE}. Two.")),
        (behaviour.FAILURES, failure_report(echo, [HOSTILE] * 6 + ["b 1"] * 6, ["z"] * 12)),
        (behaviour.MODELS, compare_models({HOSTILE: tiny_lm, "b": tiny_lm}, [HOSTILE, "b", "c", "d"])),
        (behaviour.PROFILE, profile_model(tiny_lm, HOSTILE, repeats=1)),
    ]


def test_every_view_is_a_page_a_table_and_pictures(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    for view, found in shown(tiny_lm):
        page = results.view_page(view, found)
        assert html.escape(view.heading) in page
        assert "<script" not in page
        assert not re.search(r"https?://", page)
        tables.show(*results.view_tables(view, found))
        charts = [*view.curves(found), *view.maps(found)]
        assert len(results.view_figures(view, found)) == len(charts)
        written = results.write_view(view, found, tmp_path / "page.html")
        assert json.loads(written.with_suffix(".json").read_text()) == json.loads(found.to_json())
        if charts:
            assert "<script" not in results.write_view(view, found, tmp_path / "picture.svg").read_text()


@pytest.mark.slow
def test_the_commands_answer_on_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, embedded_lm: LanguageModel
) -> None:
    # opened once for all commands
    monkeypatch.setattr(LanguageModel, "load", classmethod(lambda _cls, name: embedded_lm))
    model = ["--model", "embedded"]
    texts = tmp_path / "texts.txt"
    texts.write_text("import os\nimport sys\ndef f(x):\nreturn x\n")
    facts = tmp_path / "facts.jsonl"
    facts.write_text('{"subject": "os", "expected": "x", "text": "import os", "tags": ["t"]}\n' * 2)
    short = ["--max-new-tokens", "2"]
    for arguments in (
        ["importance", "import os", *model, *short],
        ["consistency", str(facts), "--template", "import {}", "--template", "from {}", *model, *short],
        ["knowledge", str(facts), "--template", "import {}", *model, *short],
        ["confidence", str(texts), *model],
        ["compare", "import", "from", *model, *short],
        ["calibration", str(texts), *model],
        ["entropy", "import", *model, *short, "--samples", "2"],
        ["selfcheck", "This module", *model, "--max-new-tokens", "4", "--samples", "2"],
        ["reasoning", "x = 3", *model, *short, "--reasoning", "x is 3. So 4."],
        ["failures", str(facts), *model, *short],
        ["models", str(texts), *model, *model],
        ["profile", *model, "--seq", "4", "--repeats", "1", "--detail", "layers"],
    ):
        assert cli.run(["behave", *arguments, "--json"]) == 0, arguments
        json.loads(capsys.readouterr().out)
    page = tmp_path / "profile.html"
    assert cli.run(["behave", "profile", *model, "--seq", "4", "--repeats", "1", "--out", str(page)]) == 0
    assert "lm_head" in page.read_text() or "embed_out" in page.read_text()


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        ("{oops\n", ["failures", "--model", "embedded"], "line 1 of .* is no JSON"),
        ('{"text": "a"}\n', ["failures", "--model", "embedded"], "line 1 of .* has no 'expected'"),
        ("\n", ["failures", "--model", "embedded"], "holds no records"),
        ("[1]\n", ["knowledge", "--template", "{}", "--model", "embedded"], "has no 'subject'"),
    ],
)
def test_wrong_files_are_told_in_one_line(
    content: str, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(content)
    assert cli.run(["behave", arguments[0], str(file), *arguments[1:]]) == 1
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert error.count("\n") == 1
