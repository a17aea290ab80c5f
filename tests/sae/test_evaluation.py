"""Evaluation figures equal their definitions over the whole set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import planted
import pytest
import torch
from torch import Tensor

from sae import SAE, SAEConfig, evaluate

TRUE = planted.directions()


def random_sae(d_in: int = 32, d_sae: int = 80, k: int = 5) -> SAE:
    sae = SAE(SAEConfig(d_in=d_in, d_sae=d_sae, k=k))
    for value in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
        torch.nn.init.normal_(value, std=0.3)
    return sae


def test_figures_equal_their_definitions() -> None:
    sae, x = random_sae(), torch.cat(list(planted.rows(3000, TRUE))) * 3 + 20
    metrics = evaluate(sae, x.split(700))
    with torch.no_grad():
        codes = sae.encode(x)
        x_hat = sae.decode(codes)
    x, x_hat = x.double(), x_hat.double()
    ev = 1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert metrics.explained_variance == pytest.approx(ev.item(), rel=1e-6)
    assert metrics.mse == pytest.approx((x - x_hat).pow(2).mean().item(), rel=1e-5)
    assert metrics.cosine == pytest.approx(torch.cosine_similarity(x, x_hat).mean().item(), rel=1e-5)
    dense = codes.to_dense() > 0
    assert metrics.l0 == pytest.approx(dense.sum(1).double().mean().item())
    assert metrics.dead_frac == pytest.approx((~dense.any(0)).double().mean().item())
    assert metrics.dense_frac == pytest.approx((dense.double().mean(0) > 0.1).double().mean().item())
    assert metrics.density == pytest.approx(dense.double().mean(0).tolist())


def test_explained_variance_does_not_depend_on_how_rows_are_cut() -> None:
    sae, x = random_sae(), torch.cat(list(planted.rows(1000, TRUE))) + 1000
    values = [evaluate(sae, x.split(size)).explained_variance for size in (1, 37, 1000)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_the_mean_as_reconstruction_explains_nothing() -> None:
    x = torch.cat(list(planted.rows(500, TRUE)))
    sae = SAE(SAEConfig(d_in=32, d_sae=4, k=1))
    sae.b_dec.data = x.mean(0)
    assert evaluate(sae, [x]).explained_variance == pytest.approx(0.0, abs=1e-5)


class LinearLM:
    """A stand-in language model: token embeddings at the site, then a linear head."""

    special_ids = frozenset({0})

    def __init__(self) -> None:
        self.embed, self.head, self.edits = torch.randn(20, 32), torch.randn(32, 20), {}

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.embed[tokens]
        for edit in self.edits.values():
            x = edit(x)
        return x @ self.head

    @contextmanager
    def intervene(self, edits: dict) -> Iterator[None]:
        self.edits = edits
        yield
        self.edits = {}


def test_downstream_figures_equal_their_definitions_and_special_tokens_stay() -> None:
    lm, sae = LinearLM(), random_sae()
    sae.metadata["site"] = "resid_post.0"
    tokens = torch.randint(0, 20, (6, 9))
    metrics = evaluate(sae, [lm.embed[1:]], lm=lm, tokens=tokens.split(4))
    x = lm.embed[tokens]
    with torch.no_grad():
        rebuilt = torch.where((tokens == 0)[..., None], x, sae(x.view(-1, 32)).view(x.shape))

    def ce(at: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy((at @ lm.head)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    clean, replaced, zero = ce(x).item(), ce(rebuilt).item(), ce(0 * x).item()
    assert (metrics.ce_clean, metrics.ce_sae, metrics.ce_zero) == pytest.approx((clean, replaced, zero), rel=1e-5)
    assert metrics.ce_recovered == pytest.approx((zero - replaced) / (zero - clean), rel=1e-4)
    log_p, log_q = ((at @ lm.head)[:, :-1].log_softmax(-1) for at in (x, rebuilt))
    assert metrics.kl == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-4)
    assert metrics.n_tokens == 6 * 8


def test_no_rows_and_half_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="got no rows"):
        evaluate(random_sae(), [])
    with pytest.raises(ValueError, match="only one of lm and tokens"):
        evaluate(random_sae(), [torch.randn(5, 32)], lm=LinearLM())


def test_records_leave_out_what_was_not_measured() -> None:
    names = [record["metric"] for record in evaluate(random_sae(), [torch.randn(50, 32)]).rows()]
    assert "explained_variance" in names
    assert "kl" not in names
    assert "density" not in names
