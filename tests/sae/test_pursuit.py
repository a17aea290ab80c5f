"""Matching pursuit in compiled loops: its choices, codes and gradients are those of the chain of residuals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae import SAEConfig, pursuit
from sae.architectures import architecture_of
from sae.architectures.architecture import Architecture, Moment, strongest_entries
from sae.architectures.matching_pursuit import MatchingPursuit

pytest.importorskip("numba", reason="without numba there is only the reference")


def made(d_in: int, d_sae: int, k: int | None, smallest: float, n: int = 64) -> tuple[MatchingPursuit, dict, Tensor]:
    torch.manual_seed(3)
    config = SAEConfig(architecture="matching_pursuit", d_in=d_in, d_sae=d_sae, k=k, residual_threshold=smallest)
    architecture = architecture_of(config)
    assert isinstance(architecture, MatchingPursuit)
    parameters = {
        name: value.double() + 0.1 * torch.randn(value.shape, dtype=torch.float64)
        for name, value in architecture.initial(torch.Generator().manual_seed(0)).items()
    }
    rows = torch.randn(n, d_in, dtype=torch.float64)
    rows[0] = parameters["b_dec"]  # nothing to explain
    return architecture, parameters, rows


SHAPES = [(16, 96, 5, 0.3), (8, 24, 12, 1e-3), (8, 24, None, 0.5), (40, 700, 9, 1e-2), (3, 2, 2, 1e-6)]


@pytest.mark.parametrize(("d_in", "d_sae", "k", "smallest"), SHAPES)
@pytest.mark.parametrize("some_are_dead", [False, True])
def test_the_step_is_that_of_automatic_differentiation(
    d_in: int, d_sae: int, k: int | None, smallest: float, some_are_dead: bool
) -> None:
    architecture, parameters, rows = made(d_in, d_sae, k, smallest)
    moment = Moment(0, 1, torch.arange(d_sae) % 3 == 0 if some_are_dead else None)
    assert pursuit.is_pursued(parameters["W_dec"])
    got = architecture.step(parameters, rows, rows, moment)
    expected = Architecture.step(architecture, parameters, rows, rows, moment)
    for name, gradient in expected.gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(got.gradients[name], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got._replace(gradients={}), expected._replace(gradients={}))


@pytest.mark.parametrize(("d_in", "d_sae", "k", "smallest"), SHAPES)
def test_codes_are_those_of_the_chain(d_in: int, d_sae: int, k: int | None, smallest: float) -> None:
    architecture, parameters, rows = made(d_in, d_sae, k, smallest)
    centred = rows - parameters["b_dec"]
    with torch.no_grad():
        got = architecture.encode(parameters, centred)
        expected = strongest_entries(architecture.pursue(parameters["W_dec"], centred)[0])
    dense = [
        torch.zeros(len(rows), d_sae).double().scatter_add(1, each.indices, each.values) for each in (got, expected)
    ]
    torch.testing.assert_close(*dense)
    assert got.values.shape == expected.values.shape
    assert not got.values[0].any()


def test_a_latent_that_is_chosen_again_ends_its_row_and_is_one_code() -> None:
    half = torch.tensor([[1.0, 0, 0], [0.0, 0.5, 0]]).double()  # half a unit long: one choice leaves most of it
    found = pursuit.pursue(half, torch.tensor([[0.0, 2, 0], [3, 1, 0]]).double(), 2, 1e-3)
    assert found.chosen.tolist() == [[1, 1], [0, 1]]
    values, indices = found.codes()
    torch.testing.assert_close(values, torch.tensor([[1.0 + 0.75, 0], [3, 0.5]]).double())
    assert indices.tolist() == [[1, 0], [0, 1]]


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    architecture, parameters, rows = made(16, 96, 5, 0.1, n=301)
    parameters, rows = {name: value.float() for name, value in parameters.items()}, rows.float()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(architecture.step(parameters, rows, rows, Moment(0, 1)).gradients["W_dec"])
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-7)  # torch's products may differ in the last bit


def test_wide_dictionaries_keep_to_full_products(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, parameters, rows = made(16, 96, 5, 0.3)
    expected = architecture.step(parameters, rows, rows, Moment(0, 1))
    monkeypatch.setattr(pursuit, "GRAM_MAX_LATENTS", 95)
    assert not pursuit.is_pursued(parameters["W_dec"])
    got = architecture.step(parameters, rows, rows, Moment(0, 1))
    torch.testing.assert_close(got, expected)
