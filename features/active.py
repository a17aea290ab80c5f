"""Features that are active on a text, ranked by how strong, how surprising, or how effective they are.

Enters: a text. Leaves: each token's features, and the features ranked over the whole text.

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

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from features import wiring
from features.event_tables import histogram_bins
from features.records import ActiveFeature, ActiveFeatures

if TYPE_CHECKING:
    import torch

    from features.dictionary import Dictionary

MEASURES = ("activation", "surprise", "effect", "attribution")
AIMED = ("effect", "attribution")
"""Measures that have a target token."""


class _Events(NamedTuple):
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
    """
    import torch

    if by not in MEASURES:
        raise ValueError(f"measure {by!r} is unknown, expected one of {', '.join(MEASURES)}: choose one of these")
    if target is not None and by not in AIMED:
        raise ValueError(f"a target was given for the measure {by}, expected none: rank by effect or attribution")
    if not text:
        raise ValueError("the text is empty, expected at least one character: write some text")
    lm, sae = dictionary.lm, dictionary.sae
    batch = lm.tokenize(text)
    real = batch.mask[0].bool()
    if not bool(real.any()):
        raise ValueError("the text has no tokens, expected at least one: write some text")
    with torch.no_grad():
        captured = lm.capture(batch.tokens, batch.mask, dictionary.sites)
        codes = wiring.encode_sites(sae, {site: x[0][real].flatten(1) for site, x in captured.items()})
    ids = batch.tokens[0][real]
    events = _events(codes, ids.numpy(), lm.special_ids if dictionary.info["exclude_special_tokens"] else frozenset())
    aim = None
    if by in AIMED:
        if lm.kind != "decoder":
            raise ValueError(f"{lm.name} is no decoder, expected a model with a next token: rank by activation")
        aim = _target(lm, batch, target)
        of = _direct if by == "effect" else _through_gradient
        measures = of(dictionary, batch, real, events, aim)
    elif by == "surprise":
        measures = _surprise(dictionary, events)
    else:
        maxima = dictionary.max_activations[events.features]
        measures = np.where(maxima > 0, np.abs(events.values) / np.where(maxima > 0, maxima, 1), 0.0)
    return _ranked(dictionary, text, lm.token_strings(ids.tolist()), events, measures, top, by, aim)


def _events(codes: Any, ids: np.ndarray, special: frozenset[int]) -> _Events:
    values, indices = codes.values.float().cpu().numpy(), codes.indices.cpu().numpy()
    scale = np.ones(len(values)) if codes.scale is None else codes.scale.double().cpu().numpy()
    kept = (indices >= 0) & (values != 0) & ~np.isin(ids, list(special))[:, None]
    tokens, slots = np.nonzero(kept)
    found = values[tokens, slots].astype(float)
    return _Events(tokens, indices[tokens, slots].astype(np.int64), found, found * scale[tokens])


def _ranked(
    dictionary: Dictionary,
    text: str,
    tokens: list[str],
    events: _Events,
    measures: np.ndarray,
    top: int,
    by: str,
    aim: int | None,
) -> ActiveFeatures:
    # a token's features by activation are ordered by its own size, not by its share of a maximum
    strength = np.abs(events.values if by == "activation" else measures)
    order = np.lexsort((events.features, -strength, events.tokens))
    per_token: list[list[tuple[int, float]]] = [[] for _ in tokens]
    per_token_measures: list[list[float]] = [[] for _ in tokens]
    for place in order.tolist():
        per_token[events.tokens[place]].append((int(events.features[place]), float(events.values[place])))
        per_token_measures[events.tokens[place]].append(float(measures[place]))
    found, owner = np.unique(events.features, return_inverse=True)
    totals = np.zeros(found.size)
    if by == "surprise":
        np.maximum.at(totals, owner, measures)
    else:
        np.add.at(totals, owner, measures)
    best = np.lexsort((found, -np.abs(totals)))[: max(top, 0)]
    strongest = {int(owner[place]): int(place) for place in np.lexsort((-events.tokens, strength)).tolist()}
    largest = {int(owner[place]): int(place) for place in np.lexsort((-events.tokens, np.abs(events.values))).tolist()}
    texts = dictionary.explanations_of(found[best].tolist())
    ranked = [
        ActiveFeature(
            feature=int(found[place]),
            total=float(totals[place]),
            max_activation=float(events.values[largest[place]]),
            token=int(events.tokens[strongest[place]]),
            explanation=texts.get(int(found[place]), ""),
        )
        for place in best.tolist()
    ]
    target = None if aim is None else dictionary.lm.token_strings([aim])[0]
    return ActiveFeatures(text, tokens, per_token, ranked, by, target, per_token_measures)


def _surprise(dictionary: Dictionary, events: _Events) -> np.ndarray:
    wanted = np.unique(events.features)
    bins = dictionary.store.query(
        """select feature, low, high, count from histograms join (select unnest($wanted)::integer as feature)
        using (feature) order by feature, low""",
        {"wanted": wanted.tolist()},
    )
    owner, low, high, count = (column.to_numpy() for column in bins.columns)
    n_tokens = int(dictionary.info["n_indexed_tokens"])
    found = np.empty(events.features.size)
    for feature in wanted.tolist():
        mine, here = owner == feature, events.features == feature
        at_least = events_at_least(np.abs(events.values[here]), low[mine], high[mine], count[mine])
        found[here] = -np.log2((at_least + 1) / (n_tokens + 1))
    return found


def events_at_least(sizes: np.ndarray, low: np.ndarray, high: np.ndarray, count: np.ndarray) -> np.ndarray:
    """float64 [n]: events of a histogram that are at least as large; exact at the edges of bins, even inside them."""
    above = np.append(np.cumsum(count[::-1])[::-1], 0).astype(float)
    if low.size == 0:
        return np.zeros(sizes.size)
    edges = histogram_bins(low)  # float32 edges and values are compared as the index compares them
    place = np.searchsorted(edges, histogram_bins(sizes.astype(np.float32)), side="right") - 1
    inside = np.maximum(place, 0)
    share = np.clip((high[inside] - sizes) / (high[inside] - low[inside]), 0, 1)
    return np.where(place < 0, above[0], above[inside + 1] + count[inside] * share)


def _target(lm: Any, batch: Any, target: str | int | None) -> int:
    if target is None:
        return int(lm.logits(batch.tokens, batch.mask)[0, -1].argmax())
    if isinstance(target, int):
        if not 0 <= target < lm.vocab_size:
            raise ValueError(f"target {target} is no token, expected 0 to {lm.vocab_size - 1}: choose one of these")
        return target
    ids = [token for token in lm.encode([target])[0] if token not in lm.special_ids] if target else []
    if len(ids) != 1:
        parts = ", ".join(repr(part) for part in lm.token_strings(ids))
        raise ValueError(
            f"the target {target!r} is {len(ids)} tokens ({parts}), expected one: give one of them; blanks before a "
            "word belong to its token"
        )
    return int(ids[0])


def _direct(dictionary: Dictionary, batch: Any, real: torch.Tensor, events: _Events, target: int) -> np.ndarray:
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
    dictionary: Dictionary, batch: Any, real: torch.Tensor, events: _Events, target: int
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
