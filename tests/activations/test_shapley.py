"""Shapley values are efficient, symmetric and zero for dummies, and sampling comes to the exact ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import AtSite, Attribution, Continuation, attribute
from activations.analyses.shapley import words_of
from activations.analyses.targets import Metric

FIVE = ["gpt2", "gpt_neox", "llama", "gemma2", "bert"]
TEXT = "a = f(b)"


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return LanguageModel(build("llama"), tokenizer())


def values(lm: LanguageModel, text: str = TEXT, target: object = "z", **settings: object) -> Attribution:
    return attribute(lm, text, target, method="shapley", **settings)  # pyright: ignore


def game(lm: LanguageModel, text: str) -> Callable[[tuple[int, ...]], float]:
    """What the model makes of a text of which only some letters are there."""
    metric = Metric(lm, text, "z")

    def value(present: tuple[int, ...]) -> float:
        mixed = "".join(each if place in present else "q" for place, each in enumerate(text))
        with torch.no_grad():
            return float(metric(lm.tokenize(mixed).tokens))

    return value


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("how", ["exact", "permutation", "owen"])
def test_values_sum_to_what_the_text_adds(name: str, how: str) -> None:
    lm = LanguageModel(build(name), tokenizer())
    found = values(lm, how=how, baseline="q", samples=2)
    with torch.no_grad():
        ends = [float(Metric(lm, text, "z")(lm.tokenize(text).tokens)) for text in (TEXT, "q" * len(TEXT))]
    assert found.value == pytest.approx(ends[0], abs=1e-5)
    assert found.baseline_value == pytest.approx(ends[1], abs=1e-5)
    assert found.scores.sum() == pytest.approx(ends[0] - ends[1], abs=2e-5)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_exact_values_are_the_mean_over_all_orders(llama: LanguageModel) -> None:
    text = "abcd"
    value = game(llama, text)
    added = np.zeros(4)
    for order in itertools.permutations(range(4)):
        for step, player in enumerate(order):
            added[player] += value(order[: step + 1]) - value(order[:step])
    found = values(llama, text, how="exact", baseline="q")
    np.testing.assert_allclose(found.scores, added / math.factorial(4), atol=1e-9)


def test_dummies_score_nothing_and_twins_alike(llama: LanguageModel) -> None:
    """A target that reads the product of two tokens' rows, and no others."""
    product = AtSite("embed", lambda rows: rows[:, 1].sum(-1) * rows[:, 3].sum(-1))
    found = values(llama, "xaxax", product, how="exact", baseline="zero")
    np.testing.assert_allclose(found.scores[[0, 2, 4]], 0, atol=1e-12)
    assert found.scores[1] == pytest.approx(found.scores[3])
    assert found.scores[1] == pytest.approx(found.value / 2)


def test_samples_come_to_the_exact_values_within_their_errors(llama: LanguageModel) -> None:
    exact = values(llama, how="exact", baseline="q")
    few, many = (values(llama, how="permutation", baseline="q", samples=count) for count in (16, 400))
    assert exact.standard_errors is None
    assert few.standard_errors is not None
    assert many.standard_errors is not None
    assert many.standard_errors.mean() < few.standard_errors.mean() / 2
    # the draw is fixed; four standard errors would be passed by one draw in some ten thousand
    assert (np.abs(many.scores - exact.scores) < 4 * many.standard_errors + 1e-9).all()
    again = values(llama, how="permutation", baseline="q", samples=16)
    assert np.array_equal(again.scores, few.scores)


def test_owen_values_are_the_mean_over_orders_that_keep_words_together(llama: LanguageModel) -> None:
    text, groups = "ab cd", [[0, 1], [2, 3, 4]]
    value = game(llama, text)
    added, orders = np.zeros(5), 0
    for outer in itertools.permutations(groups):
        for first in itertools.permutations(outer[0]):
            for second in itertools.permutations(outer[1]):
                order, orders = (*first, *second), orders + 1
                for step, player in enumerate(order):
                    added[player] += value(order[: step + 1]) - value(order[:step])
    found = values(llama, text, how="owen", baseline="q", coalitions=groups, samples=600)
    assert found.standard_errors is not None
    assert (np.abs(found.scores - added / orders) < 4 * found.standard_errors + 1e-9).all()


def test_groups_are_players_and_share_their_value(llama: LanguageModel) -> None:
    assert words_of(Metric(llama, "if ab:\n c"), list(range(9))) == [[0, 1], [2, 3, 4, 5], [6, 7, 8]]
    found = values(llama, "if ab:", players="words", baseline="q")
    assert found.settings["how"] == "exact"
    assert [group["positions"] for group in found.settings["groups"]] == [[0, 1], [2, 3, 4, 5]]
    assert found.scores[0] == found.scores[1] == pytest.approx(found.settings["groups"][0]["value"] / 2)
    own = values(llama, "if ab:", players=[[0, 5], [1, 2]], baseline="q")
    assert own.scores[3] == own.scores[4] == 0
    assert own.baseline_value is not None
    assert own.scores.sum() == pytest.approx(own.value - own.baseline_value)


def test_continuations_are_targets(llama: LanguageModel) -> None:
    found = values(llama, "abc", Continuation("de"), baseline="q")
    assert len(found.scores) == 3
    assert found.error == pytest.approx(0, abs=1e-9)


def test_what_makes_no_game_is_said_in_one_line(llama: LanguageModel) -> None:
    for settings, said in (
        ({"how": "guess"}, "how='guess' is unknown, expected auto, exact, permutation or owen"),
        ({"samples": 1}, "got samples=1, expected at least 2"),
        ({"players": "letters"}, "players='letters' is unknown, expected tokens, words or groups"),
        ({"players": [[0], [0]]}, r"got groups \[\[0\], \[0\]\], expected positions among"),
        ({"players": [[99]]}, r"got groups \[\[99\]\], expected positions among"),
        ({"how": "owen", "coalitions": [[0], []]}, "expected positions among"),
    ):
        with pytest.raises(ValueError, match=said):
            values(llama, **settings)  # pyright: ignore
    with pytest.raises(ValueError, match=r"14 players make 2\^14 texts, expected at most 12"):
        values(llama, "x" * 14, how="exact")
