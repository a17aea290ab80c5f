"""Path patching: what one component tells another, everything else held fixed.

    patch_paths(lm, pairs, receivers=("logits",), *, senders=None, direction="denoise") -> PathPatching
    path_effect(lm, pairs, ["head 0.1", "head 1.2 k", "logits"]) -> float

Enters: a task's pairs, one or several readers. Leaves, for each writer s,

    effect(s → r) = (m(x_r += w_s(source) − w_s(base)) − m(base)) / (m(source) − m(base))

the share of the difference between the texts that comes back when only the readers r see what s writes on the other
text. What other components read of s stays as it was, so that only the direct path is opened; what r then says goes on
freely. `path_effect` follows a chain: each component hears only the one before it, and only the last goes on.

Source: Goldowsky-Dill et al. 2023 (2304.05969); Wang et al. 2022 (2211.00593) §3.1, in which MLPs between are not held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from activations.analyses.plain import to_json
from activations.circuits.graph import ComponentGraph
from activations.circuits.pairs import PairSet
from activations.circuits.prepared import Prepared
from activations.progress import progress

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class PathPatching:
    """What each writer tells the readers."""

    model: str
    task: str
    receivers: tuple[str, ...]
    direction: str
    senders: tuple[str, ...]
    effects: Float[np.ndarray, "senders pairs"]
    """Of each pair, in shares of the mean difference between the texts."""
    total: float
    """The mean effect of all of these writers at once."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each writer, the largest mean effect first, with its standard error over pairs."""
        count = self.effects.shape[1]
        records = [
            {
                "sender": name,
                "effect": float(values.mean()),
                "standard_error": float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None,
            }
            for name, values in zip(self.senders, self.effects, strict=True)
        ]
        return sorted(records, key=lambda record: -abs(record["effect"]))

    def to_json(self) -> str:
        return to_json(self)


def patch_paths(
    lm: LanguageModel,
    pairs: PairSet,
    receivers: Sequence[str] = ("logits",),
    *,
    senders: Sequence[str] | None = None,
    direction: str = "denoise",
) -> PathPatching:
    """Opens the paths from each writer (default: all) to the readers: nodes, or inputs such as "head 1.2 k".

    A writer that comes after all of the readers has effect 0.

    Raises:
        ValueError: unknown writers, readers or direction, a model without such a graph, pairs it does not tell apart.
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction {direction!r} is unknown, expected denoise or noise: choose one of these")
    graph = ComponentGraph(lm)
    rows = [index for name in receivers for index in graph.receivers_of(name)]
    names = tuple(senders or graph.sender_index)
    if unknown := [name for name in names if name not in graph.sender_index]:
        raise ValueError(f"{unknown[0]!r} writes nothing in {lm.name}, expected embed, head L.H or mlp L: name another")
    prepared = Prepared(graph, pairs)
    is_denoise = direction == "denoise"
    start = prepared.corrupt if is_denoise else prepared.clean
    span = prepared.span if is_denoise else -prepared.span

    def effect(columns: list[int]) -> Float[np.ndarray, " pairs"]:
        cut = torch.zeros(graph.edges.shape)
        for column in columns:
            cut[rows, column] = graph.edges[rows, column].float()
        return (prepared.values(cut, direction=direction) - start) / span

    with progress("Open paths", len(names), "writers") as advance:
        found = []
        for name in names:
            column = graph.sender_index[name]
            found.append(effect([column]) if bool(graph.edges[rows, column].any()) else np.zeros(len(pairs)))
            advance(1, name)
    return PathPatching(
        model=lm.name,
        task=pairs.name,
        receivers=tuple(receivers),
        direction=direction,
        senders=names,
        effects=np.stack(found),
        total=float(effect([graph.sender_index[name] for name in names]).mean()),
    )


def path_effect(lm: LanguageModel, pairs: PairSet, path: Sequence[str], *, direction: str = "denoise") -> float:
    """Returns the mean effect of a chain, such as ["head 0.1", "head 1.2 k", "logits"].

    Raises:
        ValueError: fewer than two components, a step that the model has no edge for, and as `patch_paths`.
    """
    if len(path) < 2 or direction not in ("denoise", "noise"):
        raise ValueError(f"got the path {list(path)} ({direction}), expected a writer and readers: name two or more")
    graph = ComponentGraph(lm)
    steps: list[tuple[int, list[int]]] = []
    for sender, receiver in pairwise(path):
        rows = graph.receivers_of(receiver)
        name = sender if sender in graph.sender_index else sender.rpartition(" ")[0]
        column = graph.sender_index.get(name)
        if column is None or not bool(graph.edges[rows, column].any()):
            raise ValueError(
                f"{lm.name} has no edge from {sender!r} to {receiver!r}, expected an earlier sender: mend it"
            )
        steps.append((column, rows))
    prepared = Prepared(graph, pairs)
    is_denoise = direction == "denoise"
    found = []
    for index, batch in enumerate(prepared.batches):
        tokens = batch.corrupt if is_denoise else batch.clean
        base, source = prepared.corrupt_writes[index], prepared.clean_writes[index]
        if not is_denoise:
            base, source = source, base
        heard = source
        final = None
        for column, rows in steps:
            cut = torch.zeros(graph.edges.shape)
            cut[rows, column] = graph.edges[rows, column].float()
            run = graph.run(tokens, cut, heard)
            # what the next one hears is what this one now says; all others stay as in the base run
            heard, final = run.writes, run.final
        assert final is not None
        found.append(prepared.value(batch, final))
    start = prepared.corrupt if is_denoise else prepared.clean
    return float((np.concatenate(found) - start).mean() / (prepared.span if is_denoise else -prepared.span))
