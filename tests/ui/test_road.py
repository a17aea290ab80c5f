"""The whole road by command: from a model and texts in folders to a dictionary that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ui import cli

if TYPE_CHECKING:
    from activations import LanguageModel

CANARY = "<img src=x onerror=\"window.canary='fired'\">"


@pytest.fixture(scope="module")
def road(tiny_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished demo run of a tiny model on texts with a hostile one among them, and the overrides it took."""
    folder = tmp_path_factory.mktemp("road")
    tiny_lm.model.save_pretrained(folder / "model")  # pyright: ignore[reportCallIssue]
    tiny_lm.tokenizer.save_pretrained(folder / "model")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(f"def f{number}(x): return x + {number}\n" * 12 + CANARY)
    overrides = [
        f"model.name={folder / 'model'}",
        f"data.source={texts}",
        "data.context_tokens=64",
        "data.total_tokens=12000",
        "data.heldout_tokens=2000",
        "data.heldout_percent=20",
        "saes.0.sites=[resid_post.1]",
        "saes.0.d_sae=64",
        "saes.0.k=4",
        "train.batch_rows=256",
        "train.epochs=2",
        "index.total_tokens=8000",
    ]
    out = folder / "run"
    assert cli.run(["demo", "--no-browse", "--out", str(out), *overrides]) == 0
    return out, overrides


@pytest.mark.slow
def test_the_demo_leaves_a_report_that_is_only_text(road: tuple[Path, list[str]]) -> None:
    page = (road[0] / "report.html").read_text()
    assert "features, drawn by seed" in page
    assert "<img" not in page
    assert "Explained variance" in page


@pytest.mark.slow
def test_the_demo_twice_is_the_demo_once(road: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, overrides = road
    assert cli.run(["demo", "--no-browse", "--out", str(out), *overrides]) == 0
    assert "explained_variance" in capsys.readouterr().out


@pytest.mark.slow
def test_every_verb_takes_what_the_demo_left(road: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    out, overrides = road
    sae, dictionary = out / "sae" / "resid_post.1" / "matryoshka", out / "dictionary" / "matryoshka"
    assert cli.run(["evaluate", str(sae)]) == 0
    assert "ce_recovered" in capsys.readouterr().out
    assert (sae / "evaluation.html").exists()
    assert cli.run(["explain", str(dictionary)]) == 0
    assert "Explained" in capsys.readouterr().out
    assert cli.run(["sql", str(dictionary), "select count(*) as n from features", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 64}]
    assert cli.run(["sql", str(dictionary), "drop table features"]) == 1
    assert "expected exactly one SELECT" in capsys.readouterr().err
    live = ["sql", str(dictionary), "select feature from features where not is_dead limit 1", "--format", "json"]
    assert cli.run(live) == 0
    feature = json.loads(capsys.readouterr().out)[0]["feature"]
    line = ["steer", str(dictionary), "--prompt", "def f", "--feature", f"{feature}=20", "--max-new-tokens", "8"]
    assert cli.run([*line, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["steered"] != answer["unsteered"]
    assert cli.run([*line, "--sweep", "0,1", "--asked", "please: ", "--phase", "generated", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [(point["run"], point["factor"]) for point in points] == [
        ("left alone", 0.0),
        ("steered", 1.0),
        ("asked in words", 0.0),
    ]
    assert points[0]["texts"] == [answer["unsteered"]]
    assert cli.run([*line, "--sweep", "0,1"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert cli.run([*line, "--sweep", "0,a"]) == 1
    assert "numbers with commas" in capsys.readouterr().err
    assert cli.run([*line, "--asked", "please"]) == 1
    assert "beside --sweep" in capsys.readouterr().err
    assert cli.run([*line, "--mode", "hover"]) == 2
    assert "'ablate'" in capsys.readouterr().err
    assert cli.run(["train", "demo", f"out={out}", *overrides]) == 1
    assert "--resume" in capsys.readouterr().err


@pytest.mark.slow
def test_the_browsers_pages_show_a_real_dictionary(road: tuple[Path, list[str]]) -> None:
    from features import Dictionary
    from ui.views import feature, features, overview, text
    from ui.views.shelf import Shelf

    dictionary = Dictionary.open(road[0] / "dictionary" / "matryoshka")
    assert "64" in overview.overview(dictionary)
    live = dictionary.features(live_only=True, limit=1).features[0]["feature"]
    for query in ("", "return", str(live), "nothing at all like this"):
        features.feature_list(dictionary, {"q": query}, 0, "d")
    assert "Strongest" in feature.feature_page(dictionary, live, "d")
    shelf = Shelf([dictionary])
    readings, ask = text.Readings(shelf), text.Ask(shelf.names[0], f"def f(x): {CANARY}", token="3")
    for body, part in (
        (text.shown(readings, ask), "<gb-heat"),
        (text.token_panel(readings, ask), "token-panel"),
        (text.lens_panel(readings, ask), "lens-panel"),
    ):
        assert part in body
        assert "<img" not in body
    dictionary.close()
