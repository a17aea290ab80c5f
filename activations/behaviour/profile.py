"""Where a forward pass spends its time, and what its modules weigh: by layer, attention, MLP, or every module.

    profile_model(lm, text=…, batch=1, seq=64, repeats=5) -> ModelProfile

Each pass runs the whole model once, with a clock before and behind each module (on a GPU after the device has come to
rest: asynchronous work is then waited for, which makes the sum a little slower than a pass without clocks; `overhead`
says how much). Times are medians over `repeats`, after one pass that warms up, and hold what the module calls: children
count in their parents. `output_bytes` is what a module returns, `weight_bytes` its parameters (shared ones count in
each).

`peak_bytes` is the most that tensors took on a GPU during a pass; on a CPU torch counts nothing, and it is None.

It measures this machine at this moment: other work on it, the clock's rate and the kernel's cache all show. Compare
within one profile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from activations.analyses.inputs import tokens_of
from activations.analyses.plain import to_json
from activations.sites import body_of

if TYPE_CHECKING:
    from activations.model import LanguageModel

Detail = Literal["layers", "parts", "modules"]
DETAILS = ("layers", "parts", "modules")


@dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """One module's share of a pass."""

    module: str
    kind: str
    """Its class."""
    layer: int | None
    depth: int
    """Dots in its path."""
    calls: int
    """In one pass."""
    time_ms: float
    """Median over repeats, its children included."""
    share: float
    """Of the whole pass."""
    parameters: int
    weight_bytes: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelProfile:
    """What a forward pass costs, and where."""

    model: str
    device: str
    dtype: str
    batch: int
    seq: int
    repeats: int
    time_ms: float
    """Of a whole pass, without clocks in it: median."""
    overhead: float
    """What the clocks add, as a share."""
    tokens_per_s: float
    parameters: int
    weight_bytes: int
    peak_bytes: int | None
    modules: tuple[ModuleCost, ...]
    """In order of execution."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each module, in order of execution."""
        return [asdict(each) for each in self.modules]

    def to_json(self) -> str:
        return to_json(self)


@torch.no_grad()
def profile_model(
    lm: LanguageModel,
    text: str | None = None,
    *,
    batch: int = 1,
    seq: int = 64,
    repeats: int = 5,
    detail: str = "parts",
    clock: Callable[[], float] = time.perf_counter,
) -> ModelProfile:
    """Times passes over a text (or `seq` tokens), `batch` times side by side.

    `detail`: `layers`, `parts` (and what lies directly in a layer), or every module.

    Raises:
        ValueError: an unknown detail, numbers below 1, a text that is empty or too long.
    """
    if detail not in DETAILS or min(batch, seq, repeats) < 1:
        raise ValueError(
            f"got detail={detail!r}, batch={batch}, seq={seq} and repeats={repeats}, expected one of "
            f"{', '.join(DETAILS)} and at least 1: choose again"
        )
    row = torch.full((1, seq), min(5, lm.vocab_size - 1)) if text is None else tokens_of(lm, text)
    lm.check_length(row.shape[1])
    tokens = row.expand(batch, -1).to(lm.device)
    rest = _rests(lm.device)
    chosen = {name: module for name, module in lm.model.named_modules() if _is_told(lm, name, module, detail)}
    with lm.lock:
        lm.forward(tokens)
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(lm.device)
        plain = [_timed(lambda: lm.forward(tokens), rest, clock) for _ in range(repeats)]
        peak = torch.cuda.max_memory_allocated(lm.device) if lm.device.type == "cuda" else None
        costs: dict[str, _Cost] = {name: _Cost() for name in chosen}
        order: list[str] = []
        with _clocked(chosen, costs, order, rest, clock):
            watched = []
            for _ in range(repeats):
                watched.append(_timed(lambda: lm.forward(tokens), rest, clock))
                for cost in costs.values():
                    cost.close()
    whole, clocked = statistics.median(plain), statistics.median(watched)
    layers = {id(layer): number for stack in lm.site_map.stacks for number, layer in enumerate(stack.layers)}
    found = []
    for name in dict.fromkeys(order):
        module, cost = chosen[name], costs[name]
        spent = statistics.median(cost.passes)
        weights = list(module.parameters())
        found.append(
            ModuleCost(
                module=name,
                kind=type(module).__name__,
                layer=_layer_of(lm, name, layers),
                depth=name.count("."),
                calls=cost.calls // repeats,
                time_ms=1e3 * spent,
                share=spent / clocked if clocked > 0 else 0.0,
                parameters=sum(each.numel() for each in weights),
                weight_bytes=sum(each.numel() * each.element_size() for each in weights),
                output_bytes=cost.output_bytes,
            )
        )
    every = list(lm.model.parameters())
    return ModelProfile(
        model=lm.name,
        device=str(lm.device),
        dtype=str(lm.dtype).removeprefix("torch."),
        batch=batch,
        seq=tokens.shape[1],
        repeats=repeats,
        time_ms=1e3 * whole,
        overhead=clocked / whole - 1 if whole > 0 else 0.0,
        tokens_per_s=tokens.numel() / whole if whole > 0 else 0.0,
        parameters=sum(each.numel() for each in every),
        weight_bytes=sum(each.numel() * each.element_size() for each in every),
        peak_bytes=peak,
        modules=tuple(found),
    )


class _Cost:
    """What the clocks saw of one module."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.spent = 0.0
        self.passes: list[float] = []
        self.calls = 0
        self.output_bytes = 0

    def close(self) -> None:
        self.passes.append(self.spent)
        self.spent = 0.0
        self.begun.clear()


@contextmanager
def _clocked(
    modules: dict[str, nn.Module],
    costs: dict[str, _Cost],
    order: list[str],
    rest: Callable[[], None],
    clock: Callable[[], float],
) -> Iterator[None]:
    handles = []

    def begins(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any) -> None:
            order.append(name)
            rest()
            costs[name].begun.append(clock())

        return hook

    def ends(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            rest()
            cost = costs[name]
            cost.spent += clock() - cost.begun.pop()
            cost.calls += 1
            cost.output_bytes = _size(output)

        return hook

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(begins(name)))
            handles.append(module.register_forward_hook(ends(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _timed(run: Callable[[], Any], rest: Callable[[], None], clock: Callable[[], float]) -> float:
    rest()
    begun = clock()
    run()
    rest()
    return clock() - begun


def _rests(device: torch.device) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _size(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.numel() * output.element_size()
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return sum(_size(each) for each in parts)


def _is_told(lm: LanguageModel, name: str, module: nn.Module, detail: str) -> bool:
    if not name or isinstance(module, nn.ModuleList):
        return False
    if detail == "modules":
        return True
    layers = [layer for stack in lm.site_map.stacks for layer in stack.layers]
    body = body_of(lm.model)
    outer = module in list(lm.model.children()) or module in list(body.children())
    is_layer = any(module is layer for layer in layers)
    inside = any(module is child for layer in layers for child in layer.children())
    return is_layer or (outer and module is not body) or (detail == "parts" and inside)


def _layer_of(lm: LanguageModel, name: str, layers: dict[int, int]) -> int | None:
    """The number of the layer that a module is, or lies in."""
    module: nn.Module = lm.model
    if id(module) in layers:
        return layers[id(module)]
    for part in name.split("."):
        module = getattr(module, part)
        if id(module) in layers:
            return layers[id(module)]
    return None
