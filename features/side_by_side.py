"""Steered text beside the text as it would have been, token by token.

Enters: a `Steering`, a prompt, and how to write. Leaves: both texts as they grow, under the same seed and options, and
when they are finished what the steering cost. Several samples are written one after the other, each with its own seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from features.steering import continuation_perplexity

if TYPE_CHECKING:
    from activations.generation import Prompt
    from features.steering import Steering


@dataclass(frozen=True)
class SideBySide:
    """Both texts so far; one of each for every sample that was begun."""

    unsteered: tuple[str, ...]
    steered: tuple[str, ...]
    is_running: bool
    is_stopped: bool = False


@dataclass(frozen=True)
class SteeringCost:
    """What a steering cost, measured by the model left alone; averages over samples."""

    unsteered_perplexity: float | None
    """None where nothing was written."""
    steered_perplexity: float | None
    relative_norm: float
    """Length of the written difference as a share of the activation's, on average over the prompt's tokens."""


def written_side_by_side(
    steering: Steering,
    prompt: Prompt,
    *,
    samples: int = 1,
    steered_prompt: Prompt | None = None,
    is_stopped: Callable[[], bool] | None = None,
    **options: Any,
) -> Iterator[SideBySide]:
    """Yields both texts after each step in which they grew, and once more when they are finished.

    `options` are those of `LanguageModel.generate`; sample i has the seed plus i. `steered_prompt` is what the steered
    side goes on from where that differs (its own turns of a conversation). `is_stopped` is asked before every token;
    closing the iterator ends the model's work, too.
    """
    lm = steering.dictionary.lm
    done: tuple[list[str], list[str]] = ([], [])
    for sample in range(samples):
        how = options | ({} if options.get("seed") is None else {"seed": options["seed"] + sample})
        texts = ["", ""]
        streams: dict[int, Iterator[str]] = {
            0: lm.stream(prompt, **how),
            1: steering.stream(prompt if steered_prompt is None else steered_prompt, **how),
        }
        with closing(streams[0]), closing(streams[1]):  # pyright: ignore[reportArgumentType]
            while streams:
                for side in list(streams):
                    if is_stopped is not None and is_stopped():
                        yield _state(done, texts, is_running=False, is_stopped=True)
                        return
                    piece = next(streams[side], None)
                    if piece is None:
                        del streams[side]
                    else:
                        texts[side] += piece
                yield _state(done, texts, is_running=True)
        for side in (0, 1):
            done[side].append(texts[side])
    yield SideBySide(tuple(done[0]), tuple(done[1]), is_running=False)


def steering_cost(
    steering: Steering, prompt: Prompt, written: SideBySide, steered_prompt: Prompt | None = None
) -> SteeringCost:
    """Measures both texts under the model left alone."""
    lm = steering.dictionary.lm
    return SteeringCost(
        _mean([continuation_perplexity(lm, prompt, text) for text in written.unsteered]),
        _mean([continuation_perplexity(lm, steered_prompt or prompt, text) for text in written.steered]),
        steering.relative_norm(steered_prompt or prompt),
    )


def parting(unsteered: str, steered: str) -> int:
    """Returns how many characters two texts have in common before they part."""
    pairs = zip(unsteered, steered, strict=False)
    return next(
        (place for place, (left, right) in enumerate(pairs) if left != right), min(len(unsteered), len(steered))
    )


def _state(done: tuple[list[str], list[str]], texts: list[str], **facts: bool) -> SideBySide:
    return SideBySide((*done[0], texts[0]), (*done[1], texts[1]), **facts)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
