"""Which tokens of a text made the number: attribution by gradients and by replacing tokens.

    attribute(lm, text, target=None, *, method="integrated_gradients", …) -> Attribution

Enters: a model, a text, a target (`activations.analyses.targets`). Leaves: one score for each token of the text, and
what is known of the method's error. With m the target's number and e_t the embedding of token t:

    gradient_norm          ‖∂m/∂e_t‖                                   sensitivity; no sign
    gradient_x_input       e_t · ∂m/∂e_t                               the first-order effect of shrinking e_t to 0
    integrated_gradients   (e_t − b_t) · Σ_k w_k ∂m/∂e_t at b + α_k (e − b)     sums to m(text) − m(baseline)
    leave_one_out          m(text) − m(text without t)                 later tokens move up by one position
    substitution           m(text) − mean over substitutes s of m(text with s for t)

Integrated gradients use Gauss-Legendre nodes α_k and weights w_k, and return the completeness error. Special tokens
(BOS) are kept as they are by baselines, removal and substitution: their score there is 0.

Baselines: `pad` (the tokenizer's padding or end token in every place), `mean` (the mean row of the embedding table),
`zero`, or a text or token of your own. A zero row makes norms that divide by a row's length jump, and the integral with
them: `zero` (and a padding token whose row is zero) does not converge in RMS-norm models; the error says so.

They mislead: gradients are local (a saturated model shows none), replaced texts are unlike any text the model knows,
and scores of single tokens cannot show that two tokens matter only together.

Source: Simonyan et al. 2013 (1312.6034); Sundararajan et al. 2017 (1703.01365); Zeiler and Fergus 2013 (1311.2901).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import token_id
from activations.analyses.plain import plain, to_json
from activations.analyses.targets import Metric, Target

if TYPE_CHECKING:
    from activations.model import LanguageModel

BATCH_TOKENS = 2048
"""Tokens in one pass of many replaced or interpolated texts."""


@dataclass(frozen=True)
class Attribution:
    """Scores of a text's tokens for a target."""

    model: str
    text: str | None
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    method: str
    settings: dict[str, Any]
    """What the method was told: baseline, steps, samples, seed, …"""
    target: str
    """What the number is."""
    scores: Float[np.ndarray, " tokens"]
    """In units of the target's number (for `gradient_norm` that over an embedding's length)."""
    value: float
    """m(text)."""
    baseline_value: float | None = None
    """m(baseline), for methods whose scores sum to m(text) − m(baseline)."""
    error: float | None = None
    """sum of scores − (m(text) − m(baseline))."""
    standard_errors: Float[np.ndarray, " tokens"] | None = None
    """Of sampled scores."""

    @property
    def relative_error(self) -> float | None:
        """`error` as a share of what is divided."""
        if self.error is None or self.baseline_value is None:
            return None
        return abs(self.error) / max(abs(self.value - self.baseline_value), 1e-12)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each token, in order of the text."""
        total = float(np.abs(self.scores).sum())
        return [
            {
                "position": position,
                "token": token,
                "score": float(score),
                "share": float(abs(score) / total) if total else 0.0,
                "standard_error": None if self.standard_errors is None else plain(self.standard_errors[position]),
            }
            for position, (token, score) in enumerate(zip(self.tokens, self.scores, strict=True))
        ]

    def to_json(self) -> str:
        return to_json(self)


def attribute(
    lm: LanguageModel,
    text: str | Int[Tensor, "1 seq"],
    target: Target = None,
    *,
    method: str = "integrated_gradients",
    contrast: str | int | None = None,
    position: int | None = None,
    measure: str = "logit",
    **settings: Any,
) -> Attribution:
    """Scores the tokens of `text` for `target` by one of `METHODS`; `settings` are that method's own.

    Raises:
        ValueError: unknown method or setting, and whatever the target refuses.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown, expected one of {', '.join(METHODS)}: choose one of these")
    metric = Metric(lm, text, target, contrast=contrast, position=position, measure=measure)
    function = METHODS[method]
    known = set(list(inspect.signature(function).parameters)[1:])
    if unknown := sorted(set(settings) - known):
        expected = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{method} has no setting {unknown[0]!r}, expected {expected}: leave it out")
    parts = function(metric, **settings)
    ids = metric.tokens[0, : metric.count].tolist()
    return Attribution(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(ids)),
        token_ids=tuple(ids),
        method=method,
        target=metric.name,
        **parts,
    )


def _gradient_norm(metric: Metric) -> dict[str, Any]:
    value, _, gradient = _at_the_text(metric)
    return {"scores": gradient.norm(dim=-1).cpu().numpy(), "value": value, "settings": {}}


def _gradient_x_input(metric: Metric) -> dict[str, Any]:
    value, rows, gradient = _at_the_text(metric)
    return {"scores": (gradient * rows).sum(-1).cpu().numpy(), "value": value, "settings": {}}


def _integrated_gradients(metric: Metric, *, baseline: str | int = "pad", steps: int = 32) -> dict[str, Any]:
    if steps < 1:
        raise ValueError(f"got steps={steps}, expected at least 1: ask for 16 or more")
    rows, base = embeddings_of(metric, metric.tokens), baseline_embeddings(metric, baseline)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas = torch.tensor((nodes + 1) / 2, device=rows.device, dtype=rows.dtype)
    total = torch.zeros(rows.shape[1:], dtype=torch.float64, device=rows.device)
    chunk = max(1, BATCH_TOKENS // rows.shape[1])
    for start in range(0, steps, chunk):
        some = alphas[start : start + chunk]
        _, gradient = _gradients(metric, base + some[:, None, None] * (rows - base))
        weight = torch.tensor(weights[start : start + chunk] / 2, device=rows.device)
        total += (gradient.double() * weight[:, None, None]).sum(0)
    scores = (total * (rows - base)[0].double()).sum(-1)[: metric.count].cpu().numpy()
    with torch.no_grad():
        value, base_value = (float(metric(metric.tokens, each)) for each in (rows, base))
    return {
        "scores": scores,
        "value": value,
        "baseline_value": base_value,
        "error": float(scores.sum() - (value - base_value)),
        "settings": {"baseline": baseline, "steps": steps},
    }


@torch.no_grad()
def _leave_one_out(metric: Metric) -> dict[str, Any]:
    value = float(metric(metric.tokens))
    scores = np.zeros(metric.count)
    players = replaceable(metric)
    if metric.tokens.shape[1] == 1:
        raise ValueError("the text has one token, expected at least two to leave one out: give a longer text")
    ids = metric.tokens[0]
    for before in (True, False):
        # where the logits are read moves up when a token before it goes; the token there itself is read one before
        some = [each for each in players if (each <= metric.position) == before]
        for group in _groups(some, len(ids)):
            rows = torch.stack([torch.cat([ids[:each], ids[each + 1 :]]) for each in group])
            place = max(0, metric.position - 1) if before else metric.position
            scores[group] = value - metric(rows, position=place).double().cpu().numpy()
    return {"scores": scores, "value": value, "settings": {}}


@torch.no_grad()
def _substitution(
    metric: Metric, *, substitute: str | int | None = None, samples: int = 8, seed: int = 0
) -> dict[str, Any]:
    if samples < 1:
        raise ValueError(f"got samples={samples}, expected at least 1: ask for more")
    value = float(metric(metric.tokens))
    lm, players = metric.lm, replaceable(metric)
    if substitute is None:
        ordinary = torch.tensor([token for token in range(len(lm.tokenizer)) if token not in lm.special_ids])
        generator = torch.Generator().manual_seed(seed)
        # one draw for all tokens: their scores then differ by the tokens, not by the draw
        drawn = ordinary[torch.randint(len(ordinary), (samples,), generator=generator)].tolist()
        settings: dict[str, Any] = {"samples": samples, "seed": seed}
    else:
        drawn = [token_id(lm, substitute)]
        settings = {"substitute": lm.token_strings(drawn)[0]}
    changed = np.zeros((len(drawn), metric.count))
    for place, token in enumerate(drawn):
        for group in _groups(players, metric.tokens.shape[1]):
            rows = metric.tokens.repeat(len(group), 1)
            rows[torch.arange(len(group)), torch.tensor(group)] = token
            changed[place, group] = value - metric(rows).double().cpu().numpy()
    errors = changed.std(0, ddof=1) / np.sqrt(len(drawn)) if len(drawn) > 1 else None
    return {"scores": changed.mean(0), "value": value, "standard_errors": errors, "settings": settings}


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "gradient_norm": _gradient_norm,
    "gradient_x_input": _gradient_x_input,
    "integrated_gradients": _integrated_gradients,
    "leave_one_out": _leave_one_out,
    "substitution": _substitution,
}


def replaceable(metric: Metric) -> list[int]:
    """Returns the positions of the text's tokens that are not special (all, where there are no others)."""
    ids = metric.tokens[0, : metric.count].tolist()
    ordinary = [place for place, token in enumerate(ids) if token not in metric.lm.special_ids]
    return ordinary or list(range(metric.count))


@torch.no_grad()
def embeddings_of(metric: Metric, tokens: Int[Tensor, "1 seq"]) -> Float[Tensor, "1 seq d"]:
    """Returns what the token embedding makes of tokens, in the model's type."""
    return metric.lm.capture(tokens, None, ["embed"])["embed"]


@torch.no_grad()
def baseline_embeddings(metric: Metric, baseline: str | int) -> Float[Tensor, "1 seq d"]:
    """Returns the rows that a baseline puts in place of the text's, special tokens and a continuation aside.

    Raises:
        ValueError: neither a known name, nor one token, nor a text of as many tokens as the one explained.
    """
    lm, rows = metric.lm, embeddings_of(metric, metric.tokens).clone()
    places = replaceable(metric)
    if baseline == "zero":
        rows[0, places] = 0
    elif baseline == "mean":
        every = torch.arange(len(lm.tokenizer), device=lm.device)
        span = min(lm.context_tokens, 512)
        total = torch.zeros(rows.shape[-1], dtype=torch.float64, device=lm.device)
        for start in range(0, len(every), span):
            total += embeddings_of(metric, every[None, start : start + span])[0].double().sum(0)
        rows[0, places] = (total / len(every)).to(rows.dtype)
    else:
        ids = metric.tokens.clone()
        ids[0, places] = baseline_ids(metric, baseline, places)
        rows[0, places] = embeddings_of(metric, ids)[0, places]
    return rows


def baseline_ids(metric: Metric, baseline: str | int, places: list[int]) -> Int[Tensor, " places"]:
    """Returns the ids that a baseline of tokens puts at `places`; ValueError as `baseline_embeddings`."""
    lm, device = metric.lm, metric.tokens.device
    if baseline == "pad":
        return torch.full((len(places),), lm.pad_id, device=device)
    if isinstance(baseline, str):
        ids = lm.encode([baseline])[0] if baseline else []
        if len(ids) == metric.count:
            return torch.tensor(ids, device=device)[places]
        ordinary = [each for each in ids if each not in lm.special_ids]
        if len(ordinary) != 1:
            raise ValueError(
                f"baseline {baseline!r} has {len(ids)} tokens, expected pad, mean, zero, one token, or a text of "
                f"{metric.count} tokens: choose one of these"
            )
    return torch.full((len(places),), token_id(lm, baseline), device=device)


def _at_the_text(metric: Metric) -> tuple[float, Tensor, Tensor]:
    """The number, the text's own rows and the gradient there; Float64[tokens, d] both."""
    rows = embeddings_of(metric, metric.tokens)
    values, gradient = _gradients(metric, rows)
    return float(values[0]), rows[0, : metric.count].double(), gradient[0, : metric.count].double()


def _gradients(metric: Metric, rows: Float[Tensor, "batch seq d"]) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = rows.detach().clone().requires_grad_()
        values = metric(metric.tokens.expand(len(rows), -1), leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def _groups(places: list[int], length: int) -> list[list[int]]:
    """Places in groups whose texts fit one pass."""
    size = max(1, BATCH_TOKENS // length)
    return [places[start : start + size] for start in range(0, len(places), size)]
