"""A synthetic world whose features are known, and how well a dictionary has found them.

Enters: a `WorldConfig` and a seed. Leaves: rows with their true codes, and the scores of a dictionary trained on them.

One row is `bias + Σ value · direction` over its active features:

1. The feature of rank i fires with probability p_i = p_min + (p_max − p_min)·(i^−s − n^−s) / (1 − n^−s): Zipf's law.
2. Which features fire together follows a Gaussian copula of low rank: i fires where
   ⟨F_i, z⟩ + √(1−‖F_i‖²)·ε > Φ⁻¹(1−p_i), with one z for the row, and F drawn once for the world.
3. The first features are the roots of trees. A child can fire only where its parent does, and of several children
   that would fire one is kept, chosen at random. Their probabilities are raised beforehand to make up for both (at
   most to 1, so that children of rare parents stay rarer than their p_i).
4. A firing feature's value is ReLU(mean_i + std_i·ε), a child's times its parent's value over the parent's mean.
5. Directions are random unit vectors pushed apart by gradient descent on their squared cosines.

The settings of the preset `16k` are those of SynthSAEBench-16k, and so are the definitions of the scores (Chanin &
Garriga-Alonso 2026, arXiv 2602.14687; decoderesearch/SAELens, docs/synth_sae_bench.md and sae_lens/synthetic); `small`
is the same kind of world at an eighth of its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.codes import Codes
from sae.matching import assign


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What a synthetic world is made of; the defaults are those of SynthSAEBench-16k."""

    d_in: int
    """Width of the rows."""
    n_features: int
    """True features, the most frequent first."""
    zipf_exponent: float = 0.5
    """s in p ∝ rank^−s."""
    p_max: float = 0.4
    """Firing probability of the most frequent feature."""
    p_min: float = 5e-4
    """Firing probability of the rarest one."""
    roots: int = 128
    """Trees of features; 0 makes every feature independent of the others."""
    branching: int = 4
    """Children of each inner feature of a tree."""
    depth: int = 3
    """Levels below the roots."""
    is_exclusive: bool = True
    """Whether at most one child of a feature fires in a row."""
    correlation_rank: int = 25
    """Rank of the copula; 0 makes features fire independently (trees apart)."""
    correlation_scale: float = 0.1
    """Standard deviation of the copula's loadings: its strength."""
    magnitude_first: float = 5.0
    """Mean value of the most frequent feature."""
    magnitude_last: float = 4.0
    """Mean value of the rarest one, linear in rank between them."""
    magnitude_std_mean: float = 0.5
    """Each feature's standard deviation is |N(this, magnitude_std_std²)|."""
    magnitude_std_std: float = 0.5
    """Spread of the features' standard deviations."""
    separation_steps: int = 100
    """Steps of Adam that push the directions apart."""
    separation_lr: float = 3e-4
    """Its learning rate."""
    max_cosine: float | None = None
    """Stop pushing once the mean over features of the largest |cosine| with another one is this low."""
    bias_norm: float = 0.5
    """Norm of the vector added to every row."""

    def __post_init__(self) -> None:
        for name in ("d_in", "n_features", "branching"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1: raise it")
        if not 0 < self.p_min <= self.p_max <= 1:
            raise ValueError(
                f"p_min={self.p_min} and p_max={self.p_max} must satisfy 0 < p_min <= p_max <= 1: set both"
            )
        if not 0 <= self.roots <= self.n_features:
            raise ValueError(f"roots={self.roots} must lie between 0 and n_features={self.n_features}: lower it")


PRESETS = {
    "small": WorldConfig(d_in=128, n_features=2048, roots=16, p_max=0.48),
    "16k": WorldConfig(d_in=768, n_features=16384),
}
"""Worlds by name; dictionaries of width 512 and 4096 are meant to be trained on them."""


class Firings(NamedTuple):
    """Which features are active where, sorted by row."""

    row: Int[Tensor, " m"]
    feature: Int[Tensor, " m"]
    value: Float[Tensor, " m"]


class World:
    """A synthetic world: fixed by its config and seed, sampled from with seeds of its own."""

    def __init__(self, config: WorldConfig, seed: int = 0, device: str | torch.device = "cpu") -> None:
        self.config, self.seed, self.device = config, seed, torch.device(device)
        # not the bare seed: a dictionary whose first weights are drawn by the same one would start at the truth
        generator = torch.Generator().manual_seed(_mix(seed, WORLD_STREAM))
        n = config.n_features
        self.features: Float[Tensor, "n_features d_in"] = _directions(config, generator).to(self.device)
        """Unit directions, row i the feature of rank i + 1."""
        bias = torch.randn(config.d_in, generator=generator)
        self.bias: Float[Tensor, " d_in"] = (config.bias_norm * bias / bias.norm()).to(self.device)
        ranks = torch.arange(1, n + 1, dtype=torch.float64) ** -config.zipf_exponent
        share = (ranks - ranks[-1]) / (ranks[0] - ranks[-1]) if n > 1 else torch.ones(1, dtype=torch.float64)
        p = config.p_min + (config.p_max - config.p_min) * share
        self.mean = torch.linspace(config.magnitude_first, config.magnitude_last, n).to(self.device)
        std = config.magnitude_std_mean + config.magnitude_std_std * torch.randn(n, generator=generator)
        self.std = std.abs().to(self.device)
        self.parent, self.first_child = _forest(config)
        """Parent of each feature, and its first child (the others follow), or −1; on the CPU."""
        loadings = config.correlation_scale * torch.randn(n, config.correlation_rank, generator=generator)
        squares = loadings.pow(2).sum(1)
        if n and float(squares.max()) >= 1:  # a valid correlation needs rows shorter than one
            loadings *= (0.99 / squares.max()).sqrt()
            squares = loadings.pow(2).sum(1)
        own = (1 - squares).sqrt()
        threshold = torch.special.ndtri(1 - _raised(p, self.parent, config)).float()
        # a feature fires where ⟨loadings, z⟩ + own·ε > threshold; divided by `own`
        self._loadings = (loadings / own[:, None]).to(self.device)
        self._threshold = (threshold / own).to(self.device)
        self._top = (self.parent < 0).nonzero().squeeze(1).to(self.device)
        self._top_loadings = self._loadings[self._top].contiguous()
        self._top_threshold = self._threshold[self._top].contiguous()
        self._first_child = self.first_child.to(self.device)

    def rows(self, n: int, seed: int, piece: int = 8192) -> Rows:
        """Returns `n` rows in pieces: the same for the same seed and piece size, as often as they are asked for."""
        return Rows(self, n, seed, piece)

    def sample(self, n: int, seed: int) -> tuple[Float[Tensor, "n d_in"], Codes]:
        """Returns `n` rows and their true codes."""
        firings = self.firings(n, self._generator(seed))
        counts = torch.bincount(firings.row, minlength=n)
        width = max(1, int(counts.max()))
        place = torch.arange(len(firings.row), device=self.device) - (counts.cumsum(0) - counts)[firings.row]
        values = torch.zeros(n, width, device=self.device)
        indices = torch.full((n, width), -1, dtype=torch.int64, device=self.device)
        values[firings.row, place] = firings.value
        indices[firings.row, place] = firings.feature
        return self.embed(firings, n), Codes(values, indices, self.config.n_features)

    def embed(self, firings: Firings, n: int) -> Float[Tensor, "n d_in"]:
        """Returns the rows that firings stand for."""
        ends = torch.bincount(firings.row, minlength=n).cumsum(0)
        starts = torch.nn.functional.pad(ends, (1, 0))[:-1]
        return self.bias + torch.nn.functional.embedding_bag(
            firings.feature, self.features, starts, mode="sum", per_sample_weights=firings.value
        )

    def firings(self, n: int, generator: torch.Generator) -> Firings:
        """Draws the active features of `n` rows."""
        # the noise of all parentless features of a chunk stays in the processor's cache
        chunk = n if self.device.type != "cpu" else max(64, (1 << 20) // max(1, len(self._top)))
        parts = [self._fire(start, min(chunk, n - start), generator) for start in range(0, n, chunk)]
        row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
        order = torch.argsort(row, stable=True)
        return Firings(row[order], feature[order], value[order])

    def _fire(self, start: int, n: int, generator: torch.Generator) -> Firings:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=self.device)

        z = normal(n, self.config.correlation_rank)
        excess = normal(n, len(self._top)).addmm_(z, self._top_loadings.T)
        row, place = (excess > self._top_threshold).nonzero(as_tuple=True)
        feature = self._top[place]
        value = (self.mean[feature] + self.std[feature] * normal(len(feature))).relu_()
        levels = [Firings(row, feature, value)]
        siblings = torch.arange(self.config.branching, device=self.device)
        for _ in range(self.config.depth):
            row, feature, value = levels[-1]
            parents = ((self._first_child[feature] >= 0) & (value > 0)).nonzero().squeeze(1)
            row, feature, value = row[parents], feature[parents], value[parents]
            children = self._first_child[feature][:, None] + siblings
            present = children < self.config.n_features
            children = children.clamp(max=self.config.n_features - 1)
            loadings = self._loadings.index_select(0, children.view(-1)).view(*children.shape, z.shape[1])
            pull = torch.bmm(loadings, z.index_select(0, row)[:, :, None]).squeeze(2)
            fires = (pull + normal(len(row), len(siblings)) > self._threshold[children]) & present
            if self.config.is_exclusive:
                lot = torch.where(fires, torch.rand(fires.shape, generator=generator, device=self.device), -1.0)
                fires &= lot == lot.amax(1, keepdim=True)
            which, sibling = fires.nonzero(as_tuple=True)
            child = children[which, sibling]
            share = value[which] / self.mean[feature[which]]
            drawn = (self.mean[child] + self.std[child] * normal(len(child))).relu_()
            levels.append(Firings(row[which], child, drawn * share))
        row, feature, value = (torch.cat(column) for column in zip(*levels, strict=True))
        active = value > 0
        return Firings(row[active] + start, feature[active], value[active])

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)


class Rows:
    """Rows of a world in pieces; `state` and `restore` let a killed training run go on with the next one."""

    def __init__(self, world: World, n: int, seed: int, piece: int) -> None:
        self._world, self._n, self._seed, self._piece = world, n, seed, piece
        self._next = 0

    def __iter__(self) -> Iterator[Float[Tensor, "_ d_in"]]:
        while self._next * self._piece < self._n:
            index, self._next = self._next, self._next + 1
            count = min(self._piece, self._n - index * self._piece)
            # every piece has a generator of its own, so that going on needs nothing but its number
            yield self._world.embed(self._world.firings(count, self._world._generator(_mix(self._seed, index))), count)
        self._next = 0

    def state(self) -> dict[str, Tensor]:
        """Returns what `restore` needs."""
        return {"next": torch.tensor(self._next)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on after the last piece that had been given when `state` was called."""
        self._next = int(state["next"])


WORLD_STREAM = 1 << 40  # pieces of rows count from 0


def _mix(seed: int, index: int) -> int:
    return (seed * 1_000_003 + index + 1) * 0x9E3779B1 % (1 << 63)


def _directions(config: WorldConfig, generator: torch.Generator) -> Float[Tensor, "n_features d_in"]:
    """Returns unit vectors, pushed apart by Adam on Σ cos² (with the norms held near one, as in SAELens)."""
    rows = torch.randn(config.n_features, config.d_in, generator=generator)
    rows /= rows.norm(dim=1, keepdim=True)
    moment, square = torch.zeros_like(rows), torch.zeros_like(rows)
    for step in range(1, config.separation_steps + 1):
        if config.max_cosine is not None and mean_max_cosine(rows) <= config.max_cosine:
            break
        # ∂/∂rows of Σ_{i≠j} ⟨i,j⟩² + n·Σ_i (‖i‖² − 1)², the first through d × d products instead of n × n ones
        norms = rows.pow(2).sum(1, keepdim=True)
        gradient = 4 * (rows @ (rows.T @ rows) - norms * rows) + 4 * len(rows) * (norms - 1) * rows
        moment.lerp_(gradient, 0.1)
        square.lerp_(gradient.pow(2), 0.001)
        bias1, bias2 = 1 - 0.9**step, 1 - 0.999**step
        rows -= config.separation_lr * (moment / bias1) / ((square / bias2).sqrt() + 1e-8)
    return rows / rows.norm(dim=1, keepdim=True)


def mean_max_cosine(rows: Float[Tensor, "n d"]) -> float:
    """Returns the mean over rows of the largest |cosine| with another row: how crowded the directions are."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    largest = []
    for start in range(0, len(unit), 1024):
        cosines = (unit[start : start + 1024] @ unit.T).abs_()
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = 0
        largest.append(cosines.amax(1))
    return float(torch.cat(largest).mean())


def _forest(config: WorldConfig) -> tuple[Int[Tensor, " n_features"], Int[Tensor, " n_features"]]:
    """Numbers trees level by level: roots first, then every root's children in turn, and so on while features last."""
    parent = torch.full((config.n_features,), -1, dtype=torch.int64)
    first_child = parent.clone()
    level, following = range(config.roots), config.roots
    for _ in range(config.depth):
        begin = following
        for node in level:
            if following >= config.n_features:
                break
            first_child[node] = following
            following = min(following + config.branching, config.n_features)
            parent[first_child[node] : following] = node
        level = range(begin, following)
    return parent, first_child


def _raised(p: Tensor, parent: Tensor, config: WorldConfig) -> Tensor:
    """Returns the probabilities to draw with, so that what trees take away is made up for where it can be."""
    has_parent = parent >= 0
    safe = parent.clamp(min=0)
    above = torch.where(has_parent, p[safe], 1.0)
    raised = p / above
    if config.is_exclusive:
        siblings = torch.zeros_like(p).index_add_(0, safe[has_parent], p[has_parent])[safe]
        raised = torch.where(has_parent, raised * (1 + (siblings - p).clamp(min=0) / above), raised)
    return raised.clamp(max=1.0)


@runtime_checkable
class Dictionary(Protocol):
    """What is scored: an `SAE`, or anything with its three faces."""

    @property
    def W_dec(self) -> Tensor: ...

    def encode(self, x: Tensor, /) -> Codes: ...

    def decode(self, codes: Codes, /) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """How well a dictionary found a world's features; means over latents unless said otherwise."""

    f1: float
    """F1 of each latent as a detector of the feature nearest to its decoder row by |cosine|; a dead latent has 0."""
    precision: float
    """Of the rows where the latent fires, the share where its feature does."""
    recall: float
    """Of the rows where its feature fires, the share where the latent does."""
    mcc: float
    """Mean |cosine| of decoder rows and features under the best one-to-one matching."""
    uniqueness: float
    """Different features among the latents' nearest ones, over the number of latents."""
    l0: float
    """Active latents a row."""
    true_l0: float
    """Active features a row."""
    l0_error: float
    """l0 − the firings a row of the features that some latent is nearest to: positive means too many latents fire."""
    shrinkage: float
    """‖x̂‖ / ‖x‖, averaged over rows."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − μ‖² over all rows."""
    dead_frac: float
    """Share of latents silent on all rows."""
    n_rows: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures by name."""
        return asdict(self)


@torch.no_grad()
def score(
    dictionary: Dictionary, world: World, n_rows: int = 100_000, *, seed: int = 1_000_003, piece: int = 4096
) -> GroundTruth:
    """Measures a dictionary on fresh rows of the world it was trained on.

    Raises:
        ValueError: the dictionary's width is not the world's.
    """
    W_dec = dictionary.W_dec.detach().to(world.device, torch.float32)
    if W_dec.ndim != 2 or W_dec.shape[1] != world.config.d_in:
        raise ValueError(
            f"score got decoder rows of shape {tuple(W_dec.shape)}, expected [d_sae, d_in={world.config.d_in}]: "
            "score a dictionary that was trained on this world"
        )
    unit = torch.nn.functional.normalize(W_dec, dim=1)
    cosines = (unit @ world.features.T).abs_()
    nearest = cosines.argmax(1)
    both, fired, present = (torch.zeros(len(W_dec), dtype=torch.float64, device=world.device) for _ in range(3))
    # the first rows' mean is taken off before squares are summed, against cancellation
    shift: Tensor | None = None
    shifted = torch.zeros(world.config.d_in, dtype=torch.float64, device=world.device)
    squares = torch.zeros(3, dtype=torch.float64, device=world.device)
    firings = 0
    for index, start in enumerate(range(0, n_rows, piece)):
        n = min(piece, n_rows - start)
        x, truth = world.sample(n, _mix(seed, index))
        codes = dictionary.encode(x)
        x_hat = dictionary.decode(codes)
        latents = codes.to_dense() != 0
        features = (truth.to_dense() > 0)[:, nearest]
        both += (latents & features).sum(0)
        fired += latents.sum(0)
        present += features.sum(0)
        firings += int(truth.active.sum())
        if shift is None:
            shift = x.double().mean(0)
        moved = x.double() - shift
        shifted += moved.sum(0)
        ratios = x_hat.norm(dim=1) / x.norm(dim=1).clamp(min=1e-12)
        squares += torch.stack([moved.pow(2).sum(), (x - x_hat).double().pow(2).sum(), ratios.double().sum()])
    total, error, ratio = squares.tolist()
    variance = total - float(shifted.pow(2).sum()) / n_rows
    cosines, matched = cosines.cpu(), assign(cosines)
    stood_for = torch.zeros_like(world.mean, dtype=torch.float64).index_put_((nearest,), present)
    return GroundTruth(
        f1=float((2 * both / (fired + present).clamp(min=1)).mean()),
        precision=float((both / fired.clamp(min=1)).mean()),
        recall=float((both / present.clamp(min=1)).mean()),
        mcc=float(cosines.gather(1, matched.clamp(min=0)[:, None]).squeeze(1)[matched >= 0].mean()),
        uniqueness=len(nearest.unique()) / len(W_dec),
        l0=float(fired.sum()) / n_rows,
        true_l0=firings / n_rows,
        l0_error=float(fired.sum() - stood_for.sum()) / n_rows,
        shrinkage=ratio / n_rows,
        explained_variance=1 - error / variance,
        dead_frac=float((fired == 0).double().mean()),
        n_rows=n_rows,
    )
