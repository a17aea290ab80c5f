"""What one visit may ask of the machine, and which prompts are not taken."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Limits:
    """Bounds of what people ask of a language model through the browser.

    `refused` are patterns: a prompt in which one is found is not taken, whoever sends it.
    """

    prompt_characters: int = 20_000
    new_tokens: int = 500
    model_seconds: float = 180.0
    """Of one answer; what was written until then stays."""
    queue: int = 32
    """Questions that wait; further ones are refused."""
    refused: tuple[re.Pattern[str], ...] = field(default=())

    def check(self, *prompts: str) -> None:
        """Raises ValueError for a prompt that is too long, or that a pattern refuses."""
        for prompt in prompts:
            if len(prompt) > self.prompt_characters:
                raise ValueError(
                    f"the text has {len(prompt):,} characters, expected at most {self.prompt_characters:,}: shorten it"
                )
            if any(pattern.search(prompt) for pattern in self.refused):
                raise ValueError(
                    "the text matches a pattern that this browser was started to refuse, expected another text: "
                    "rephrase it, or ask who runs this browser"
                )

    def timed(self, stream: Iterator[Item]) -> Iterator[Item]:
        """Passes a stream on until `model_seconds` are over, and closes it."""
        began = time.monotonic()
        try:
            for item in stream:
                yield item
                if time.monotonic() - began > self.model_seconds:
                    return
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()


def read_patterns(path: Path) -> tuple[re.Pattern[str], ...]:
    """Reads regular expressions, one a line, without regard to case; empty lines and those that begin with # say none.

    Raises:
        ValueError: a line that is no regular expression, or a file without any.
        OSError: no such file.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            found.append(re.compile(line, re.IGNORECASE))
        except re.error as error:
            raise ValueError(
                f"line {number} of {path} is no regular expression ({error}), expected one a line: correct it"
            ) from error
    if not found:
        raise ValueError(f"{path} holds no pattern, expected a regular expression a line: write one, or leave it out")
    return tuple(found)
