"""Merged dictionaries are what one build over all the text would have made."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import Dictionary, build_index, verification
from features.sharing.merging import merge
from features.store import MANIFEST

TABLES = (
    "features", "events", "examples", "histograms", "feature_tokens", "documents", "tokens", "vocabulary",
    "neighbours", "logits", "encoder_neighbours", "coactivations", "position_profiles", "boundaries",
)  # fmt: skip


def part_of(rows: Any, documents: range) -> Any:
    """Rows of some of the documents, numbered from 0, in rows of the same length."""
    from tests.features.conftest import Rows

    inside = (rows.documents >= documents.start) & (rows.documents < documents.stop)
    width = rows.tokens.shape[1]
    short = -int(inside.sum()) % width
    parts = [np.append(x[inside], np.full(short, fill, x.dtype)).reshape(-1, width) for x, fill in (
        (rows.tokens, 0), (rows.documents - documents.start, -1), (rows.positions, 0))]  # fmt: skip
    return Rows(*parts, rows.names[documents.start : documents.stop])


def joined(first: Any, second: Any) -> Any:
    """Both behind each other, the rows as they are: the model sees the same contexts."""
    from tests.features.conftest import Rows

    shifted = np.where(second.documents >= 0, second.documents + len(first.names), -1)
    return Rows(
        np.concatenate([first.tokens, second.tokens]),
        np.concatenate([first.documents, shifted]).astype(np.int32),
        np.concatenate([first.positions, second.positions]),
        [*first.names, *second.names],
    )


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Any, tiny_sae: Any, rows: Any, config: Any) -> Any:
    """Dictionaries over the first and the other documents, and the single build over both."""
    folder = tmp_path_factory.mktemp("halves")
    first, second = part_of(rows, range(6)), part_of(rows, range(6, 14))
    for name, some in (("a", first), ("b", second), ("both", joined(first, second))):
        build_index(tiny_sae, tiny_lm, some, folder / name, config).close()
    return folder


def test_a_merge_equals_the_single_build_table_by_table(halves: Path, tmp_path: Path) -> None:
    merged = merge([halves / "a", halves / "b"], tmp_path / "merged")
    single = Dictionary.open(halves / "both")
    for name in TABLES:
        assert merged.sql(f"select * from {name}").equals(single.sql(f"select * from {name}")), name
    for key in (
        "n_features",
        "n_live",
        "n_tokens",
        "n_indexed_tokens",
        "n_documents",
        "n_events",
        "context_tokens",
        "coactivation_tokens",
    ):
        assert merged.info[key] == single.info[key]
    assert verification.verify(merged.path).ok
    assert merged.text.events is not None
    larger = Dictionary.open(halves / "b").feature(3)
    kept = {name: getattr(larger, name) for name in ("top_normed_logits", "bottom_normed_logits")}
    whole = dataclasses.replace(single.feature(3), **kept)
    assert merged.feature(3).to_json() == whole.to_json(), "all but the means over the text through the final norm"
    assert merged.info["notes"] == [
        "effects through the final norm are those over the text of b: give the model for all of it"
    ]
    assert [part["name"] for part in merged.info["merged"]] == ["a", "b"]
    merged.close()


def test_with_the_model_effects_through_the_final_norm_are_of_all_the_text(
    halves: Path, tmp_path: Path, tiny_lm: Any
) -> None:
    merged = merge([halves / "a", halves / "b"], tmp_path / "merged", tiny_lm)
    single = Dictionary.open(halves / "both")
    ours, theirs = (d.sql("select * from normed_logits order by all") for d in (merged, single))
    assert ours.drop_columns(["logit"]).equals(theirs.drop_columns(["logit"]))
    np.testing.assert_allclose(ours["logit"].to_numpy(), theirs["logit"].to_numpy(), rtol=1e-5)
    assert merged.feature(3).top_normed_logits != Dictionary.open(halves / "b").feature(3).top_normed_logits
    assert merged.info["notes"] == []
    merged.close()


def test_scores_of_the_parts_keep_the_name_of_their_text(halves: Path, tmp_path: Path) -> None:
    import shutil

    from features.labels import table, write_scores

    parts = [Dictionary.open(shutil.copytree(halves / name, tmp_path / name)) for name in ("a", "b")]
    row = {"feature": 3, "method": "m", "created": "2025-05-05T05:05:05+00:00"}
    for value, part in zip((0.5, 0.75), parts, strict=True):
        part.store.write_labels(
            "scores", table("scores", [row | {"scorer": "detection", "score": value, "version": 2}])
        )
        said = [row | {"text": f"of {value}", "score": value, "author": "x"}]
        said += [row | {"method": "taken", "text": f"taken {value}", "score": value, "author": "x"}]
        part.store.write_labels("explanations", table("explanations", said))
    merged = merge([part.path for part in parts], tmp_path / "merged")
    question = "select score, version, source from scores order by score"
    kept = [{"score": 0.5, "version": 2, "source": "a"}, {"score": 0.75, "version": 2, "source": "b"}]
    assert merged.sql(question).to_pylist() == kept
    # what was measured on a part is no score of the explanation here; what came along with it from elsewhere is
    shown = merged.sql("select method, score from explanations order by all").to_pylist()
    assert [(e["method"], e["score"]) for e in shown] == [("m", None), ("m", None), ("taken", 0.5), ("taken", 0.75)]
    assert any(note.startswith("2 scores were measured on single parts") for note in merged.info["notes"])
    own = row | {"scorer": "detection", "score": 0.6}
    for _ in range(2):
        write_scores(merged.store, table("scores", [own]), "m", ["detection"])
    assert [r["source"] for r in merged.sql(question).to_pylist()] == ["a", None, "b"]
    merged.close()


def test_a_map_of_the_same_live_features_is_kept_and_another_one_named(halves: Path, tmp_path: Path) -> None:
    import shutil

    from features.labels import table

    part = Dictionary.open(shutil.copytree(halves / "a", tmp_path / "a"))
    single = Dictionary.open(halves / "both")
    live = single.sql("select feature from features where not is_dead")["feature"].to_pylist()
    places = [{"feature": f, "x": f / 2, "y": 0.0, "cluster": 0, "seed": 1, "created": "now"} for f in live]
    for rows, out in ((places, "kept"), (places[1:], "left")):
        part.store.write_labels("feature_map", table("feature_map", rows), replace_where="true")
        merged = merge([part.path, halves / "b"], tmp_path / out)
        assert merged.sql("select feature, x from feature_map").num_rows == (len(live) if out == "kept" else 0)
        assert any("the map of a is of other live features" in note for note in merged.info["notes"]) == (out == "left")
        merged.close()


def test_what_people_said_of_each_is_said_of_both(halves: Path, tmp_path: Path) -> None:
    import shutil

    parts = [Dictionary.open(shutil.copytree(halves / name, tmp_path / name)) for name in ("a", "b")]
    for part, author in zip(parts, ("ann", "bob"), strict=True):
        part.add_label(3, f"by {author}", author)
        part.add_to_list("both", [3 if author == "ann" else 4], author, f"of {author}")
    merged = merge([part.path for part in parts], tmp_path / "merged")
    said = {(e.text, e.author, e.time) for part in parts for e in part.feature(3).explanations}
    assert {(e.text, e.author, e.time) for e in merged.feature(3).explanations} == said
    assert [(e.feature, e.author, e.note) for e in merged.lists.get("both").entries] == [
        (3, "ann", "of ann"), (4, "bob", "of bob"),
    ]  # fmt: skip
    merged.close()


def test_what_does_not_belong_together_is_refused_with_the_reason(
    halves: Path, tmp_path: Path, tiny_lm: Any, tiny_sae: Any, rows: Any, config: Any
) -> None:
    with pytest.raises(ValueError, match=r"document 'folder/file_0.py' stands in .*expected each document once"):
        merge([halves / "a", halves / "both"], tmp_path / "new")
    with pytest.raises(ValueError, match="expected two or more"):
        merge([halves / "a"], tmp_path / "new")
    with pytest.raises(FileExistsError, match="exists already"):
        merge([halves / "a", halves / "b"], halves / "both")
    sae = copy.deepcopy(tiny_sae)
    sae.W_dec.data[0] *= 2
    build_index(sae, tiny_lm, part_of(rows, range(2)), tmp_path / "other", config).close()
    with pytest.raises(ValueError, match="of another SAE"):
        merge([halves / "b", tmp_path / "other"], tmp_path / "new")
    facts = json.loads((tmp_path / "other" / MANIFEST).read_text())
    facts["model"]["weight_hash"] = "0" * 64
    (tmp_path / "other" / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="of another language model"):
        merge([halves / "b", tmp_path / "other"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_merge_that_was_killed_is_begun_again(halves: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def dies(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    out = tmp_path / "merged"
    with monkeypatch.context() as patched:
        patched.setattr("features.sharing.merging.write_event_tables", dies)
        with pytest.raises(KeyboardInterrupt):
            merge([halves / "a", halves / "b"], out)
    with pytest.raises(FileNotFoundError):
        Dictionary.open(out)
    merge([halves / "a", halves / "b"], out).close()
    assert verification.verify(out).ok
    assert [path.name for path in out.iterdir() if path.is_dir()] == [Dictionary.open(out).info["build"]]
