"""Reading and rewriting activations while a model runs.

Enters: `Binding`s of sites and what to do there. Leaves: captured tensors, or a model that computes with edited ones.

All readers and edits of a model go through one `Taps` object. It installs a single hook per module and side, lets the
edits and readers of that module act in the order in which their sites are computed (readers after edits, so that a
capture shows what the rest of the model sees), and removes the hook with the last of them. A hook on the whole model
notes what each call is: how many tokens the cache already holds, which tokens are padding.
"""

from __future__ import annotations

import bisect
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from activations.sites import Binding

Edit = Callable[[Tensor], Tensor]
"""Takes the activations of a site, Float[batch, seq, …], and returns tensors of the same shape and type."""
Phase = Literal["all", "prompt", "generated"]


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """An edit of some tokens only. A bare callable is the same with everything at its default.

    Positions count a sequence's own tokens from 0, whatever padding stands before them and however much of the
    sequence a cache already holds; negative ones count from the end of the first pass (the prompt, in generation).
    """

    edit: Edit
    """The rewriting function; it sees whole sequences, and what it returns at other positions is dropped."""
    positions: slice | Sequence[int] | None = None
    """Positions to rewrite; None for all."""
    phase: Phase = "all"
    """Rewrite while the prompt is read, while tokens are generated, or both."""


class DeepestSiteReached(Exception):
    """Ends a forward pass once every wanted site has been read; never leaves this package."""


@dataclass
class Call:
    """What a forward pass of the model is about."""

    shape: tuple[int, int]
    start: int
    attention_mask: Tensor | None
    prompt_lengths: Tensor | None

    @property
    def phase(self) -> Phase:
        return "prompt" if self.start == 0 else "generated"

    def positions(self, device: torch.device) -> Tensor:
        """Returns Int[batch, seq]: each token's position among its sequence's own tokens."""
        batch, seq = self.shape
        if self.attention_mask is None:
            return torch.arange(self.start, self.start + seq, device=device).expand(batch, seq)
        return (self.attention_mask.to(device).long().cumsum(1) - 1)[:, -seq:]


class _Passing(threading.local):
    """What is known of the forward pass that a thread is in: threads never see each other's."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.prompt_lengths: Tensor | None = None
        self.encoder_mask: Tensor | None = None
        self.inputs: dict[nn.Module, Tensor] = {}
        self.latest: int | None = None
        """Serial of the last action of other threads that this thread's passes meet; None for all."""


class Session:
    """Carries what a prompt's pass left behind to the later passes of one generation; entered around each."""

    def __init__(self, taps: Taps) -> None:
        self._taps = taps
        self._prompt_lengths: Tensor | None = None

    def __enter__(self) -> None:
        self._taps.here.prompt_lengths = self._prompt_lengths

    def __exit__(self, *_: object) -> None:
        self._prompt_lengths = self._taps.here.prompt_lengths


@dataclass(frozen=True, eq=False)
class _Action:
    order: tuple[int, int, int]
    binding: Binding
    apply: Callable[[Tensor], Tensor | None]
    thread: int
    """The thread that it was installed by."""
    is_own: bool
    """Acts in that thread's passes alone."""


class Taps:
    """The readers and edits at work on one model.

    Edits and `read` act in the passes of all threads, `capture` reads its own thread's alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.here = _Passing()
        self._lock = threading.Lock()
        self._actions: dict[tuple[nn.Module, str], list[_Action]] = {}
        self._handles: dict[tuple[nn.Module, str], Any] = {}
        self._call_handle: Any = None
        self._serial = 0
        self._parameters = list(inspect.signature(model.forward).parameters)

    def __len__(self) -> int:
        """Counts the hooks now installed."""
        return len(self._handles) + (self._call_handle is not None)

    @contextmanager
    def edit(self, binding: Binding, intervention: Intervention | Edit) -> Iterator[None]:
        """Rewrites a site while the block runs."""
        wanted = intervention if isinstance(intervention, Intervention) else Intervention(edit=intervention)
        with self._installed(binding, lambda value: self._edited(binding, wanted, value), reads=False):
            yield

    @contextmanager
    def read(self, binding: Binding, reader: Callable[[Tensor], None]) -> Iterator[None]:
        """Calls `reader` with a site's (edited) activations in every forward pass while the block runs."""
        with self._installed(binding, lambda value: reader(value), reads=True):
            yield

    def as_of_now(self) -> Callable[[], AbstractContextManager[None]]:
        """Returns what opens blocks in which a thread's passes meet no edit that others install after this call."""
        latest = self._serial

        @contextmanager
        def block() -> Iterator[None]:
            before, self.here.latest = self.here.latest, latest
            try:
                yield
            finally:
                self.here.latest = before

        return block

    def capture(self, bindings: dict[str, Binding], run: Callable[[], Any]) -> dict[str, Tensor]:
        """Runs the model by `run()` until the last of `bindings` has been read and returns what was read."""
        values: dict[str, Tensor] = {}

        def reader(name: str) -> Callable[[Tensor], None]:
            def read(value: Tensor) -> None:
                values.setdefault(name, value)
                if len(values) == len(bindings):
                    raise DeepestSiteReached

            return read

        with ExitStack() as stack:
            for name, binding in bindings.items():
                stack.enter_context(self._installed(binding, reader(name), reads=True, is_own=True))
            with suppress(DeepestSiteReached):
                run()
        missing = [name for name in bindings if name not in values]
        if missing:
            raise ValueError(
                f"site {missing[0]!r} was not reached by a forward pass, expected a tensor from it: choose another"
            )
        return values

    @contextmanager
    def _installed(
        self, binding: Binding, apply: Callable[[Tensor], Tensor | None], reads: bool, is_own: bool = False
    ) -> Iterator[None]:
        with self._lock:
            self._serial += 1
            serial = self._serial
        thread = threading.get_ident()
        action = _Action((binding.rank, int(reads), serial), binding, apply, thread, is_own)
        added = [((binding.module, binding.side), action)]
        if binding.residual is not None:
            # the layer's input, as resid_pre's own edits leave it, is half of the sum
            layer = binding.residual

            def remember(value: Tensor) -> None:
                self.here.inputs[layer] = value

            added.append(((layer, "input"), _Action((1_000, 1, serial), binding, remember, thread, is_own)))
        with self._lock:
            for key, entry in added:
                self._add(key, entry)
        try:
            yield
        finally:
            with self._lock:
                for key, entry in added:
                    self._remove(key, entry)

    def _add(self, key: tuple[nn.Module, str], action: _Action) -> None:
        actions = self._actions.setdefault(key, [])
        bisect.insort(actions, action, key=lambda entry: entry.order)
        if key not in self._handles:
            module, side = key
            if side == "input":
                self._handles[key] = module.register_forward_pre_hook(self._input_hook(key), with_kwargs=True)
            else:
                self._handles[key] = module.register_forward_hook(self._output_hook(key))
        if self._call_handle is None:
            self._call_handle = self.model.register_forward_pre_hook(self._note_call, with_kwargs=True)

    def _remove(self, key: tuple[nn.Module, str], action: _Action) -> None:
        self._actions[key].remove(action)
        if not self._actions[key]:
            del self._actions[key]
            self._handles.pop(key).remove()
        if not self._handles and self._call_handle is not None:
            self._call_handle.remove()
            self._call_handle, self.here.call, self.here.prompt_lengths = None, None, None
            self.here.inputs.clear()

    def _note_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        tokens = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
        past = given.get("past_key_values")
        start = 0 if past is None else int(past.get_seq_length())
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            mask = None
        decoder_tokens = given.get("decoder_input_ids")
        here = self.here
        here.encoder_mask = mask
        if decoder_tokens is not None:
            tokens, mask = decoder_tokens, given.get("decoder_attention_mask")
        if tokens is None:
            here.call = None
            return
        batch, seq = tokens.shape[:2]
        if start == 0:
            here.prompt_lengths = torch.full((batch,), seq) if mask is None else mask.long().sum(1)
        here.call = Call((batch, seq), start, mask, here.prompt_lengths)

    def _input_hook(self, key: tuple[nn.Module, str]) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                value = self._run(key, args[0])
                return None if value is args[0] else ((value, *args[1:]), kwargs)
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
            value = self._run(key, kwargs[name])
            return None if value is kwargs[name] else (args, {**kwargs, name: value})

        return hook

    def _output_hook(self, key: tuple[nn.Module, str]) -> Callable[..., Any]:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, Tensor):
                value = self._run(key, output)
                return None if value is output else value
            # layers of GPT-J, GPT-Neo and T5 and all attention modules return tuples
            value = self._run(key, output[0])
            return None if value is output[0] else type(output)((value, *output[1:]))

        return hook

    def _run(self, key: tuple[nn.Module, str], given: Tensor) -> Tensor:
        value = given
        for action in tuple(self._actions.get(key, ())):
            if self._is_hidden(action):
                continue
            binding = action.binding
            if binding.residual is not None and key[1] == "output":
                inner = self._shaped(
                    binding, value + self.here.inputs[binding.residual].to(value.device).view_as(value)
                )
                changed = action.apply(inner)
                if changed is not None and changed is not inner:
                    # a delta leaves tokens that the edit left alone exactly as they were
                    value = value + (changed - inner).view_as(value)
                continue
            inner = self._shaped(binding, value)
            changed = action.apply(inner)
            if changed is not None and changed is not inner:
                value = changed.reshape(value.shape)
        return value

    def _is_hidden(self, action: _Action) -> bool:
        if action.thread == threading.get_ident():
            return False
        latest = self.here.latest
        return action.is_own or (latest is not None and action.order[2] > latest)

    def _shaped(self, binding: Binding, value: Tensor) -> Tensor:
        """Gives a value its batch and seq axes (OPT's MLP flattens them) and, for heads, its head axis."""
        call = self.here.call
        if value.ndim == 2 and call is not None and value.shape[0] == call.shape[0] * call.shape[1]:
            value = value.view(*call.shape, -1)
        return value if binding.heads is None else value.unflatten(-1, (binding.heads, -1))

    def _edited(self, binding: Binding, wanted: Intervention, value: Tensor) -> Tensor:
        call = self._call_of(binding, value)
        if wanted.phase != "all" and call.phase != wanted.phase:
            return value
        chosen = None
        if wanted.positions is not None:
            chosen = _chosen(wanted.positions, call, value.device)
            if not bool(chosen.any()):
                return value
        # a copy, so that an edit may write in place without touching what was captured
        edited = wanted.edit(value.clone())
        if not isinstance(edited, Tensor):
            raise ValueError(
                f"the edit at {binding.site} returned {type(edited).__name__}, expected a tensor of shape "
                f"{tuple(value.shape)}: return the edited activations"
            )
        if edited.shape != value.shape or edited.dtype != value.dtype or edited.device != value.device:
            raise ValueError(
                f"the edit at {binding.site} returned {tuple(edited.shape)} {edited.dtype} on {edited.device}, "
                f"expected {tuple(value.shape)} {value.dtype} on {value.device}: keep shape, type and device"
            )
        if chosen is None:
            return edited
        return torch.where(chosen.reshape(*chosen.shape, *[1] * (value.ndim - 2)), edited, value)

    def _call_of(self, binding: Binding, value: Tensor) -> Call:
        if binding.site.stack == "encoder":
            mask = self.here.encoder_mask
            shape = (value.shape[0], value.shape[1])
            lengths = torch.full((shape[0],), shape[1]) if mask is None else mask.long().sum(1)
            return Call(shape, 0, mask, lengths)
        if self.here.call is None:
            return Call((value.shape[0], value.shape[1]), 0, None, torch.full((value.shape[0],), value.shape[1]))
        return self.here.call


def _chosen(positions: slice | Sequence[int], call: Call, device: torch.device) -> Tensor:
    """Returns Bool[batch, seq]: the tokens of this call that stand at `positions`."""
    here = call.positions(device)
    lengths = (torch.zeros(call.shape[0]) if call.prompt_lengths is None else call.prompt_lengths).to(device)[:, None]
    if not isinstance(positions, slice):
        wanted = torch.as_tensor([int(position) for position in positions], device=device)
        targets = torch.where(wanted < 0, wanted + lengths, wanted)
        return (here[:, :, None] == targets[:, None, :]).any(-1)
    step = 1 if positions.step is None else positions.step
    if step < 1:
        raise ValueError(f"positions has step {step}, expected a positive one: reverse the slice")
    start = torch.zeros_like(lengths) if positions.start is None else _from_end(positions.start, lengths)
    chosen = (here >= start) & ((here - start) % step == 0)
    return chosen if positions.stop is None else chosen & (here < _from_end(positions.stop, lengths))


def _from_end(position: int, lengths: Tensor) -> Tensor:
    return lengths + position if position < 0 else torch.full_like(lengths, position)
