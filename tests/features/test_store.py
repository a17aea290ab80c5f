"""The folder: whole or refused; labels: shared between processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import features.index
from features import Dictionary, IndexConfig, build_index
from features.store import MANIFEST, Store
from sae import SAE

ROOT = Path(__file__).resolve().parents[2]


def test_an_empty_folder_and_a_half_built_one_are_refused(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no dictionary"):
        Dictionary.open(tmp_path / "nowhere")
    (copied / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="unfinished build"):
        Dictionary.open(copied)


def test_a_manifest_that_is_no_json_is_refused(copied: Path) -> None:
    (copied / MANIFEST).write_text('{"format": 1, "bui')
    with pytest.raises(ValueError, match="cannot be read"):
        Dictionary.open(copied)
    (copied / MANIFEST).write_text('{"format": 99, "build": "x"}')
    with pytest.raises(ValueError, match="format 99, expected 1"):
        Dictionary.open(copied)


def test_a_file_cut_short_is_refused_and_a_changed_byte_is_found(copied: Path) -> None:
    path = Store(copied).build / "events.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    opened = Store(copied)
    with pytest.raises(ValueError, match="has changed"):
        opened.verify(deep=True)
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match="bytes, expected"):
        Store(copied)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        Store(copied)


def test_a_moved_dictionary_answers_from_its_new_place(copied: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(copied, tmp_path / "it's moved"))
    opened = Dictionary.open(moved)
    assert opened.feature(0).examples
    opened.close()


def small_spill() -> type[features.index.EventSpill]:
    """Returns a spill that cuts chunks as soon as a few events are there."""

    class Small(features.index.EventSpill):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, chunk_events=1500)

    return Small


def test_a_killed_build_is_not_opened_and_goes_on_to_the_same_tables(
    tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig, built: Path, monkeypatch: Any
) -> None:
    out = tmp_path / "killed"
    monkeypatch.setattr(features.index, "EventSpill", small_spill())
    original = features.index.encode_events
    batches: list[int] = []

    def dies(*args: Any) -> Any:
        for number, batch in enumerate(original(*args)):
            if number == 7:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(features.index, "encode_events", dies)
    with pytest.raises(KeyboardInterrupt):
        build_index(tiny_sae, tiny_lm, rows, out, config)
    with pytest.raises(FileNotFoundError, match="unfinished build"):
        Dictionary.open(out)

    def counts(*args: Any) -> Any:
        for batch in original(*args):
            batches.append(1)
            yield batch

    monkeypatch.setattr(features.index, "encode_events", counts)
    opened = build_index(tiny_sae, tiny_lm, rows, out, config)
    assert 0 < len(batches) < -(-len(rows.tokens) // 4)
    whole = Dictionary.open(built)
    for name in ("events", "features", "examples", "histograms", "feature_tokens"):
        assert opened.sql(f"select * from {name}").equals(whole.sql(f"select * from {name}"))
    assert not (opened.store.build / "spill").exists()
    opened.close()
    whole.close()


@pytest.mark.slow
def test_a_build_killed_by_the_system_at_any_moment_ends_the_same(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    script = tmp_path / "build.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests/features")!r}]
        import importlib.util, time
        def load(name, path):
            spec = importlib.util.spec_from_file_location(name, path); m = importlib.util.module_from_spec(spec)
            sys.modules[name] = m; spec.loader.exec_module(m); return m
        top = load("top", {str(ROOT / "tests/conftest.py")!r})
        here = load("here", {str(ROOT / "tests/features/conftest.py")!r})
        import features.index as index
        lm = top.tiny_lm.__wrapped__() if hasattr(top.tiny_lm, "__wrapped__") else top.tiny_lm._get_wrapped_function()()
        class Small(index.EventSpill):
            def __init__(self, *a):
                super().__init__(*a, chunk_events=1500)
        index.EventSpill = Small
        encode = index.encode_events
        def slow(*a):
            for batch in encode(*a):
                time.sleep(0.05); yield batch
        index.encode_events = slow
        rows = here.pack(lm, here.texts())
        index.build_index(here.random_sae(lm, rows), lm, rows, {str(out)!r}, here.tiny_config())
        """)
    )
    finished = False
    for wait in (4.0, 5.0, 6.0, None):
        # no shape checks, as users run it
        process = subprocess.Popen([sys.executable, script], env=os.environ | {"GLASSBOX_SHAPE_CHECKS": "0"})
        try:
            assert process.wait(wait) == 0
            finished = True
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            if not (out / MANIFEST).exists():
                with pytest.raises(FileNotFoundError):
                    Dictionary.open(out)
    assert finished
    killed, whole = Dictionary.open(out), Dictionary.open(built)
    killed.verify()
    for name in ("events", "examples"):
        assert killed.sql(f"select * from {name}").equals(whole.sql(f"select * from {name}"))


def test_a_finished_build_is_returned_and_another_one_is_refused(
    copied: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig
) -> None:
    before = (copied / MANIFEST).read_bytes()
    build_index(tiny_sae, tiny_lm, rows, copied, config).close()
    assert (copied / MANIFEST).read_bytes() == before
    other = IndexConfig(examples=3)
    with pytest.raises(FileExistsError, match="already holds a dictionary"):
        build_index(tiny_sae, tiny_lm, rows, copied, other)
    replaced = build_index(tiny_sae, tiny_lm, rows, copied, other, on_exists="replace")
    assert len(list(copied.glob("build-*"))) == 1
    assert max(e.rank for e in replaced.feature(0).examples if e.stratum == 0) == 2
    replaced.close()


def test_a_folder_of_other_files_is_refused(
    tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        build_index(tiny_sae, tiny_lm, rows, tmp_path, config)


def test_an_sae_of_another_model_site_or_width_is_refused(
    tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any
) -> None:
    import copy

    for change, message in (
        ({"site": None}, "names no site"),
        ({"site": "resid_post.99"}, "does not have"),
        ({"model_weight_hash": "0" * 64}, "was trained on 000000000000"),
    ):
        sae = copy.deepcopy(tiny_sae)
        sae.metadata |= change
        with pytest.raises(ValueError, match=message):
            build_index(sae, tiny_lm, rows, tmp_path / "new")


def test_activations_that_are_not_finite_name_their_document(
    tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, monkeypatch: Any
) -> None:
    capture = tiny_lm.capture

    def broken(tokens: Any, mask: Any, sites: Any) -> Any:
        found = capture(tokens, mask, sites)
        for row, row_tokens in enumerate(tokens):
            if torch.equal(row_tokens, torch.from_numpy(rows.tokens[1]).long()):
                found[sites[0]][row, 5] = float("nan")
        return found

    monkeypatch.setattr(tiny_lm, "capture", broken)
    position, document = rows.positions[1, 5], rows.names[rows.documents[1, 5]]
    with pytest.raises(ValueError, match=f"position {position} of document '{document}'"):
        build_index(tiny_sae, tiny_lm, rows, tmp_path / "new")


def test_the_dictionary_refuses_a_model_of_other_weights(copied: Path, tiny_lm: Any) -> None:
    facts = json.loads((copied / MANIFEST).read_text())
    facts["model"]["weight_hash"] = "f" * 64
    (copied / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="was built with ffffffffffff"):
        Dictionary.open(copied, model=tiny_lm)


def test_labels_are_shown_first_and_newest_first(copied: Path) -> None:
    opened = Dictionary.open(copied)
    other = Dictionary.open(copied)
    assert opened.feature(3).explanations == []
    opened.add_label(3, "first words", author="ann")
    opened.add_label(3, "better words", author="bob")
    texts = [(e.text, e.author) for e in other.feature(3).explanations]
    assert texts == [("better words", "bob"), ("first words", "ann")]
    assert other.explanations_of([3, 4]) == {3: "better words"}
    assert other.search("better")[0].feature == 3
    with pytest.raises(ValueError, match="is empty"):
        opened.add_label(3, "   ")
    opened.add_to_list("good ones", [3, 5], author="ann")
    assert other.sql("select feature from lists order by feature")["feature"].to_pylist() == [3, 5]


def test_labels_are_kept_when_the_dictionary_is_rebuilt(copied: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any) -> None:
    Dictionary.open(copied).add_label(3, "kept")
    rebuilt = build_index(tiny_sae, tiny_lm, rows, copied, IndexConfig(examples=2), on_exists="replace")
    assert rebuilt.feature(3).explanation == "kept"


def test_one_process_reads_while_another_writes_labels(copied: Path, tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from features import Dictionary\n"
        f"d = Dictionary.open({str(copied)!r})\n"
        "for i in range(12): d.add_label(i % 5, f'label {i}', author='writer')\n"
    )
    opened = Dictionary.open(copied)
    writer = subprocess.Popen([sys.executable, script])
    seen = 0
    while writer.poll() is None:
        count = opened.sql("select count(*) as n from labels")["n"][0].as_py()
        assert count >= seen
        seen = count
        opened.add_label(50, f"reader {seen}", author="reader")
    assert writer.returncode == 0
    answer = opened.sql("select count(*) as n from labels where author = 'writer'")
    assert answer["n"][0].as_py() == 12
    assert np.unique(opened.sql("select text from labels where author = 'writer'")["text"].to_numpy()).size == 12


def test_hostile_text_is_stored_as_it_is(copied: Path) -> None:
    opened = Dictionary.open(copied)
    opened.add_label(2, "<img src=x onerror=alert(1)>'; drop table labels; --")
    assert opened.feature(2).explanation == "<img src=x onerror=alert(1)>'; drop table labels; --"
    assert opened.search("'; drop")[0].feature == 2
    assert any("<img src=x" in e.text for f in range(40) for e in opened.examples(f, 60, 60))
