"""Two dictionaries beside each other: what both have, what only one has, what is split, what is absorbed.

Enters: two opened dictionaries of models with one tokenizer (other widths, seeds, architectures, sites). Leaves:
`Comparison`.

1. Directions are compared by the cosine of decoder rows (`sae.geometry`), events by the correlation of activations over
   the tokens that both have indexed (`features.paired_events`). Where one of them cannot be had, the other decides; the
   same SAE over two models is matched by its own index.
2. *Matched*: nearest to each other, cosine ≥ `cosine_min` and correlation ≥ `correlation_min`. MCC, which forces every
   latent into a pair, stands beside it (`sae.stability`).
3. *Unique*: no feature of the other dictionary reaches either bound.
4. *Absorption*: a general feature whose counterpart is silent where a specific one is active, and active elsewhere.
   *Split*: another feature of which several cover half the events, each active mostly there and none enough alone
   (`features.divided_features`).

Sources: splitting, Bricken et al. 2023, "Towards Monosemanticity"; absorption, Chanin et al. 2024, "A is for
Absorption", here between two dictionaries and without labels; MCC, Paulo & Belrose 2025.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from activations.progress import progress
from features import wiring
from features.compared import Compared
from features.comparison_records import Comparison, DictionaryFacts, Match, Unique
from features.dictionary import Dictionary
from features.divided_features import Absorbed, Divided, absorptions, coverage, splits
from features.paired_events import PairTable, given_pairs, pairs_together
from features.paired_examples import Told
from features.shared_text import SharedText, shared_events, shared_text
from features.shifts import shifts
from sae import stability
from sae.evaluation import SIGNED_VALUES
from sae.geometry import nearest_rows, unit_rows

BY_BOTH, BY_DIRECTIONS, BY_EVENTS, BY_INDEX = "directions and events", "directions", "events", "index"


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What counts as the same feature, and how much is looked at."""

    __pydantic_config__ = {"extra": "forbid"}

    cosine_min: float = 0.7
    """Cosine of decoder directions from which on two features may be the same."""
    correlation_min: float = 0.5
    """Correlation of activations from which on they may be."""
    sample_tokens: int = 1_000_000
    """Shared tokens at most, whole documents drawn by seed."""
    examples: int = 25
    """Relations of each kind that are shown with texts."""
    seed: int = 0
    """Seed of the documents drawn."""

    def __post_init__(self) -> None:
        if not (0 < self.cosine_min <= 1 and 0 < self.correlation_min <= 1):
            raise ValueError(
                f"compare.cosine_min={self.cosine_min:g} and compare.correlation_min={self.correlation_min:g}, "
                "expected more than 0 and at most 1 each: correct them"
            )
        if self.sample_tokens < 1 or self.examples < 0:
            raise ValueError(
                f"compare.sample_tokens={self.sample_tokens} and compare.examples={self.examples}, expected at least "
                "1 and 0: raise them"
            )


@dataclass(frozen=True)
class _Nearest:
    """Each feature's closest partner in the other dictionary by one likeness; −1 and 0 where there is none."""

    partner: np.ndarray
    value: np.ndarray


def compare(a: Dictionary, b: Dictionary, config: CompareConfig | None = None) -> Comparison:
    """Compares two dictionaries.

    Raises:
        ValueError: models of different vocabularies, neither directions nor text in common, or a dictionary that keeps
            the events around its examples only.
    """
    config = config or CompareConfig()
    started = time.perf_counter()
    left, right = Compared(a, "a"), Compared(b, "b")
    _check_models(a, b)
    for each in (a, b):
        each.store.require_all_events("comparing by events")
    text = shared_text(a, b, config.sample_tokens, config.seed)
    notes = _notes(a, b, text)
    left.directions, right.directions = _directions(a, b)
    if left.directions is None:
        notes.append("Decoder directions stand in different spaces: features are matched by their events alone.")
    same_sae = is_same_sae(a, b)
    if left.directions is None and text.n_tokens == 0:
        raise ValueError(
            f"{a.path} and {b.path} have neither decoder directions nor indexed text in common, expected one of them: "
            "index both over the same text"
        )
    table = back = None
    with progress("compare", 4, "steps") as advance:
        if text.n_tokens:
            left.events, right.events = shared_events(a, text.first), shared_events(b, text.second)
            advance(1)
            table = pairs_together(left.events, right.events)
            back = table.turned()
        advance(1)
        forth_by = _nearest(left, right, table)
        back_by = _nearest(right, left, back)
        agreed = None if left.directions is None else _stability(left, right)
        advance(1)
        own, other = _matched(left, right, forth_by, back_by, table, config, same_sae)
        matched_a, matched_b = np.zeros(left.n, dtype=bool), np.zeros(right.n, dtype=bool)
        matched_a[own], matched_b[other] = True, True
        told = Told(left, right, text, config.examples)
        matches = _matches(left, right, own, other, text, told, different_models=_models_differ(a, b))
        unique: list[Unique] = []
        divided: list[Divided] = []
        absorbed: list[Absorbed] = []
        for one, two, nearest, pairs, taken in (
            (left, right, forth_by, table, matched_a),
            (right, left, back_by, back, matched_b),
        ):
            if pairs is not None:
                lost = absorptions(one, two, pairs)
                known = {entry.found.feature for entry in lost}
                absorbed += lost
                divided += [entry for entry in splits(one, two, pairs) if entry.split.feature not in known]
            if not same_sae:
                unique += _unique(one, two, nearest, pairs, taken, config)
        advance(1)
    unique.sort(key=lambda entry: -entry.share)
    divided.sort(key=lambda entry: -entry.split.share)
    absorbed.sort(key=lambda entry: -entry.found.events * entry.found.silent)
    by = BY_INDEX if same_sae else BY_BOTH
    if not same_sae and (left.directions is None or table is None):
        by = BY_EVENTS if left.directions is None else BY_DIRECTIONS
    return Comparison(
        a=_facts(left, matched_a, unique),
        b=_facts(right, matched_b, unique),
        by=by,
        notes=notes,
        shared_tokens=text.n_tokens,
        shared_documents=text.n_documents,
        cosine_min=config.cosine_min,
        correlation_min=config.correlation_min,
        stability=agreed,
        matched=matches,
        unique=told.unique(unique),
        splits=told.splits(divided),
        absorptions=told.absorptions(absorbed),
        seconds=round(time.perf_counter() - started, 2),
    )


def _check_models(a: Dictionary, b: Dictionary) -> None:
    if _models_differ(a, b) and a.text.vocabulary != b.text.vocabulary:
        raise ValueError(
            f"{a.name} is of {a.info['model']['name']} and {b.name} of {b.info['model']['name']}, whose vocabularies "
            "differ, expected models that share a tokenizer: compare dictionaries of such models"
        )


def _models_differ(a: Dictionary, b: Dictionary) -> bool:
    return a.info["model"]["weight_hash"] != b.info["model"]["weight_hash"]


def _notes(a: Dictionary, b: Dictionary, text: SharedText) -> list[str]:
    notes = []
    if _models_differ(a, b):
        notes.append(
            f"Two models: {a.info['model']['name']} and {b.info['model']['name']}. Shifts go from the first to the "
            "second; intervals take documents as units."
        )
    if a.sites != b.sites:
        notes.append(
            f"The sites differ ({', '.join(a.sites)}; {', '.join(b.sites)}): later layers rewrite what earlier ones "
            "wrote, so a low cosine need not mean another feature. Look at the correlation."
        )
    if text.n_tokens == 0:
        notes.append("No text is indexed by both: only directions are compared, and splits cannot be seen.")
    if text.differing:
        notes.append(f"{text.differing:,} documents of one name have other tokens in the two, and are left out.")
    if text.n_tokens and text.same_context < 1:
        notes.append(
            f"{1 - text.same_context:.0%} of the shared tokens stood at another place of the model's rows: there the "
            "model itself answers differently."
        )
    return notes


def _directions(a: Dictionary, b: Dictionary) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Unit decoder directions of both in one space; None where there is none."""
    first, second = a.sae, b.sae
    found = [sae.W_dec.detach().float() for sae in (first, second)]
    same_kind = first.config.n_sites == second.config.n_sites and found[0].shape[1] == found[1].shape[1]
    if not same_kind:
        written = [wiring.residual_directions(sae) for sae in (first, second)]
        if written[0] is None or written[1] is None or written[0].shape[1] != written[1].shape[1]:
            return None, None
        found = [part.detach().float() for part in (written[0], written[1])]
    return unit_rows(found[0]).cpu().numpy(), unit_rows(found[1]).cpu().numpy()


def is_same_sae(a: Dictionary, b: Dictionary) -> bool:
    """Tells whether two dictionaries are of one SAE, indexed over two models: a number means the same in both."""
    if not _models_differ(a, b) or a.n_features != b.n_features:
        return False
    first, second = a.sae.state_dict(), b.sae.state_dict()
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and bool(torch.equal(first[name].cpu(), second[name].cpu()))
        for name in first
    )


def _is_signed(one: Compared, two: Compared) -> bool:
    kinds = {each.dictionary.sae.config.architecture for each in (one, two)}
    return not kinds & set(SIGNED_VALUES)


def _nearest(one: Compared, two: Compared, table: PairTable | None) -> dict[str, _Nearest]:
    """Each feature's closest partner: by `cosine`, by `correlation`, as far as these can be had."""
    found: dict[str, _Nearest] = {}
    if one.directions is not None and two.directions is not None:
        candidates = np.flatnonzero(two.live)
        partner, value = np.full(one.n, -1), np.zeros(one.n)
        if candidates.size:
            cosines, whose = nearest_rows(
                torch.from_numpy(one.directions),
                torch.from_numpy(two.directions[candidates]),
                signed=_is_signed(one, two),
            )
            partner, value = candidates[whose.numpy()], cosines.double().numpy()
        found["cosine"] = _Nearest(np.where(one.live, partner, -1), np.where(one.live, value, 0.0))
    if table is not None:
        found["correlation"] = _Nearest(*table.best(one.n))
    return found


def _stability(left: Compared, right: Compared) -> dict[str, Any] | None:
    first, second = left.dictionary.sae, right.dictionary.sae
    if first.W_dec.shape[1] != second.W_dec.shape[1] or not left.live.any() or not right.live.any():
        return None
    live = (torch.from_numpy(left.live), torch.from_numpy(right.live))
    return stability.compare(first, second, live=live).to_json()


def _matched(
    left: Compared,
    right: Compared,
    forth: dict[str, _Nearest],
    back: dict[str, _Nearest],
    table: PairTable | None,
    config: CompareConfig,
    is_same_sae: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of both that are the same, in pairs."""
    if is_same_sae:
        own = np.flatnonzero(left.live | right.live)
        return own, own
    key = "cosine" if "cosine" in forth else "correlation"
    least = config.cosine_min if key == "cosine" else config.correlation_min
    partner = forth[key].partner
    own = np.flatnonzero((partner >= 0) & (forth[key].value >= least))
    own = own[back[key].partner[partner[own]] == own]
    other = partner[own]
    if key == "cosine" and left.events is not None and right.events is not None:
        like = given_pairs(left.events, right.events, own, other).correlation
        if not _is_signed(left, right):
            like = np.abs(like)
        # where the sample of the text has neither, directions alone decide
        unseen = (left.events.counts[own] == 0) & (right.events.counts[other] == 0)
        kept = (like >= config.correlation_min) | unseen
        own, other = own[kept], other[kept]
    return own, other


def _matches(
    left: Compared,
    right: Compared,
    own: np.ndarray,
    other: np.ndarray,
    text: SharedText,
    told: Told,
    different_models: bool,
) -> list[Match]:
    jaccard = correlation = None
    changes: list[Any] = [None] * own.size
    if left.events is not None and right.events is not None:
        figures = given_pairs(left.events, right.events, own, other)
        jaccard, correlation = figures.jaccard, figures.correlation
        if different_models:
            changes = shifts(left.events, right.events, own, other, text)
    found = [
        Match(
            a=int(i),
            b=int(j),
            cosine=left.cosine(i, right, j),
            jaccard=None if jaccard is None else float(jaccard[number]),
            correlation=None if correlation is None else float(correlation[number]),
            density_a=float(left.density[i]),
            density_b=float(right.density[j]),
            share_a=float(left.share[i]),
            share_b=float(right.share[j]),
            shift=changes[number],
        )
        for number, (i, j) in enumerate(zip(own.tolist(), other.tolist(), strict=True))
    ]

    def weight(match: Match) -> tuple[bool, float]:
        if match.shift is not None:
            return not match.shift.is_change, -abs(match.shift.mean) / max(float(left.maximum[match.a]), 1e-30)
        return False, -(match.share_a + match.share_b)

    return told.matches(sorted(found, key=weight))


def _unique(
    one: Compared,
    two: Compared,
    nearest: dict[str, _Nearest],
    table: PairTable | None,
    matched: np.ndarray,
    config: CompareConfig,
) -> list[Unique]:
    """Features without a partner by any likeness that could be taken."""
    alone = one.live & ~matched
    bounds = {"cosine": config.cosine_min, "correlation": config.correlation_min}
    for key, found in nearest.items():
        alone &= found.value < bounds[key]
    if one.events is not None:  # nothing can be said of events that the shared text does not have
        alone &= one.events.counts > 0
    covered = coverage(one, two, table) if table is not None else None
    entries = []
    for feature in np.flatnonzero(alone).tolist():
        cosine, correlation = nearest.get("cosine"), nearest.get("correlation")
        entries.append(
            Unique(
                side=one.side,
                feature=feature,
                density=float(one.density[feature]),
                share=float(one.share[feature]),
                nearest=None if cosine is None or cosine.partner[feature] < 0 else int(cosine.partner[feature]),
                cosine=None if cosine is None else float(cosine.value[feature]),
                companion=None
                if correlation is None or correlation.partner[feature] < 0
                else int(correlation.partner[feature]),
                correlation=None if correlation is None else float(correlation.value[feature]),
                covered=None if covered is None else covered(feature),
            )
        )
    return entries


def _facts(each: Compared, matched: np.ndarray, unique: list[Unique]) -> DictionaryFacts:
    dictionary = each.dictionary
    alone = [entry.share for entry in unique if entry.side == each.side]
    return DictionaryFacts(
        name=dictionary.name,
        path=str(dictionary.path),
        model=str(dictionary.info["model"]["name"]),
        site=" + ".join(dictionary.sites),
        architecture=str(dictionary.sae.config.architecture),
        n_features=dictionary.n_features,
        live=int(each.live.sum()),
        matched_share=float(each.share[matched].sum()),
        unique=len(alone),
        unique_share=float(sum(alone)),
    )
