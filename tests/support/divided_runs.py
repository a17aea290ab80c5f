"""The runs that several processes and one must end alike: each is written to a folder of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import planted
import torch
from torch import Tensor

from activations.processes import current
from sae import SAEConfig, TrainConfig, train

ROWS, BATCH = 256 * 24, 256
TRUE = planted.directions()
KINDS: dict[str, dict[str, Any]] = {
    "topk": dict(sae=dict(architecture="topk", k=6)),
    "batchtopk": dict(sae=dict(architecture="batchtopk", k=6)),
    "matryoshka_batchtopk": dict(sae=dict(k=6)),
    "jumprelu": dict(sae=dict(architecture="jumprelu", target_l0=6)),
    "standard": dict(sae=dict(architecture="standard", target_l0=6)),
    "gated": dict(sae=dict(architecture="gated", target_l0=6)),
    "p_anneal": dict(sae=dict(architecture="p_anneal", target_l0=6)),
    "abstopk": dict(sae=dict(architecture="abstopk", k=6)),
    "matching_pursuit": dict(sae=dict(architecture="matching_pursuit", k=4), total_rows=256 * 10),
    "many dead": dict(sae=dict(architecture="topk", k=2, d_sae=192), auxk_after_tokens=256, dead_after_tokens=512),
    "resampled": dict(sae=dict(architecture="standard", sparsity_coefficient=0.3), resample_fracs=[0.5]),
    "clipped": dict(sae=dict(architecture="topk", k=6), clip_norm=0.5, schedule_free=True),
    "uneven": dict(sae=dict(k=6), batch_rows=255, total_rows=255 * 30),
    "transcoder": dict(sae=dict(architecture="skip_transcoder", activation="batchtopk", k=6, d_out=20)),
    "crosscoder": dict(sae=dict(architecture="crosscoder", activation="relu", n_sites=2, d_in=16, target_l0=6)),
    "clt": dict(sae=dict(architecture="clt", activation="batchtopk", n_sites=2, d_in=16, k=6)),
    "latents, topk": dict(sae=dict(architecture="topk", k=6), divide="latents"),
    "latents, nested": dict(sae=dict(k=6), divide="latents", clip_norm=0.5),
    "latents, nested early": dict(sae=dict(k=6, nesting_start=0), divide="latents", schedule_free=True),
    "latents, many dead": dict(
        sae=dict(architecture="batchtopk", k=2, d_sae=192),
        divide="latents",
        auxk_after_tokens=256,
        dead_after_tokens=512,
    ),
    "latents, signed": dict(sae=dict(architecture="abstopk", k=6), divide="latents", ema_decay=0.9),
    "latents, transcoder": dict(sae=dict(architecture="skip_transcoder", k=6, d_out=20), divide="latents"),
}


def config(kind: str, out: str | Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = dict(
        total_rows=ROWS, batch_rows=BATCH, lr=3e-3, device="cpu", checkpoint_every_steps=10, log_every_steps=7
    )
    settings |= {**KINDS[kind], **changes}
    sae = SAEConfig(**{"d_in": 32, "d_sae": 96, **settings.pop("sae")})
    return TrainConfig(sae=sae, out=str(out), **settings)


def rows(of: TrainConfig) -> Iterator[Any]:
    sae = of.sae
    for piece in planted.rows(of.total_rows, TRUE):
        if sae.n_sites > 1:
            x: Tensor = piece.unflatten(1, (2, 16))
            yield (x, x.flip(1)) if sae.predicts_target else x
        else:
            yield (piece, piece[:, :20] ** 2) if sae.predicts_target else piece


def check_world(expected: str) -> None:
    assert current().world == int(expected), f"{current().world} processes, expected {expected}"


def train_kinds(out: str, world: str, kinds: str) -> None:
    """Trains every kind, each into a folder of its name."""
    check_world(world)
    for kind in kinds.split(";"):
        wanted = config(kind, Path(out) / kind)
        train(wanted, rows(wanted))


def train_one(out: str, world: str, kind: str, dies_at: str = "") -> None:
    """Trains one kind with `resume`; where `dies_at` is given, the last process is killed at that many rows."""
    check_world(world)
    torch.set_num_threads(1)
    wanted = config(kind, out)

    def mortal() -> Iterator[Any]:
        given = 0
        for piece in rows(wanted):
            yield piece
            given += len(piece)
            if dies_at and given >= int(dies_at) and current().rank == current().world - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    train(wanted, mortal(), resume=True)


def train_on_other_rows(out: str) -> None:
    """Gives every process rows of its own."""
    wanted = config("topk", out)
    train(wanted, planted.rows(wanted.total_rows, TRUE, seed=current().rank))


def harvest_tiny(out: str, world: str, dies_after: str = "") -> None:
    """Harvests a small model; where `dies_after` is given, the last process is killed after so many shards."""
    from families import build, tokenizer

    from activations import ActivationStore, Document, HarvestConfig, LanguageModel, harvest, pack_documents

    check_world(world)
    lm = LanguageModel(build("llama", torch.float32), tokenizer())
    rows = pack_documents([Document("a", "abc def " * 400)], lm, 16)
    if dies_after:
        write = ActivationStore.write

        def mortal(store: ActivationStore, index: int, tensors: dict[str, Tensor], process: int = 0) -> Any:
            if process == current().world - 1 and len(store.shards) >= int(dies_after):
                os.kill(os.getpid(), signal.SIGKILL)
            return write(store, index, tensors, process)

        ActivationStore.write = mortal
    config = HarvestConfig(dtype="float32", batch_tokens=64, shard_rows=256)
    harvest(lm, rows, config, out, sites=["resid_post.1"]).verify()


def _module(name: str, path: Path) -> Any:
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def index_tiny(out: str, world: str, dies_after: str = "") -> None:
    """Indexes the small dictionary of the tests of `features`; the last process is killed after so many batches."""
    os.environ["GLASSBOX_SHAPE_CHECKS"] = "0"
    tests = Path(__file__).parents[1]
    top, here = (_module(f"conftest_{place}", tests / place / "conftest.py") for place in (".", "features"))
    check_world(world)
    import features.index as index

    spill, encode = index.EventSpill, index.encode_events
    index.EventSpill = lambda *given: spill(*given, chunk_events=1500)
    index.EventSpill.prepare = spill.prepare

    def mortal(*given: Any) -> Iterator[Any]:
        for number, batch in enumerate(encode(*given)):
            if dies_after and number == int(dies_after) and current().rank == current().world - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    index.encode_events = mortal
    lm = top.tiny_lm._get_wrapped_function()()
    rows = here.pack(lm, here.texts())
    index.build_index(here.random_sae(lm, rows), lm, rows, out, here.tiny_config()).close()
