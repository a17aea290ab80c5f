"""Where a model keeps a fact: causal tracing.

    trace_fact(lm, text, subject, target=None, *, noise=3.0, samples=10, window=None) -> CausalTrace

Enters: a text that asks for a fact ("The Eiffel Tower stands in the city of"), its subject ("Eiffel Tower"), perhaps
the answer's token. The subject's token embeddings are disturbed by Gaussian noise, so that the answer is lost; then the
states of one token are put back, in one layer or in a window of layers around it, and what returns is measured:

    TE = P − P*                        total effect of the noise on the answer's probability
    IE = P*_restored − P*              indirect effect of a state: how much of the answer it brings back

P is the probability on the clean text, P* its mean over `samples` fixed draws of noise. The subject is found by its
characters in the text, so that it does not matter how it is cut into tokens. Streams are restored one layer at a time;
what attention and MLPs write in a window of `window` layers, since a single one of them rarely carries enough.

It misleads where noise takes the model away from anything it knows, and it finds where a fact is enough to bring the
answer back, which is not where an edit of weights works best (Hase et al. 2023, 2301.04213).

Source: Meng et al. 2022 (2202.05262), §2; kmeng01/rome `experiments/causal_trace.py` for the constants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.analyses.inputs import tokens_of
from activations.analyses.plain import to_json
from activations.analyses.targets import Metric
from activations.offsets import encode_with_places
from activations.sites import Site

if TYPE_CHECKING:
    from activations.model import LanguageModel

KINDS = ("resid_post", "mlp_out", "attn_out")
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class CausalTrace:
    """What restoring each state brings back. Axes: layers, tokens."""

    model: str
    text: str
    tokens: tuple[str, ...]
    subject: str
    subject_positions: tuple[int, ...]
    target: str
    """The token whose probability is asked about."""
    target_id: int
    probability: float
    """P, on the clean text."""
    noised_probability: float
    """P*, with noise on the subject and nothing restored."""
    noise_std: float
    samples: int
    seed: int
    windows: dict[str, int]
    """Layers restored together, by kind."""
    effects: dict[str, Float[np.ndarray, "layers tokens"]]
    """IE by kind: `resid_post`, `mlp_out`, `attn_out`."""
    standard_errors: dict[str, Float[np.ndarray, "layers tokens"]]
    """Over draws of noise."""
    whole_layer: dict[str, Float[np.ndarray, " layers"]]
    """IE of restoring all tokens at once."""

    @property
    def total_effect(self) -> float:
        """TE = P − P*."""
        return self.probability - self.noised_probability

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each state, the largest effect first."""
        records = [
            {
                "site": f"{kind}.{layer}",
                "position": place,
                "token": self.tokens[place],
                "is_subject": place in self.subject_positions,
                "effect": float(values[layer, place]),
                "standard_error": float(self.standard_errors[kind][layer, place]),
            }
            for kind, values in self.effects.items()
            for layer, place in np.ndindex(values.shape)
        ]
        return sorted(records, key=lambda record: -abs(record["effect"]))

    def to_json(self) -> str:
        return to_json(self)


def subject_positions(lm: LanguageModel, text: str, subject: str) -> list[int]:
    """Returns the positions of the tokens that hold characters of the last place where `subject` stands in `text`.

    Raises:
        ValueError: the subject is not in the text, or a tokenizer that does not tell characters.
    """
    start = text.rfind(subject) if subject.strip() else -1
    if start < 0:
        raise ValueError(f"the subject {subject!r} is not in the text, expected a part of it: copy it from there")
    placed = encode_with_places(lm, [text])[0]
    # a token that starts with the space before the subject is the subject's, one that only holds that space is not
    begin, end = start, start + len(subject)
    found = [
        index
        for index, (first, last) in enumerate(zip(placed.starts, placed.ends, strict=True))
        if first < end and last > begin and last > first
    ]
    if not found:
        raise ValueError(f"no token of {lm.name} stands for {subject!r}, expected some: choose another subject")
    return found


@torch.no_grad()
def trace_fact(
    lm: LanguageModel,
    text: str,
    subject: str,
    target: str | int | None = None,
    *,
    noise: float = 3.0,
    noise_std: float | None = None,
    subjects: Sequence[str] = (),
    samples: int = 10,
    seed: int = 0,
    window: int | None = None,
    position: int | None = None,
) -> CausalTrace:
    """Disturbs the subject and restores each state.

    The noise has `noise` times the standard deviation of the embeddings of the tokens of `subjects` (default: of this
    text), or `noise_std` where that is given. `window` is how many layers of MLPs or attention are restored together
    (default: 10, or half of a smaller model's layers).

    Raises:
        ValueError: a subject that is not in the text, unusable numbers, a classifier, and whatever the target refuses.
    """
    if noise < 0 or samples < 1 or (window is not None and window < 1) or (noise_std is not None and noise_std < 0):
        raise ValueError(
            f"got noise={noise}, noise_std={noise_std}, samples={samples}, window={window}, expected none negative "
            "and samples and window of at least 1: choose others"
        )
    metric = Metric(lm, text, target, position=position, measure="log_probability")
    if metric.is_classifier:
        raise ValueError(f"{lm.name} sorts texts into classes, expected a language model: facts are told by tokens")
    assert metric.token is not None
    places = subject_positions(lm, text, subject)
    clean = lm.capture(metric.tokens, None, [f"{kind}.{layer}" for kind in KINDS for layer in range(lm.n_layers)])
    if noise_std is None:
        rows = [tokens_of(lm, each) for each in subjects] or [metric.tokens]
        spread = torch.cat([lm.capture(row, None, ["embed"])["embed"].flatten() for row in rows]).double().std()
        noise_std = noise * float(spread)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn((samples, len(places), lm.d_model), generator=generator, dtype=torch.float64) * noise_std
    shaken = _Shaken(metric, places, drawn)
    base = shaken.probabilities([{}])[0]
    span = window or min(10, max(1, lm.n_layers // 2))
    windows = {"resid_post": 1, "mlp_out": span, "attn_out": span}
    effects, errors, whole = {}, {}, {}
    for kind in KINDS:
        asked = [
            {
                str(Site(kind, other)): (clean[str(Site(kind, other))], tokens)
                for other in _window(layer, windows[kind], lm.n_layers)
            }
            for layer in range(lm.n_layers)
            for tokens in [*([place] for place in range(metric.count)), list(range(metric.count))]
        ]
        found = shaken.probabilities(asked).reshape(lm.n_layers, metric.count + 1, samples) - base
        effects[kind] = found[:, :-1].mean(-1)
        spread = found[:, :-1].std(-1, ddof=1) if samples > 1 else np.zeros_like(effects[kind])
        errors[kind] = spread / np.sqrt(samples)
        whole[kind] = found[:, -1].mean(-1)
    return CausalTrace(
        model=lm.name,
        text=text,
        tokens=tuple(lm.token_strings(metric.tokens[0, : metric.count])),
        subject=subject,
        subject_positions=tuple(places),
        target=lm.token_strings([metric.token])[0],
        target_id=metric.token,
        probability=float(metric(metric.tokens).exp()),
        noised_probability=float(base.mean()),
        noise_std=noise_std,
        samples=samples,
        seed=seed,
        windows=windows,
        effects=effects,
        standard_errors=errors,
        whole_layer=whole,
    )


def _window(layer: int, span: int, layers: int) -> range:
    """`span` layers around one, as far as there are any."""
    return range(max(0, layer - span // 2), min(layers, layer - span // 2 + span))


class _Shaken:
    """The text with each draw of noise on its subject."""

    def __init__(self, metric: Metric, places: list[int], drawn: Float[Tensor, "samples places d"]) -> None:
        self.metric, self.places, self.drawn = metric, places, drawn
        self.samples = len(drawn)
        self.size = max(1, BATCH_TOKENS // (metric.tokens.shape[1] * self.samples))

    def probabilities(self, asked: list[dict[str, tuple[Tensor, list[int]]]]) -> Float[np.ndarray, "asked samples"]:
        """Returns the answer's probability for each restoration (states and positions by site) and draw."""
        found = []
        start = 0
        while start < len(asked):
            group = [asked[start]]
            # restorations of the same sites go through one pass
            while len(group) < self.size and start + len(group) < len(asked):
                if asked[start + len(group)].keys() != group[0].keys():
                    break
                group.append(asked[start + len(group)])
            edits = {site: self._restore([entry[site] for entry in group]) for site in group[0]}
            with self.metric.lm.intervene({"embed": self._shake(len(group)), **edits}):
                rows = self.metric(self.metric.tokens.expand(len(group) * self.samples, -1))
            found.append(rows.exp().double().cpu().numpy().reshape(len(group), self.samples))
            start += len(group)
        return np.concatenate(found)

    def _shake(self, count: int) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            x[:, self.places] += self.drawn.repeat(count, 1, 1).to(x)
            return x

        return edit

    def _restore(self, entries: list[tuple[Tensor, list[int]]]) -> Callable[[Tensor], Tensor]:
        def edit(x: Tensor) -> Tensor:
            for index, (state, tokens) in enumerate(entries):
                x[index * self.samples : (index + 1) * self.samples, tokens] = state[0, tokens].to(x)
            return x

        return edit
