"""The files that pages are read from say what the tables say, and a build without them answers the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import Dictionary
from features.feature_rows import FeatureRows
from features.pages import BLOCK_FEATURES, NAME, Pages, write_pages
from features.relations import PAGE_TABLES
from features.text import PACKED


def without_pages(dictionary: Dictionary, folder: Path) -> Path:
    """A copy as an earlier version wrote it."""
    shutil.copytree(dictionary.path, folder)
    for name in (NAME, PACKED):
        (folder / dictionary.store.build.name / name).unlink()
        facts = json.loads((folder / "dictionary.json").read_text())
        del facts["files"][name]
        (folder / "dictionary.json").write_text(json.dumps(facts))
    return folder


def test_pages_hold_the_rows_of_the_tables(dictionary: Dictionary, tmp_path: Path) -> None:
    folder = without_pages(dictionary, tmp_path / "copy")
    tables = FeatureRows(folder / dictionary.store.build.name)
    pages = Pages(dictionary.store.build / NAME)
    assert all(pages.has(name, columns) for name, columns in PAGE_TABLES.items())
    for feature in range(dictionary.n_features):
        wanted, found = tables.rows(feature, PAGE_TABLES), pages.rows(feature, PAGE_TABLES)
        for name, columns in PAGE_TABLES.items():
            for column in columns:
                np.testing.assert_array_equal(found[name][column], wanted[name][column])
                assert found[name][column].dtype == wanted[name][column].dtype
    tables.close()
    pages.close()


def test_a_dictionary_of_an_earlier_version_tells_the_same(dictionary: Dictionary, tmp_path: Path) -> None:
    earlier = Dictionary.open(without_pages(dictionary, tmp_path / "copy"))
    for feature in range(0, dictionary.n_features, 5):
        assert asdict(earlier.feature(feature)) == asdict(dictionary.feature(feature))
        assert earlier.examples(feature, 40, 3) == dictionary.examples(feature, 40, 3)
    for example in dictionary.examples(3)[:5]:
        assert earlier.context(example, 2, 60) == dictionary.context(example, 2, 60)
    earlier.close()


def test_features_without_rows_and_a_last_block_that_is_not_full(tmp_path: Path) -> None:
    n = 5 * BLOCK_FEATURES + 3
    features = np.repeat(np.arange(n, dtype=np.int32), np.arange(n) % 4)
    texts = np.array(["top", 'a "quoted" <b>', "bottom"])[np.arange(features.size) % 3]
    is_odd = features % 2 == 1
    pq.write_table(
        pa.table({"feature": features, "side": texts, "odd": is_odd, "value": features / 7}), tmp_path / "some.parquet"
    )
    pq.write_table(pa.table({"feature": features[:0], "value": features[:0] / 7}), tmp_path / "empty.parquet")
    wanted = {"some": ("side", "odd", "value"), "empty": ("value",)}
    write_pages(tmp_path, n, wanted | {"absent": ("value",)})
    pages = Pages(tmp_path / NAME)
    assert not pages.has("absent", ("value",))
    assert not pages.has("some", ("other",))
    for feature in range(n):
        found = pages.rows(feature, wanted)
        mine = features == feature
        assert found["some"]["side"].tolist() == texts[mine].tolist()
        assert found["some"]["odd"].tolist() == is_odd[mine].tolist()
        assert found["some"]["value"].tolist() == (features[mine] / 7).tolist()
        assert found["empty"]["value"].size == 0
    pages.close()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"pages ends with .*ing else', expected b'GBPAGES1': build the dictionary"):
        Pages(tmp_path / NAME)


def test_ids_beyond_two_bytes_are_packed_too(tmp_path: Path) -> None:
    from features.text import PackedText, write_packed

    for ids in ([0, 65_535, 7], [0, 65_536, 7]):
        write_packed(tmp_path, np.array(ids, np.int32), np.array([5, 6, 0], np.int32), np.array([0, 2]))
        packed = PackedText(tmp_path / PACKED, 3, 2)
        assert packed.ids.tolist() == ids
        assert packed.first_positions.tolist() == [5, 0]


def test_labels_of_several_folders_are_read_side_by_side(dictionary: Dictionary, tmp_path: Path) -> None:
    """Also where a folder's name holds quotes; and a label written in between is seen."""
    opened = []
    for name in ("one's", 'an"other'):
        shutil.copytree(dictionary.path, tmp_path / name)
        opened.append(Dictionary.open(tmp_path / name))
        opened[-1].add_label(3, f"label of {name}", "me")
    for _ in range(2):
        assert [each.feature(3).explanation for each in opened] == ["label of one's", 'label of an"other']
    opened[0].add_label(3, "newer", "me")
    assert [each.feature(3).explanation for each in opened] == ["newer", 'label of an"other']
    for each in opened:
        each.close()
