"""What is to be explained: a number that a model's output on a text is turned into.

Enters: a text and a target: nothing (the token that the model itself expects most), a token (by its text or id, perhaps
less a contrast), `Continuation` (the log-probability of a text that follows), `AtSite` (a neuron, a feature: anything
read at a site), for classifiers a class, or a function of the logits. Leaves: a `Metric`, one number for each row of a
batch, through which gradients flow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.analyses.inputs import token_id, tokens_of

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class Continuation:
    """The log-probability, in nats, of `text` following."""

    text: str


@dataclass(frozen=True)
class AtSite:
    """A number read at a site: `read` takes Float[batch, seq, width] and returns Float[batch]."""

    site: str
    read: Callable[[Tensor], Tensor]
    name: str = "value"


Target = str | int | Continuation | AtSite | Callable[[Tensor], Tensor] | None


class Metric:
    """The number that a target makes of this text, and of texts like it.

    Attributes:
        tokens: what the model reads: the text's tokens, then those of a continuation.
        count: the number of the text's own tokens; only these are explained.
        name: what the number is, for people.
        token: the token (or class) that is asked about; None for other targets.
        is_classifier: the model sorts texts into classes.
    """

    def __init__(
        self,
        lm: LanguageModel,
        text: str | Int[Tensor, "1 seq"],
        target: Target = None,
        *,
        contrast: str | int | None = None,
        position: int | None = None,
        measure: str = "logit",
    ) -> None:
        """Resolves a target; `position` is where the logits are read (default: the end, or a mask token's place).

        Raises:
            ValueError: empty or too long text, unknown token, class or position, a contrast that the target does not
                take, or a model with two stacks (T5).
        """
        if measure not in ("logit", "log_probability"):
            raise ValueError(f"measure {measure!r} is unknown, expected logit or log_probability: choose one of these")
        if lm.kind == "encoder-decoder":
            raise ValueError(f"{lm.name} has two stacks of layers, expected one: use a decoder or an encoder")
        self.lm = lm
        self.tokens = tokens_of(lm, text)
        self.count = self.tokens.shape[1]
        self._target = target
        self._measure = measure
        self._contrast: int | None = None
        self.token: int | None = None
        self._extra = 0
        self.position = self._place(position)
        labels = _classes(lm)
        self.is_classifier = labels is not None
        takes_contrast = not isinstance(target, (Continuation, AtSite)) and not callable(target)
        if contrast is not None and not takes_contrast:
            raise ValueError("a contrast was given beside this target, expected a token as target: leave it out")
        if isinstance(target, Continuation):
            self._continue(target)
        elif isinstance(target, AtSite):
            lm.site_map.binding(target.site)
            self.name = f"{target.name} at {target.site}"
        elif callable(target):
            self.name = getattr(target, "__name__", "function")
        else:
            self._resolve(target, contrast, labels)

    @property
    def is_conserved(self) -> bool:
        """The number is a logit, a difference of two, or read at a site: relevance can sum to it."""
        return isinstance(self._target, AtSite) or (self.token is not None and self._measure == "logit")

    def _place(self, position: int | None) -> int:
        if position is None:
            mask = getattr(self.lm.tokenizer, "mask_token_id", None) if self.lm.kind == "encoder" else None
            found = (self.tokens[0] == mask).nonzero().flatten().tolist() if mask is not None else []
            return found[0] if found else self.count - 1
        if not -self.count <= position < self.count:
            raise ValueError(f"position {position} is outside of a text of {self.count} tokens: choose one in it")
        return position % self.count

    def _continue(self, target: Continuation) -> None:
        special = self.lm.special_ids
        ids = [each for each in self.lm.encode([target.text])[0] if each not in special] if target.text else []
        if not ids or self.lm.kind != "decoder":
            raise ValueError(
                f"got the continuation {target.text!r} for {self.lm.name}, expected some text and a decoder: give both"
            )
        self._extra = len(ids)
        self.tokens = torch.cat([self.tokens, torch.tensor([ids], device=self.tokens.device)], dim=1)
        self.lm.check_length(self.tokens.shape[1])
        self.name = f"log-probability of {target.text!r}"

    def _resolve(self, target: str | int | None, contrast: str | int | None, labels: list[str] | None) -> None:
        def resolved(wanted: str | int) -> int:
            return token_id(self.lm, wanted) if labels is None else _class(labels, wanted)

        if target is None:
            with torch.no_grad():
                logits = self._logits(self.tokens)
            row = logits[0, self.position] if logits.ndim == 3 else logits[0]
            self.token = int(row.argmax())
        else:
            self.token = resolved(target)
        self._contrast = None if contrast is None else resolved(contrast)

        def shown(index: int) -> str:
            return repr(self.lm.token_strings([index])[0] if labels is None else labels[index])

        kind = self._measure.replace("_", "-")
        self.name = f"{kind} of {shown(self.token)}"
        if self._contrast is not None:
            self.name += f" less that of {shown(self._contrast)}"

    def __call__(
        self,
        tokens: Int[Tensor, "batch seq"],
        embeddings: Float[Tensor, "batch seq d_model"] | None = None,
        position: int | None = None,
    ) -> Float[Tensor, " batch"]:
        """Returns the number for each row of tokens; with `embeddings` these stand in place of the tokens' own.

        `position` is where the logits are read in these rows, if not where they are in the text. Gradients flow where
        they are enabled. In float32 at least.

        Raises:
            ValueError: a function's result is not one finite number a row.
        """
        edits = {} if embeddings is None else {"embed": lambda _own: embeddings}
        place = self.position if position is None else position
        with self.lm.lock, self.lm.intervene(edits):
            if isinstance(self._target, AtSite):
                return self._checked(self._target.read(self._read(self._target.site, tokens)), len(tokens))
            logits = self._logits(tokens)
        if isinstance(self._target, Continuation):
            log_p = torch.log_softmax(_wide(logits[:, -self._extra - 1 : -1]), dim=-1)
            return log_p.gather(2, tokens[:, -self._extra :, None].to(log_p.device))[..., 0].sum(1)
        if callable(self._target):
            return self._checked(self._target(logits), len(tokens))
        row = _wide(logits[:, place] if logits.ndim == 3 else logits)
        if self._measure == "log_probability":
            row = torch.log_softmax(row, dim=-1)
        value = row[:, self.token]
        return value if self._contrast is None else value - row[:, self._contrast]

    def _logits(self, tokens: Tensor) -> Tensor:
        output = self.lm.forward(tokens)
        if getattr(output, "logits", None) is None:
            raise ValueError(f"{type(self.lm.model).__name__} has no logits, expected a head: load it with one")
        return output.logits.to(self.lm.device)

    def _read(self, site: str, tokens: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with self.lm.taps.read(self.lm.site_map.binding(site), seen.append):
            self.lm.forward(tokens)
        return seen[0]

    def _checked(self, value: Any, rows: int) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != (rows,) or not bool(torch.isfinite(value).all()):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the target function returned {got}, expected {rows} finite numbers: return one a row")
        return _wide(value)


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()


def _classes(lm: LanguageModel) -> list[str] | None:
    """The names of a classifier's classes; None for a language model."""
    if "SequenceClassification" not in type(lm.model).__name__:
        return None
    names = getattr(lm.model.config, "id2label", {}) or {}
    return [str(names.get(index, index)) for index in range(int(lm.model.config.num_labels))]


def _class(labels: list[str], wanted: str | int) -> int:
    if isinstance(wanted, int) and 0 <= wanted < len(labels):
        return wanted
    if wanted in labels:
        return labels.index(str(wanted))
    raise ValueError(f"class {wanted!r} does not exist, expected one of {', '.join(labels)}: choose one of these")
