"""Two texts of equally many tokens that make a model say different things: what patching moves between them.

Enters: a clean and a corrupt text, a target. Leaves: their tokens, the target's number on each, and which of them is
run (`base`) and which gives its activations (`source`). An effect is the share of the way from base to source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import tokens_of
from activations.analyses.targets import Metric, Target

if TYPE_CHECKING:
    from activations.model import LanguageModel

DIRECTIONS = ("denoise", "noise")
BATCH_TOKENS = 2048


class TwoTexts:
    """A clean and a corrupt text, resolved.

    Attributes:
        metric: the target, on the clean text.
        base: tokens that are run; source: tokens whose activations are put in.
        clean_value, corrupt_value: the target's number on each.
        start, span: m(base), and m(source) − m(base).
    """

    def __init__(
        self,
        lm: LanguageModel,
        clean: str,
        corrupt: str,
        target: Target = None,
        *,
        contrast: str | int | None = None,
        direction: str = "denoise",
        position: int | None = None,
        measure: str = "logit",
    ) -> None:
        """ValueError for texts of different lengths, a target that does not tell them apart, an unknown direction."""
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is unknown, expected denoise or noise: choose one of these")
        other = tokens_of(lm, corrupt)
        against = _contrast(lm, clean, corrupt, target, contrast, position)
        metric = Metric(lm, clean, target, contrast=against, position=position, measure=measure)
        if other.shape[1] != metric.count:
            raise ValueError(
                f"the texts have {metric.count} and {other.shape[1]} tokens, expected equally many: change words for "
                "words of as many tokens"
            )
        swapped = torch.cat([other, metric.tokens[:, metric.count :]], dim=1)
        with torch.no_grad():
            clean_value, corrupt_value = (float(metric(tokens)) for tokens in (metric.tokens, swapped))
        if abs(clean_value - corrupt_value) <= 1e-6 * (1 + abs(clean_value)):
            raise ValueError(
                f"the {metric.name} is {clean_value:.4g} for both texts, expected a difference to explain: choose "
                "another target, or other texts"
            )
        self.lm, self.metric, self.direction = lm, metric, direction
        self.clean, self.corrupt = clean, corrupt
        self.clean_value, self.corrupt_value = clean_value, corrupt_value
        is_denoise = direction == "denoise"
        self.base: Int[Tensor, "1 seq"] = swapped if is_denoise else metric.tokens
        self.source: Int[Tensor, "1 seq"] = metric.tokens if is_denoise else swapped
        self.start = corrupt_value if is_denoise else clean_value
        self.span = clean_value - corrupt_value if is_denoise else corrupt_value - clean_value
        self.tokens = tuple(lm.token_strings(metric.tokens[0, : metric.count]))
        self.corrupt_tokens = tuple(lm.token_strings(other[0]))

    @property
    def facts(self) -> dict[str, object]:
        """What every result of two texts says of them."""
        return {
            "model": self.lm.name,
            "clean": self.clean,
            "corrupt": self.corrupt,
            "tokens": self.tokens,
            "corrupt_tokens": self.corrupt_tokens,
            "target": self.metric.name,
            "direction": self.direction,
            "clean_value": self.clean_value,
            "corrupt_value": self.corrupt_value,
        }

    @property
    def batch_rows(self) -> int:
        return max(1, BATCH_TOKENS // self.base.shape[1])

    def shares(self, rows: int) -> Float[np.ndarray, " rows"]:
        """Runs `rows` copies of the base text, under whatever edits are at work; returns the effect of each."""
        with torch.no_grad():
            return (self.metric(self.base.expand(rows, -1)).double().cpu().numpy() - self.start) / self.span

    def edited(self, site: str, edit: Callable[[Tensor], Tensor], rows: int) -> Float[np.ndarray, " rows"]:
        """Returns the effects of an edit that treats each of `rows` copies in its own way."""
        with self.lm.intervene({site: edit}):
            return self.shares(rows)

    def groups(self, count: int) -> list[list[int]]:
        """Indices below `count`, as many together as fit one pass."""
        size = self.batch_rows
        return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def _contrast(
    lm: LanguageModel, clean: str, corrupt: str, target: Target, contrast: str | int | None, position: int | None
) -> str | int | None:
    """What the model says on the corrupt text, where nobody says what to ask for and it says something else."""
    if contrast is not None or target is not None or Metric(lm, clean, position=position).is_classifier:
        return contrast
    said = [Metric(lm, text, position=position).token for text in (clean, corrupt)]
    return said[1] if said[0] != said[1] else None
