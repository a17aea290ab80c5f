"""Built-in tasks: templates and words of our own writing, from which pairs are drawn.

Enters: a task's name. Leaves: `Pair`s without end, the same for a seed; `prepare_pairs` takes those that fit a
tokenizer. Each task changes one thing between the clean and the corrupt text, so that what differs is what is asked.
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from activations.circuits.pairs import Pair, PairSet, prepare_pairs

if TYPE_CHECKING:
    from activations.model import LanguageModel

TRIED = 1500
"""Pairs that are drawn, at most, to find those that fit a tokenizer."""


@dataclass(frozen=True)
class Task:
    """A task: what it asks, and what its pairs are drawn from."""

    name: str
    about: str
    measure: str
    slots: dict[str, str]
    """By the name that templates use: the list of words that it is drawn from; one list gives different words."""
    templates: tuple[dict[str, Any], ...]
    words: dict[str, list[Any]]

    def pairs(self, seed: int = 0) -> Iterator[Pair]:
        """Yields distinct pairs in a random order."""
        drawn = random.Random(f"{self.name} {seed}")
        seen: set[tuple[str, str]] = set()
        for _ in range(TRIED):
            chosen: dict[str, Any] = {}
            for name in dict.fromkeys(self.slots.values()):
                places = [slot for slot, words in self.slots.items() if words == name]
                chosen |= dict(zip(places, drawn.sample(self.words[name], len(places)), strict=True))
            template = drawn.choice(self.templates)
            pair = _filled(template, chosen)
            if (pair.clean, pair.corrupt) not in seen:
                seen.add((pair.clean, pair.corrupt))
                yield pair


def _filled(template: dict[str, Any], chosen: dict[str, Any]) -> Pair:
    def words(given: str | list[str]) -> tuple[str, ...]:
        each = [given] if isinstance(given, str) else given
        found: list[str] = []
        for word in each:
            filled = word.format(**chosen)
            # years and the like: a range of two-digit numbers
            if filled.startswith("range:"):
                first, last = map(int, filled.removeprefix("range:").split("-"))
                found += [f"{number:02d}" for number in range(first, last + 1)]
            else:
                found.append(filled)
        return tuple(found)

    return Pair(
        template["clean"].format(**chosen),
        template["corrupt"].format(**chosen),
        words(template["target"]),
        words(template.get("contrast", [])),
    )


@cache
def builtin_tasks() -> dict[str, Task]:
    """Returns the built-in tasks by name."""
    content = json.loads((resources.files("activations.circuits") / "data" / "tasks.json").read_text(encoding="utf-8"))
    found = {}
    for name, entry in content["tasks"].items():
        lists = set(entry["slots"].values())
        found[name] = Task(
            name=name,
            about=entry["about"],
            measure=entry.get("measure", "logit_difference"),
            slots=entry["slots"],
            templates=tuple(entry["templates"]),
            words={each: content["words"][each] for each in lists},
        )
    return found


def task_pairs(lm: LanguageModel, name: str, *, count: int = 32, seed: int = 0) -> PairSet:
    """Returns pairs of a built-in task that fit the model's tokenizer.

    Raises:
        ValueError: an unknown task, or no pair that fits.
    """
    known = builtin_tasks()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ValueError(f"task {name!r} is unknown{hint}, expected one of {', '.join(known)}: choose one of these")
    task = known[name]
    return prepare_pairs(lm, task.pairs(seed), name=name, measure=task.measure, count=count)
