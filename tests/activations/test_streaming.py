"""The model fills the buffer while others train: what may be relied on then, and how rows are mixed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from activations import (
    ActivationStore,
    Document,
    HarvestConfig,
    LanguageModel,
    TokenRows,
    WithoutOutliers,
    harvest,
    pack_documents,
    stream,
)
from activations.mixing import Ahead, MixingPool

CONFIG = HarvestConfig(dtype="float32", batch_tokens=64, shard_rows=128, buffer_rows=150)
SITE = "resid_post.1"


@pytest.fixture(scope="session")
def rows(tiny_lm: LanguageModel) -> TokenRows:
    corpus = [Document(f"d{number}", f"document {number}: " + "word " * number) for number in range(20)]
    return pack_documents(corpus, tiny_lm, 16, prepend_bos=True)


def wait_for(claim: Any) -> None:
    deadline = time.monotonic() + 120
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stream-rows" and thread.is_alive()]


def test_the_model_works_while_a_chunk_is_being_used(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    passes: list[str] = []
    iterator = iter(stream(tiny_lm, rows, SITE, CONFIG, chunk_rows=20))
    handle = tiny_lm.model.register_forward_pre_hook(lambda *_: passes.append(threading.current_thread().name))
    try:
        next(iterator)
        # three batches fill the pool for the first draw: the fourth is for the second, of which nothing was asked yet
        wait_for(lambda: len(passes) > 3)
    finally:
        handle.remove()
    assert set(passes) == {"stream-rows"}


def test_chunks_are_slices_of_what_was_drawn(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    chunks = list(stream(tiny_lm, rows, [SITE, "mlp_act.0"], CONFIG, chunk_rows=20))
    for site in (SITE, "mlp_act.0"):
        assert all(chunk[site].is_contiguous() for chunk in chunks)
        first = chunks[0][site].untyped_storage().data_ptr()
        same = [chunk for chunk in chunks if chunk[site].untyped_storage().data_ptr() == first]
        assert sum(len(chunk[site]) for chunk in same) >= CONFIG.buffer_rows // 2


def test_an_error_in_the_thread_reaches_those_who_ask_for_its_rows(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    calls: list[int] = []

    def spoil_later(x: Tensor) -> Tensor:
        calls.append(1)
        return x if len(calls) < 6 else torch.full_like(x, float("nan"))

    taken: list[Tensor] = []
    with (
        tiny_lm.intervene({SITE: spoil_later}),
        pytest.raises(ValueError, match=r"site 'resid_post.1' is not finite at position \d+ of document"),
    ):
        taken.extend(stream(tiny_lm, rows, SITE, CONFIG, chunk_rows=20))
    assert sum(map(len, taken)) >= CONFIG.buffer_rows // 2  # what was drawn before the error is whole
    assert not workers()


def test_a_stream_that_is_left_ends_its_thread(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    iterator = iter(stream(tiny_lm, rows, SITE, CONFIG, epochs=None, chunk_rows=20))
    next(iterator)
    iterator.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not workers()


def test_edits_of_others_do_not_reach_the_rows_read_ahead(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    undisturbed = torch.cat(list(stream(tiny_lm, rows, SITE, CONFIG, chunk_rows=20)))
    disturbed = []
    for chunk in stream(tiny_lm, rows, SITE, CONFIG, chunk_rows=20):
        disturbed.append(chunk)
        with tiny_lm.intervene({"resid_post.0": torch.zeros_like}):
            tiny_lm.forward(torch.tensor([[5, 6, 7]]))
            time.sleep(0.002)
    assert torch.equal(torch.cat(disturbed), undisturbed)
    # those that are at work when the reading begins are
    with tiny_lm.intervene({"resid_post.0": torch.zeros_like}):
        edited = torch.cat(list(stream(tiny_lm, rows, SITE, CONFIG, chunk_rows=20)))
    assert not torch.equal(edited, undisturbed)


def test_a_pass_without_lock_beside_a_capture_is_its_own(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    tokens = torch.tensor([[5, 6, 7, 8]])
    clean = tiny_lm.forward(tokens).logits
    running = threading.Event()

    def capture_again_and_again(is_wanted: Any) -> None:
        for _ in range(60):
            if not is_wanted():
                return
            running.set()
            tiny_lm.capture(rows.torch_tokens(), None, ["resid_mid.0"])

    beside = Ahead(capture_again_and_again, "captures")
    running.wait(20)
    for _ in range(20):
        assert torch.equal(tiny_lm.forward(tokens).logits, clean)
    beside.cancel()


def test_every_draw_is_even_over_the_pool_and_takes_each_row_once() -> None:
    drawn: list[Tensor] = []
    for seed in range(200):
        pool = MixingPool({"a": 1, "b": 2}, 12, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        seen: list[Tensor] = []
        for start in range(0, 20, 4):
            new = torch.arange(start, start + 4, dtype=torch.float32)[:, None]
            pool.add({"a": new, "b": torch.cat([new, -new], dim=1)})
            if pool.count > 8:
                part = pool.draw(6, generator)
                assert torch.equal(part["b"], torch.cat([part["a"], -part["a"]], dim=1))
                seen.append(part["a"][:, 0])
        drawn.append(seen[0])
        seen.append(pool.draw(pool.count, generator)["a"][:, 0])
        assert torch.equal(torch.cat(seen).sort().values, torch.arange(20.0))
    # the first draw holds each of the twelve rows half of the time, at every place
    mean = torch.stack(drawn).mean()
    assert abs(float(mean) - 5.5) < 0.4
    assert abs(float(torch.stack(drawn)[:, 0].mean()) - 5.5) < 1.0


@pytest.mark.parametrize(("window_rows", "windows"), [(1, 5), (300, 3), (10_000, 1)])
def test_a_store_says_how_many_rows_its_windows_hold(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path, window_rows: int, windows: int
) -> None:
    few = rows[:40]
    store = harvest(tiny_lm, few, CONFIG, tmp_path / "store", sites=["embed"])
    assert len(store.shards) == 5
    read = store.rows("embed", window_rows=window_rows, chunk_rows=10_000)
    sizes = [len(chunk) for chunk in read]  # a chunk never reaches beyond its window
    assert len(sizes) == windows
    assert read.mixing["mixed_rows"] == max(sizes)
    assert read.mixing["smallest_window_rows"] == min(sizes)
    assert read.mixing["windows"] == windows
    assert WithoutOutliers(read, {}).mixing == read.mixing
    assert store.rows("embed", shuffle=False).mixing["mixed_rows"] == 1


def test_a_stream_says_among_how_many_rows_each_is_drawn(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    assert stream(tiny_lm, rows, SITE, CONFIG).mixing["mixed_rows"] == CONFIG.buffer_rows
    large = HarvestConfig(dtype="float32", buffer_rows=1_000_000)
    assert stream(tiny_lm, rows, SITE, large).mixing["mixed_rows"] == stream(tiny_lm, rows, SITE, large).n_rows


def test_training_records_how_its_rows_were_mixed(tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path) -> None:
    import json

    from sae import SAEConfig, TrainConfig, train

    store = harvest(tiny_lm, rows, CONFIG, tmp_path / "store", sites=[SITE])
    config = TrainConfig(
        sae=SAEConfig(d_in=32, d_sae=64, k=4), total_rows=256, batch_rows=64, out=str(tmp_path / "run"), device="cpu"
    )
    read = ActivationStore.open(store.path).rows(SITE, window_rows=300)
    train(config, read)
    recorded = json.loads((tmp_path / "run" / "provenance.json").read_text())["rows"]
    assert recorded == read.mixing
