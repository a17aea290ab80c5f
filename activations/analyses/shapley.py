"""Shapley values of tokens: what each adds to the target, averaged over all orders in which tokens could come.

    shapley(metric, how="auto", …) -> parts of an `Attribution`

Enters: a `Metric`. Leaves, for players (tokens, or groups of tokens) N and v(S) = m(text with the players outside S
replaced by the baseline):

    φ_i = Σ_{S ⊆ N∖i} |S|! (|N|−|S|−1)! / |N|! · (v(S ∪ i) − v(S)),      Σ_i φ_i = v(N) − v(∅)

* `exact` asks for all 2^n sets; for at most `EXACT_PLAYERS` players.
* `permutation` draws orders, each with its reverse, lets players come one after another, and takes the mean of what
  each adds. Each order telescopes: the sum is exact at any number of orders. Standard errors are over pairs of orders.
* `owen` draws only orders that keep coalitions (words) together: the Owen value, which Shapley values are without
  coalitions. Tokens of a word are then seldom asked about without the rest of it; with the same number of orders the
  texts are less strange.

A group's value is divided evenly among its tokens. Special tokens stay, and score 0.

It misleads as all replaced texts do: v asks the model about texts that it never saw, and depends on the baseline.

Source: Shapley 1953; Castro et al. 2009 (sampling); Mitchell et al. 2022 (2104.12199, antithetic orders); Owen 1977.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.analyses.baselines import BATCH_TOKENS, baseline_embeddings, embeddings_of, replaceable
from activations.analyses.targets import Metric

EXACT_PLAYERS = 12
AUTO_EXACT_PLAYERS = 7
"""`auto` is exact up to here: sampling asks no less of so few players."""
Groups = Sequence[Sequence[int]]


@torch.no_grad()
def shapley(
    metric: Metric,
    *,
    how: str = "auto",
    baseline: str | int = "pad",
    players: str | Groups = "tokens",
    coalitions: Groups | None = None,
    samples: int = 16,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns Shapley or Owen values; `players` is `tokens`, `words`, or groups of positions of your own.

    `samples` counts orders (drawn in pairs); `coalitions` groups players for `owen` by position (default: words).

    Raises:
        ValueError: unknown `how` or `players`, groups that overlap or leave the text, too many players for `exact`,
            and whatever the baseline refuses.
    """
    if how not in ("auto", "exact", "permutation", "owen"):
        raise ValueError(f"how={how!r} is unknown, expected auto, exact, permutation or owen: choose one of these")
    if samples < 2:
        raise ValueError(f"got samples={samples}, expected at least 2 (a pair of orders): ask for more")
    places = replaceable(metric)
    groups = _players(metric, players, places)
    if how == "auto":
        how = "exact" if len(groups) <= AUTO_EXACT_PLAYERS else "permutation"
    game = _Game(metric, groups, baseline)
    settings: dict[str, Any] = {"how": how, "baseline": baseline, "players": len(groups)}
    errors = None
    if how == "exact":
        if len(groups) > EXACT_PLAYERS:
            raise ValueError(
                f"{len(groups)} players make 2^{len(groups)} texts, expected at most {EXACT_PLAYERS} for how='exact': "
                "use permutation, or group tokens"
            )
        values = _exact(game)
    else:
        inside = _coalitions(metric, groups, coalitions) if how == "owen" else [list(range(len(groups)))]
        orders = _orders(inside, samples, seed)
        values, errors = _sampled(game, orders)
        settings |= {"samples": len(orders), "seed": seed}
    scores, spread = np.zeros(metric.count), np.zeros(metric.count)
    for index, group in enumerate(groups):
        scores[list(group)] = values[index] / len(group)
        spread[list(group)] = 0 if errors is None else errors[index] / len(group)
    if any(len(group) > 1 for group in groups):
        settings["groups"] = [
            {"positions": list(group), "value": float(value)} for group, value in zip(groups, values, strict=True)
        ]
    whole, nothing = game.ends()
    return {
        "scores": scores,
        "value": whole,
        "baseline_value": nothing,
        "error": float(values.sum() - (whole - nothing)),
        "standard_errors": None if errors is None else spread,
        "settings": settings,
    }


def words_of(metric: Metric, places: Sequence[int]) -> list[list[int]]:
    """Returns the replaceable positions word by word: white space goes with the word behind it."""
    strings = metric.lm.token_strings(metric.tokens[0, : metric.count])
    groups: list[list[int]] = []
    for place in places:
        if groups and groups[-1][-1] == place - 1:
            before, token = strings[place - 1], strings[place]
            if before.isspace() or not (token[:1].isspace() or before[-1:].isspace()):
                groups[-1].append(place)
                continue
        groups.append([place])
    return groups


class _Game:
    """v(S) for sets of players, many at a time; each set is asked about once."""

    def __init__(self, metric: Metric, groups: Groups, baseline: str | int) -> None:
        self._metric = metric
        self._groups = groups
        self._known: dict[bytes, float] = {}
        self._text = embeddings_of(metric, metric.tokens)
        self._base = baseline_embeddings(metric, baseline)

    @property
    def players(self) -> int:
        return len(self._groups)

    def values(self, present: Bool[np.ndarray, "sets players"]) -> Float[np.ndarray, " sets"]:
        keys = [row.tobytes() for row in present]
        new = list(dict(zip(keys, present, strict=True)).items())
        new = [(key, row) for key, row in new if key not in self._known]
        size = max(1, BATCH_TOKENS // self._text.shape[1])
        for start in range(0, len(new), size):
            some = new[start : start + size]
            found = self._metric(
                self._metric.tokens.expand(len(some), -1), torch.cat([self._rows(row) for _, row in some])
            )
            for (key, _), value in zip(some, found.double().tolist(), strict=True):
                self._known[key] = value
        return np.array([self._known[key] for key in keys])

    def ends(self) -> tuple[float, float]:
        """v(N) and v(∅)."""
        both = self.values(np.array([[True] * self.players, [False] * self.players]))
        return float(both[0]), float(both[1])

    def _rows(self, present: Bool[np.ndarray, " players"]) -> Float[Tensor, "1 seq d"]:
        rows = self._text.clone()
        gone = [place for group, is_here in zip(self._groups, present, strict=True) if not is_here for place in group]
        rows[0, gone] = self._base[0, gone]
        return rows


def _exact(game: _Game) -> Float[np.ndarray, " players"]:
    count = game.players
    sets = np.array(list(itertools.product([False, True], repeat=count)))
    values = game.values(sets)
    sizes = sets.sum(1)
    weights = np.array([1 / (count * math.comb(count - 1, size)) if size < count else 0.0 for size in range(count + 1)])
    # the first player is the highest digit of a set's number
    found = np.zeros(count)
    for player in range(count):
        without = np.flatnonzero(~sets[:, player])
        added = values[without + (1 << (count - 1 - player))] - values[without]
        found[player] = (weights[sizes[without]] * added).sum()
    return found


def _sampled(game: _Game, orders: list[list[int]]) -> tuple[np.ndarray, np.ndarray | None]:
    """Means of what players add in each order, and their standard errors over pairs of orders."""
    added = np.zeros((len(orders), game.players))
    for row, order in enumerate(orders):
        sets = np.zeros((game.players + 1, game.players), dtype=bool)
        for step, player in enumerate(order):
            sets[step + 1 :, player] = True
        added[row, order] = np.diff(game.values(sets))
    pairs = added.reshape(len(orders) // 2, 2, -1).mean(1)
    errors = pairs.std(0, ddof=1) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return pairs.mean(0), errors


def _orders(coalitions: list[list[int]], samples: int, seed: int) -> list[list[int]]:
    """Orders of players that keep coalitions together, each followed by its reverse."""
    generator = np.random.default_rng(seed)
    orders = []
    for _ in range((samples + 1) // 2):
        order = [
            int(player)
            for which in generator.permutation(len(coalitions))
            for player in generator.permutation(coalitions[which])
        ]
        orders += [order, order[::-1]]
    return orders


def _players(metric: Metric, players: str | Groups, places: list[int]) -> list[list[int]]:
    if players == "tokens":
        return [[place] for place in places]
    if players == "words":
        return words_of(metric, places)
    if isinstance(players, str):
        raise ValueError(f"players={players!r} is unknown, expected tokens, words or groups of positions: give one")
    return _checked(players, places)


def _checked(groups: Groups, places: list[int]) -> list[list[int]]:
    named = [place for group in groups for place in group]
    if not named or len(set(named)) < len(named) or not set(named) <= set(places) or not all(map(len, groups)):
        raise ValueError(
            f"got groups {[list(group) for group in groups]}, expected positions among {places}, each once: mend them"
        )
    return [list(group) for group in groups]


def _coalitions(metric: Metric, groups: list[list[int]], coalitions: Groups | None) -> list[list[int]]:
    """Players by coalition; players that none names stand alone."""
    first = {group[0]: index for index, group in enumerate(groups)}
    named = words_of(metric, sorted(first)) if coalitions is None else _checked(coalitions, sorted(first))
    alone = set(first) - {place for each in named for place in each}
    return [[first[place] for place in each] for each in (*named, *([place] for place in sorted(alone)))]
