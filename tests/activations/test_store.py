"""Harvesting into a store, streaming past it, and what may go wrong with either."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import divided_runs
import numpy as np
import pytest
import torch
from families import build
from families import tokenizer as character_tokenizer
from ranks import run_ranks, start_ranks
from torch import Tensor

from activations import ActivationStore, Document, HarvestConfig, LanguageModel, TokenRows, pack_documents, stream
from activations import harvest as run_harvest
from activations.quantized import dequantized, quantized
from activations.store import Manifest

SITES = ["resid_post.1", "mlp_act.0", "head_out.1"]
CONFIG = HarvestConfig(dtype="float32", batch_tokens=64, shard_rows=128, buffer_rows=150)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def rows(tiny_lm: LanguageModel) -> TokenRows:
    corpus = [Document(f"d{number}", f"document {number}: " + "word " * number) for number in range(20)]
    return pack_documents(corpus, tiny_lm, 16, prepend_bos=True)


@pytest.fixture(scope="session")
def harvested(tiny_lm: LanguageModel, rows: TokenRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "store"
    run_harvest(tiny_lm, rows, CONFIG, out, sites=SITES)
    return out


@pytest.fixture
def copied(harvested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(harvested, tmp_path / "store"))


def expected_rows(lm: LanguageModel, rows: TokenRows, site: str) -> Tensor:
    keep = torch.from_numpy(rows.trained_mask(lm.special_ids))
    mask = torch.from_numpy(rows.mask())
    return lm.capture(rows.torch_tokens(), mask, [site])[site].flatten(2)[keep]


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


# What is stored


def test_a_store_holds_every_kept_token_of_every_site_in_order(
    tiny_lm: LanguageModel, rows: TokenRows, harvested: Path
) -> None:
    store = ActivationStore.open(harvested)
    store.verify()
    keep = rows.trained_mask(tiny_lm.special_ids)
    assert store.sites == SITES
    assert store.n_rows == keep.sum() < rows.n_tokens
    for site in SITES:
        stored = torch.cat(list(store.rows(site, shuffle=False)))
        assert stored.shape == (store.n_rows, store.d_in(site)) == (store.n_rows, tiny_lm.site_width(site))
        assert torch.allclose(stored, expected_rows(tiny_lm, rows, site), atol=1e-5)
    owners = torch.cat([store.read(index, "document") for index in store.shards])
    assert np.array_equal(owners.numpy(), rows.documents[keep])
    provenance = store.manifest.provenance
    assert provenance["model_weight_hash"] == tiny_lm.weight_hash()
    assert provenance["tokens_sha256"] == rows.fingerprint()


def test_bfloat16_stores_round_and_take_half_the_room(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path, harvested: Path
) -> None:
    config = HarvestConfig(dtype="bfloat16", batch_tokens=64, shard_rows=128)
    store = run_harvest(tiny_lm, rows, config, tmp_path / "store", sites=["resid_post.1"])
    full = torch.cat(list(ActivationStore.open(harvested).rows("resid_post.1", shuffle=False)))
    assert torch.equal(torch.cat(list(store.rows("resid_post.1", shuffle=False))), full.bfloat16())


def test_special_tokens_are_kept_when_asked_for(tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path) -> None:
    store = run_harvest(tiny_lm, rows, CONFIG, tmp_path / "s", sites=["embed"], exclude_special_tokens=False)
    assert store.n_rows == rows.n_tokens


def test_shuffled_rows_are_a_permutation_that_depends_on_the_seed(harvested: Path) -> None:
    store = ActivationStore.open(harvested)

    def read(seed: int) -> Tensor:
        return torch.cat(list(store.rows("resid_post.1", seed=seed, chunk_rows=37, window_rows=300)))

    plain = torch.cat(list(store.rows("resid_post.1", shuffle=False)))
    first = read(0)
    assert torch.equal(first, read(0))
    assert not torch.equal(first, read(1))
    assert not torch.equal(first, plain)
    assert torch.equal(first.sort(0).values, plain.sort(0).values)


def test_epochs_differ_in_order_and_may_be_endless(harvested: Path) -> None:
    store = ActivationStore.open(harvested)
    both = torch.cat(list(store.rows("resid_post.1", epochs=2, chunk_rows=50)))
    first, second = both.split(store.n_rows)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)
    endless = iter(store.rows("resid_post.1", epochs=None, chunk_rows=50))
    assert sum(len(next(endless)) for _ in range(100)) > 2 * store.n_rows


@pytest.mark.parametrize("taken", [0, 1, 7, 40])
def test_rows_of_a_store_go_on_exactly_where_they_were_left(harvested: Path, taken: int) -> None:
    store = ActivationStore.open(harvested)
    options: dict[str, Any] = {"epochs": 2, "chunk_rows": 50, "window_rows": 300, "seed": 3}
    whole = [chunk.clone() for chunk in store.rows("mlp_act.0", **options)]
    left = store.rows("mlp_act.0", **options)
    iterator = iter(left)
    for _ in range(taken):
        next(iterator)
    state = left.state()
    taken_up = store.rows("mlp_act.0", **options)
    taken_up.restore(state)
    rest = list(taken_up)
    assert len(rest) == len(whole) - taken
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[taken:], strict=True))
    # a second pass over the same object starts anew
    assert len(list(taken_up)) == len(whole)
    with pytest.raises(ValueError, match="the state belongs to rows in another order"):
        store.rows("mlp_act.0", seed=4).restore(state)


def test_rows_of_several_sites_come_in_the_order_of_each_alone(harvested: Path) -> None:
    store = ActivationStore.open(harvested)
    options: dict[str, Any] = {"epochs": 2, "chunk_rows": 50, "window_rows": 300, "seed": 3}
    together = list(store.rows(SITES, **options))
    for site in SITES:
        alone = list(store.rows(site, **options))
        assert len(alone) == len(together)
        assert all(torch.equal(chunk[site], rows) for chunk, rows in zip(together, alone, strict=True))
    left = store.rows(SITES, **options)
    iterator = iter(left)
    for _ in range(7):
        next(iterator)
    taken_up = store.rows(SITES, **options)
    taken_up.restore(left.state())
    for rest, whole in zip(taken_up, together[7:], strict=True):
        assert all(torch.equal(rest[site], whole[site]) for site in SITES)
    with pytest.raises(ValueError, match="holds no site 'resid_pre.0'"):
        store.rows([SITES[0], "resid_pre.0"])


# Interrupted and damaged


def test_a_harvest_goes_on_from_its_last_whole_shard_with_identical_bytes(
    tiny_lm: LanguageModel, rows: TokenRows, harvested: Path, copied: Path
) -> None:
    complete = files_of(copied)
    assert len(complete) > 4
    lines = (copied / "shards-00000.jsonl").read_text().splitlines(keepends=True)
    # killed within the line of the fourth shard, the fifth half written
    (copied / "shards-00000.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    for name in list(complete)[4:]:
        (copied / name).unlink()
    (copied / f"{list(complete)[4]}.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"holds 3 of \d+ shards: its harvest is not finished; run it again"):
        ActivationStore.open(copied)
    passes = []
    handle = tiny_lm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    store = run_harvest(tiny_lm, rows, CONFIG, copied, sites=SITES)
    handle.remove()
    assert files_of(copied) == complete
    store.verify()
    assert len(passes) < 2 * len(complete)  # two batches a shard, and three shards were there
    assert not list(copied.glob("*.partial"))


KILLED = """
import sys
sys.path[:0] = [{support!r}, {root!r}]
import torch
from families import build, tokenizer
from activations import Document, HarvestConfig, LanguageModel, harvest, pack_documents
torch.set_num_threads(1)
lm = LanguageModel(build("llama", torch.float32), tokenizer())
rows = pack_documents([Document("a", "abc def " * 4000)], lm, 16)
harvest(lm, rows, HarvestConfig(dtype="float32", batch_tokens=64, shard_rows=256), {out!r}, sites=["resid_post.1"])
"""


@pytest.mark.slow
def test_a_killed_harvest_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    def start(out: Path) -> subprocess.Popen[bytes]:
        code = KILLED.format(support=str(ROOT / "tests" / "support"), root=str(ROOT), out=str(out))
        return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait() == 0
    out = tmp_path / "killed"
    kills = 0
    for wanted in (1, 20, 60):
        process = start(out)
        while process.poll() is None and len(list(out.glob("*.safetensors"))) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 1
    assert start(out).wait() == 0
    ActivationStore.open(out).verify()
    assert files_of(out) == files_of(tmp_path / "whole")


def test_truncated_shards_are_refused(copied: Path) -> None:
    shard = copied / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"shard-00001.safetensors has \d+ bytes, expected \d+ bytes: the store is damaged"
    ):
        ActivationStore.open(copied)
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing"):
        ActivationStore.open(copied)


def test_corrupt_shards_are_found_by_their_checksum(copied: Path) -> None:
    shard = copied / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00001.safetensors does not match its checksum"):
        ActivationStore.open(copied).verify()


def test_a_shard_with_a_broken_header_is_refused_in_one_line(copied: Path) -> None:
    shard = copied / "shard-00000.safetensors"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(ValueError, match=r"shard-00000.safetensors is damaged .*expected a whole shard"):
        list(ActivationStore.open(copied).rows("resid_post.1"))


def test_what_is_no_store_is_refused(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no manifest.json, expected an activation store"):
        ActivationStore.open(tmp_path)
    (copied / "manifest.json").write_text('{"format": "another-1"}')
    with pytest.raises(
        ValueError, match=r"is no activation store of format glassbox-activations-1 \(format 'another-1'\)"
    ):
        ActivationStore.open(copied)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is no activation store"):
        ActivationStore.open(copied)


@pytest.mark.parametrize("change", ["site", "dtype", "tokens", "model"])
def test_another_harvests_folder_is_refused(tiny_lm: LanguageModel, rows: TokenRows, copied: Path, change: str) -> None:
    lm, given, config, sites = tiny_lm, rows, CONFIG, SITES
    if change == "site":
        sites = ["resid_post.0"]
    elif change == "dtype":
        config = HarvestConfig(dtype="bfloat16", batch_tokens=64, shard_rows=128)
    elif change == "tokens":
        given = rows[1:]
    else:
        lm = LanguageModel(build("llama", torch.float32), character_tokenizer(), name=tiny_lm.name)
    key = {"site": "sites", "dtype": "dtype", "tokens": "n_shards|tokens_sha256", "model": "model_weight_hash"}[change]
    before = files_of(copied)
    with pytest.raises(ValueError, match=rf"holds another store: .*({key}).* is .*: choose another `out` or delete"):
        run_harvest(lm, given, config, copied, sites=sites)
    assert files_of(copied) == before


def test_a_folder_with_other_things_in_it_is_left_alone(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"holds thesis.txt and no store, expected an empty folder"):
        run_harvest(tiny_lm, rows, CONFIG, tmp_path, sites=SITES)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_unknown_sites_of_a_store_are_refused(harvested: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no site 'resid_post.0', expected one of resid_post.1, mlp_act.0"):
        ActivationStore.open(harvested).rows("resid_post.0")


def test_no_sites_is_an_error(tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no sites to harvest, expected at least one: set harvest.sites"):
        run_harvest(tiny_lm, rows, CONFIG, tmp_path / "s")


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing_half_written(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harvested: Path
) -> None:
    synced: list[int] = []
    real_fsync = os.fsync

    def fail(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    out = tmp_path / "store"
    with pytest.raises(OSError, match=r"the disk is full: .* could not be written; free space and run again") as caught:
        run_harvest(tiny_lm, rows, CONFIG, out, sites=SITES)
    assert "\n" not in str(caught.value)
    assert not list(out.glob("*.partial"))
    monkeypatch.setattr(os, "fsync", real_fsync)
    with pytest.raises(ValueError, match="shards: its harvest is not finished"):
        ActivationStore.open(out)
    run_harvest(tiny_lm, rows, CONFIG, out, sites=SITES).verify()
    assert files_of(out) == files_of(harvested)


def test_too_small_a_disk_is_refused_before_any_work(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))  # pyright: ignore
    with pytest.raises(OSError, match=r"has 0.00 GB free, the activations take 0.00 GB: free space"):
        run_harvest(tiny_lm, rows, CONFIG, tmp_path / "store", sites=SITES)


def test_activations_that_are_not_finite_name_site_and_document(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path
) -> None:
    def spoil(x: Tensor) -> Tensor:
        return x.masked_fill(x == x.max(), float("inf"))

    with (
        pytest.raises(ValueError, match=r"site 'resid_post.1' is not finite at position \d+ of document 'd\d+'"),
        tiny_lm.intervene({"resid_post.1": spoil}),
    ):
        run_harvest(tiny_lm, rows, CONFIG, tmp_path / "store", sites=SITES)


def test_settings_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_tokens=0, expected 1 or more"):
        HarvestConfig(batch_tokens=0)


def test_a_store_can_be_written_without_a_model(tmp_path: Path) -> None:
    manifest = Manifest(
        sites={"resid_post.0": 4}, dtype="float32", n_shards=2, shard_token_rows=1, batch_token_rows=1, provenance={}
    )
    store = ActivationStore.create(tmp_path / "s", manifest)
    store.write(0, {"resid_post.0": torch.ones(3, 4)})
    store.write(1, {"resid_post.0": torch.zeros(0, 4)})  # a shard of special tokens only
    again = ActivationStore.open(tmp_path / "s")
    assert again.is_complete
    assert torch.equal(torch.cat(list(again.rows("resid_post.0"))), torch.ones(3, 4))


# Two processes


def test_two_processes_write_the_same_store_as_one(tmp_path: Path) -> None:
    divided_runs.harvest_tiny(str(tmp_path / "one"), "1")
    run_ranks("divided_runs:harvest_tiny", 2, tmp_path / "two", 2)
    assert len(list((tmp_path / "two").glob("shards-*.jsonl"))) == 2
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [1, 3])
def test_a_harvest_that_lost_a_process_goes_on_with_any_number(tmp_path: Path, goes_on: int) -> None:
    processes = start_ranks("divided_runs:harvest_tiny", 2, tmp_path / "cut", 2, 2)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, -9]
    assert "another one of 2 processes is lost" in said[0]
    with pytest.raises(ValueError, match="harvest is not finished"):
        ActivationStore.open(tmp_path / "cut")
    run_ranks("divided_runs:harvest_tiny", goes_on, tmp_path / "cut", goes_on)
    divided_runs.harvest_tiny(str(tmp_path / "one"), "1")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "cut")


# Streaming


def test_a_stream_gives_every_row_once_an_epoch(tiny_lm: LanguageModel, rows: TokenRows, harvested: Path) -> None:
    streamed = torch.cat(list(stream(tiny_lm, rows, "resid_post.1", CONFIG, chunk_rows=33)))
    stored = torch.cat(list(ActivationStore.open(harvested).rows("resid_post.1", shuffle=False)))
    assert streamed.shape == stored.shape
    assert torch.allclose(streamed.sort(0).values, stored.sort(0).values, atol=1e-5)
    twice = stream(tiny_lm, rows, "resid_post.1", CONFIG, epochs=2)
    assert sum(map(len, twice)) == twice.n_rows == 2 * len(stored)


def test_a_stream_of_several_sites_keeps_their_rows_together(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    chunks = list(stream(tiny_lm, rows, ["resid_pre.1", "resid_post.0", "mlp_act.0"], CONFIG))
    assert all(torch.equal(chunk["resid_pre.1"], chunk["resid_post.0"]) for chunk in chunks)
    assert chunks[0]["mlp_act.0"].shape[1] == 64


def test_a_stream_mixes_documents(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    first = next(iter(stream(tiny_lm, rows, "embed", HarvestConfig(dtype="float32", batch_tokens=64), chunk_rows=64)))
    again = next(iter(stream(tiny_lm, rows, "embed", HarvestConfig(dtype="float32", batch_tokens=64), chunk_rows=64)))
    other = next(
        iter(stream(tiny_lm, rows, "embed", HarvestConfig(dtype="float32", batch_tokens=64), chunk_rows=64, seed=1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("taken", [0, 1, 5, 11, 21])
def test_a_restored_stream_continues_with_the_same_bits(tiny_lm: LanguageModel, rows: TokenRows, taken: int) -> None:
    def fresh() -> Any:
        return stream(tiny_lm, rows, "resid_post.1", CONFIG, seed=5, epochs=2, chunk_rows=50)

    whole = list(fresh())
    left = fresh()
    iterator: Iterator[Tensor] = iter(left)
    for _ in range(taken):
        next(iterator)
    state = {name: value.clone() for name, value in left.state().items()}
    taken_up = fresh()
    taken_up.restore(state)
    rest = list(taken_up)
    assert len(rest) == len(whole) - taken
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[taken:], strict=True))
    with pytest.raises(ValueError, match="the state is of a stream with settings"):
        stream(tiny_lm, rows, "resid_post.1", CONFIG, seed=6).restore(state)


def test_state_survives_a_file(tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    left = stream(tiny_lm, rows, "embed", CONFIG, chunk_rows=50)
    next(iter(left))
    save_file(left.state(), tmp_path / "state.safetensors")
    taken_up = stream(tiny_lm, rows, "embed", CONFIG, chunk_rows=50)
    taken_up.restore(load_file(tmp_path / "state.safetensors"))
    whole = list(stream(tiny_lm, rows, "embed", CONFIG, chunk_rows=50))
    assert all(torch.equal(a, b) for a, b in zip(taken_up, whole[1:], strict=True))


def test_a_manifest_is_plain_json(harvested: Path) -> None:
    stored = json.loads((harvested / "manifest.json").read_text())
    assert stored["sites"] == {"resid_post.1": 32, "mlp_act.0": 64, "head_out.1": 32}
    assert {"model_name", "model_weight_hash", "tokens_sha256", "context_tokens"} <= set(stored["provenance"])


# Eight-bit rows


def test_int8_rows_err_by_half_a_step_of_their_own_scale(
    tiny_lm: LanguageModel, rows: TokenRows, harvested: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, dtype="int8")
    store = run_harvest(tiny_lm, rows, config, tmp_path / "store", sites=SITES)
    store.verify()
    assert store.manifest.format == "glassbox-activations-2"
    for site in SITES:
        exact = torch.cat(list(ActivationStore.open(harvested).rows(site, shuffle=False)))
        read = torch.cat(list(store.rows(site, shuffle=False)))
        assert read.dtype == torch.bfloat16
        largest = exact.abs().amax(dim=1, keepdim=True)
        # half a step, and what bfloat16 rounds
        assert bool(((read.float() - exact).abs() <= largest / 127 / 2 + largest / 256).all())
    sizes = [sum(map(len, files_of(path).values())) for path in (store.path, harvested)]
    assert sizes[0] < 0.4 * sizes[1]
    # a finished harvest is found, an interrupted one goes on to the same bytes
    complete = files_of(store.path)
    listing = store.path / "shards-00000.jsonl"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[:2]))
    run_harvest(tiny_lm, rows, config, store.path, sites=SITES)
    assert files_of(store.path) == complete


def test_rows_of_zeros_and_of_one_large_element_survive_eight_bits() -> None:
    given = torch.zeros(3, 8)
    given[1, 3] = -1e4
    given[2] = torch.linspace(-1, 1, 8)
    integers, scales = quantized(given)
    back = dequantized(integers, scales, torch.float32)
    assert torch.equal(back[0], given[0])
    assert torch.allclose(back[1], given[1])
    assert float((back[2] - given[2]).abs().max()) <= 1 / 254 + 1e-6
