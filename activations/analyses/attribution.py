"""Which tokens of a text made the number: attribution by gradients, by relevance and by replacing tokens.

    attribute(lm, text, target=None, *, method="integrated_gradients", …) -> Attribution

Enters: a model, a text, a target (`activations.analyses.targets`). Leaves: one score for each token of the text, and
what is known of the method's error. With m the target's number and e_t the embedding of token t:

    gradient_norm          ‖∂m/∂e_t‖                                   sensitivity; no sign
    gradient_x_input       e_t · ∂m/∂e_t                               the first-order effect of shrinking e_t to 0
    integrated_gradients   (e_t − b_t) · Σ_k w_k ∂m/∂e_t at b + α_k (e − b)     sums to m(text) − m(baseline)
    attn_lrp, cp_lrp       e_t · ∂̃m/∂e_t, ∂̃ by the rules of `lrp`       cp_lrp sums to m where there are no biases
    leave_one_out          m(text) − m(text without t)                 later tokens move up by one position
    substitution           m(text) − mean over substitutes s of m(text with s for t)
    shapley                what t adds to m, the mean over all orders in which tokens could come; sums as the integral

`method` may also be a function of yours: from the rows e, Float64[tokens, d], and ∂m/∂e, of the same shape, to a score
for each token.

Integrated gradients use Gauss-Legendre nodes α_k and weights w_k, and return the completeness error. Special tokens
(BOS) are kept as they are by baselines, removal and substitution: their score there is 0.

Baselines: `pad` (the tokenizer's padding or end token in every place), `mean` (the mean row of the embedding table),
`zero`, or a text or token of your own. A zero row makes norms that divide by a row's length jump, and the integral with
them: `zero` (and a padding token whose row is zero) does not converge in RMS-norm models; the error says so.

They mislead: gradients are local (a saturated model shows none), replaced texts are unlike any text the model knows,
and scores of single tokens cannot show that two tokens matter only together.

Sources stand with the methods: `gradients`, `lrp`, `replacing`, `shapley`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.gradients import at_the_text, gradient_norm, gradient_x_input, integrated_gradients
from activations.analyses.lrp import attn_lrp, cp_lrp
from activations.analyses.plain import plain, to_json
from activations.analyses.replacing import leave_one_out, substitution
from activations.analyses.shapley import shapley
from activations.analyses.targets import Metric, Target

if TYPE_CHECKING:
    from activations.model import LanguageModel

GradientFunction = Callable[[Tensor, Tensor], Tensor]


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
    """m(baseline), for methods whose scores sum to m(text) − m(baseline); 0 for relevance, which sums to m(text)."""
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
    method: str | GradientFunction = "integrated_gradients",
    contrast: str | int | None = None,
    position: int | None = None,
    measure: str = "logit",
    **settings: Any,
) -> Attribution:
    """Scores the tokens of `text` for `target` by one of `METHODS`, or by a function of embeddings and gradients;
    `settings` are that method's own.

    Raises:
        ValueError: unknown method or setting, a function that returns no score for each token, and whatever the target
            refuses.
    """
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"method {method!r} is unknown, expected one of {', '.join(METHODS)}: choose one of these")
    metric = Metric(lm, text, target, contrast=contrast, position=position, measure=measure)
    function = METHODS[method] if isinstance(method, str) else _of_gradients(method)
    name = method if isinstance(method, str) else getattr(method, "__name__", "function")
    known = set(list(inspect.signature(function).parameters)[1:])
    if unknown := sorted(set(settings) - known):
        expected = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{name} has no setting {unknown[0]!r}, expected {expected}: leave it out")
    parts = function(metric, **settings)
    ids = metric.tokens[0, : metric.count].tolist()
    return Attribution(
        model=lm.name,
        text=text if isinstance(text, str) else None,
        tokens=tuple(lm.token_strings(ids)),
        token_ids=tuple(ids),
        method=name,
        target=metric.name,
        **parts,
    )


def _of_gradients(function: GradientFunction) -> Callable[..., dict[str, Any]]:
    def scored(metric: Metric) -> dict[str, Any]:
        value, rows, gradient = at_the_text(metric)
        scores = function(rows, gradient)
        if not isinstance(scores, Tensor) or scores.shape != (metric.count,):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"the method's function returned {got}, expected {metric.count} scores: return one for each token"
            )
        return {"scores": scores.detach().double().cpu().numpy(), "value": value, "settings": {}}

    return scored


METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "gradient_norm": gradient_norm,
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "attn_lrp": attn_lrp,
    "cp_lrp": cp_lrp,
    "leave_one_out": leave_one_out,
    "substitution": substitution,
    "shapley": shapley,
}
