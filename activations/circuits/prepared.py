"""A task on a graph: what each pair's writes are, and what the model says with edges cut.

Enters: a `ComponentGraph` and a `PairSet`. Leaves: numbers, one for each pair, in the order of `PairSet.kept`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from activations.circuits.graph import ComponentGraph
from activations.circuits.pairs import PairBatch, PairSet


class Prepared:
    """Pairs with what both of their texts make every component write.

    Attributes:
        clean, corrupt: the task's number on both texts, Float64[pairs].
    """

    def __init__(self, graph: ComponentGraph, pairs: PairSet) -> None:
        """ValueError if the model's number is the same on both texts of every pair."""
        self.graph, self.pairs = graph, pairs
        self.batches = pairs.batches
        self.clean_writes = [graph.writes(batch.clean) for batch in self.batches]
        self.corrupt_writes = [graph.writes(batch.corrupt) for batch in self.batches]
        self.clean = self._whole([batch.clean for batch in self.batches])
        self.corrupt = self._whole([batch.corrupt for batch in self.batches])
        if abs(self.clean.mean() - self.corrupt.mean()) <= 1e-6 * (1 + abs(self.clean.mean())):
            raise ValueError(
                f"{graph.lm.name} says the same on the clean and the corrupt texts of {pairs.name} "
                f"({self.clean.mean():.4g}), expected a difference to explain: choose another task or model"
            )

    @property
    def span(self) -> float:
        """Mean of the task's number on clean texts less that on corrupt ones."""
        return float(self.clean.mean() - self.corrupt.mean())

    def _whole(self, tokens: list[Tensor]) -> Float[np.ndarray, " pairs"]:
        found = []
        with torch.no_grad():
            for batch, rows in zip(self.batches, tokens, strict=True):
                found.append(self.value(batch, self.graph.run(rows, record=False).final))
        return np.concatenate(found)

    def value(self, batch: PairBatch, final: Tensor) -> Float[np.ndarray, " batch"]:
        """Returns the task's number of a final stream."""
        with torch.no_grad():
            return batch.value(self.graph.logits(final[:, -1])).double().cpu().numpy()

    def values(
        self, cut: Float[Tensor, "receivers senders"], *, direction: str = "noise"
    ) -> Float[np.ndarray, " pairs"]:
        """Returns the number of each pair with edges cut: in the clean text what is cut carries the corrupt text's
        writes (`noise`), in the corrupt text the clean one's (`denoise`)."""
        with torch.no_grad():
            return np.concatenate([self.value(batch, final) for batch, final in self.finals(cut, direction)])

    def finals(
        self, cut: Float[Tensor, "receivers senders"], direction: str = "noise"
    ) -> Iterator[tuple[PairBatch, Tensor]]:
        """Yields each batch with the final stream that a cut makes of it."""
        is_noise = direction == "noise"
        cut = self._without_unread(cut)
        for index, batch in enumerate(self.batches):
            tokens = batch.clean if is_noise else batch.corrupt
            other = self.corrupt_writes[index] if is_noise else self.clean_writes[index]
            yield batch, self.graph.run(tokens, cut, other, record=False).final

    def _without_unread(self, cut: Float[Tensor, "receivers senders"]) -> Float[Tensor, "receivers senders"]:
        """Leaves the inputs of components that nobody hears as they are: the same result, for less work."""
        graph, cut = self.graph, cut.clone()
        for name, column in graph.sender_index.items():
            heard = graph.edges[:, column]
            if name != "embed" and bool((cut[heard, column] == 1).all()):
                cut[graph.receivers_of(name)] = 0
        return cut

    def share(self, values: Float[np.ndarray, " pairs"]) -> float:
        """Returns (F − F(corrupt)) / (F(clean) − F(corrupt)), F the mean over pairs."""
        return float((values.mean() - self.corrupt.mean()) / self.span)

    def interval(self, values: Float[np.ndarray, " pairs"], seed: int = 0) -> tuple[float, float]:
        """Returns the 95 % interval of `share` over resampled pairs; NaN with fewer than two."""
        if len(values) < 2:
            return float("nan"), float("nan")
        drawn = np.random.default_rng(seed).integers(len(values), size=(1000, len(values)))
        low = self.corrupt[drawn].mean(1)
        spans = self.clean[drawn].mean(1) - low
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = (values[drawn].mean(1) - low) / spans
        shares = shares[np.isfinite(shares)]
        return float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))
