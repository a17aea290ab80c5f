"""How good an SAE is: reconstruction, sparsity and redundancy over rows, and what the model loses that reads it.

Enters: SAEs of any architecture and rows (pairs of rows for transcoders, several sites side by side for crosscoders);
with a language model, tokens too. Leaves: `Metrics`.

1. Every piece of rows is encoded and decoded once; sums over rows are kept in float64, those of a latent in one vector
   each. Nothing of size rows × d_sae is made.
2. Explained variance is 1 − Σ‖y − ŷ‖² / Σ‖y − μ‖² over the whole set, μ the mean of all rows; never a mean of ratios of
   batches, nor with squares in the mean's place (several tools do one or the other).
3. Standard errors are those of a ratio of sums over at most 64 contiguous groups of pieces.
4. What is lost downstream is measured by `sae.downstream`.

The set of figures is that of SAEBench's core evaluation (adamkarvonen/SAEBench, evals/core). A latent's rescale factor
is the correction of Wright and Sharkey (2024), "Addressing feature suppression in SAEs", in its least-squares form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.codes import Codes
from sae.downstream import Tokens, downstream_figures, reconstruct
from sae.geometry import nearest_rows
from sae.model import SAE
from sae.sparse import RaggedCodes, code_gradients
from sae.standard_errors import RatioSums

DENSE_DENSITY = 0.1
COMMON_DENSITY = 0.01
DUPLICATE_COSINE = 0.9
MIN_EVENTS = 16
"""Activations below which a latent's rescale factor says nothing."""
LOG10_DENSITY_EDGES = tuple(-6 + 0.25 * step for step in range(25))
COSINE_EDGES = tuple(0.05 * step for step in range(21))
ROWS_AT_ONCE = 2048
SIGNED_VALUES = ("abstopk",)
"""Architectures whose values may be negative: a direction and its opposite are one there."""

Rows = Tensor | tuple[Tensor, Tensor]
"""Rows [n, d_in] or, for crosscoders, [n, sites, d_in]; for architectures that predict, pairs of these."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures of one SAE on one set of rows; `None` where they were not measured or do not exist.

    y is what the SAE should write: the row itself, a transcoder's target, all sites of a crosscoder side by side.
    """

    explained_variance: float
    """1 − Σ‖y − ŷ‖² / Σ‖y − μ‖² over all rows."""
    explained_variance_se: float | None = None
    """Its standard error, from contiguous groups of rows."""
    fvu: float | None = None
    """1 − explained_variance."""
    l0: float
    """Active latents a row, on average."""
    l1: float | None = None
    """Sum of a row's absolute activations, on average."""
    mse: float
    """Squared error, averaged over rows and dimensions."""
    cosine: float
    """Cosine between y and ŷ, averaged over rows."""
    relative_norm: float
    """‖ŷ‖ / ‖y‖, averaged over rows."""
    relative_bias: float | None = None
    """Σ‖ŷ‖² / Σ y·ŷ: below 1 the reconstruction as a whole is too short (Rajamanoharan et al. 2024, equation 10)."""
    norm_in: float | None = None
    """‖y‖, averaged over rows."""
    norm_out: float | None = None
    """‖ŷ‖, averaged over rows."""
    alive_frac: float | None = None
    """Share of latents active on at least one row."""
    dead_frac: float
    """Share of latents silent on all rows."""
    common_frac: float | None = None
    """Share of latents active on more than a hundredth of the rows."""
    dense_frac: float
    """Share of latents active on more than a tenth of the rows."""
    activation_mean: float | None = None
    """Mean absolute value of an active latent."""
    activation_std: float | None = None
    """Standard deviation of the same."""
    activation_max: float | None = None
    """Largest absolute activation."""
    negative_frac: float | None = None
    """Share of active codes with a negative value."""
    rescale_q10: float | None = None
    """Tenth percentile over latents of the factor by which least squares would multiply what a latent writes."""
    rescale_median: float | None = None
    """Median of the same; above 1 the latents are shrunken."""
    rescale_q90: float | None = None
    """Ninetieth percentile of the same."""
    decoder_max_cosine: float | None = None
    """Largest cosine of a decoder row with another one, averaged over latents."""
    decoder_max_cosine_q50: float | None = None
    """Median of the same."""
    decoder_max_cosine_q90: float | None = None
    """Ninetieth percentile of the same."""
    decoder_max_cosine_q99: float | None = None
    """Ninety-ninth percentile of the same."""
    duplicate_frac: float | None = None
    """Share of latents whose decoder row has a cosine above 0.9 with another one."""
    encoder_max_cosine: float | None = None
    """Largest cosine of an encoder row with another one, averaged over latents."""
    encoder_decoder_cosine: float | None = None
    """Cosine of a latent's encoder row with its decoder row, averaged; None where they live in different spaces."""
    n_rows: int
    ce_clean: float | None = None
    """Mean next-token cross-entropy of the untouched model, nats."""
    ce_sae: float | None = None
    """The same with the site replaced by its reconstruction."""
    ce_zero: float | None = None
    """The same with the site set to zero."""
    ce_recovered: float | None = None
    """(ce_zero − ce_sae) / (ce_zero − ce_clean)."""
    ce_recovered_se: float | None = None
    """Its standard error, from contiguous groups of sequences."""
    kl: float | None = None
    """Mean KL divergence from the untouched model's predictions to those with the reconstruction, nats."""
    kl_zero: float | None = None
    """The same with the site set to zero."""
    kl_score: float | None = None
    """1 − kl / kl_zero."""
    consistent_activation: float | None = None
    """Tokens a latent fires on in a sequence in which it fires at all, averaged over latents."""
    n_tokens: int | None = None
    """Predicted tokens behind the cross-entropies."""
    explained_variance_by_site: Sequence[float] = ()
    """The same as `explained_variance` for each site that is written, where there are several."""
    ce_recovered_by_site: Sequence[float] = ()
    """The same as `ce_recovered` with one site replaced at a time, where there are several."""
    density_histogram: Sequence[int] = ()
    """Live latents by log10 of density, in bins of 0.25 from −6 to 0 (the first takes what is below)."""
    redundancy_histogram: Sequence[int] = ()
    """Latents by the largest cosine of their decoder row with another one, in bins of 0.05 from 0 to 1."""
    density: Sequence[float] = ()
    """Share of rows on which each latent is active."""
    rescale: Sequence[float] = ()
    """Each latent's rescale factor; NaN below 16 activations."""
    decoder_max_cosines: Sequence[float] = ()
    """Each decoder row's largest cosine with another one."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns one record a figure that was measured: `metric`, `value`."""
        records = [{"metric": field.name, "value": getattr(self, field.name)} for field in fields(self)]
        return [record for record in records if isinstance(record["value"], int | float)]

    def to_json(self) -> str:
        """Returns figures and histograms as JSON; what is known of each single latent is left out."""
        content = {record["metric"]: record["value"] for record in self.rows()}
        listed = ("explained_variance_by_site", "ce_recovered_by_site", "density_histogram", "redundancy_histogram")
        content |= {name: list(getattr(self, name)) for name in listed if getattr(self, name)}
        return json.dumps(content, indent=2)


@torch.no_grad()
def evaluate(sae: SAE, rows: Iterable[Rows], *, lm: Any = None, tokens: Iterable[Tokens] | None = None) -> Metrics:
    """Measures `sae` on `rows` and, given a language model and tokens, what its reconstruction costs the model.

    Rows are Float[n, d_in] (Float[n, sites, d_in] for crosscoders); pairs (x, y) of these for transcoders and
    cross-layer transcoders. `lm` is an `activations.LanguageModel` (anything with `logits`, `intervene` and
    `special_ids`); the sites are the SAE's. Special tokens keep their own activations where the SAE was trained without
    them.

    Raises:
        ValueError: no rows, rows of another shape, or `lm` without `tokens`.
    """
    _check_both(lm, tokens)
    sums = _RowSums(sae)
    for piece in rows:
        sums.add(piece)
    figures = sums.figures()
    if lm is not None and tokens is not None:
        figures |= downstream_figures({"sae": sae}, lm, tokens)["sae"]
    return Metrics(**figures)


@torch.no_grad()
def evaluate_together(
    saes: Mapping[str, SAE],
    rows: Iterable[Mapping[str, Float[Tensor, "_ _"]]],
    *,
    lm: Any = None,
    tokens: Iterable[Tokens] | None = None,
) -> dict[str, Metrics]:
    """Measures several SAEs of one model in one pass over `rows`, which come by site, and one over `tokens`.

    The untouched and the ablated model run once for all; each SAE adds a run of its own.

    Raises:
        ValueError: as `evaluate`, or rows that lack an SAE's site.
    """
    _check_both(lm, tokens)
    sums = {name: _RowSums(sae) for name, sae in saes.items()}
    for piece in rows:
        for name, sae in saes.items():
            sums[name].add(rows_of(sae, piece))
    figures = {name: each.figures() for name, each in sums.items()}
    if lm is not None and tokens is not None:
        for name, found in downstream_figures(saes, lm, tokens).items():
            figures[name] |= found
    return {name: Metrics(**each) for name, each in figures.items()}


def rows_of(sae: SAE, by_site: Mapping[str, Tensor]) -> Rows:
    """Returns what an SAE reads (and, where it predicts, what it should write) out of rows by site."""
    missing = [site for site in (*sae.sites, *sae.target_sites) if site not in by_site]
    if missing:
        raise ValueError(f"rows hold {', '.join(by_site)}, the SAE needs {missing[0]} too: harvest that site")
    several = sae.config.n_sites > 1
    read = torch.stack([by_site[site] for site in sae.sites], 1) if several else by_site[sae.site]
    if not sae.config.predicts_target:
        return read
    targets = [by_site[site] for site in sae.target_sites]
    return read, torch.stack(targets, 1) if several else targets[0]


def _check_both(lm: Any, tokens: Any) -> None:
    if (lm is None) != (tokens is None):
        raise ValueError("evaluate got only one of lm and tokens, expected both or neither: give the other one too")


class _RowSums:
    """Sums over rows in float64; μ is removed by a shift that the first rows give, against cancellation."""

    def __init__(self, sae: SAE) -> None:
        self.sae = sae
        self.n = 0
        self.width = sae.b_dec.numel()
        device = sae.W_dec.device
        self.shift: Tensor | None = None
        self.groups = RatioSums()
        self.sums = torch.zeros(10, dtype=torch.float64, device=device)
        self.largest = torch.zeros((), device=device)
        self.site_errors = torch.zeros(sae.config.n_sites, dtype=torch.float64, device=device)
        self.site_squares = torch.zeros_like(self.site_errors)
        self.fired = torch.zeros(sae.config.d_sae, dtype=torch.int64, device=device)
        self.latent_squares = torch.zeros(sae.config.d_sae, dtype=torch.float64, device=device)
        self.latent_errors = torch.zeros_like(self.latent_squares)

    def add(self, piece: Rows) -> None:
        x, y = piece if isinstance(piece, tuple) else (piece, piece)
        if isinstance(piece, tuple) != self.sae.config.predicts_target:
            got, expected = ("pairs", "rows") if isinstance(piece, tuple) else ("rows", "pairs (x, y)")
            raise ValueError(
                f"evaluate got {got} for architecture `{self.sae.config.architecture}`, expected {expected}: give what "
                "it was trained on"
            )
        if len(x) != len(y) or (y[0].numel() if len(y) else self.width) != self.width:
            raise ValueError(
                f"evaluate got targets of shape {tuple(y.shape)} for rows of shape {tuple(x.shape)}, expected "
                f"{self.width} values for each row: give the SAE's own sites"
            )
        step = max(1, min(ROWS_AT_ONCE, (1 << 25) // self.width))
        for start in range(0, len(x), step):
            self._add(x[start : start + step], y[start : start + step])

    def _add(self, x: Tensor, y: Tensor) -> None:
        device = self.sae.W_dec.device
        x = x.to(device, torch.float32)
        y = y.to(device, torch.float32).reshape(len(x), -1)
        codes = self.sae.encode(x)
        y_hat = reconstruct(self.sae, x, codes).reshape(len(x), -1)
        if self.shift is None:
            self.shift = y.double().mean(0)
        error, moved = y - y_hat, y.double() - self.shift
        norms, norms_hat = y.norm(dim=1), y_hat.norm(dim=1)
        values = codes.values[codes.active].abs()
        self.sums += torch.stack(
            [
                torch.cosine_similarity(y, y_hat, dim=1).double().sum(),
                (norms_hat / norms.clamp(min=1e-12)).double().sum(),
                norms.double().sum(),
                norms_hat.double().sum(),
                y_hat.double().pow(2).sum(),
                (y * y_hat).double().sum(),
                codes.active.sum().double(),
                values.double().sum(),
                values.double().pow(2).sum(),
                (codes.values < 0).sum().double(),
            ]
        )
        if len(values):
            self.largest = torch.maximum(self.largest, values.max())
        by_site = error.double().pow(2).view(len(x), len(self.site_errors), -1).sum((0, 2))
        self.site_errors += by_site
        self.site_squares += moved.pow(2).view(len(x), len(self.site_errors), -1).sum((0, 2))
        ones = torch.full((1,), float(len(x)), dtype=torch.float64, device=device)
        self.groups.add(torch.cat([by_site.sum()[None], moved.pow(2).sum()[None], ones, moved.sum(0)]))
        self._add_latents(codes, error)
        self.n += len(x)

    def _add_latents(self, codes: Codes, error: Tensor) -> None:
        rows, slots = codes.active.nonzero(as_tuple=True)
        latents = codes.indices[rows, slots].long()
        written = codes.values[rows, slots]
        if codes.scale is not None:
            written = written * codes.scale[rows]
        self.fired.index_add_(0, latents, torch.ones_like(latents))
        self.latent_squares.index_add_(0, latents, written.double().pow(2))
        ragged = RaggedCodes.of_rows(rows, len(error), latents, written)
        missing = code_gradients(error, ragged, self.sae.W_dec)
        self.latent_errors.index_add_(0, latents, (written * missing).double())

    def figures(self) -> dict[str, Any]:
        if not self.n:
            raise ValueError("evaluate got no rows, expected at least one: check the data and its held-out share")
        n, d_sae = self.n, self.sae.config.d_sae
        cosine, relative, norm_in, norm_out, out_squares, dot, active, total, squares, negative = self.sums.tolist()
        density = self.fired.double() / n
        mean = total / active if active else None
        return {
            **self._explained(),
            "l0": active / n,
            "l1": total / n,
            "cosine": cosine / n,
            "relative_norm": relative / n,
            "relative_bias": out_squares / dot if dot else None,
            "norm_in": norm_in / n,
            "norm_out": norm_out / n,
            "alive_frac": float((self.fired > 0).double().mean()),
            "dead_frac": float((self.fired == 0).double().mean()),
            "common_frac": float((density > COMMON_DENSITY).double().mean()),
            "dense_frac": float((density > DENSE_DENSITY).double().mean()),
            "activation_mean": mean,
            "activation_std": math.sqrt(max(squares / active - (total / active) ** 2, 0.0)) if active else None,
            "activation_max": float(self.largest) if active else None,
            "negative_frac": negative / active if active else None,
            "n_rows": n,
            "density": tuple(density.tolist()),
            "density_histogram": _counted(density[self.fired > 0].log10(), LOG10_DENSITY_EDGES),
            **self._rescaling(),
            **(redundancy(self.sae) if d_sae > 1 else {}),
        }

    def _explained(self) -> dict[str, Any]:
        groups = self.groups.groups()
        means = groups[:, 3:].sum(0) / self.n
        per_site = self.site_squares - self.n * means.pow(2).view(len(self.site_squares), -1).sum(1)
        error, variance = float(self.site_errors.sum()), float(per_site.sum())
        spread = groups[:, 1] - 2 * groups[:, 3:] @ means + groups[:, 2] * means.pow(2).sum()
        defined = variance > 0
        several = len(self.site_errors) > 1
        return {
            "explained_variance": 1 - error / variance if defined else float("nan"),
            "explained_variance_se": self.groups.ratio_error(groups[:, 0], spread) if defined else None,
            "fvu": error / variance if defined else float("nan"),
            "mse": error / (self.n * self.width),
            "explained_variance_by_site": tuple((1 - self.site_errors / per_site).tolist()) if several else (),
        }

    def _rescaling(self) -> dict[str, Any]:
        norms = self.sae.W_dec.double().pow(2).sum(1)
        factor = 1 + self.latent_errors / (norms * self.latent_squares)
        factor = torch.where(self.fired >= MIN_EVENTS, factor, torch.nan)
        known = factor[torch.isfinite(factor)]
        points = _quantiles(known, (0.1, 0.5, 0.9))
        return dict(zip(("rescale_q10", "rescale_median", "rescale_q90"), points, strict=True)) | {
            "rescale": tuple(factor.tolist())
        }


@torch.no_grad()
def redundancy(sae: SAE) -> dict[str, Any]:
    """Returns how alike the latents' directions are: the figures of `Metrics` that weights alone decide."""
    signed = sae.config.architecture not in SIGNED_VALUES
    cosines = nearest_rows(sae.W_dec, sae.W_dec, is_same=True, signed=signed)[0].double()
    encoder = nearest_rows(sae.W_enc, sae.W_enc, is_same=True, signed=signed)[0].double()
    names = ("decoder_max_cosine_q50", "decoder_max_cosine_q90", "decoder_max_cosine_q99")
    shared = sae.W_enc.shape == sae.W_dec.shape and not sae.config.predicts_target
    between = torch.cosine_similarity(sae.W_enc, sae.W_dec, dim=1).double().mean() if shared else None
    return {
        "decoder_max_cosine": float(cosines.mean()),
        **dict(zip(names, _quantiles(cosines, (0.5, 0.9, 0.99)), strict=True)),
        "duplicate_frac": float((cosines > DUPLICATE_COSINE).double().mean()),
        "encoder_max_cosine": float(encoder.mean()),
        "encoder_decoder_cosine": None if between is None else float(between),
        "redundancy_histogram": _counted(cosines, COSINE_EDGES),
        "decoder_max_cosines": tuple(cosines.tolist()),
    }


def _quantiles(values: Tensor, points: Sequence[float]) -> list[float | None]:
    if not len(values):
        return [None] * len(points)
    ordered = values.sort().values
    # torch.quantile takes at most 2²⁴ values
    return [float(ordered[min(int(point * len(ordered)), len(ordered) - 1)]) for point in points]


def _counted(values: Tensor, edges: Sequence[float]) -> tuple[int, ...]:
    inner = torch.tensor(edges[1:-1], dtype=values.dtype, device=values.device)
    return tuple(torch.bincount(torch.bucketize(values, inner, right=True), minlength=len(edges) - 1).tolist())
