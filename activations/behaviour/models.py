"""Several models on the same texts: what they expect, how well, and how alike their layers are.

    compare_models({"a": lm_a, "b": lm_b}, texts) -> ModelsComparison

* **Prediction**: bits per character of each text (−log₂ p of its tokens but the first, over its characters: comparable
  across tokenizers), and the first choice behind each text. Two models agree where the choices are the same text; where
  they share a tokenizer the Jensen-Shannon divergence of their distributions is told too, in nats.
* **Layers**: CKA between the residual streams, layer by layer: of the texts' mean rows, or of all tokens where the
  models share a tokenizer. Debiased: near 0 for unrelated representations however few the texts, 1 for equal ones up to
  rotation and scale.

    CKA = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),  K = XXᵀ, L = YYᵀ, with the unbiased estimator of HSIC

A high CKA says that the same texts are close to each other in both, not that the models compute the same. It is ruled
by the directions of largest variance: a few outlying tokens can make it.

Sources: Kornblith et al. 2019 (arXiv 1905.00414); Song et al. 2012 for the estimator; Nguyen et al. 2021.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.inputs import tokens_of
from activations.analyses.plain import to_json
from activations.intervals import mean_interval
from activations.probes.rows import text_rows
from activations.progress import progress
from activations.readout import stream_sites

if TYPE_CHECKING:
    from activations.model import LanguageModel

MAX_ROWS = 2000
"""Tokens that are compared at most, taken evenly."""
MIN_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class TextPrediction:
    """What one model makes of one text."""

    text: str
    model: str
    bits_per_character: float | None
    """None for models that predict both ways, and texts of one token."""
    first: str
    """The token that it expects behind the text (at its last token, for BERT)."""
    probability: float


@dataclass(frozen=True, kw_only=True)
class PairComparison:
    """Two of the models."""

    first: str
    second: str
    agreement: float
    """Share of texts behind which both expect the same token."""
    jsd: float | None
    """Mean over texts, in nats; None where tokenizers differ."""
    bits_difference: float | None
    """Mean of first − second, bits per character, with its 95 % interval."""
    bits_low: float | None
    bits_high: float | None
    cka: Float[np.ndarray, "first_layers second_layers"]
    """From the embeddings to the last layer of each."""
    by: str
    """`tokens` or `texts`: what the rows of the CKA are."""
    n_rows: int


@dataclass(frozen=True)
class ModelsComparison:
    """Several models on the same texts."""

    models: tuple[str, ...]
    n_texts: int
    predictions: tuple[TextPrediction, ...]
    pairs: tuple[PairComparison, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each text and model."""
        return [asdict(each) for each in self.predictions]

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def compare_models(models: Mapping[str, LanguageModel], texts: Sequence[str]) -> ModelsComparison:
    """Reads texts with each model.

    Raises:
        ValueError: fewer than two models, fewer than four texts, a model without logits, an empty or too long text.
    """
    if len(models) < 2 or len(texts) < MIN_ROWS:
        raise ValueError(
            f"got {len(models)} models and {len(texts)} texts, expected at least 2 and {MIN_ROWS}: give more"
        )
    predictions: list[TextPrediction] = []
    last: dict[str, list[Tensor]] = {name: [] for name in models}
    bits: dict[str, list[float]] = {name: [] for name in models}
    with progress("Models", len(models) * len(texts), "texts") as advance:
        for name, lm in models.items():
            for text in texts:
                tokens = tokens_of(lm, text)
                shares = torch.softmax(lm.logits(tokens)[0, -1].double(), dim=-1).cpu()
                best = int(shares.argmax())
                spent = None
                if lm.kind == "decoder" and tokens.shape[1] > 1:
                    spent = float(lm.token_losses(tokens).double().sum()) / math.log(2) / len(text)
                bits[name].append(math.nan if spent is None else spent)
                last[name].append(shares)
                predictions.append(
                    TextPrediction(
                        text=text, model=name, bits_per_character=spent, first=lm.token_strings([best])[0],
                        probability=float(shares[best]),
                    )
                )  # fmt: skip
                advance(1, name)
    choices = {name: [each.first for each in predictions if each.model == name] for name in models}
    pairs = []
    for a, b in itertools.combinations(models, 2):
        shared = _same_tokens(models[a], models[b], texts)
        x, y = (_layers(models[name], texts, by_token=shared) for name in (a, b))
        apart = np.array(bits[a]) - np.array(bits[b])
        apart = apart[np.isfinite(apart)]
        around = mean_interval(apart) if len(apart) else None
        pairs.append(
            PairComparison(
                first=a,
                second=b,
                agreement=float(np.mean([p == q for p, q in zip(choices[a], choices[b], strict=True)])),
                jsd=_mean_jsd(last[a], last[b]) if shared else None,
                bits_difference=None if around is None else around.value,
                bits_low=None if around is None else around.low,
                bits_high=None if around is None else around.high,
                cka=np.array([[cka(p, q) for q in y] for p in x]),
                by="tokens" if shared else "texts",
                n_rows=len(x[0]),
            )
        )
    return ModelsComparison(tuple(models), len(texts), tuple(predictions), tuple(pairs))


def cka(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"]) -> float:
    """Returns the debiased linear CKA of two representations of the same n examples, in float64; NaN where one of them
    does not vary.

    Raises:
        ValueError: other numbers of rows, or fewer than four.
    """
    if len(x) != len(y) or len(x) < MIN_ROWS:
        raise ValueError(f"got {len(x)} and {len(y)} rows, expected as many, at least {MIN_ROWS}: pair them again")
    one, other = (_gram(each) for each in (x, y))
    scale = _hsic(one, one) * _hsic(other, other)
    return float(_hsic(one, other) / scale**0.5) if scale > 0 else math.nan


def _gram(x: Tensor) -> Float[Tensor, "n n"]:
    """Inner products of rows that are centred and brought to a length of about 1, the diagonal left out."""
    x = x.detach().double().cpu()
    x = x - x.mean(0)
    length = x.norm() / len(x) ** 0.5
    gram = (x / length) @ (x / length).T if length > 0 else x @ x.T
    return gram.fill_diagonal_(0)


def _hsic(one: Tensor, other: Tensor) -> float:
    """The unbiased estimator, of matrices whose diagonal is 0."""
    n = len(one)
    crossed = one.sum(0) @ other.sum(0)
    whole = one.sum() * other.sum() / ((n - 1) * (n - 2))
    return float(((one * other).sum() + whole - 2 / (n - 2) * crossed) / (n * (n - 3)))


def _same_tokens(a: LanguageModel, b: LanguageModel, texts: Sequence[str]) -> bool:
    return a.vocab_size == b.vocab_size and a.encode(list(texts)) == b.encode(list(texts))


def _layers(lm: LanguageModel, texts: Sequence[str], *, by_token: bool) -> list[Tensor]:
    """The residual stream at each place, as rows."""
    sites = stream_sites(lm)
    if not by_token:
        return list(text_rows(lm, texts, sites, context_tokens=lm.context_tokens).values())
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    for text in texts:
        for site, value in lm.capture(tokens_of(lm, text), None, sites).items():
            parts[site].append(value[0].double().cpu())
    rows = {site: torch.cat(values) for site, values in parts.items()}
    n = len(next(iter(rows.values())))
    if n < MIN_ROWS:
        raise ValueError(f"the texts have {n} tokens, expected at least {MIN_ROWS}: give longer texts")
    kept = torch.linspace(0, n - 1, min(n, MAX_ROWS)).round().long()
    return [values[kept] for values in rows.values()]


def _mean_jsd(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    found = []
    for p, q in zip(a, b, strict=True):
        middle = (p + q) / 2
        sides = [torch.where(each > 0, each * (each / middle).log(), 0.0).sum() for each in (p, q)]
        found.append(float(sides[0] + sides[1]) / 2)
    return sum(found) / len(found)
