"""A dictionary outlives what happens around it: rebuilds under its readers, killed builds, full disks."""

from __future__ import annotations

import builtins
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import features.events
import features.index
from features import Dictionary, IndexConfig, build_index
from features.verification import verify
from sae import SAE

ROOT = Path(__file__).resolve().parents[2]
SETUP = f"""
import sys, os, time, json, signal
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests/features")!r}]
os.environ["GLASSBOX_SHAPE_CHECKS"] = "0"
import importlib.util
def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path); m = importlib.util.module_from_spec(spec)
    sys.modules[name] = m; spec.loader.exec_module(m); return m
top = load("top", {str(ROOT / "tests/conftest.py")!r})
here = load("here", {str(ROOT / "tests/features/conftest.py")!r})
import features.index as index
from dataclasses import replace
def material():
    lm = top.tiny_lm._get_wrapped_function()()
    rows = here.pack(lm, here.texts())
    return here.random_sae(lm, rows), lm, rows
"""


def answers(dictionary: Dictionary) -> list[Any]:
    """What a reader asks, over and over."""
    return [
        dictionary.feature(5).max_activation,
        [example.position for example in dictionary.examples(11)],
        [hit.feature for hit in dictionary.search("import", 5)],
        dictionary.sql("select count(*) as n, sum(activation) as s from events where feature < 40").to_pylist(),
        [row["feature"] for row in dictionary.features(limit=7).features],
    ]


def test_an_opened_dictionary_goes_on_answering_after_another_took_its_place(
    copied: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig
) -> None:
    held = Dictionary.open(copied)
    before = answers(held)
    smaller = replace(config, total_tokens=400)
    newer = build_index(tiny_sae, tiny_lm, rows, copied, smaller, on_exists="replace")
    assert answers(newer) != before
    fresh = Dictionary.open(copied)
    assert answers(fresh) == answers(newer)
    assert answers(held) == before
    assert len(list(copied.glob("build-*"))) == 2
    for opened in (held, fresh, newer):
        opened.close()
    # the same dictionary once more, beside the one that is read meanwhile
    third = build_index(tiny_sae, tiny_lm, rows, copied, smaller, on_exists="replace")
    assert [path.name for path in copied.glob("build-*")] == [third.info["build"]], "nobody reads the others any more"
    third.close()


def test_two_builders_of_one_dictionary_do_not_meet(
    tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = features.index.encode_events

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(features.index, "encode_events", encode)
        with pytest.raises(FileExistsError, match="is being built by another process, expected one at a time"):
            build_index(tiny_sae, tiny_lm, rows, tmp_path / "d", config)
        return encode(*given)

    monkeypatch.setattr(features.index, "encode_events", meanwhile)
    opened = build_index(tiny_sae, tiny_lm, rows, tmp_path / "d", config)
    assert verify(opened.path).ok
    opened.close()


def test_a_full_disk_ends_a_build_in_one_line_and_leaves_the_old_dictionary(
    copied: Path,
    tmp_path: Path,
    tiny_lm: Any,
    tiny_sae: SAE,
    rows: Any,
    config: IndexConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = replace(config, examples=4)
    reference = build_index(tiny_sae, tiny_lm, rows, tmp_path / "reference", other)
    before = answers(Dictionary.open(copied))
    message = "the disk of .* is full, expected room for the index: free space and index again"

    def full(path: Any, *given: Any) -> Any:
        if Path(path).name == "events" and given[0] == "wb":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return builtins.open(path, *given)

    with monkeypatch.context() as patched:
        patched.setattr(features.events, "open", full, raising=False)
        with pytest.raises(OSError, match=message):
            build_index(tiny_sae, tiny_lm, rows, copied, other, on_exists="replace")
    # Linux's own full device in the place of a table
    table = copied / reference.info["build"] / "examples.parquet"
    table.symlink_to("/dev/full")
    with pytest.raises(OSError, match=message):
        build_index(tiny_sae, tiny_lm, rows, copied, other, on_exists="replace")
    old = Dictionary.open(copied)
    assert answers(old) == before
    assert verify(copied).ok
    old.close()
    table.unlink(missing_ok=True)  # a writer that fails may have taken it away
    monkeypatch.setattr(features.index, "encode_events", lambda *given: iter(()))  # nothing is left to encode
    opened = build_index(tiny_sae, tiny_lm, rows, copied, other, on_exists="replace")
    assert opened.info["files"] == reference.info["files"]
    opened.close()
    reference.close()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["batch", "tables", "manifest"])
def test_a_killed_rebuild_leaves_the_old_dictionary_and_ends_as_one_that_was_not_killed(
    copied: Path, tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig, moment: str
) -> None:
    before = Dictionary.open(copied)
    script = tmp_path / "killed.py"
    script.write_text(
        SETUP
        + textwrap.dedent(f"""
        def die(*given):
            os.kill(os.getpid(), signal.SIGKILL)
        class Small(index.EventSpill):
            def __init__(self, *a):
                super().__init__(*a, chunk_events=1500)
        index.EventSpill = Small
        encode = index.encode_events
        def mortal(*given):
            for number, batch in enumerate(encode(*given)):
                if number == 6:
                    die()
                yield batch
        if {moment!r} == "batch":
            index.encode_events = mortal
        elif {moment!r} == "tables":
            index.write_corpus_tables = die
        else:
            index.write_json = die
        sae, lm, rows = material()
        index.build_index(sae, lm, rows, {str(copied)!r}, replace(here.tiny_config(), examples=4), on_exists="replace")
        """)
    )
    killed = subprocess.run([sys.executable, script], timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL
    after = Dictionary.open(copied)
    assert answers(after) == answers(before)
    assert verify(copied).ok
    unfinished = next(path for path in copied.glob("build-*") if path.name != after.info["build"])
    assert any(unfinished.glob("spill/chunk-*"))
    other = replace(config, examples=4)
    opened = build_index(tiny_sae, tiny_lm, rows, copied, other, on_exists="replace")
    whole = build_index(tiny_sae, tiny_lm, rows, tmp_path / "whole", other)
    names = ("events", "features", "examples", "histograms", "feature_tokens", "tokens", "neighbours")
    for name in names:
        assert opened.sql(f"select * from {name}").equals(whole.sql(f"select * from {name}")), name
    assert verify(copied).ok
    for dictionary in (before, after, opened, whole):
        dictionary.close()


@pytest.mark.slow
def test_readers_in_another_process_get_right_answers_while_the_index_is_rebuilt(
    copied: Path, tmp_path: Path, tiny_lm: Any, tiny_sae: SAE, rows: Any, config: IndexConfig
) -> None:
    script = tmp_path / "reader.py"
    script.write_text(
        SETUP
        + textwrap.dedent(f"""
        from features import Dictionary
        sys.path.insert(0, {str(ROOT / "tests/features")!r})
        from test_durability import answers
        folder, out = {str(copied)!r}, {str(tmp_path)!r}
        held = Dictionary.open(folder)
        first = answers(held)
        open(out + "/ready", "w").close()
        seen, loops = [], 0
        while not os.path.exists(out + "/stop"):
            assert answers(held) == first, "the opened one"
            fresh = Dictionary.open(folder)
            found = [fresh.info["n_tokens"], answers(fresh)]
            fresh.close()
            if found not in seen:
                seen.append(found)
            loops += 1
        json.dump({{"loops": loops, "seen": seen}}, open(out + "/seen.json", "w"))
        """)
    )
    reader = subprocess.Popen([sys.executable, script])
    try:
        while not (tmp_path / "ready").exists():
            assert reader.poll() is None
        wanted = [[Dictionary.open(copied).info["n_tokens"], answers(Dictionary.open(copied))]]
        for turn in range(6):
            tokens = (None, 400)[(turn + 1) % 2]
            opened = build_index(
                tiny_sae, tiny_lm, rows, copied, replace(config, total_tokens=tokens), on_exists="replace"
            )
            found = [opened.info["n_tokens"], answers(opened)]
            wanted += [found] if found not in wanted else []
            opened.close()
    finally:
        (tmp_path / "stop").touch()
        assert reader.wait(120) == 0
    told = json.loads((tmp_path / "seen.json").read_text())
    assert told["loops"] > 2
    assert all(found in json.loads(json.dumps(wanted)) for found in told["seen"])
    assert len(told["seen"]) == 2
