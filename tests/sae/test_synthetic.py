"""The synthetic world fires as its settings say, and its scores tell a perfect dictionary from a poor one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sae.codes import Codes
from sae.synthetic import PRESETS, World, WorldConfig, mean_max_cosine, score

TINY = WorldConfig(d_in=24, n_features=60, roots=3, depth=2, branching=3, p_max=0.4, p_min=0.01, bias_norm=0.0)
FREE = WorldConfig(d_in=24, n_features=40, roots=0, p_max=0.3, p_min=0.02, correlation_rank=4, correlation_scale=0.2)


class Oracle:
    """A dictionary that knows the features and the true codes of the rows it is given."""

    def __init__(self, world: World, kept: int, extra: int = 0) -> None:
        self.world, self.kept = world, kept
        self.W_dec = torch.cat([world.features[:kept], world.features[:extra]])

    def encode(self, x: torch.Tensor) -> Codes:
        values = torch.linalg.lstsq(self.W_dec[: self.kept].T, (x - self.world.bias).T).solution.T
        values = torch.where(values > 0.5, values, 0.0)
        values = torch.nn.functional.pad(values, (0, len(self.W_dec) - self.kept))
        indices = torch.where(values > 0, torch.arange(values.shape[1]), -1)
        return Codes(values, indices, values.shape[1])

    def decode(self, codes: Codes) -> torch.Tensor:
        return codes.to_dense() @ self.W_dec + self.world.bias


def test_free_features_fire_at_their_zipf_probabilities() -> None:
    world = World(FREE)
    _, codes = world.sample(40_000, 1)
    rates = (codes.to_dense() > 0).double().mean(0)
    ranks = torch.arange(1, 41, dtype=torch.float64) ** -0.5
    expected = 0.02 + 0.28 * (ranks - ranks[-1]) / (1 - ranks[-1])
    # one standard deviation of a rate is at most 0.0023 with 40,000 rows
    torch.testing.assert_close(rates, expected, rtol=0, atol=0.01)


def test_correlated_features_fire_together() -> None:
    world, alone = World(FREE), World(WorldConfig(**{**vars(FREE), "correlation_rank": 0}))
    strong = [float(_firings(world).T.corrcoef().sub(torch.eye(40)).abs().max()) for world in (world, alone)]
    assert strong[0] > 0.1 > 0.05 > strong[1]


def _firings(world: World) -> torch.Tensor:
    return (world.sample(20_000, 2)[1].to_dense() > 0).float()


def test_children_fire_with_their_parent_and_one_at_a_time() -> None:
    world = World(TINY)
    fires = _firings(world)
    assert world.parent[:3].tolist() == [-1] * 3
    assert world.parent[3:12].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert world.parent[12:21].tolist() == [3] * 3 + [4] * 3 + [5] * 3
    assert (world.parent[39:] == -1).all()
    for child in range(3, 39):
        assert not bool((fires[:, child] > fires[:, world.parent[child]]).any())
        assert fires[:, child].any()
    for parent in range(12):
        first = int(world.first_child[parent])
        assert float(fires[:, first : first + 3].sum(1).max()) == 1


def test_children_scale_with_their_parent() -> None:
    world = World(TINY)
    values = world.sample(20_000, 3)[1].to_dense()
    both = values[values[:, 3] > 0]
    assert float(torch.stack([both[:, 0], both[:, 3]]).corrcoef()[0, 1]) > 0.3


def test_rows_are_the_sum_of_their_features() -> None:
    world = World(WorldConfig(**{**vars(TINY), "bias_norm": 0.5}))
    x, codes = world.sample(500, 4)
    torch.testing.assert_close(x, codes.to_dense() @ world.features + world.bias, rtol=1e-5, atol=1e-5)
    assert float(world.bias.norm()) == pytest.approx(0.5, abs=1e-6)
    torch.testing.assert_close(world.features.norm(dim=1), torch.ones(60))


def test_rows_repeat_by_seed_and_go_on_after_a_restore() -> None:
    rows = World(TINY).rows(250, seed=5, piece=100)
    pieces = list(rows)
    assert [len(piece) for piece in pieces] == [100, 100, 50]
    assert torch.equal(torch.cat(list(rows)), torch.cat(pieces))
    assert not torch.equal(next(iter(World(TINY).rows(250, seed=6, piece=100))), pieces[0])
    begun = World(TINY).rows(250, seed=5, piece=100)
    next(iter(begun))
    later = World(TINY).rows(250, seed=5, piece=100)
    later.restore(begun.state())
    assert torch.equal(torch.cat(list(later)), torch.cat(pieces[1:]))


def test_directions_are_pushed_apart_as_far_as_asked() -> None:
    crowded = World(WorldConfig(d_in=16, n_features=64, roots=0, separation_steps=0))
    apart = World(WorldConfig(d_in=16, n_features=64, roots=0, separation_steps=300, separation_lr=1e-2))
    target = World(
        WorldConfig(d_in=16, n_features=64, roots=0, separation_steps=300, separation_lr=1e-2, max_cosine=0.6)
    )
    widths = [mean_max_cosine(world.features) for world in (crowded, target, apart)]
    assert widths[0] > 0.6 >= widths[1] > widths[2]


def test_the_small_preset_is_as_documented() -> None:
    world = World(PRESETS["small"])
    _, codes = world.sample(4000, 6)
    assert world.features.shape == (2048, 128)
    assert float(codes.active.sum()) / 4000 == pytest.approx(13, abs=0.5)


def test_a_perfect_dictionary_scores_one() -> None:
    world = World(WorldConfig(d_in=64, n_features=40, roots=4, p_min=0.01, bias_norm=0.5))
    truth = score(Oracle(world, 40), world, 3000)
    assert truth.mcc == pytest.approx(1, abs=1e-5)
    assert truth.uniqueness == 1
    assert truth.f1 > 0.98  # values under the oracle's threshold are missed
    assert truth.l0 == pytest.approx(truth.true_l0, rel=0.02)
    assert abs(truth.l0_error) < 0.2
    assert truth.shrinkage == pytest.approx(1, abs=0.01)
    assert truth.explained_variance > 0.999
    assert truth.dead_frac == 0


def test_dead_and_repeated_latents_are_seen() -> None:
    world = World(WorldConfig(d_in=64, n_features=40, roots=4, p_min=0.01))
    truth = score(Oracle(world, 40, extra=10), world, 3000)
    assert truth.dead_frac == pytest.approx(0.2)
    assert truth.uniqueness == pytest.approx(0.8)
    assert truth.f1 == pytest.approx(0.8 * score(Oracle(world, 40), world, 3000).f1, abs=1e-6)


def test_scores_equal_their_definitions() -> None:
    world = World(TINY)
    oracle = Oracle(world, 20)
    truth = score(oracle, world, 1000, seed=3, piece=1000)
    from sae.synthetic import _mix

    x, codes = world.sample(1000, _mix(3, 0))
    fires, present = oracle.encode(x).to_dense() > 0, codes.to_dense()[:, :20] > 0
    x_hat = oracle.decode(oracle.encode(x))
    both = (fires & present).sum(0)
    precision = torch.where(fires.any(0), both / fires.sum(0), 0.0)
    recall = torch.where(present.any(0), both / present.sum(0), 0.0)
    f1 = torch.where(both > 0, 2 * precision * recall / (precision + recall), 0.0)
    assert truth.f1 == pytest.approx(f1.mean().item(), abs=1e-5)
    assert truth.precision == pytest.approx(precision.mean().item(), abs=1e-5)
    assert truth.recall == pytest.approx(recall.mean().item(), abs=1e-5)
    assert truth.l0 == pytest.approx(fires.sum().item() / 1000)
    ev = 1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert truth.explained_variance == pytest.approx(ev.item(), abs=1e-5)
    assert truth.shrinkage == pytest.approx(
        (x_hat.norm(dim=1) / x.norm(dim=1).clamp(min=1e-12)).mean().item(), rel=1e-4
    )


def test_a_dictionary_of_another_width_is_refused() -> None:
    world = World(TINY)
    with pytest.raises(ValueError, match=r"decoder rows of shape \(60, 24\), expected \[d_sae, d_in=128\]"):
        score(Oracle(world, 60), World(PRESETS["small"]), 100)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(d_in=0), "d_in=0 must be at least 1"),
        (dict(p_min=0.5), "p_min=0.5 and p_max=0.4"),
        (dict(roots=61), "roots=61 must lie between 0 and n_features=60"),
    ],
)
def test_impossible_worlds_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldConfig(**{"d_in": 24, "n_features": 60, "roots": 3, **settings})


def test_features_are_no_trainers_first_directions() -> None:
    for seed in range(4):
        world = World(WorldConfig(d_in=24, n_features=60, roots=0, separation_steps=0), seed)
        for other in range(4):
            begin = torch.nn.functional.normalize(torch.randn(60, 24, generator=torch.Generator().manual_seed(other)))
            # 60 unrelated directions in 24 dimensions: the best match of each is near 0.5, never near 1
            assert float((begin @ world.features.T).abs().amax(1).mean()) < 0.6
