"""Features that are active on a text, ranked by how strong, how surprising, or how effective they are.

Enters: a text. Leaves: each token's features, and the features ranked over the whole text. `features.active_documents`
answers the same of an indexed document, from its stored events.

The model reads the text once, the SAE encodes every token, and each event (feature f with value a at token p) gets a
measure:

* `activation`: |a| / maximum of f in the indexed text. A feature's total is the sum over tokens.
* `surprise`: −log₂ P in bits, P = (n + 1) / (N + 1): of the N indexed tokens, n have f at least as strong (by its
  histogram; inside a bin events are taken as evenly spread). A total is the largest of the tokens: a common feature
  that is weak everywhere surprises nobody by being there often.
* `effect`: the direct effect on the logit of a target token right after p, a · s · (u · d) / σ: what f adds to the
  residual stream at p (d of all sites it writes, s the row's own scale where the SAE normalises rows) seen by the
  target's row u of `logit_directions`, σ being the final norm's divisor at p, which is held still. Later layers do not
  react. A total is the sum over tokens.
* `attribution`: the effect on the target's logit after the last token, through all later layers, to first order:
  a · s · (d · ∂logit/∂x) at p. The SAE's error stays as it is. A total is the sum over tokens.

Effects are ranked by size, and carry their sign. They are those before a soft cap of the logits, where a model has one.
Source of the last: attribution patching to zero (Nanda 2023), as Marks et al. 2024 use it for features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from features import wiring
from features.event_tables import N_BINS, histogram_bins
from features.records import ActiveFeature, ActiveFeatures

if TYPE_CHECKING:
    import torch

    from activations import LanguageModel
    from features.dictionary import Dictionary

MEASURES = ("activation", "surprise", "effect", "attribution")
AIMED = ("effect", "attribution")
"""Measures that have a target token."""


class TextTooLong(ValueError):
    """A text of more tokens than the model reads at once."""

    def __init__(self, message: str, n_tokens: int, most_tokens: int, beginning: str) -> None:
        super().__init__(message)
        self.n_tokens = n_tokens
        self.most_tokens = most_tokens
        self.beginning = beginning
        """As much of the text, from its start, as the model takes."""


class Events(NamedTuple):
    """The events of a text, in the order of its tokens."""

    tokens: np.ndarray
    features: np.ndarray
    values: np.ndarray
    written: np.ndarray
    """The values in the units of the model's activations."""


def active_on(
    dictionary: Dictionary, text: str, top: int = 10, by: str = "activation", target: str | int | None = None
) -> ActiveFeatures:
    """Runs the model on a text; `target` is a token's text or id, by default the one that the model expects next.

    Raises:
        ValueError: an empty text, an unknown measure, a target that is no single token, or an SAE or model for which
            the measure has no meaning.
        TextTooLong: more tokens than the model takes; it holds the beginning that fits.
    """
    import torch

    check_measure(by, MEASURES)
    if target is not None and by not in AIMED:
        raise ValueError(f"a target was given for the measure {by}, expected none: rank by effect or attribution")
    if not text:
        raise ValueError("the text is empty, expected at least one character: write some text")
    lm, sae = dictionary.lm, dictionary.sae
    batch = lm.tokenize(text)
    real = batch.mask[0].bool()
    if not bool(real.any()):
        raise ValueError("the text has no tokens, expected at least one: write some text")
    if batch.tokens.shape[1] > lm.context_tokens and lm.kind != "encoder-decoder":
        raise _too_long(lm, text, batch.tokens[0].tolist())
    with torch.no_grad():
        captured = lm.capture(batch.tokens, batch.mask, dictionary.sites)
        codes = wiring.encode_sites(sae, {site: x[0][real].flatten(1) for site, x in captured.items()})
    ids = batch.tokens[0][real]
    special = np.isin(ids.numpy(), list(lm.special_ids))
    events = _events(codes, special & bool(dictionary.info["exclude_special_tokens"]))
    aim = None
    if by in AIMED:
        if lm.kind != "decoder":
            raise ValueError(f"{lm.name} is no decoder, expected a model with a next token: rank by activation")
        from activations.analyses.inputs import token_id

        aim = int(lm.logits(batch.tokens, batch.mask)[0, -1].argmax()) if target is None else token_id(lm, target)
        of = _direct if by == "effect" else _through_gradient
        measures = of(dictionary, batch, real, events, aim)
    else:
        measures = measured(dictionary, events, by)
    tokens, places = lm.token_strings(ids.tolist()), np.flatnonzero(special).tolist()
    aimed = None if aim is None else lm.token_strings([aim])[0]
    return ranked(dictionary, ActiveFeatures(text, tokens, [], [], by, aimed, [], places), events, measures, top)


def check_measure(by: str, known: Sequence[str]) -> None:
    """ValueError where a measure is none of those known."""
    if by not in known:
        raise ValueError(f"measure {by!r} is unknown, expected one of {', '.join(known)}: choose one of these")


def _too_long(lm: LanguageModel, text: str, ids: list[int]) -> TextTooLong:
    most = lm.context_tokens
    # special tokens that the tokenizer adds are no part of the text
    length = sum(len(token) for token in lm.token_strings([id for id in ids[:most] if id not in lm.special_ids]))
    while length and (excess := len(lm.encode([text[:length]])[0]) - most) > 0:
        length -= excess
    told = f"the text has {len(ids):,} tokens, {lm.name} takes at most {most:,}: give a part of it"
    return TextTooLong(told, len(ids), most, text[:length])


def measured(dictionary: Dictionary, events: Events, by: str) -> np.ndarray:
    """float64 [events]: the measure that needs no model, activation or surprise."""
    if by == "surprise":
        return _surprise(dictionary, events)
    maxima = dictionary.max_activations[events.features]
    return np.where(maxima > 0, np.abs(events.values) / np.where(maxima > 0, maxima, 1), 0.0)


def _events(codes: Any, left_out: np.ndarray) -> Events:
    values, indices = codes.values.float().cpu().numpy(), codes.indices.cpu().numpy()
    scale = np.ones(len(values)) if codes.scale is None else codes.scale.double().cpu().numpy()
    kept = (indices >= 0) & (values != 0) & ~left_out[:, None]
    tokens, slots = np.nonzero(kept)
    found = values[tokens, slots].astype(float)
    return Events(tokens, indices[tokens, slots].astype(np.int64), found, found * scale[tokens])


def ranked(
    dictionary: Dictionary, text: ActiveFeatures, events: Events, measures: np.ndarray, top: int
) -> ActiveFeatures:
    """A text, still without its features, with those of each token and the `top` of the whole."""
    by, tokens = text.by, text.tokens
    # a token's features by activation are ordered by its own size, not by its share of a maximum
    strength = np.abs(events.values if by == "activation" else measures)
    order = np.lexsort((events.features, -strength, events.tokens))
    entries = list(zip(events.features[order].tolist(), events.values[order].astype(float).tolist(), strict=True))
    sizes = measures[order].astype(float).tolist()
    ends = np.searchsorted(events.tokens[order], np.arange(len(tokens) + 1)).tolist()
    runs = list(pairwise(ends))
    found, owner = np.unique(events.features, return_inverse=True)
    totals = np.zeros(found.size)
    if by == "surprise":
        np.maximum.at(totals, owner, measures)
    else:
        np.add.at(totals, owner, measures)
    best = np.lexsort((found, -np.abs(totals)))[: max(top, 0)]
    # of equals the first: later entries of a dict replace earlier ones
    strongest = _last_of(owner, np.lexsort((-events.tokens, strength)))
    largest = _last_of(owner, np.lexsort((-events.tokens, np.abs(events.values))))
    texts = dictionary.explanations_of(found[best].tolist())
    listed = [
        ActiveFeature(
            feature=int(found[place]),
            total=float(totals[place]),
            max_activation=float(events.values[largest[place]]),
            token=int(events.tokens[strongest[place]]),
            explanation=texts.get(int(found[place]), ""),
        )
        for place in best.tolist()
    ]
    per_token = [entries[start:stop] for start, stop in runs]
    return replace(text, per_token=per_token, ranked=listed, measures=[sizes[start:stop] for start, stop in runs])


def _last_of(owner: np.ndarray, order: np.ndarray) -> dict[int, int]:
    """The place that comes last in `order`, for each owner."""
    return dict(zip(owner[order].tolist(), order.tolist(), strict=True))


def _surprise(dictionary: Dictionary, events: Events) -> np.ndarray:
    wanted = np.unique(events.features)
    bins = dictionary.store.query(
        """select feature, low, high, count from histograms join (select unnest($wanted)::integer as feature)
        using (feature) order by feature, low""",
        {"wanted": wanted.tolist()},
    )
    owner, low, high, count = (column.to_numpy() for column in bins.columns)
    n_tokens = int(dictionary.info["n_indexed_tokens"])
    at_least = events_at_least(events.features, np.abs(events.values), owner, low, high, count)
    return -np.log2((at_least + 1) / (n_tokens + 1))


def events_at_least(
    features: np.ndarray, sizes: np.ndarray, owner: np.ndarray, low: np.ndarray, high: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """float64 [n]: events of each one's feature that are at least as large; exact at the edges of bins, even inside.

    `low`, `high` and `count` are bins of the histograms of the features `owner`, in the order of both.
    """
    if low.size == 0:
        return np.zeros(sizes.size)
    before = np.append(0, np.cumsum(count)).astype(float)
    first, last = (np.searchsorted(owner, features, side=side) for side in ("left", "right"))
    # float32 edges and values are compared as the index compares them
    edges = owner.astype(np.int64) * N_BINS + histogram_bins(low)
    wanted = features.astype(np.int64) * N_BINS + histogram_bins(sizes.astype(np.float32))
    place = np.searchsorted(edges, wanted, side="right") - 1
    inside = np.clip(place, first, np.maximum(last - 1, first)).clip(max=low.size - 1)
    share = np.clip((high[inside] - sizes) / (high[inside] - low[inside]), 0, 1)
    found = before[last] - before[inside + 1] + count[inside] * share
    return np.where(place < first, before[last] - before[first], found)


def _direct(dictionary: Dictionary, batch: Any, real: torch.Tensor, events: Events, target: int) -> np.ndarray:
    import torch

    lm, sae = dictionary.lm, dictionary.sae
    written = wiring.residual_directions(sae)
    if written is None or written.shape[1] != lm.d_model:
        raise ValueError(
            f"the SAE writes {', '.join(dictionary.target_sites)}, which logits do not read directly, expected the "
            "residual stream: rank by attribution"
        )
    last = lm.final_site
    with torch.no_grad():
        rows = lm.capture(batch.tokens, batch.mask, [last])[last][0][real]
        scale = lm.final_norm_scale(rows).double().cpu().numpy()
        direction = lm.logit_directions()[target].to(written.device)
        found, owner = np.unique(events.features, return_inverse=True)
        seen = (written[torch.from_numpy(found).to(written.device)].float() @ direction).double().cpu().numpy()
    return events.written * seen[owner] / scale[events.tokens]


def _through_gradient(
    dictionary: Dictionary, batch: Any, real: torch.Tensor, events: Events, target: int
) -> np.ndarray:
    import torch

    lm, sae = dictionary.lm, dictionary.sae
    shifts: dict[str, torch.Tensor] = {}

    def shifted(site: str) -> Any:
        def edit(x: torch.Tensor) -> torch.Tensor:
            shifts[site] = torch.zeros_like(x, requires_grad=True)
            return x + shifts[site]

        return edit

    sites = wiring.written_sites(sae)
    if not sites:
        raise ValueError("the SAE writes nothing into this model, expected a site of it: rank by activation")
    with lm.lock, torch.enable_grad(), lm.intervene({site: shifted(site) for site in sites}):
        logit = lm.forward(batch.tokens, batch.mask).logits[0, -1, target].float()
        gradients = torch.autograd.grad(logit, [shifts[site] for site in sites])
    found, owner = np.unique(events.features, return_inverse=True)
    directions = wiring.write_directions(sae, found.tolist())
    total = np.zeros(events.features.size)
    for site, gradient in zip(sites, gradients, strict=True):
        rows = gradient[0][real.to(gradient.device)].flatten(1).double().cpu().numpy()
        d = directions[site].double().cpu().numpy()
        total += np.einsum("ed,ed->e", rows[events.tokens], d[owner])
    return events.written * total
