"""Training finds planted features, resumes to the bit, and refuses what it cannot train on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import planted
import pytest
import torch
from torch import Tensor

from sae import SAE, SAEConfig, TrainConfig, evaluate, train
from sae.learner import Learner, rate

SUPPORT = Path(planted.__file__).parent
TRUE = planted.directions()


def config(out: Path, **changes: object) -> TrainConfig:
    settings: dict = dict(
        sae=SAEConfig(architecture="topk", d_in=32, d_sae=96, k=6),
        total_rows=256 * 40,
        batch_rows=256,
        lr=3e-3,
        out=str(out),
        device="cpu",
        checkpoint_every_steps=10,
        log_every_steps=7,
    )
    return TrainConfig(**{**settings, **changes})


def weights(path: Path) -> bytes:
    return (path / "sae_weights.safetensors").read_bytes()


def test_planted_features_are_recovered(tmp_path: Path) -> None:
    result = train(
        config(tmp_path, total_rows=256 * 600, lr=1e-2, sae=SAEConfig(architecture="topk", d_in=32, d_sae=96, k=5)),
        planted.rows(256 * 600, TRUE),
    )
    learned = torch.nn.functional.normalize(result.sae.W_dec.detach(), dim=1)
    best = (TRUE @ learned.T).max(1).values
    assert (best > 0.9).float().mean() > 0.9, f"only {(best > 0.9).float().mean():.0%} of the true features were found"
    held_out = evaluate(result.sae, planted.rows(5000, TRUE, seed=9))
    assert held_out.explained_variance > 0.88
    assert result.metrics.explained_variance == pytest.approx(held_out.explained_variance, abs=0.03)


def test_decoder_rows_stay_unit_norm_up_to_the_folded_scale(tmp_path: Path) -> None:
    result = train(config(tmp_path), planted.rows(256 * 40, TRUE))
    norms = result.sae.W_dec.detach().norm(dim=1)
    torch.testing.assert_close(norms, norms[0].expand_as(norms), rtol=1e-5, atol=0)


def test_folding_the_input_scale_leaves_the_reconstruction_equivariant(tmp_path: Path) -> None:
    plain = train(config(tmp_path / "a"), planted.rows(256 * 40, TRUE)).sae
    scaled = train(config(tmp_path / "b"), (10 * piece for piece in planted.rows(256 * 40, TRUE))).sae
    x = next(planted.rows(100, TRUE, seed=5))
    torch.testing.assert_close(scaled(10 * x) / 10, plain(x), rtol=1e-3, atol=1e-3)


def test_run_folder_holds_everything(tmp_path: Path) -> None:
    result = train(config(tmp_path), planted.rows(256 * 40, TRUE), metadata={"site": "resid_post.1", "name": "small"})
    assert result.path == tmp_path / "sae" / "resid_post.1" / "small"
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [7, 10, 14, 20, 21, 28, 30, 35, 40]
    assert (tmp_path / "config.yaml").exists()
    assert json.loads((tmp_path / "provenance.json").read_text())["seed"] == 0
    assert SAE.load(result.path).site == "resid_post.1"


def test_a_machine_without_git_trains_and_names_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    train(config(tmp_path / "run"), planted.rows(256 * 40, TRUE))
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["commit"] is None


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    runs = [
        train(config(tmp_path / name, seed=seed), planted.rows(256 * 40, TRUE)).path
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])


def test_pieces_of_any_size_train_alike(tmp_path: Path) -> None:
    paths = [
        train(config(tmp_path / str(piece)), torch.cat(list(planted.rows(256 * 40, TRUE))).split(piece)).path
        for piece in (64, 256, 1000)
    ]
    assert weights(paths[0]) == weights(paths[1]) == weights(paths[2])


class Interrupted(Exception):
    pass


def broken_after(rows: Iterator[Tensor], pieces: int) -> Iterator[Tensor]:
    for number, piece in enumerate(rows):
        if number == pieces:
            raise Interrupted
        yield piece


class StatefulRows:
    """Rows that can say where they are: the trainer restores them and reads nothing twice."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.at, self.read = data, 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        while self.at < len(self.data):
            piece = self.data[self.at : self.at + 100]
            self.at += len(piece)
            self.read += len(piece)
            yield piece

    def state(self) -> dict[str, Tensor]:
        return {"at": torch.tensor(self.at)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.at = int(state["at"])


@pytest.mark.parametrize("pieces", [3, 20, 45])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path: Path, pieces: int) -> None:
    whole = train(config(tmp_path / "whole"), planted.rows(256 * 40, TRUE))
    with pytest.raises(Interrupted):
        train(config(tmp_path / "cut"), broken_after(planted.rows(256 * 40, TRUE), pieces))
    resumed = train(config(tmp_path / "cut"), planted.rows(256 * 40, TRUE), resume=True)
    assert weights(resumed.path) == weights(whole.path)
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert steps[0] == steps[1], "metrics after the last checkpoint are dropped, never doubled"


def test_stateful_rows_resume_without_reading_twice(tmp_path: Path) -> None:
    data = torch.cat(list(planted.rows(256 * 40, TRUE)))
    whole = train(config(tmp_path / "whole"), StatefulRows(data))
    cut = StatefulRows(data)
    with pytest.raises(ValueError, match="rows ended after"):
        train(config(tmp_path / "cut"), StatefulRows(data[: 256 * 25]))
    resumed = train(config(tmp_path / "cut"), cut, resume=True)
    assert weights(resumed.path) == weights(whole.path)
    assert cut.read <= len(data) - 256 * 20 + 100


def test_a_finished_run_returns_its_result_and_is_refused_without_resume(tmp_path: Path) -> None:
    first = train(config(tmp_path), planted.rows(256 * 40, TRUE))
    again = train(config(tmp_path), iter(()), resume=True)
    assert again.metrics == first.metrics
    assert torch.equal(again.sae.W_enc, first.sae.W_enc)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(config(tmp_path), planted.rows(256 * 40, TRUE))


def test_resume_with_nothing_saved_starts_from_the_beginning(tmp_path: Path) -> None:
    a = train(config(tmp_path / "a"), planted.rows(256 * 40, TRUE), resume=True)
    b = train(config(tmp_path / "b"), planted.rows(256 * 40, TRUE))
    assert weights(a.path) == weights(b.path)


def test_resume_with_another_config_names_the_setting(tmp_path: Path) -> None:
    train(config(tmp_path), planted.rows(256 * 40, TRUE))
    with pytest.raises(ValueError, match=r"trained with lr=0\.003, this config says 0\.001"):
        train(config(tmp_path, lr=1e-3), planted.rows(256 * 40, TRUE), resume=True)


def test_a_truncated_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(config(tmp_path), broken_after(planted.rows(256 * 40, TRUE), 30))
    state = tmp_path / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no whole state"):
        train(config(tmp_path), planted.rows(256 * 40, TRUE), resume=True)


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        train(config(tmp_path), broken_after(planted.rows(256 * 40, TRUE), 16))
    state = tmp_path / "state" / "state.safetensors"
    before = state.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match=r"could not be written \(No space left on device; .* run again with --resume"
        ):
            train(config(tmp_path), planted.rows(256 * 40, TRUE), resume=True)
    assert sorted(path.name for path in state.parent.iterdir()) == ["rows.safetensors", "state.safetensors"]
    assert state.read_bytes() == before
    train(config(tmp_path), planted.rows(256 * 40, TRUE), resume=True)


def test_rows_that_end_early_are_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ended after 1000, expected total_rows=10240"):
        train(config(tmp_path), planted.rows(1000, TRUE))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_rows_are_refused_with_their_place(tmp_path: Path, bad: float) -> None:
    data = torch.cat(list(planted.rows(256 * 40, TRUE)))
    data[777, 5] = bad
    with pytest.raises(ValueError, match=r"row 777 holds (nan|inf) in column 5"):
        train(config(tmp_path), data.split(300))


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(50, 16\) came, expected \[n, d_in=32\]"):
        train(config(tmp_path), [torch.randn(50, 16)])


def test_zero_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first batch of rows is all zero"):
        train(config(tmp_path), [torch.zeros(512, 32)])


def test_exactly_total_rows_are_enough(tmp_path: Path) -> None:
    train(config(tmp_path), planted.rows(256 * 40, TRUE))


def test_auxk_revives_dead_latents(tmp_path: Path) -> None:
    true, run = planted.directions(400, 64), dict(total_rows=512 * 400, batch_rows=512, lr=3e-2, log_every_steps=400)
    bare = SAEConfig(architecture="topk", d_in=64, d_sae=400, k=8, auxk_alpha=0.0)
    without, helped = (
        train(
            config(tmp_path / name, sae=sae, dead_after_tokens=512 * 20, **run),
            planted.rows(512 * 400, true, density=0.02),
        )
        for name, sae in (("without", bare), ("helped", replace(bare, auxk_alpha=1 / 32)))
    )
    assert without.metrics.dead_frac > 0.015
    assert helped.metrics.dead_frac < without.metrics.dead_frac / 2


def test_auxk_takes_up_a_latent_before_it_counts_as_dead(tmp_path: Path) -> None:
    run = config(tmp_path, total_rows=256 * 4000)
    assert (run.auxk_after_rows, run.dead_after_rows) == (256 * 20, 256 * 400)
    short = config(tmp_path, total_rows=256 * 40)
    assert (short.auxk_after_rows, short.dead_after_rows) == (256 * 2, 256 * 4)
    assert config(tmp_path, dead_after_tokens=100).auxk_after_rows == 100
    learner = Learner(run, torch.device("cpu"))
    learner.take({"rows": planted.directions(256, 32)})
    learner.silent_rows[:] = torch.linspace(0, 256 * 400, len(learner.silent_rows)).long()
    taken = learner._moment().dead
    assert taken is not None
    assert taken.tolist() == (learner.silent_rows >= 256 * 20).tolist()
    assert learner.read_metrics(1.0, 256).dead_frac == pytest.approx(1 / len(learner.silent_rows))
    with pytest.raises(ValueError, match="auxk_after_tokens=0 must be positive"):
        config(tmp_path, auxk_after_tokens=0)


def test_schedule_rises_holds_and_falls_to_zero(tmp_path: Path) -> None:
    run = config(tmp_path, total_rows=256 * 100, warmup_frac=0.1, decay_frac=0.2)
    rates = [rate(run, step) for step in range(run.steps)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[50] == 1.0
    assert rates[-1] == pytest.approx(0.05)
    assert rate(run, run.steps) == 0.0


def test_clipping_changes_the_run_only_when_the_norm_is_exceeded(tmp_path: Path) -> None:
    free = train(config(tmp_path / "a"), planted.rows(256 * 40, TRUE)).path
    loose = train(config(tmp_path / "b", clip_norm=1e6), planted.rows(256 * 40, TRUE)).path
    assert weights(free) == weights(loose)


KILLED = """
import sys, torch
sys.path.insert(0, {here!r})
import planted
from sae import SAEConfig, TrainConfig, train
sae = SAEConfig(architecture="topk", d_in=32, d_sae=512, k=6)
config = TrainConfig(sae=sae, total_rows=256 * 400, batch_rows=256, out=sys.argv[1], device="cpu",
                     checkpoint_every_steps=5, log_every_steps=3)
train(config, planted.rows(256 * 400, planted.directions()), resume=True)
"""


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(here=str(SUPPORT)))

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(script), str(out)], cwd=SUPPORT.parents[1])

    assert start(tmp_path / "whole").wait(timeout=300) == 0
    generator = torch.Generator().manual_seed(3)
    kills = 0
    for _ in range(40):
        process = start(tmp_path / "cut")
        state = tmp_path / "cut" / "state"
        while process.poll() is None and not state.exists():
            time.sleep(0.01)
        time.sleep(1.5 * float(torch.rand((), generator=generator)))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if kills == 5:
            assert start(tmp_path / "cut").wait(timeout=300) == 0
            break
    assert kills >= 1, "the run was over before it could be killed"
    whole, cut = ((tmp_path / name / "sae" / "rows" / "topk") for name in ("whole", "cut"))
    assert weights(whole) == weights(cut)
    steps = [
        [json.loads(line)["step"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


def test_first_weights_do_not_resemble_data_drawn_by_the_same_seed(tmp_path: Path) -> None:
    """The planted features are the first draws of seed 0: a dictionary of that seed must not start at them."""
    learner = Learner(config(tmp_path, seed=0), torch.device("cpu"))
    cosines = (TRUE @ learner.parameters["W_dec"].T).max(1).values
    assert cosines.max() < 0.8


@pytest.mark.parametrize(
    ("d_sae", "changes", "rate"), [(64, {}, 0.01), (10_000, {}, 0.0025), (10_000, {"lr": 0.5}, 0.5)]
)
def test_the_default_rate_falls_with_the_width(d_sae: int, changes: dict[str, float], rate: float) -> None:
    sae = SAEConfig(d_in=8, d_sae=d_sae, k=4)
    assert TrainConfig(sae=sae, total_rows=4096, out="unused", **changes).peak_lr == pytest.approx(rate)
    tuned = TrainConfig(sae=sae, total_rows=4096, out="unused", init_from="somewhere", **changes)
    assert tuned.peak_lr == pytest.approx(rate if changes else rate / 10)
