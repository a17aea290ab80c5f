"""A language model whose passes several processes divide between them.

Every process asks for the activations of the same tokens; each runs its part of the sequences, and all get all of them.
So a stream of rows is the same in every process, and costs each its part of the passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from activations.processes import Processes

if TYPE_CHECKING:
    from activations.model import LanguageModel

Capture = Callable[[Tensor, Tensor | None, Sequence[str]], dict[str, Tensor]]


def divided(lm: LanguageModel, processes: Processes) -> LanguageModel:
    """Returns the model as one that captures together with the other processes; itself where there are none."""
    if not processes.are_several:
        return lm
    together = copy.copy(lm)
    # rows may be read in a thread beside training: they need a line of their own
    line = processes.with_another_line()
    together.capture = partial(_capture, lm.capture, line)  # pyright: ignore[reportAttributeAccessIssue]
    together.goes_on = partial(_all_go_on, line)  # pyright: ignore[reportAttributeAccessIssue]
    return together


def _all_go_on(processes: Processes, is_wanted: bool) -> bool:
    """Says whether all processes want to go on, so that none waits for a pass that another one has given up."""
    return all(bool(flag) for flag in processes.gather(torch.tensor([int(is_wanted)]), aside=True))


def _capture(
    capture: Capture, processes: Processes, tokens: Tensor, mask: Tensor | None, sites: Sequence[str]
) -> dict[str, Tensor]:
    """Returns the activations of all sequences, of which this process runs its part."""
    each = -(-len(tokens) // processes.world)
    # parts are of one size, so the last ones may repeat the last sequence
    mine = torch.arange(processes.rank * each, (processes.rank + 1) * each).clamp(max=len(tokens) - 1)
    mine = mine.to(tokens.device)
    captured = capture(tokens[mine], None if mask is None else mask[mine], sites)
    together: dict[str, Tensor] = {}
    for site, value in captured.items():
        parts = processes.gather(value.cpu(), aside=True)
        together[site] = torch.cat(parts)[: len(tokens)].to(value.device)
    return together
