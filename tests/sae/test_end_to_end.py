"""Training through the model: what is minimised is what the definition says, and only the SAE's weights learn."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from activations import Document, HarvestConfig, LanguageModel, TokenRows, pack_documents, stream
from activations.sequences import SequenceRows
from sae import SAE, SAEConfig, TrainConfig, TrainResult, train
from sae.architectures import Moment, architecture_of
from sae.end_to_end import EndToEnd
from sae.trainer import Training, train_together

SITE = "resid_post.1"
CONTEXT = 16


@pytest.fixture(scope="module")
def rows(tiny_lm: LanguageModel) -> TokenRows:
    corpus = [Document(f"d{number}", f"def name_{number}(self): return {number}\n" * 4) for number in range(40)]
    return pack_documents(corpus, tiny_lm, CONTEXT, prepend_bos=True)


def batch_of(lm: LanguageModel, rows: TokenRows) -> Mapping[str, Tensor]:
    return next(iter(SequenceRows(rows, lm.special_ids, seed=1, chunk_sequences=6)))


def config_of(architecture: str, **settings: Any) -> SAEConfig:
    k = {"k": 4} if "topk" in architecture else {}
    return SAEConfig(d_in=32, d_sae=48, architecture=architecture, **k, **settings)


def weights(config: SAEConfig, lm: LanguageModel, rows: TokenRows, scale: Tensor) -> tuple[Any, dict[str, Tensor]]:
    architecture = architecture_of(config)
    parameters = architecture.initial(torch.Generator().manual_seed(0))
    x = EndToEnd(lm, SITE, CONTEXT).rows(batch_of(lm, rows)) * scale
    architecture.calibrate(parameters, x, x)
    return architecture, parameters


def test_sequences_come_whole_once_an_epoch_and_go_on_where_they_were_left(
    tiny_lm: LanguageModel, rows: TokenRows
) -> None:
    def fresh(seed: int = 0) -> SequenceRows:
        return SequenceRows(rows, tiny_lm.special_ids, seed=seed, epochs=2, chunk_sequences=7)

    whole = list(fresh())
    tokens = torch.cat([chunk["tokens"] for chunk in whole]).view(2, -1, CONTEXT)
    full = torch.from_numpy(rows.tokens[rows.mask().all(1)]).long()
    for epoch in tokens:
        assert sorted(epoch.tolist()) == sorted(full.tolist())
    assert not torch.equal(tokens[0], tokens[1])
    kept = torch.cat([chunk["kept"] for chunk in whole])
    assert torch.equal(kept.flatten(), ~torch.isin(tokens.flatten(), torch.tensor(sorted(tiny_lm.special_ids))))
    left = fresh()
    iterator = iter(left)
    for _ in range(5):
        next(iterator)
    taken_up = fresh()
    taken_up.restore(left.state())
    rest = list(taken_up)
    assert len(rest) == len(whole) - 5
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(rest, whole[5:], strict=True))
    with pytest.raises(ValueError, match="sequences in another order"):
        fresh(seed=1).restore(left.state())


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "standard", "gated"])
@pytest.mark.parametrize("aim", ["kl", "ce"])
def test_the_loss_is_that_of_the_model_with_the_reconstruction_in_place(
    tiny_lm: LanguageModel, rows: TokenRows, architecture: str, aim: Any
) -> None:
    batch, scale = batch_of(tiny_lm, rows), torch.full((32,), 1.7)
    made, parameters = weights(config_of(architecture, auxk_alpha=0.0), tiny_lm, rows, scale)
    objective = EndToEnd(tiny_lm, SITE, CONTEXT, aim, reconstruction_weight=0.3, downstream_weight=0.2)
    moment = Moment(50, 100)
    result = objective.step(made, parameters, batch, moment, scale)
    tokens = batch["tokens"].view(-1, CONTEXT)
    kept = batch["kept"].view(-1, CONTEXT)
    later = "resid_post.2"
    with torch.no_grad():
        x = tiny_lm.capture(tokens, None, [SITE])[SITE][kept] * scale
        forward = made.forward(parameters, x, moment)

        def edit(value: Tensor) -> Tensor:
            value[kept] = forward.x_hat / scale
            return value

        clean, stream = tiny_lm.logits(tokens), tiny_lm.capture(tokens, None, [later])[later]
        with tiny_lm.intervene({SITE: edit}):
            ours, moved = tiny_lm.logits(tokens), tiny_lm.capture(tokens, None, [later])[later]
        if aim == "kl":
            divergence = (clean.softmax(-1) * (clean.log_softmax(-1) - ours.log_softmax(-1))).sum(-1).mean()
        else:
            divergence = torch.nn.functional.cross_entropy(ours[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        variance = (x - x.mean(0)).pow(2).sum()
        flat = stream.flatten(0, 1)
        downstream = (moved - stream).pow(2).sum() / (flat - flat.mean(0)).pow(2).sum()
        reconstruction = made.reconstruction_loss(parameters, forward, x, x, moment)
        unit = variance / len(x) if made.is_penalised else 1.0
        expected = unit * (divergence + 0.3 * reconstruction + 0.2 * downstream) + forward.penalty
    assert torch.allclose(result.loss, expected, rtol=1e-5)
    assert torch.allclose(result.squared_error, (forward.x_hat - x).pow(2).sum(), rtol=1e-5)
    assert torch.equal(result.fired, (forward.activations != 0).any(0))
    assert len(tiny_lm.taps) == 0


def test_only_the_sae_gets_gradients_and_they_are_those_of_its_loss(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    batch, scale = batch_of(tiny_lm, rows), torch.ones(32)
    made, parameters = weights(config_of("topk", auxk_alpha=0.0), tiny_lm, rows, scale)
    objective = EndToEnd(tiny_lm, SITE, CONTEXT, "kl")
    result = objective.step(made, parameters, batch, Moment(0, 100), scale)
    assert all(parameter.grad is None for parameter in tiny_lm.model.parameters())
    assert all(value.grad is None for value in parameters.values())
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    tokens, kept = batch["tokens"].view(-1, CONTEXT), batch["kept"].view(-1, CONTEXT)

    def edit(value: Tensor) -> Tensor:
        x = value[kept].detach()
        strongest, latents = ((x - leaves["b_dec"]) @ leaves["W_enc"].T + leaves["b_enc"]).topk(4)
        rebuilt = (strongest.relu()[:, :, None] * leaves["W_dec"][latents]).sum(1) + leaves["b_dec"]
        return value.masked_scatter(kept[:, :, None], rebuilt)

    clean = tiny_lm.logits(tokens).log_softmax(-1)
    with tiny_lm.intervene({SITE: edit}):
        ours = tiny_lm.forward(tokens).logits.log_softmax(-1)
    (clean.exp() * (clean - ours)).sum(-1).mean().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert torch.allclose(result.gradients[name], leaf.grad, rtol=1e-3, atol=1e-7), name
        assert bool(leaf.grad.any()), name
    tiny_lm.model.zero_grad(set_to_none=True)


def test_special_and_outlying_rows_keep_their_activations(tiny_lm: LanguageModel, rows: TokenRows) -> None:
    batch = batch_of(tiny_lm, rows)
    x = EndToEnd(tiny_lm, SITE, CONTEXT).rows(batch)
    assert len(x) == int(batch["kept"].sum()) < batch["kept"].numel()
    limit = float(x.norm(dim=1).median())
    limited = EndToEnd(tiny_lm, SITE, CONTEXT, norm_limit=limit)
    assert len(limited.rows(batch)) == int((x.norm(dim=1) <= limit).sum())
    nothing = EndToEnd(tiny_lm, SITE, CONTEXT, norm_limit=1e-6)
    with pytest.raises(ValueError, match="no row"):
        nothing.rows(batch)


def train_run(
    lm: LanguageModel, rows: TokenRows, out: Path, architecture: str, resume: bool = False, cut: int | None = None
) -> TrainResult:
    config = TrainConfig(
        sae=config_of(architecture),
        batch_rows=6 * CONTEXT,
        total_rows=60 * 6 * CONTEXT,
        lr=3e-3,
        objective="kl",
        device="cpu",
        checkpoint_every_steps=7,
        out=str(out),
    )
    source: Any = SequenceRows(rows, lm.special_ids, epochs=None, chunk_sequences=6)
    if cut is not None:
        source = Cut(source, cut)
    training = Training(config, ("tokens", "kept"), (), {"site": SITE}, EndToEnd(lm, SITE, CONTEXT, "kl"))
    return train_together([training], source, out / "rows", resume)[0]


def divergence(lm: LanguageModel, sae: SAE, rows: TokenRows) -> float:
    """KL from the untouched model, with special tokens left alone."""
    tokens, kept = rows.torch_tokens()[:-1], torch.from_numpy(rows.trained_mask(lm.special_ids))[:-1]

    def edit(value: Tensor) -> Tensor:
        return value.masked_scatter(kept[:, :, None], sae(value[kept]))

    clean = lm.logits(tokens).log_softmax(-1)
    with torch.no_grad(), lm.intervene({SITE: edit}):
        ours = lm.logits(tokens).log_softmax(-1)
    return float((clean.exp() * (clean - ours)).sum(-1).mean())


def test_training_through_the_model_beats_reconstruction_at_what_it_aims_at(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path
) -> None:
    # predictions depend on a quarter of the stream's directions: there reconstruction wastes its latents
    model = copy.deepcopy(tiny_lm.model)
    with torch.no_grad():
        model.lm_head.weight[:, 8:] = 0
        model.lm_head.weight.mul_(20)
        model.model.layers[2].mlp.down_proj.weight.mul_(0.01)
        model.model.layers[2].self_attn.o_proj.weight.mul_(0.01)
    lm = LanguageModel(model, tiny_lm.tokenizer)
    through = train_run(lm, rows, tmp_path / "kl", "topk").sae
    config = TrainConfig(
        sae=config_of("topk"),
        batch_rows=6 * CONTEXT,
        total_rows=60 * 6 * CONTEXT,
        lr=3e-3,
        device="cpu",
        out=str(tmp_path / "rows"),
    )
    stream_config = HarvestConfig(dtype="float32", buffer_rows=512)
    plain = train(config, stream(lm, rows, SITE, stream_config, epochs=None)).sae
    assert divergence(lm, through, rows) < 0.5 * divergence(lm, plain, rows)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_training_through_the_model_resumes_exactly(
    tiny_lm: LanguageModel, rows: TokenRows, tmp_path: Path, architecture: str
) -> None:
    whole = train_run(tiny_lm, rows, tmp_path / "whole", architecture)
    with pytest.raises(KeyboardInterrupt):
        train_run(tiny_lm, rows, tmp_path / "cut", architecture, cut=31)
    resumed = train_run(tiny_lm, rows, tmp_path / "cut", architecture, resume=True)
    for name, value in whole.sae.tensors.items():
        assert torch.equal(value, resumed.sae.tensors[name]), name


class Cut:
    """Rows whose reader is stopped after some chunks."""

    def __init__(self, rows: SequenceRows, after: int) -> None:
        self._rows, self._after = rows, after
        self.state, self.restore = rows.state, rows.restore

    def __iter__(self) -> Any:
        for number, chunk in enumerate(self._rows):
            if number == self._after:
                raise KeyboardInterrupt
            yield chunk


def test_what_cannot_be_trained_through_is_refused(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="no layer follows resid_post.2"):
        EndToEnd(tiny_lm, "resid_post.2", CONTEXT, downstream_weight=1.0)
    with pytest.raises(ValueError, match="needs a named site, got model.layers.1"):
        EndToEnd(tiny_lm, "model.layers.1", CONTEXT, downstream_weight=1.0)
