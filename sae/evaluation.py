"""How good an SAE is: reconstruction and sparsity over rows, and what the model loses when it reads the reconstruction.

Explained variance is 1 − Σ‖x − x̂‖² / Σ‖x − μ‖² over the whole evaluation set (never a mean of per-batch ratios; several
tools get this wrong). Recovered cross-entropy is (CE_zero − CE_sae) / (CE_zero − CE_clean) with zero ablation of the
site (SAEBench, core evaluation); KL is the mean of KL(clean ‖ with SAE) over predicted tokens, in nats.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.progress import progress
from sae.model import SAE

DENSE_DENSITY = 0.1


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures of one SAE on one set of rows; `None` where the language model was not given."""

    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − μ‖² over all rows."""
    l0: float
    """Active latents a row, on average."""
    mse: float
    """Squared error, averaged over rows and dimensions."""
    cosine: float
    """Cosine between row and reconstruction, averaged over rows."""
    relative_norm: float
    """‖x̂‖ / ‖x‖, averaged over rows."""
    dead_frac: float
    """Share of latents silent on all rows."""
    dense_frac: float
    """Share of latents active on more than a tenth of the rows."""
    n_rows: int
    ce_clean: float | None = None
    """Mean next-token cross-entropy of the untouched model, nats."""
    ce_sae: float | None = None
    """The same with the site replaced by its reconstruction."""
    ce_zero: float | None = None
    """The same with the site set to zero."""
    ce_recovered: float | None = None
    """(ce_zero − ce_sae) / (ce_zero − ce_clean)."""
    kl: float | None = None
    """Mean KL divergence from the untouched model's predictions to those with the reconstruction, nats."""
    n_tokens: int | None = None
    """Predicted tokens behind the cross-entropies."""
    density: tuple[float, ...] = ()
    """Share of rows on which each latent is active."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record a figure: `metric`, `value`."""
        return [
            {"metric": field.name, "value": getattr(self, field.name)}
            for field in fields(self)
            if field.name != "density" and getattr(self, field.name) is not None
        ]

    def to_json(self) -> str:
        """Returns the figures as JSON, per-latent densities left out."""
        return json.dumps({record["metric"]: record["value"] for record in self.rows()}, indent=2)


@torch.no_grad()
def evaluate(
    sae: SAE,
    rows: Iterable[Float[Tensor, "_ d_in"]],
    *,
    lm: Any = None,
    tokens: Iterable[Int[Tensor, "_ seq"]] | None = None,
) -> Metrics:
    """Measures `sae` on `rows` and, given a language model and tokens, what its reconstruction costs the model.

    `lm` is an `activations.LanguageModel` (anything with `logits`, `intervene` and `special_ids`); the site is the
    SAE's. Special tokens keep their own activations where the SAE was trained without them.

    Raises:
        ValueError: no rows, rows of another width, or `lm` without `tokens`.
    """
    if (lm is None) != (tokens is None):
        raise ValueError("evaluate got only one of lm and tokens, expected both or neither: give the other one too")
    sums = _RowSums(sae)
    for piece in rows:
        if len(piece):
            sums.add(piece)
    figures = sums.figures()
    if lm is not None and tokens is not None:
        figures |= _downstream(sae, lm, tokens)
    return Metrics(**figures)


class _RowSums:
    """Sums over rows in float64; μ is removed by a shift that the first rows give, against cancellation."""

    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self.n = 0
        self.shift: Tensor | None = None
        device = sae.W_dec.device
        self.shifted = torch.zeros(sae.config.d_in, dtype=torch.float64, device=device)
        self.squares = torch.zeros(5, dtype=torch.float64, device=device)
        self.fired = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=device)

    def add(self, piece: Tensor) -> None:
        x = piece.to(self.sae.W_dec.device, torch.float32)
        codes = self.sae.encode(x)
        x_hat = self.sae.decode(codes)
        if self.shift is None:
            self.shift = x.double().mean(0)
        moved = x.double() - self.shift
        self.shifted += moved.sum(0)
        norms, norms_hat = x.norm(dim=1), x_hat.norm(dim=1)
        self.squares += torch.stack(
            [
                moved.pow(2).sum(),
                (x - x_hat).double().pow(2).sum(),
                torch.cosine_similarity(x, x_hat, dim=1).double().sum(),
                (norms_hat / norms.clamp(min=1e-12)).double().sum(),
                codes.active.sum().double(),
            ]
        )
        self.fired += torch.bincount(codes.indices[codes.active].long(), minlength=len(self.fired))
        self.n += len(x)

    def figures(self) -> dict[str, Any]:
        if not self.n:
            raise ValueError("evaluate got no rows, expected at least one: check the data and its held-out share")
        total, error, cosine, relative, active = self.squares.tolist()
        variance = total - float(self.shifted.pow(2).sum()) / self.n
        density = self.fired.double() / self.n
        return {
            "explained_variance": 1 - error / variance if variance > 0 else float("nan"),
            "l0": active / self.n,
            "mse": error / (self.n * self.sae.config.d_in),
            "cosine": cosine / self.n,
            "relative_norm": relative / self.n,
            "dead_frac": float((self.fired == 0).double().mean()),
            "dense_frac": float((density > DENSE_DENSITY).double().mean()),
            "n_rows": self.n,
            "density": tuple(density.tolist()),
        }


def _downstream(sae: SAE, lm: Any, tokens: Iterable[Tensor]) -> dict[str, Any]:
    site = sae.site
    excluded = sorted(lm.special_ids) if (sae.metadata.get("data") or {}).get("exclude_special_tokens", True) else []
    sums, count = torch.zeros(4, dtype=torch.float64), 0
    with progress("cross-entropy", None, "tok") as advance:
        for batch in tokens:
            special = torch.isin(batch, torch.tensor(excluded, dtype=batch.dtype, device=batch.device))
            clean = lm.logits(batch).float()
            with lm.intervene({site: _reconstruction(sae, special)}):
                replaced = lm.logits(batch).float()
            with lm.intervene({site: torch.zeros_like}):
                ablated = lm.logits(batch).float()
            targets = batch[:, 1:].to(clean.device)
            log_clean = clean[:, :-1].log_softmax(-1)
            log_replaced = replaced[:, :-1].log_softmax(-1)
            kl = (log_clean.exp() * (log_clean - log_replaced)).sum(-1)
            losses = [
                _nll(log_clean, targets),
                _nll(log_replaced, targets),
                _nll(ablated[:, :-1].log_softmax(-1), targets),
            ]
            sums += torch.stack([value.double().sum().cpu() for value in (*losses, kl)])
            count += targets.numel()
            advance(batch.numel())
    if not count:
        raise ValueError(
            "evaluate got no tokens, expected batches of [batch, seq] with seq of at least 2: check the data"
        )
    clean_ce, sae_ce, zero_ce, kl_mean = (sums / count).tolist()
    return {
        "ce_clean": clean_ce,
        "ce_sae": sae_ce,
        "ce_zero": zero_ce,
        "ce_recovered": (zero_ce - sae_ce) / (zero_ce - clean_ce),
        "kl": kl_mean,
        "n_tokens": count,
    }


def _nll(log_probs: Tensor, targets: Tensor) -> Tensor:
    return -log_probs.gather(2, targets[..., None]).squeeze(-1)


def _reconstruction(sae: SAE, special: Tensor) -> Callable[[Tensor], Tensor]:
    def edit(x: Tensor) -> Tensor:
        rebuilt = sae(x.reshape(-1, x.shape[-1]).float().to(sae.W_dec.device)).view(x.shape).to(x.device, x.dtype)
        return torch.where(special.to(x.device)[..., None], x, rebuilt)

    return edit
