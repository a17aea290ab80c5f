"""A model as a graph of components: who writes into the residual stream, who reads it, and runs with edges cut.

Enters: a pre-norm decoder, tokens. Leaves: what every component writes; and runs in which a reader sees another
version of some writer than the rest of the model does:

    x_r = stream + Σ_s cut[r, s] · (replacement_s − write_s)

Writers (`senders`): the embeddings (with positions), each head, each MLP. Readers (`receivers`): queries, keys and
values of each head, each MLP, and the logits. `cut` 0 leaves an edge, 1 replaces it, and anything between is allowed.

1. Writes add up to the stream: a head's is its part of the output projection; where a family norms what attention
   writes (Gemma 2, 3, OLMo 2), the part at that norm's own scale. Biases belong to nobody and are never cut.
2. A layer's attention is asked for queries, keys and values of each distinct input of its heads, and every head takes
   its own. MLPs and logits read one input each.
3. The norm before a reader is part of the reader: it is found by watching whose output attention and MLP read.

Source: Elhage et al. 2021 (transformer circuits); Conmy et al. 2023 (2304.14997) on edges as paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from activations.attention import AttentionCall, attention_as, attention_modules
from activations.readout import check_readout, readout
from activations.sites import Site, submodule

if TYPE_CHECKING:
    from activations.model import LanguageModel

SLOTS = ("q", "k", "v")


@dataclass(frozen=True)
class Component:
    """A node: `embed`, `head L.H`, `mlp L` or `logits`."""

    name: str
    kind: str
    layer: int
    """−1 for the embeddings; the number of layers for the logits."""
    head: int | None = None


@dataclass(frozen=True)
class Receiver:
    """One input of a node."""

    name: str
    node: str
    layer: int
    slot: str | None = None
    head: int | None = None


@dataclass
class Run:
    """What a run leaves."""

    final: Float[Tensor, "batch seq d"]
    """The stream that the logits read."""
    writes: Float[Tensor, "senders batch seq d"]


class _Stop(Exception):
    """Ends a pass once there is all that was wanted."""


class ComponentGraph:
    """The graph of one model.

    Attributes:
        senders: components that write, in order of execution.
        receivers: inputs that read, in order of execution.
        edges: Bool[receivers, senders], what can be read by whom.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """ValueError for models whose stream does not add up to the logits (BERT, RoBERTa, post-norm OPT, T5)."""
        stack = lm.site_map.stacks[-1]
        family = stack.architecture
        if lm.kind != "decoder" or family.residual == "post_norm" or family.final_norm is None:
            raise ValueError(
                f"{lm.name} has no residual stream that adds up to its logits, expected a pre-norm decoder: use one"
            )
        check_readout(lm)
        self.lm, self.heads, self.layers = lm, stack.heads, lm.n_layers
        self.is_parallel = family.residual == "parallel"
        self.senders = [Component("embed", "embed", -1)]
        self.receivers: list[Receiver] = []
        for layer in range(self.layers):
            for slot in SLOTS:
                for head in range(self.heads):
                    name = f"head {layer}.{head}"
                    self.receivers.append(Receiver(f"{name} {slot}", name, layer, slot, head))
            self.senders += [Component(f"head {layer}.{head}", "head", layer, head) for head in range(self.heads)]
            self.receivers.append(Receiver(f"mlp {layer}", f"mlp {layer}", layer))
            self.senders.append(Component(f"mlp {layer}", "mlp", layer))
        self.receivers.append(Receiver("logits", "logits", self.layers))
        self.sender_index = {each.name: index for index, each in enumerate(self.senders)}
        self.receiver_index = {each.name: index for index, each in enumerate(self.receivers)}
        self.edges: Bool[Tensor, "receivers senders"] = torch.tensor(
            [[self._reaches(sender, receiver) for sender in self.senders] for receiver in self.receivers]
        )
        self._attention = attention_modules(lm)
        self._project = [submodule(layer, family.heads) for layer in stack.layers]
        # Gemma 2, 3, OLMo 2: the norm over what attention writes
        self._written = (
            [submodule(layer, family.attn) for layer in stack.layers] if family.attn != family.heads else None
        )
        self._gain_offset = family.norm_gain_offset
        self._by_head = [self._head_weights(project) for project in self._project]
        self._norms = self._found_norms()

    def _reaches(self, sender: Component, receiver: Receiver) -> bool:
        if sender.layer != receiver.layer:
            return sender.layer < receiver.layer
        return sender.kind == "head" and receiver.slot is None and not self.is_parallel

    def cut(
        self, edges: Sequence[tuple[str, str]] = (), *, everything: bool = False
    ) -> Float[Tensor, "receivers senders"]:
        """Returns which edges are cut: those named as (sender, receiver), or all but those. A node as receiver stands
        for all of its inputs.

        Raises:
            ValueError: an edge that the model does not have.
        """
        chosen = torch.zeros(self.edges.shape)
        for sender, receiver in edges:
            column = self.sender_index.get(sender)
            rows = [row for row in self.receivers_of(receiver) if column is not None and self.edges[row, column]]
            if not rows:
                raise ValueError(
                    f"{self.lm.name} has no edge from {sender!r} to {receiver!r}, expected an earlier sender such as "
                    "'head 0.1' and a later receiver such as 'head 1.0 k', 'mlp 1' or 'logits': name another"
                )
            chosen[rows, column] = 1
        return self.edges.float() - chosen if everything else chosen

    def receivers_of(self, node: str) -> list[int]:
        """Returns the inputs of a node (or the one input that is named); ValueError if there are none."""
        found = [index for index, each in enumerate(self.receivers) if node in (each.node, each.name)]
        if not found:
            known = f"head L.H (L below {self.layers}, H below {self.heads}), its q, k and v, mlp L and logits"
            raise ValueError(f"{node!r} reads nothing in {self.lm.name}, expected one of {known}: name one of these")
        return found

    def logits(self, final: Float[Tensor, "*n d"]) -> Float[Tensor, "*n vocab"]:
        """Returns the model's logits of rows of the final stream."""
        return readout(self.lm, final)

    def run(
        self,
        tokens: Int[Tensor, "batch seq"],
        cut: Float[Tensor, "receivers senders"] | None = None,
        replacement: Float[Tensor, "senders batch seq d"] | None = None,
        *,
        embeddings: Float[Tensor, "batch seq d"] | None = None,
        shifts: Float[Tensor, "receivers batch seq d"] | None = None,
        stream: Float[Tensor, "batch seq d"] | None = None,
        record: bool = True,
    ) -> Run:
        """Runs the model with edges cut.

        `embeddings` stand in place of the tokens' own, `stream` in place of all that enters the first layer. `shifts`
        are added to what each receiver reads: their gradients are those of the receivers' inputs. Without `record`
        writes are kept only where a cut needs them.
        """
        lm = self.lm
        if cut is not None:
            cut = cut.to(lm.device, lm.dtype)
            if not bool(cut.any()):
                cut = None
        state = _State(self, cut, replacement, shifts, record or cut is not None)
        with torch.set_grad_enabled(shifts is not None), lm.lock, ExitStack() as stack:
            for layer, module in enumerate(self._attention):
                handle = module.register_forward_pre_hook(state.keep_call(layer), with_kwargs=True)
                stack.callback(handle.remove)
            edits: dict[str, Callable[[Tensor], Tensor]] = {}
            if embeddings is not None:
                edits["embed"] = lambda _own: embeddings
            if stream is not None:
                edits["resid_pre.0"] = lambda _own: stream
            for layer in range(self.layers):
                edits[f"mlp_in.{layer}"] = state.mlp_input(layer)
            edits[lm.final_site] = state.logits_input
            stack.enter_context(lm.intervene(edits))
            readers: dict[str, Callable[[Tensor], None]] = {lm.final_site: state.finish}
            for layer in range(self.layers):
                readers[f"resid_pre.{layer}"] = state.enter_layer(layer)
                readers[f"head_out.{layer}"] = state.write_heads(layer)
                readers[f"mlp_out.{layer}"] = state.write_mlp(layer)
                if not self.is_parallel:
                    readers[f"resid_mid.{layer}"] = state.between
            for site, reader in readers.items():
                stack.enter_context(lm.taps.read(lm.site_map.binding(site), reader))
            stack.enter_context(attention_as(lm, state.attend))
            with suppress(_Stop):
                lm.forward(tokens)
        assert state.final is not None
        writes = torch.stack(state.writes) if state.records else torch.zeros(0, *state.final.shape).to(state.final)
        return Run(state.final, writes)

    @torch.no_grad()
    def writes(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "senders batch seq d"]:
        """Returns what every component writes on tokens."""
        return self.run(tokens).writes

    def head_writes(
        self, layer: int, values: Float[Tensor, "batch seq heads d_head"]
    ) -> Float[Tensor, "heads batch seq d"]:
        """Returns what each head of a layer adds to the stream."""
        parts = torch.einsum("bthi,hio->hbto", values, self._by_head[layer].to(values))
        if self._written is None:
            return parts
        norm: Any = self._written[layer]
        gain = norm.weight.detach().to(parts) + self._gain_offset
        whole = self._project[layer].forward(values.flatten(2))
        unscaled = (whole * gain).double()
        scale = unscaled.square().sum(-1) / (unscaled * norm.forward(whole).double()).sum(-1)
        return parts * gain / scale[..., None].to(parts)

    def _head_weights(self, project: nn.Module) -> Float[Tensor, "heads d_head d"]:
        weight: Any = project.weight
        width = weight.shape[0] if type(project).__name__ == "Conv1D" else weight.shape[1]
        with torch.no_grad():
            eye = torch.eye(width, device=weight.device, dtype=weight.dtype)[None]
            return (project.forward(eye) - project.forward(torch.zeros_like(eye)))[0].unflatten(0, (self.heads, -1))

    @torch.no_grad()
    def _found_norms(self) -> list[tuple[nn.Module | None, nn.Module | None]]:
        """The modules whose output attention and MLP of each layer read; None where they read the stream itself."""
        lm, stack = self.lm, self.lm.site_map.stacks[-1]
        made: dict[int, nn.Module] = {}
        read: dict[tuple[int, str], Tensor] = {}
        kept: list[Tensor] = []

        def note(module: nn.Module) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                if isinstance(output, Tensor):
                    kept.append(output)  # alive, so that its identity is its own
                    made[id(output)] = module

            return hook

        def reads(layer: int, kind: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                read[layer, kind] = args[0] if args else kwargs["hidden_states"]

            return hook

        with lm.lock, ExitStack() as hooks:
            for layer, module in enumerate(stack.layers):
                for child in module.children():
                    hooks.callback(child.register_forward_hook(note(child)).remove)
                reader = lm.site_map.binding(str(Site("mlp_in", layer))).module
                for kind, each in (("attn", self._attention[layer]), ("mlp", reader)):
                    handle = each.register_forward_pre_hook(reads(layer, kind), with_kwargs=True)
                    hooks.callback(handle.remove)
            lm.forward(torch.arange(3, device=lm.device)[None] + 1)
        every = [(made.get(id(read[n, "attn"])), made.get(id(read[n, "mlp"]))) for n in range(self.layers)]
        return every


class _State:
    """One run under way: the stream as it stands, what was written, what is cut."""

    def __init__(
        self,
        graph: ComponentGraph,
        cut: Tensor | None,
        replacement: Tensor | None,
        shifts: Tensor | None,
        records: bool,
    ) -> None:
        self.graph, self.cut, self.replacement, self.shifts, self.records = graph, cut, replacement, shifts, records
        self.writes: list[Tensor] = []
        self.stream: Tensor | None = None
        self.calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.collected: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.final: Tensor | None = None

    def keep_call(self, layer: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.calls[layer] = (args, kwargs)

        return hook

    def enter_layer(self, layer: int) -> Callable[[Tensor], None]:
        def reader(value: Tensor) -> None:
            self.stream = value
            if layer == 0 and self.records:
                self.writes.append(value.detach())

        return reader

    def between(self, value: Tensor) -> None:
        self.stream = value

    def write_heads(self, layer: int) -> Callable[[Tensor], None]:
        def reader(values: Tensor) -> None:
            if self.records:
                with torch.no_grad():
                    self.writes += list(self.graph.head_writes(layer, values.detach()))

        return reader

    def write_mlp(self, layer: int) -> Callable[[Tensor], None]:
        def reader(value: Tensor) -> None:
            if self.records:
                self.writes.append(value.detach())

        return reader

    def seen_by(self, row: Tensor, receiver: int) -> Tensor:
        """The stream as one receiver reads it; `row` is its part of `cut`."""
        assert self.stream is not None
        value = self.stream
        known = len(self.writes)
        if bool(row[:known].any()):
            assert self.replacement is not None
            chosen = row[:known].nonzero().flatten().tolist()
            # one sum over what is cut, so that a receiver with nothing cut reads the stream bit for bit
            apart = torch.stack([self.replacement[s].to(value) - self.writes[s] for s in chosen])
            value = value + torch.einsum("s,sbtd->btd", row[chosen].to(value), apart)
        return value if self.shifts is None else value + self.shifts[receiver].to(value)

    def _row(self, receiver: int) -> Tensor:
        return torch.zeros(len(self.graph.senders)) if self.cut is None else self.cut[receiver]

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        if self.collected is not None:
            self.collected.append((call.query, call.key, call.value))
            raise _Stop
        graph, layer = self.graph, call.layer
        first = graph.receiver_index[f"head {layer}.0 q"]
        places = range(first, first + 3 * graph.heads)
        rows = torch.stack([self._row(place) for place in places])
        if self.shifts is None and not bool(rows.any()):
            return call.compute(call.query, call.key, call.value)
        if self.shifts is None:
            distinct, which = torch.unique(rows, dim=0, return_inverse=True)
            inputs = [self.seen_by(row, first) for row in distinct]
        else:
            which = torch.arange(len(rows))
            inputs = [self.seen_by(row, place) for row, place in zip(rows, places, strict=True)]
        parts = [self._projected(layer, value) for value in inputs]
        chosen = which.tolist()
        heads, groups = graph.heads, call.key.shape[1]
        shared = heads // groups

        def of(slot: int, head: int) -> Tensor:
            found = parts[chosen[slot * heads + head]][slot]
            return found[:, head if slot == 0 else head // shared]

        query = torch.stack([of(0, head) for head in range(heads)], 1)
        outs: list[Tensor | None] = [None] * heads
        # heads that share keys and values may still read different ones: one computation for each place in a group
        for place in range(shared):
            own = [group * shared + place for group in range(groups)]
            key, value = (torch.stack([of(slot, head) for head in own], 1) for slot in (1, 2))
            out, _ = call.compute(query, key, value)
            for head in own:
                outs[head] = out[:, :, head]
        whole = torch.stack([out for out in outs if out is not None], 2)
        return whole, call.query[..., :1]

    def _projected(self, layer: int, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values that a layer's attention makes of a stream."""
        norm = self.graph._norms[layer][0]
        hidden = value if norm is None else norm.forward(value)
        args, kwargs = self.calls[layer]
        if args:
            args = (hidden, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": hidden}
        self.collected = []
        try:
            self.graph._attention[layer].forward(*args, **kwargs)
        except _Stop:
            pass
        finally:
            found, self.collected = self.collected, None
        return found[0]

    def mlp_input(self, layer: int) -> Callable[[Tensor], Tensor]:
        receiver = self.graph.receiver_index[f"mlp {layer}"]

        def edit(own: Tensor) -> Tensor:
            row = self._row(receiver)
            if self.shifts is None and not bool(row.any()):
                return own
            value = self.seen_by(row, receiver)
            norm = self.graph._norms[layer][1]
            return value if norm is None else norm.forward(value)

        return edit

    def logits_input(self, own: Tensor) -> Tensor:
        self.stream = own
        receiver = len(self.graph.receivers) - 1
        return self.seen_by(self._row(receiver), receiver)

    def finish(self, value: Tensor) -> None:
        self.final = value
        raise _Stop
