"""Attention from the inside: queries, keys, values and patterns of every layer, read or rewritten while a model runs.

Enters: a model, and a handler that stands in for each layer's attention. Leaves: whatever the handler keeps; the model
as it was.

Fused attention kernels never form the pattern. Inside `attention_as` the model therefore computes its own reference
attention (the same function to rounding), through the handler:

1. transformers' table of attention functions gets one more, which looks the calling module up among those that a block
   is at work on; with it the table of masks gets the reference mask, without which there would be none.
2. The model's configs name that function while the block runs. GPT-J and GPT-Neo, which do not read the table, have
   their own method replaced on the instance.
3. Names and methods are put back, also after an exception. The model's lock is held throughout: a pass of another
   thread cannot meet one half of the change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from activations.sites import submodule

if TYPE_CHECKING:
    from activations.model import LanguageModel

NAME = "glassbox_watched"

Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes queries, keys and values; returns the heads' values [batch, seq, heads, d_head] and the pattern."""


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention over one batch. Queries and keys come after any rotation, in float of the model."""

    layer: int
    query: Float[Tensor, "batch heads seq d_head"]
    key: Float[Tensor, "batch kv_heads seq d_head"]
    value: Float[Tensor, "batch kv_heads seq d_head"]
    compute: Attend
    """The model's own attention, with its mask, scale, softcap and position bias."""

    @property
    def values_by_head(self) -> Float[Tensor, "batch heads seq d_head"]:
        """The values that each head reads, where several share them."""
        return self.value.repeat_interleave(self.query.shape[1] // self.value.shape[1], dim=1)


Handler = Callable[[AttentionCall], tuple[Tensor, Tensor]]
"""Returns what `compute` returns: the heads' values and the pattern."""

_watched: WeakKeyDictionary[nn.Module, tuple[int, Handler]] = WeakKeyDictionary()


@contextmanager
def attention_as(lm: LanguageModel, handler: Handler) -> Iterator[None]:
    """Lets `handler` stand for the self-attention of each layer (of T5's decoder) while the block runs.

    A handler that returns `call.compute(call.query, call.key, call.value)` changes nothing but rounding. Blocks do not
    nest.

    Raises:
        ValueError: the model's attention cannot be looked into (a fused implementation of its own).
    """
    modules = attention_modules(lm)
    with lm.lock:
        if any(module in _watched for module in modules):
            raise ValueError(f"the attention of {lm.name} is already being looked into, expected one block at a time")
        own_methods = [module for module in modules if _own_method(module)]
        unknown = [type(module).__name__ for module in modules if not _own_method(module) and not _reference(module)]
        if unknown:
            raise ValueError(
                f"{unknown[0]} of {lm.name} forms no attention pattern, expected an eager implementation: load the "
                "model with attn_implementation='eager'"
            )
        _register()
        configs = [] if own_methods else _configs(lm.model)
        named = [(config, config._attn_implementation_internal) for config in configs]
        try:
            for layer, module in enumerate(modules):
                _watched[module] = (layer, handler)
            for module in own_methods:
                module._attn = _through(module, module._attn)  # pyright: ignore
            for config in configs:
                config._attn_implementation_internal = NAME
            yield
        finally:
            for config, name in named:
                config._attn_implementation_internal = name
            for module in modules:
                _watched.pop(module, None)
            for module in own_methods:
                module.__dict__.pop("_attn", None)


def attention_modules(lm: LanguageModel) -> list[nn.Module]:
    """Returns the module of each layer that turns queries, keys and values into the heads' values."""
    stack = lm.site_map.stacks[-1]
    heads = stack.architecture.heads
    # BERT's projection stands in a module of its own beside the one that attends
    path = "attention.self" if heads == "attention.output.dense" else heads.rpartition(".")[0]
    return [submodule(layer, path) for layer in stack.layers]


def _own_method(module: nn.Module) -> bool:
    return callable(getattr(type(module), "_attn", None))


def _reference(module: nn.Module) -> Callable[..., Any] | None:
    for kind in type(module).__mro__:
        if found := getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None):
            return found
    return None


def _configs(model: Any) -> list[Any]:
    """All config objects that modules of the model read the name of their attention from, once each."""
    found = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    return [config for config in found.values() if hasattr(config, "_attn_implementation_internal")]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, eager_mask)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Tensor]:
    reference: Any = _reference(module)

    def compute(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return reference(module, query, key, value, attention_mask, **settings)

    if module not in _watched:  # T5's encoder and its cross-attention
        return compute(query, key, value)
    layer, handler = _watched[module]
    return handler(AttentionCall(layer, query, key, value, compute))


def _through(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
    """GPT-J and GPT-Neo: their method leaves heads before positions."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Any:
        def compute(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            out, pattern = own(query, key, value, attention_mask)
            return out.transpose(1, 2), pattern

        layer, handler = _watched[module]
        out, pattern = handler(AttentionCall(layer, query, key, value, compute))
        return out.transpose(1, 2), pattern

    return attend
