"""Steered text beside the text as it would have been."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ui.render import feature as render
from ui.render import html
from ui.render.html import escape

if TYPE_CHECKING:
    from features import Dictionary

STREAM_INTERVAL_S = 0.05


def continuation(prompt: str, text: str, title: str, running: bool) -> str:
    """Returns one side of the steering comparison."""
    cursor = '<i class="mark cursor">▍</i>' if running else ""
    return (
        f'<div class="gb"><div class="card stack continuation"><h3>{escape(title)}</h3>'
        f'<span class="text"><span class="muted">{escape(prompt)}</span>{escape(text)}{cursor}</span></div></div>'
    )


def merged(left: Iterator[str], right: Iterator[str]) -> Iterator[tuple[str, str, bool]]:
    """Runs two streams side by side; yields both texts so far, and whether more is to come.

    Closing this iterator closes both streams, which ends the model's work.
    """
    texts, streams = ["", ""], {0: left, 1: right}
    shown = 0.0
    try:
        while streams:
            for side in list(streams):
                piece = next(streams[side], None)
                if piece is None:
                    del streams[side]
                else:
                    texts[side] += piece
            if time.monotonic() - shown > STREAM_INTERVAL_S:
                shown = time.monotonic()
                yield texts[0], texts[1], True
        yield texts[0], texts[1], False
    finally:
        for stream in (left, right):
            close = getattr(stream, "close", None)
            if close is not None:
                close()


def slot(dictionary: Dictionary, feature: int, name: str) -> str:
    """Returns the name of a steered feature: its number, what it is called, and its unit of strength."""
    says = html.explained(dictionary.explanations_of([feature]).get(feature, ""))
    maximum = float(dictionary.max_activations[feature])
    return (
        f'<div class="gb"><b>{render.linker(name)(feature, f"Feature {feature}")}</b> '
        f'<span class="muted small">maximum {maximum:.3g}</span><br><span class="small">{says}</span></div>'
    )
