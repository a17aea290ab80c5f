"""Which edges a task needs: edge attribution patching, and ACDC.

    edge_scores(prepared, steps=0) -> Float[receivers, senders]
    acdc(prepared, threshold) -> Float[receivers, senders]

Enters: a task on a graph. Edge attribution patching scores all edges from one backward pass:

    score(s → r) = mean over pairs of Σ (w_s(clean) − w_s(corrupt)) · ∂m/∂x_r

how much the number falls, to first order, when the edge carries what s writes on the corrupt text. With `steps` the
gradient is the mean along the way of the embeddings from corrupt to clean (Gauss-Legendre), which sees through
saturated attention (EAP-IG).

ACDC goes through the readers from the logits backwards and through their writers from the latest to the earliest, cuts
each edge in turn, and leaves it cut where the KL divergence from the model's own prediction grows by less than the
threshold. A component whose outgoing edges are all cut needs no reader: its incoming edges are cut untested. It costs
one pass an edge; `within` restricts it to edges that another method left.

Source: Syed et al. 2023 (2310.10348); Hanna et al. 2024 (2403.17806); Conmy et al. 2023 (2304.14997).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.circuits.prepared import Prepared
from activations.progress import progress


def edge_scores(prepared: Prepared, steps: int = 0) -> Float[np.ndarray, "receivers senders"]:
    """Returns by how much the task's number falls, to first order, when each edge is cut; 0 where there is none.

    `steps` 0 takes the gradient on the clean text; more take the mean along the way from the corrupt one.

    Raises:
        ValueError: negative `steps`.
    """
    if steps < 0:
        raise ValueError(f"got steps={steps}, expected 0 or more: ask for 5")
    graph = prepared.graph
    nodes, weights = (np.array([1.0]), np.array([2.0])) if steps == 0 else np.polynomial.legendre.leggauss(steps)
    total = torch.zeros(graph.edges.shape, dtype=torch.float64)
    with progress("Score edges", len(nodes) * len(prepared.batches), "passes") as advance:
        for index, batch in enumerate(prepared.batches):
            clean, corrupt = (found[index] for found in (prepared.clean_writes, prepared.corrupt_writes))
            apart = (clean - corrupt).double()
            for node, weight in zip(nodes, weights / 2, strict=True):
                # what enters the first layer is the first writer; between the texts it is walked as a whole
                stream = None if steps == 0 else corrupt[0] + (node + 1) / 2 * (clean[0] - corrupt[0])
                shape = (len(graph.receivers), *clean.shape[1:])
                shifts = torch.zeros(shape, dtype=clean.dtype, device=clean.device, requires_grad=True)
                with torch.enable_grad():
                    final = graph.run(batch.clean, shifts=shifts, stream=stream, record=False).final
                    (gradient,) = torch.autograd.grad(batch.value(graph.logits(final[:, -1])).sum(), shifts)
                total += float(weight) * torch.einsum("sbtd,rbtd->rs", apart, gradient.double()).cpu()
                advance(1)
    return (total / len(prepared.pairs) * graph.edges).numpy()


def acdc(
    prepared: Prepared, threshold: float = 0.01, within: Bool[np.ndarray, "receivers senders"] | None = None
) -> tuple[Float[np.ndarray, "receivers senders"], int]:
    """Returns the growth of the KL divergence (nats) that kept each edge, 0 where it was cut; and the passes it took.

    Raises:
        ValueError: a threshold that is not above 0.
    """
    if not threshold > 0:
        raise ValueError(f"got threshold={threshold}, expected more than 0 nats: ask for 0.01")
    graph = prepared.graph
    allowed = graph.edges if within is None else graph.edges & torch.from_numpy(within)
    cut = (graph.edges & ~allowed).float()
    nothing = torch.zeros(graph.edges.shape)
    clean = [torch.log_softmax(_wide(graph.logits(final[:, -1])), -1) for _, final in prepared.finals(nothing)]

    @torch.no_grad()
    def divergence(cut: Tensor) -> float:
        found = []
        for own, (_, final) in zip(clean, prepared.finals(cut), strict=True):
            other = torch.log_softmax(_wide(graph.logits(final[:, -1])), -1)
            found.append((own.exp() * (own - other)).sum(-1))
        return float(torch.cat(found).double().mean())

    growth = np.zeros(graph.edges.shape)
    now, passes = divergence(cut), 1
    with progress("Test edges", int(allowed.sum()), "edges") as advance:
        for r in reversed(range(len(graph.receivers))):
            node = graph.receivers[r].node
            mine = allowed[r].nonzero().flatten().tolist()
            if node != "logits" and not _is_read(graph.edges, cut, graph.sender_index[node]):
                cut[r, mine] = 1
                advance(len(mine))
                continue
            for s in reversed(mine):
                cut[r, s] = 1
                then = divergence(cut)
                passes += 1
                if then - now < threshold:
                    now = then
                else:
                    cut[r, s] = 0
                    growth[r, s] = then - now
                advance(1)
    return growth, passes


def _is_read(edges: Tensor, cut: Tensor, sender: int) -> bool:
    return bool((edges[:, sender] & (cut[:, sender] == 0)).any())


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def connected(prepared: Prepared, kept: Bool[np.ndarray, "receivers senders"]) -> Bool[np.ndarray, "receivers senders"]:
    """Returns the edges that lie on a way from the embeddings to the logits."""
    graph, kept = prepared.graph, kept.copy()
    inputs: dict[str, list[int]] = {}
    for index, receiver in enumerate(graph.receivers):
        inputs.setdefault(receiver.node, []).append(index)

    def drop(is_idle: Callable[[str], bool], clear: Callable[[str], None]) -> bool:
        idle = [each.name for each in graph.senders if each.kind != "embed" and is_idle(each.name)]
        for name in idle:
            clear(name)
        return bool(idle)

    def silent(name: str) -> bool:
        """It is read by someone, and reads nothing."""
        return bool(kept[:, graph.sender_index[name]].any()) and not kept[inputs[name]].any()

    def unread(name: str) -> bool:
        return bool(kept[inputs[name]].any()) and not kept[:, graph.sender_index[name]].any()

    def forget_outputs(name: str) -> None:
        kept[:, graph.sender_index[name]] = False

    def forget_inputs(name: str) -> None:
        kept[inputs[name]] = False

    while drop(silent, forget_outputs) or drop(unread, forget_inputs):
        pass
    return kept
