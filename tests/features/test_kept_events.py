"""Dictionaries that keep the events around examples only: the same statistics, honest answers, clear refusals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features import Dictionary, IndexConfig, build_index
from features.explain import explain
from features.index import IndexConfig as Config
from features.scoring_samples import ScoreConfig, ScoringText
from features.store import SHOWN_AFTER, SHOWN_BEFORE
from features.verification import verify
from sae import SAE

SAME_TABLES = ("examples", "histograms", "feature_tokens", "neighbours", "logits", "tokens", "documents")
FEW = 2
"""Examples of each feature: so few that most events lie around none."""


def few(config: IndexConfig) -> IndexConfig:
    return replace(config, examples=FEW, stratum_examples=1, strata=1, window_tokens=32, per_document=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: Any) -> Iterator[Dictionary]:
    opened = build_index(tiny_sae, tiny_lm, rows, tmp_path_factory.mktemp("whole") / "d", few(config))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def short(tmp_path_factory: Any, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: Any) -> Iterator[Dictionary]:
    chosen = replace(few(config), events="examples")
    opened = build_index(tiny_sae, tiny_lm, rows, tmp_path_factory.mktemp("short") / "d", chosen)
    yield opened
    opened.close()


def test_everything_but_the_events_is_what_it_is_when_all_are_kept(whole: Dictionary, short: Dictionary) -> None:
    for name in SAME_TABLES:
        assert short.sql(f"select * from {name}").equals(whole.sql(f"select * from {name}")), name
    counted = "select * exclude (first_event) from features"
    assert short.sql(counted).equals(whole.sql(counted))
    assert short.info["n_events"] == whole.info["n_events"] == whole.info["n_kept_events"]


def test_kept_events_are_those_shown_around_examples(whole: Dictionary, short: Dictionary) -> None:
    wanted = whole.sql(
        f"""select * from events where exists (select 1 from examples x where x.feature = events.feature
        and x.document = events.document and events.position - x.position between -{SHOWN_BEFORE} and {SHOWN_AFTER})
        order by feature, document, position"""
    )
    assert short.sql("select * from events").equals(wanted)
    assert 0 < wanted.num_rows == short.info["n_kept_events"] < short.info["n_events"]
    assert (whole.info["events"], short.info["events"]) == ("all", "examples")


def test_examples_look_the_same_and_never_reach_beyond_what_is_kept(whole: Dictionary, short: Dictionary) -> None:
    for feature in range(0, 96, 7):
        assert short.examples(feature) == whole.examples(feature)
        # wider than what is kept, silence could not be told from what was left out
        assert short.examples(feature, 400, 400) == short.examples(feature)
    example = short.examples(0)[0]
    assert short.context(example, 400, 400) == example


def test_search_works_from_what_is_kept_and_says_so(short: Dictionary) -> None:
    assert short.search("import")
    example = max(short.examples(0), key=lambda found: found.center)
    hits = short.search("".join(example.tokens[example.center - 4 : example.center + 1]))
    assert 0 in [hit.feature for hit in hits]
    assert all("as far as kept around its examples" in hit.reason for hit in hits)


def test_what_needs_all_events_is_refused_in_one_line(short: Dictionary) -> None:
    message = r"keeps [\d,]+ of [\d,]+ events, those around its examples, and .* needs all: index again with"
    with pytest.raises(ValueError, match=message):
        explain(short)
    with pytest.raises(ValueError, match=message):
        ScoringText(short, ScoreConfig(), 0)


def test_a_dictionary_of_examples_verifies_and_its_damage_is_found(short: Dictionary, tmp_path: Path) -> None:
    import json
    import shutil

    assert verify(short.path).ok, [check for check in verify(short.path).checks if not check.ok]
    copy = Path(shutil.copytree(short.path, tmp_path / "copy"))
    manifest = json.loads((copy / "dictionary.json").read_text())
    manifest["n_kept_events"] -= 1
    (copy / "dictionary.json").write_text(json.dumps(manifest))
    assert [check.file for check in verify(copy).checks if not check.ok] == ["events.parquet"]


def test_above_the_limit_only_examples_are_kept(
    whole: Dictionary, short: Dictionary, tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: Any
) -> None:
    n = whole.info["n_events"]
    for limit, events in ((n, "all"), (n - 1, "examples")):
        chosen = replace(few(config), event_limit=limit)
        opened = build_index(tiny_sae, tiny_lm, rows, tmp_path / f"limit-{limit}", chosen)
        assert opened.info["events"] == events
        reference = whole if events == "all" else short
        assert opened.sql("select * from events").equals(reference.sql("select * from events"))
        opened.close()


def test_another_choice_of_events_is_refused_by_name() -> None:
    import configs

    with pytest.raises(ValueError, match=r"index: .events. is 'some'"):
        configs.validate(Config, {"events": "some"}, "index")


def test_exports_are_those_of_all_events_and_say_what_is_kept(
    whole: Dictionary, short: Dictionary, tmp_path: Path
) -> None:
    import json

    from features.sharing import documents, flat_tables
    from features.sharing.reading import partial_events, read_features
    from ui.render.dictionary_pages import write_pages

    everything = list(range(96))
    assert list(read_features(short, everything)) == list(read_features(whole, everything))
    assert list(read_features(short, [5, 6, 2])) == [short.feature(feature) for feature in (5, 6, 2)]
    tables = flat_tables.flat_tables(short, everything), flat_tables.flat_tables(whole, everything)
    assert all(tables[0][name].equals(tables[1][name]) for name in tables[1])
    said = partial_events(short.info)
    assert partial_events(whole.info) is None
    assert said is not None
    assert f"{short.info['n_kept_events']:,} of {short.info['n_events']:,} events are kept" in said
    got, full = (
        json.loads(documents.write_json(d, everything, tmp_path / f"{d.info['events']}.json").read_text())
        for d in (short, whole)
    )
    assert got["features"] == full["features"]
    assert (got["dictionary"]["events"], full["dictionary"]["events"]) == ("examples", "all")
    assert (got["dictionary"]["partial"], full["dictionary"]["partial"]) == (said, None)
    pages = [write_pages(d, [3, 4], tmp_path / f"{d.info['events']}.html").read_text() for d in (short, whole)]
    assert [said in page for page in pages] == [True, False]


def test_the_layouts_of_other_projects_are_filled_from_what_is_kept(
    whole: Dictionary, short: Dictionary, tmp_path: Path
) -> None:
    import gzip
    import json

    from features.sharing.dashboard import write_dashboard
    from features.sharing.neuronpedia import Upload, write_upload

    upload = Upload(model="tiny", source_set="res-x")
    folders = [write_upload(d, list(range(20)), tmp_path / d.info["events"], upload) for d in (short, whole)]
    rows, full = (
        [json.loads(line) for line in gzip.decompress((f / "features" / "batch-0.jsonl.gz").read_bytes()).splitlines()]
        for f in folders
    )
    for ours, theirs in zip(rows, full, strict=True):
        bars = ("freq_hist_data_bar_heights", "freq_hist_data_bar_values")
        others = ours.keys() - {*bars, "createdAt"}
        assert {key: ours[key] for key in others} == {key: theirs[key] for key in others}
        assert sum(ours[bars[0]]) == sum(theirs[bars[0]])
    notes = [json.loads((f / "source.jsonl").read_text())["notes"] for f in folders]
    assert ["events are kept" in note for note in notes] == [True, False]
    for d in (short, whole):
        write_dashboard(d, list(range(20)), tmp_path / f"sd-{d.info['events']}", upload)
    ours, theirs = (
        json.loads((tmp_path / f"sd-{d.info['events']}" / "batch-0.json").read_text())["features"]
        for d in (short, whole)
    )
    for one, other in zip(ours, theirs, strict=True):
        for mine, exact in zip(one["activations"], other["activations"], strict=True):
            assert mine["bin_min"] == exact["bin_min"]
            # a histogram's bars are quarter octaves: what lies inside one is taken to be spread evenly
            assert mine["bin_contains"] == pytest.approx(exact["bin_contains"], abs=0.35)


def test_the_command_says_what_an_export_of_examples_lacks(short: Dictionary, tmp_path: Path, capsys: Any) -> None:
    from ui import cli

    for kind, out in (("json", "a.json"), ("csv", "csv"), ("parquet", "b.parquet"), ("html", "pages")):
        assert cli.run(["dict", "export", str(short.path), "--format", kind, "--out", str(tmp_path / out)]) == 0
        assert "events are kept, those around examples" in capsys.readouterr().out
