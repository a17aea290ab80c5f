"""Features that the other dictionary has in pieces: splits, and absorptions of a part.

Enters: both dictionaries' events and the pairs that are active together. Leaves: `Split`s and `Absorption`s with the
tokens that show them.

* Split: of the other dictionary's features that are active mostly (`PRECISION`) where this one is, those that add most
  of its events are taken one after another, as long as each adds `PART`; two or more that cover `COVERED` of its
  events, none of them nearly all of what is covered, are its parts.
* Absorption: the counterpart is the feature of the other dictionary that is active at most of this one's events and
  mostly there, with a direction close to its own. A feature that is active inside this one's events while the
  counterpart is silent (`SILENT`), although the counterpart is active at most of the others, has absorbed them; its
  direction carries some of this one's.

Features that are active at more than `DENSE` of the tokens contain all others by chance, and are not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from features.compared import Compared
from features.comparison_records import Absorption, Part, Split
from features.paired_events import PairTable

DENSE = 0.1
LEAST_EVENTS = 20
PRECISION = 0.5
PART = 0.05
COVERED = 0.5
LARGEST = 0.85
"""Share of what is covered beyond which one part is the whole."""
PARTS = 8
SPLIT_COSINE = 0.2
"""Cosine of a part's direction with the whole one's."""
COUNTERPART_PRECISION, COUNTERPART_COSINE = 0.7, 0.5
COUNTERPART_RECALL = (0.3, 0.98)
INSIDE = 0.8
"""Share of an absorber's events that lie among the general feature's."""
SILENT = 0.9
ABSORBED_EVENTS, ABSORBED = 10, 0.02
ELSEWHERE = 0.6
ABSORBER_COSINE = 0.1


@dataclass(frozen=True)
class Divided:
    """A split, and for each part a shared token at which it and the whole feature are active."""

    split: Split
    tokens: list[int]


@dataclass(frozen=True)
class Absorbed:
    """An absorption, a token where it shows, and one where the counterpart is active."""

    found: Absorption
    absorbed: int
    elsewhere: int


def splits(one: Compared, two: Compared, table: PairTable) -> list[Divided]:
    """Features of `one` that features of `two` divide among themselves; `table` goes from `one` to `two`."""
    assert one.events is not None
    assert two.events is not None
    starts = table.starts(one.n)
    counts = one.events.counts
    asked = (counts >= LEAST_EVENTS) & (counts <= DENSE * one.events.n_tokens)
    found = []
    for feature in np.flatnonzero(asked).tolist():
        rows = _inside(one, two, table, feature, starts, SPLIT_COSINE)
        if rows.size < 2:
            continue
        parts, marks = _cover(one, two, table, feature, rows, PART)
        covered = np.any(marks, axis=0).mean() if parts else 0.0
        if len(parts) < 2 or covered < COVERED or max(mark.mean() for mark in marks) > LARGEST * covered:
            continue
        tokens, values = one.events.of(feature)
        split = Split(
            side=one.side,
            feature=feature,
            parts=[
                Part(
                    part,
                    precision=float(mark.sum() / two.events.counts[part]),
                    recall=float(mark.mean()),
                    cosine=one.cosine(feature, two, part),
                )
                for part, mark in zip(parts, marks, strict=True)
            ],
            coverage=float(covered),
            in_span=_in_span(one, feature, two, parts),
            density=float(one.density[feature]),
            share=float(one.share[feature]),
        )
        found.append(Divided(split, [int(tokens[np.where(mark, np.abs(values), -1).argmax()]) for mark in marks]))
    return found


def coverage(one: Compared, two: Compared, table: PairTable) -> Callable[[int], float]:
    """Tells of a feature of `one` which share of its activation falls where features of `two` are active that are
    mostly active there, up to `PARTS` of them."""
    assert one.events is not None
    starts = table.starts(one.n)
    events = one.events

    def covered(feature: int) -> float:
        _, values = events.of(feature)
        rows = _inside(one, two, table, feature, starts, None)
        parts, marks = _cover(one, two, table, feature, rows, 0.0)
        if not parts or values.size == 0:
            return 0.0
        sizes = np.abs(values).astype(np.float64)
        return float(sizes[np.any(marks, axis=0)].sum() / sizes.sum())

    return covered


def absorptions(one: Compared, two: Compared, table: PairTable) -> list[Absorbed]:
    """General features of `one` of which a part is absorbed in `two`."""
    assert one.events is not None
    assert two.events is not None
    starts = table.starts(one.n)
    counts, theirs = one.events.counts, two.events.counts
    asked = (counts >= LEAST_EVENTS) & (counts <= DENSE * one.events.n_tokens)
    found = []
    for feature in np.flatnonzero(asked).tolist():
        rows = np.arange(starts[feature], starts[feature + 1])
        others, both = table.other[rows], table.both[rows]
        precision, recall = both / theirs[others], both / counts[feature]
        is_counterpart = (precision >= COUNTERPART_PRECISION) & (recall >= COUNTERPART_RECALL[0])
        is_counterpart &= _close(one, feature, two, others, COUNTERPART_COSINE)
        if not is_counterpart.any():
            continue
        place = int(np.where(is_counterpart, recall, -1).argmax())
        counterpart = int(others[place])
        if recall[place] > COUNTERPART_RECALL[1]:
            continue
        tokens, values = one.events.of(feature)
        is_on = _among(tokens, two.events.of(counterpart)[0])
        is_absorber = (precision >= INSIDE) & (both >= np.maximum(ABSORBED_EVENTS, ABSORBED * counts[feature]))
        is_absorber &= _close(one, feature, two, others, ABSORBER_COSINE) & (others != counterpart)
        for absorber in others[is_absorber].tolist():
            at = _among(tokens, two.events.of(absorber)[0])
            silent, elsewhere = float((~is_on[at]).mean()), float(is_on[~at].mean()) if (~at).any() else 0.0
            if silent < SILENT or elsewhere < ELSEWHERE:
                continue
            sizes = np.abs(values)
            found.append(
                Absorbed(
                    Absorption(
                        side=one.side,
                        feature=feature,
                        counterpart=counterpart,
                        absorber=absorber,
                        events=int(at.sum()),
                        silent=silent,
                        active_elsewhere=elsewhere,
                        recall=float((at & ~is_on).mean()),
                        counterpart_cosine=one.cosine(feature, two, counterpart),
                        absorber_cosine=one.cosine(feature, two, absorber),
                    ),
                    int(tokens[np.where(at & ~is_on, sizes, -1).argmax()]),
                    int(tokens[np.where(is_on & ~at, sizes, -1).argmax()]),
                )
            )
    return found


def _inside(
    one: Compared, two: Compared, table: PairTable, feature: int, starts: np.ndarray, cosine: float | None
) -> np.ndarray:
    """Pairs of a feature with those of `two` that are active mostly where it is, the largest first."""
    assert one.events is not None
    assert two.events is not None
    rows = np.arange(starts[feature], starts[feature + 1])
    others = table.other[rows]
    kept = table.both[rows] >= PRECISION * two.events.counts[others]
    if cosine is not None:
        kept &= _close(one, feature, two, others, cosine)
    rows = rows[kept]
    return rows[np.argsort(-table.both[rows], kind="stable")][: 4 * PARTS]


def _cover(
    one: Compared, two: Compared, table: PairTable, feature: int, rows: np.ndarray, least: float
) -> tuple[list[int], list[np.ndarray]]:
    """Features of `two` that add most of a feature's events, one after another, and at which events each is active."""
    assert one.events is not None
    assert two.events is not None
    tokens, _ = one.events.of(feature)
    marks = {int(part): _among(tokens, two.events.of(int(part))[0]) for part in table.other[rows]}
    is_covered = np.zeros(tokens.size, dtype=bool)
    parts: list[int] = []
    while marks and len(parts) < PARTS:
        gains = {part: int((mark & ~is_covered).sum()) for part, mark in marks.items() if part not in parts}
        if not gains:
            break
        best = max(gains, key=gains.__getitem__)
        if gains[best] == 0 or gains[best] < least * tokens.size:
            break
        parts.append(best)
        is_covered |= marks[best]
    return parts, [marks[part] for part in parts]


def _among(tokens: np.ndarray, sorted_tokens: np.ndarray) -> np.ndarray:
    """Which of `tokens` are among others that are sorted."""
    if sorted_tokens.size == 0:
        return np.zeros(tokens.size, dtype=bool)
    place = np.minimum(np.searchsorted(sorted_tokens, tokens), sorted_tokens.size - 1)
    return sorted_tokens[place] == tokens


def _close(one: Compared, feature: int, two: Compared, others: np.ndarray, least: float) -> np.ndarray:
    """Which directions of `two` are close enough to a feature's; all, where directions cannot be compared."""
    if one.directions is None or two.directions is None:
        return np.ones(others.size, dtype=bool)
    return two.directions[others] @ one.directions[feature] >= least


def _in_span(one: Compared, feature: int, two: Compared, parts: list[int]) -> float | None:
    if one.directions is None or two.directions is None:
        return None
    basis = two.directions[parts].T.astype(np.float64)
    whole = one.directions[feature].astype(np.float64)
    found, *_ = np.linalg.lstsq(basis, whole, rcond=None)
    return float(1 - np.square(whole - basis @ found).sum() / max(np.square(whole).sum(), 1e-30))
