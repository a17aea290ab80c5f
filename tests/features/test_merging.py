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
    whole = dataclasses.replace(single.feature(3), top_normed_logits=[], bottom_normed_logits=[])
    assert merged.feature(3).to_json() == whole.to_json(), "all but the means over the text through the final norm"
    assert [part["name"] for part in merged.info["merged"]] == ["a", "b"]
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
