"""Intervals around shares, means and areas, from few examples.

Enters: what was counted or measured, one entry an example. Leaves: `Interval(value, low, high)` at 95 %.

* A share of n: Wilson's score interval, which stays inside 0 to 1 and holds for few examples (Wilson 1927).
* An area under the ROC curve: Newcombe's score-like interval, with the variance of Hanley and McNeil at the bound and
  not at the estimate, so that an area of 1 has an interval too (Newcombe 2006, part 2, method 5).
* Anything else: the percentile bootstrap over examples, drawn by seed (Efron 1979). Examples that belong together are
  drawn together where `groups` names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054
DRAWS = 400


class Interval(NamedTuple):
    """A value, and the bounds of its 95 % interval (NaN where there is none)."""

    value: float
    low: float
    high: float


def share_interval(hits: int, n: int) -> Interval:
    """Returns hits / n with Wilson's interval; all NaN for n = 0."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    share, z2 = hits / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # rounding must not push a bound past the share that it bounds
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def area_interval(area: float, yes: int, no: int) -> Interval:
    """Returns an area under the ROC curve, of `yes` positive and `no` negative examples, with its interval."""
    if not math.isfinite(area) or not yes or not no:
        return Interval(math.nan, math.nan, math.nan)

    def is_far(bound: float) -> bool:
        mean = (yes + no) / 2 - 1
        spread = 1 + mean * ((1 - bound) / (2 - bound) + bound / (1 + bound))
        return abs(area - bound) > Z_95 * math.sqrt(bound * (1 - bound) * spread / (yes * no))

    bounds = []
    for outer in (0.0, 1.0):
        near, far = area, outer
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if is_far(middle) else (middle, far)
        bounds.append(near)
    return Interval(area, *bounds)


def bootstrap_interval(
    n: int,
    measure: Callable[[np.ndarray], float],
    *,
    groups: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Returns `measure` of all examples, and its percentile interval over resampled ones.

    `measure` takes indices of examples. Draws on which it is NaN (one class alone) are left out; with fewer than
    twenty usable draws, or one group, there is no interval.
    """
    everything = np.arange(n)
    value = float(measure(everything))
    members = [everything[[i]] for i in range(n)] if groups is None else _members(np.asarray(groups))
    if len(members) < 2:
        return Interval(value, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        drawn = generator.integers(0, len(members), len(members))
        measured = float(measure(np.concatenate([members[i] for i in drawn])))
        if math.isfinite(measured):
            found.append(measured)
    if len(found) < 20:
        return Interval(value, math.nan, math.nan)
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def mean_interval(values: Sequence[float] | np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Returns the mean with its bootstrap interval; NaN for no values."""
    given = np.asarray(values, dtype=float)
    if not len(given):
        return Interval(math.nan, math.nan, math.nan)
    return bootstrap_interval(len(given), lambda chosen: float(given[chosen].mean()), draws=draws, seed=seed)


def _members(groups: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
