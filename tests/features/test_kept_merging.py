"""Merging dictionaries that keep examples only: exact where counts tell it, honest where they do not."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import Dictionary, build_index, verification
from features.sharing.merging import merge
from features.store import SHOWN_AFTER, SHOWN_BEFORE
from tests.features.test_merging import joined, part_of
from ui import cli

EXACT = (
    "histograms", "documents", "tokens", "vocabulary", "neighbours", "logits", "encoder_neighbours", "boundaries",
)  # fmt: skip


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Any, tiny_sae: Any, rows: Any, config: Any) -> Path:
    """Two halves that keep examples only, one of them with all events too, and the single build over both."""
    folder = tmp_path_factory.mktemp("halves")
    first, second = part_of(rows, range(6)), part_of(rows, range(6, 14))
    few = replace(config, examples=3, stratum_examples=2, strata=2, per_document=1)
    for name, some, events in (
        ("a", first, "examples"),
        ("b", second, "examples"),
        ("b-all", second, "all"),
        ("both", joined(first, second), "examples"),
    ):
        build_index(tiny_sae, tiny_lm, some, folder / name, replace(few, events=events)).close()
    return folder


@pytest.mark.parametrize("second", ["b", "b-all"])
def test_counts_and_strongest_examples_are_those_of_one_build(second: str, halves: Path, tmp_path: Path) -> None:
    merged = merge([halves / "a", halves / second], tmp_path / "merged")
    single = Dictionary.open(halves / "both")
    assert verification.verify(merged.path).ok, [c for c in verification.verify(merged.path).checks if not c.ok]
    for name in EXACT:
        assert merged.sql(f"select * from {name}").equals(single.sql(f"select * from {name}")), name
    for name, left_out in (("features", ["first_event"]), ("position_profiles", []), ("feature_tokens", [])):
        ordered = f"select * from {name} order by 1, 2"
        ours, theirs = (d.sql(ordered).drop_columns(left_out) for d in (merged, single))
        for column in ours.column_names:
            a, b = ours[column].to_numpy(), theirs[column].to_numpy()
            if a.dtype.kind == "f":
                np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7, err_msg=f"{name} {column}")
            else:
                assert np.array_equal(a, b), (name, column)
    strongest = "select * from examples where stratum = 0 order by feature, rank"
    assert merged.sql(strongest).equals(single.sql(strongest))
    for key in ("n_events", "n_tokens", "n_live", "n_documents", "events"):
        assert merged.info[key] == single.info[key], key
    assert merged.sql("select * from coactivations").num_rows == 0
    assert "co-activations left out" in merged.info["notes"][0]
    merged.close()
    single.close()


def test_events_are_those_shown_around_the_examples_and_weaker_ones_are_samples(halves: Path, tmp_path: Path) -> None:
    merged = merge([halves / "a", halves / "b-all"], tmp_path / "merged")
    single = Dictionary.open(halves / "both")
    for feature in range(0, 96, 9):
        for ours, theirs in zip(merged.examples(feature, stratum=0), single.examples(feature, stratum=0), strict=True):
            assert ours == theirs, "all that is shown around an example is there"
    near = f"""select count(*) as n from events where not exists (select 1 from examples x
        where x.feature = events.feature and x.document = events.document
        and events.position - x.position between -{SHOWN_BEFORE} and {SHOWN_AFTER})"""
    assert merged.sql(near)["n"][0].as_py() == 0
    sizes = """select feature, stratum, count(*) as n, min(abs(activation)) as low, max(abs(activation)) as high
        from examples group by all order by feature, stratum"""
    rows = merged.sql(sizes).to_pylist()
    assert all(row["n"] <= (3 if row["stratum"] == 0 else 2) for row in rows)
    assert {row["stratum"] for row in rows} == {0, 1, 2}
    for one, other in itertools.pairwise(rows):
        if one["feature"] == other["feature"] and one["stratum"] > 0:
            assert other["high"] <= one["low"], "strata go from strong to weak"
    assert merged.sql("select count(*) = count(distinct (feature, document, position)) as ok from examples")["ok"][0]
    merged.close()
    single.close()


def test_examples_chosen_by_other_settings_are_refused(halves: Path, tmp_path: Path, capsys: Any) -> None:
    import shutil

    other = Path(shutil.copytree(halves / "b", tmp_path / "other"))
    facts = json.loads((other / "dictionary.json").read_text())
    facts["index"]["window_tokens"] += 1
    (other / "dictionary.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"index.window_tokens=9 and .* with 8, expected one setting"):
        merge([halves / "a", other], tmp_path / "out")
    assert cli.run(["dict", "merge", str(halves / "a"), str(halves / "b"), "--out", str(tmp_path / "new")]) == 0
    told = capsys.readouterr().out
    assert "note: a, b keep the events around examples only" in told
