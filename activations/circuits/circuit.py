"""A circuit: the part of a model that does a task, found, measured and named.

    find_circuit(lm, pairs, *, method="eap_ig", edges=None, faithfulness=0.85, threshold=0.01, steps=5) -> Circuit

Enters: a model, a `PairSet`. Leaves: the edges between components that carry the difference between clean and corrupt
texts, and what they are worth. With F(C) the mean of the task's number on clean texts when every edge outside of C
carries the corrupt text's activations, M the whole model and ∅ nothing:

    faithfulness   (F(C) − F(∅)) / (F(M) − F(∅))            1: the circuit alone does all
    completeness   1 − (F(M∖C) − F(∅)) / (F(M) − F(∅))      1: without the circuit nothing is left
    minimality     what faithfulness loses without an edge; the least over the circuit's edges

Methods: `eap` and `eap_ig` rank edges by `edge_scores` and take the fewest, of sizes that grow by about a fifth, whose
faithfulness reaches the goal (or the number asked for); `acdc` cuts edges one by one. Edges off every way from the
embeddings to the logits are left out.

It misleads where the corrupt text differs in more than the task; where parts back each other up, of which one is taken;
and where what is shared by both texts matters: that is never part of the circuit.

Source: Wang et al. 2022 (2211.00593); Conmy et al. 2023 (2304.14997); Hanna et al. 2024 (2403.17806).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from activations.analyses.plain import plain, to_json
from activations.circuits.discovery import acdc, connected, edge_scores
from activations.circuits.graph import ComponentGraph
from activations.circuits.pairs import PairSet
from activations.circuits.prepared import Prepared

if TYPE_CHECKING:
    from activations.model import LanguageModel

METHODS = ("eap", "eap_ig", "acdc")
MINIMAL_EDGES = 64
"""Circuits of more edges are not tested for minimality: one pass an edge."""


@dataclass(frozen=True)
class Edge:
    """One reader sees one writer."""

    sender: str
    receiver: str
    """The reading component."""
    slot: str | None
    """`q`, `k` or `v` of a head."""
    score: float
    """By the method: logits (or probability) that cutting it costs to first order; for ACDC nats of KL."""
    loss: float | None
    """What the circuit's faithfulness loses without it; None where it was not tested."""


@dataclass(frozen=True)
class Node:
    """A component of the circuit."""

    name: str
    kind: str
    layer: int
    head: int | None
    score: float
    """Sum of the scores of the edges that leave it (of the logits: that reach it)."""


@dataclass(frozen=True)
class Circuit:
    """A circuit and what it is worth on its task."""

    model: str
    task: str
    measure: str
    method: str
    settings: dict[str, Any]
    pairs: int
    dropped: dict[str, int]
    """Pairs that were left out, by reason."""
    examples: tuple[dict[str, Any], ...]
    """The first pairs, for people."""
    layers: int
    heads: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    """The largest score first."""
    all_edges: int
    """Edges of the whole model."""
    clean_value: float
    """F(M)."""
    corrupt_value: float
    """F(∅)."""
    value: float
    """F(C)."""
    faithfulness: float
    interval: tuple[float, float]
    """Of faithfulness: 95 %, over resampled pairs."""
    completeness: float
    minimality: float | None
    """The least loss of an edge; None where edges were not tested."""
    curve: tuple[tuple[int, float], ...]
    """Faithfulness by number of edges, of the sizes that were tried."""
    passes: int = field(default=0)
    """Forward passes over all pairs that ACDC took."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each edge, the largest score first."""
        return [
            {"sender": edge.sender, "receiver": edge.receiver, "slot": edge.slot}
            | {"score": edge.score, "loss": plain(edge.loss)}
            for edge in self.edges
        ]

    def to_json(self) -> str:
        return to_json(self)


def find_circuit(
    lm: LanguageModel,
    pairs: PairSet,
    *,
    method: str = "eap_ig",
    edges: int | None = None,
    faithfulness: float = 0.85,
    threshold: float = 0.01,
    steps: int = 5,
    within: int | None = None,
) -> Circuit:
    """Finds the edges that a task needs.

    `edges` takes that many of the highest scores instead of the fewest that reach `faithfulness`; `threshold` (nats) is
    ACDC's, which with `within` tests only that many edges, those with the highest integrated scores.

    Raises:
        ValueError: an unknown method, unusable numbers, a model without such a graph, pairs that the model does not
            tell apart.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown, expected one of {', '.join(METHODS)}: choose one of these")
    if any(number is not None and number < 1 for number in (edges, within)) or not 0 < faithfulness <= 1:
        raise ValueError(
            f"got edges={edges}, within={within} and faithfulness={faithfulness}, expected at least one edge and a "
            "share above 0 and up to 1: choose others"
        )
    graph = ComponentGraph(lm)
    prepared = Prepared(graph, pairs)
    everything = graph.edges.numpy()
    passes = 0
    if method == "acdc":
        chosen = None
        if within is not None:
            chosen = _largest(edge_scores(prepared, steps), everything, within)
        scores, passes = acdc(prepared, threshold, chosen)
        kept = connected(prepared, scores > 0)
        curve = [(int(kept.sum()), prepared.share(_left(prepared, kept)))]
        settings: dict[str, Any] = {"threshold": threshold, "within": within}
    else:
        scores = edge_scores(prepared, steps if method == "eap_ig" else 0)
        kept, curve = _fewest(prepared, scores, edges, faithfulness)
        settings = {"edges": edges, "faithfulness": faithfulness} | ({"steps": steps} if method == "eap_ig" else {})
    return _measured(prepared, kept, scores, method=method, settings=settings, curve=tuple(curve), passes=passes)


def measure_circuit(lm: LanguageModel, pairs: PairSet, edges: list[tuple[str, str]]) -> Circuit:
    """Measures a circuit that somebody states: edges as (sender, receiver), such as ("head 0.1", "head 1.2 k").

    Raises:
        ValueError: an edge that the model does not have, and as `find_circuit`.
    """
    graph = ComponentGraph(lm)
    prepared = Prepared(graph, pairs)
    kept = graph.cut(edges).numpy() > 0
    return _measured(prepared, kept, edge_scores(prepared), method="stated", settings={}, curve=(), passes=0)


def _largest(
    scores: Float[np.ndarray, "receivers senders"], allowed: Bool[np.ndarray, "receivers senders"], count: int
) -> Bool[np.ndarray, "receivers senders"]:
    """The `count` edges with the largest absolute scores; of equal ones the earlier."""
    order = np.argsort(-np.where(allowed, np.abs(scores), -1.0).ravel(), kind="stable")[
        : min(count, int(allowed.sum()))
    ]
    kept = np.zeros(scores.size, dtype=bool)
    kept[order] = True
    return kept.reshape(scores.shape) & (scores != 0)


def _left(prepared: Prepared, kept: Bool[np.ndarray, "receivers senders"]) -> Float[np.ndarray, " pairs"]:
    """The number of each pair with all but `kept` cut."""
    return prepared.values(prepared.graph.edges.float() - torch.from_numpy(kept).float())


def _fewest(
    prepared: Prepared, scores: Float[np.ndarray, "receivers senders"], edges: int | None, goal: float
) -> tuple[Bool[np.ndarray, "receivers senders"], list[tuple[int, float]]]:
    allowed = prepared.graph.edges.numpy()
    total = int((allowed & (scores != 0)).sum())
    if edges is not None:
        sizes = [min(edges, total)]
    else:
        sizes, size = [], 1
        while size < total:
            sizes.append(size)
            size = max(size + 1, math.ceil(size * 1.2))
        sizes.append(total)
    curve: list[tuple[int, float]] = []
    tried: dict[bytes, float] = {}
    kept = np.zeros_like(allowed)
    for size in sizes:
        kept = connected(prepared, _largest(scores, allowed, size))
        key = kept.tobytes()
        if key in tried:
            continue
        tried[key] = prepared.share(_left(prepared, kept))
        curve.append((int(kept.sum()), tried[key]))
        if tried[key] >= goal:
            break
    return kept, curve


def _measured(
    prepared: Prepared,
    kept: Bool[np.ndarray, "receivers senders"],
    scores: Float[np.ndarray, "receivers senders"],
    *,
    method: str,
    settings: dict[str, Any],
    curve: tuple[tuple[int, float], ...],
    passes: int,
) -> Circuit:
    graph, pairs = prepared.graph, prepared.pairs
    values = _left(prepared, kept)
    share = prepared.share(values)
    without = prepared.values(torch.from_numpy(kept).float())
    places = sorted(zip(*np.nonzero(kept), strict=True), key=lambda at: -abs(scores[at]))
    losses: dict[tuple[int, int], float] = {}
    if len(places) <= MINIMAL_EDGES:
        for at in places:
            less = kept.copy()
            less[at] = False
            losses[at] = share - prepared.share(_left(prepared, less))
    found = []
    for r, s in places:
        receiver = graph.receivers[r]
        edge = Edge(graph.senders[s].name, receiver.node, receiver.slot, float(scores[r, s]), losses.get((r, s)))
        found.append(edge)
    names = {edge.sender for edge in found} | {edge.receiver for edge in found}
    nodes = []
    for sender in graph.senders:
        if sender.name in names:
            out = sum(edge.score for edge in found if edge.sender == sender.name)
            nodes.append(Node(sender.name, sender.kind, sender.layer, sender.head, out))
    if "logits" in names:
        into = sum(edge.score for edge in found if edge.receiver == "logits")
        nodes.append(Node("logits", "logits", graph.layers, None, into))
    return Circuit(
        model=graph.lm.name,
        task=pairs.name,
        measure=pairs.measure,
        method=method,
        settings=settings,
        pairs=len(pairs),
        dropped=pairs.dropped,
        examples=tuple(pairs.rows()[:3]),
        layers=graph.layers,
        heads=graph.heads,
        nodes=tuple(nodes),
        edges=tuple(found),
        all_edges=int(graph.edges.sum()),
        clean_value=float(prepared.clean.mean()),
        corrupt_value=float(prepared.corrupt.mean()),
        value=float(values.mean()),
        faithfulness=share,
        interval=prepared.interval(values),
        completeness=1 - prepared.share(without),
        minimality=min(losses.values(), default=None),
        curve=curve,
        passes=passes,
    )
