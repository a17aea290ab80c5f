"""Training as a run: optimisers, resumption, resampling, warm starts, several SAEs in one pass, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from planted_saes import TRUE, config, late, settings, shaped

from sae import SAE, Training, evaluate, train, train_together

# Settings of the run


@pytest.mark.parametrize(
    ("changes", "lr"),
    [
        (dict(optimizer="muon"), 5e-3),
        (dict(optimizer="signum"), 5e-4),
        (dict(schedule_free=True), 1e-2),
        (dict(optimizer="signum", schedule_free=True), 2e-3),
        (dict(ema_decay=0.99), 5e-3),
        (dict(lr_schedule="cosine"), 5e-3),
        (dict(clip_norm=0.1, lr_schedule="constant"), 5e-3),
    ],
)
def test_every_optimiser_learns_and_resumes_to_the_bit(changes: dict[str, Any], lr: float, tmp_path: Path) -> None:
    sae = settings("batchtopk", k=8)

    def run(out: str, rows: Any, resume: bool = False) -> Any:
        settings = config(tmp_path / out, sae, total_rows=256 * 200, lr=lr, checkpoint_every_steps=60, **changes)
        return train(settings, rows, resume=resume)

    whole = run("whole", shaped(sae)).sae
    assert evaluate(whole, planted.rows(3000, TRUE, seed=9)).explained_variance > 0.5

    def broken() -> Any:
        for place, piece in enumerate(shaped(sae)):
            if place == 180:
                raise KeyboardInterrupt
            yield piece

    with pytest.raises(KeyboardInterrupt):
        run("broken", broken())
    resumed = run("broken", shaped(sae), resume=True).sae
    for name, value in whole.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name


@pytest.mark.parametrize("name", ["jumprelu", "standard", "gated", "matryoshka_batchtopk", "late"])
def test_state_kept_between_steps_survives_a_resume(name: str, tmp_path: Path) -> None:
    sae = late() if name == "late" else settings(name)

    def run(out: str, rows: Any, resume: bool = False) -> Any:
        return train(config(tmp_path / out, sae, total_rows=256 * 60, checkpoint_every_steps=25), rows, resume=resume)

    def broken() -> Any:
        for place, piece in enumerate(shaped(sae)):
            if place == 60:
                raise KeyboardInterrupt
            yield piece

    whole = run("whole", shaped(sae)).sae
    with pytest.raises(KeyboardInterrupt):
        run("broken", broken())
    resumed = run("broken", shaped(sae), resume=True).sae
    for field, value in whole.tensors.items():
        assert torch.equal(value, resumed.tensors[field]), field


@pytest.mark.parametrize("name", ["topk", "standard", "gated", "jumprelu"])
def test_resampling_gives_dead_latents_a_new_start(name: str, tmp_path: Path) -> None:
    from sae.learner import Learner

    sae = settings(name, d_sae=64, auxk_alpha=0.0)
    run = dict(total_rows=200 * 300, batch_rows=200, dead_after_tokens=200 * 20)
    silent = {}
    for resampled in (False, True):
        chosen = dict(resample_fracs=[0.4]) if resampled else {}
        learner = Learner(config(tmp_path, sae, **run, **chosen), torch.device("cpu"))
        for rows in planted.rows(200 * 200, TRUE):
            learner.take({"rows": rows})
            if learner.step == 50:
                bias = learner.parameters["b_gate" if name == "gated" else "b_enc"]
                bias[:32] = -100.0
        silent[resampled] = int((learner.silent_rows[:32] > 200 * 40).sum())
    assert silent[False] == 32
    assert silent[True] < 16


def test_training_goes_on_from_a_saved_sae(tmp_path: Path) -> None:
    sae = settings("topk", k=6)
    first = train(config(tmp_path / "a", sae), shaped(sae))
    short = dict(total_rows=256 * 4, lr=1e-5)
    on = train(config(tmp_path / "b", sae, init_from=str(first.path), **short), shaped(sae))
    assert on.metrics.explained_variance == pytest.approx(first.metrics.explained_variance, abs=0.02)
    jump = settings("jumprelu", target_l0=5)
    other = train(config(tmp_path / "c", jump, init_from=str(first.path), **short), shaped(sae))
    cosine = torch.cosine_similarity(other.sae.W_dec, first.sae.W_dec, dim=1)
    assert cosine.min() > 0.99
    again = train(config(tmp_path / "f", jump, init_from=str(other.path), **short), shaped(sae))
    kept = again.sae.tensors["threshold"] / other.sae.tensors["threshold"]
    assert kept.min() > 0.9
    assert kept.max() < 1.1
    with pytest.raises(ValueError, match=r"init_from holds W_enc of shape \(96, 32\), expected \(48, 32\)"):
        train(config(tmp_path / "d", settings("topk", d_sae=48), init_from=str(first.path), **short), shaped(sae))
    with pytest.raises(ValueError, match="gated SAEs and others have no common form"):
        train(config(tmp_path / "e", settings("gated"), init_from=str(first.path), **short), shaped(sae))


# Several SAEs in one pass


def together(tmp_path: Path, **changes: Any) -> list[Training]:
    run = dict(total_rows=256 * 40, checkpoint_every_steps=15, **changes)
    wanted = {"a": settings("topk"), "b": settings("topk", d_sae=64), "c": settings("jumprelu")}
    trainings = [
        Training(
            config(tmp_path / name, sae, seed=place, **run),
            ("left" if name < "c" else "right",),
            metadata={"name": name},
        )
        for place, (name, sae) in enumerate(wanted.items())
    ]
    joint = config(tmp_path / "d", settings("crosscoder"), **run)
    return [*trainings, Training(joint, ("left", "right"), metadata={"name": "d"})]


def by_site(n: int = 256 * 40) -> Any:
    for rows in planted.rows(n, TRUE):
        yield {"left": rows, "right": 2 * rows.flip(1)}


def test_saes_of_one_pass_are_those_trained_alone(tmp_path: Path) -> None:
    results = train_together(together(tmp_path / "together"), by_site(), tmp_path / "together" / "state")
    alone = [
        train(training.config, rows)
        for training, rows in zip(
            together(tmp_path / "alone"),
            [
                (piece["left"] for piece in by_site()),
                (piece["left"] for piece in by_site()),
                (piece["right"] for piece in by_site()),
                (torch.stack([piece["left"], piece["right"]], 1) for piece in by_site()),
            ],
            strict=True,
        )
    ]
    for one, other in zip(results, alone, strict=True):
        for name, value in one.sae.tensors.items():
            assert torch.equal(value, other.sae.tensors[name]), name
        assert one.metrics.loss == other.metrics.loss


@pytest.mark.parametrize("lost", [None, 0, 2])
def test_a_pass_broken_between_its_checkpoints_ends_with_the_same_bits(lost: int | None, tmp_path: Path) -> None:
    """`lost` checkpoints of the second round were not written: SAEs stand at different steps, the rows at the first."""
    whole = train_together(together(tmp_path / "whole"), by_site(), tmp_path / "whole" / "state")
    from sae import trainer

    written: list[str] = []
    real = trainer.write_tensors

    def failing(path: Path, *rest: Any) -> None:
        if path.name in ("state.safetensors", "rows.safetensors"):
            if lost is not None and len(written) >= 5 + lost:
                raise KeyboardInterrupt
            written.append(str(path))
        real(path, *rest)

    def broken() -> Any:
        for place, piece in enumerate(by_site()):
            if place == 45:
                raise KeyboardInterrupt
            yield piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_tensors", failing)
        with pytest.raises(KeyboardInterrupt):
            train_together(together(tmp_path / "broken"), broken(), tmp_path / "broken" / "state")
    resumed = train_together(together(tmp_path / "broken"), by_site(), tmp_path / "broken" / "state", resume=True)
    for one, other in zip(whole, resumed, strict=True):
        for name, value in one.sae.tensors.items():
            assert torch.equal(value, other.sae.tensors[name]), name
    lines = (tmp_path / "broken" / "a" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "whole" / "a" / "metrics.jsonl").read_text().splitlines())


def test_saes_that_cannot_share_a_pass_are_refused(tmp_path: Path) -> None:
    trainings = together(tmp_path)
    other = Training(
        config(tmp_path / "z", settings("topk"), total_rows=256 * 41, checkpoint_every_steps=15), ("left",)
    )
    with pytest.raises(ValueError, match="total_rows=10240 and 10496, expected one"):
        train_together([*trainings, other], by_site(), tmp_path / "state")
    wide = Training(
        config(tmp_path / "y", settings("topk", d_in=16), total_rows=256 * 40, checkpoint_every_steps=15), ("left",)
    )
    with pytest.raises(ValueError, match="left is read with d_in=32 and d_in=16"):
        train_together([*trainings, wide], by_site(), tmp_path / "state")
    with pytest.raises(ValueError, match="rows came without right"):
        train_together(trainings, ({"left": piece["left"]} for piece in by_site()), tmp_path / "state", resume=True)
    with pytest.raises(ValueError, match="got no SAE"):
        train_together([], by_site(), tmp_path / "state")


# Refusals


def test_rows_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pairs, expected \(x, y\)"):
        train(config(tmp_path / "a", settings("transcoder")), [torch.randn(256, 32)])
    with pytest.raises(ValueError, match=r"expected \[n, n_sites=2, 32\]"):
        train(config(tmp_path / "b", settings("crosscoder")), [torch.randn(256, 32)])
    with pytest.raises(ValueError, match=r"expected \[n, 2, 32\]"):
        SAE(settings("crosscoder")).encode(torch.randn(3, 64))
