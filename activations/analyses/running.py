"""Several analyses of one text by one call.

    analyze(model, text, methods=None, *, compare=None, target=None, settings=None, …) -> Analysis

Enters: a model (or the name of one), a text, perhaps a second text to hold it against. Leaves: an `Analysis`: every
method's own result by name. `activations.analyses.methods` lists them; `attributions` stands for all attributions.
`settings` holds what is chosen of a method, by method and name. Where no methods are named, all run that the model and
the texts allow, and `left_out` says why others did not; a method that is named and cannot run is an error.

The target is resolved once, on the text, so that all methods explain the same token.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activations.analyses.methods import ATTRIBUTIONS, METHODS, Question
from activations.analyses.plain import to_json
from activations.analyses.targets import Continuation, Metric, Target
from activations.progress import progress

if TYPE_CHECKING:
    from activations.model import LanguageModel

Settings = Mapping[str, Mapping[str, Any]]
"""What is chosen of methods: by method, by name of the setting."""


@dataclass(frozen=True)
class Analysis:
    """The results of one text (and perhaps a second one) in one model."""

    model: str
    text: str
    compare: str | None
    tokens: tuple[str, ...]
    target: str
    """What was explained."""
    settings: dict[str, dict[str, Any]]
    """What was chosen of methods otherwise than by default."""
    results: dict[str, Any]
    """By method: each a result with `.rows()` and `.to_json()`."""
    time_s: dict[str, float]
    """Seconds that each method took."""
    left_out: dict[str, str]
    """Methods that were not asked for by name and do not apply, with the reason."""
    ended: str
    """The method that ended last."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each method."""
        return [
            {"method": name, "time_s": round(self.time_s[name], 3), "records": len(result.rows())}
            for name, result in self.results.items()
        ]

    def to_json(self) -> str:
        """Returns everything, all results included."""
        return to_json(self)


def analyze(
    model: LanguageModel | str,
    text: str,
    methods: Sequence[str] | None = None,
    *,
    compare: str | None = None,
    target: Target = None,
    contrast: str | int | None = None,
    position: int | None = None,
    settings: Settings | None = None,
) -> Analysis:
    """Runs `methods` (default: all that apply) on `text`, with a progress bar.

    Raises:
        ValueError: an empty or too long text, an unknown method, a method without what it needs, an unknown target or
            setting.
        FileNotFoundError: no model of this name.
    """
    with progress("Analyse", len(chosen_methods(methods, compare, settings)), "methods") as advance:
        for found in analyze_stepwise(
            model,
            text,
            methods,
            compare=compare,
            target=target,
            contrast=contrast,
            position=position,
            settings=settings,
        ):
            advance(1, found.ended)
    return found


def analyze_stepwise(
    model: LanguageModel | str,
    text: str,
    methods: Sequence[str] | None = None,
    *,
    compare: str | None = None,
    target: Target = None,
    contrast: str | int | None = None,
    position: int | None = None,
    settings: Settings | None = None,
) -> Iterator[Analysis]:
    """Yields what is known after each method of `analyze`, so that it can be shown, or stopped, before the next.

    Raises:
        ValueError, FileNotFoundError: as `analyze`.
    """
    from activations.model import LanguageModel

    chosen = chosen_settings(chosen_methods(methods, compare, settings), settings)
    lm = LanguageModel.load(model) if isinstance(model, str) else model
    metric = Metric(lm, text, target, contrast=contrast, position=position)
    fixed = metric.token if metric.token is not None and not isinstance(target, Continuation) else target
    asked = Question(lm, text, compare, metric, fixed, contrast, position, {})
    tokens = tuple(lm.token_strings(metric.tokens[0, : metric.count]))
    times: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name in chosen:
        begun = time.perf_counter()
        try:
            asked.done[name] = METHODS[name].run(asked, **chosen[name])
        except ValueError as error:
            if methods is not None or chosen[name]:
                raise
            left_out[name] = str(error)
        else:
            times[name] = time.perf_counter() - begun
        yield Analysis(
            model=lm.name,
            text=text,
            compare=compare,
            tokens=tokens,
            target=metric.name,
            settings={name: own for name, own in chosen.items() if own},
            results=dict(asked.done),
            time_s=dict(times),
            left_out=dict(left_out),
            ended=name,
        )


def chosen_methods(methods: Sequence[str] | None, compare: str | None, settings: Settings | None = None) -> list[str]:
    """Returns names of methods in the order in which they run; None are all that apply, and those with settings.

    Raises:
        ValueError: an unknown name, or a method that needs a second text where there is none.
    """
    if methods is None:
        return [
            name
            for name, method in METHODS.items()
            if (not method.on_request or name in (settings or {})) and (compare is not None or not method.needs_compare)
        ]
    wanted: set[str] = set()
    for name in methods:
        if name == "attributions":
            wanted |= set(ATTRIBUTIONS)
        elif name not in METHODS:
            raise ValueError(
                f"method {name!r} is unknown{_nearest(name, METHODS)}, expected attributions, {', '.join(METHODS)}: "
                "choose among these"
            )
        elif METHODS[name].needs_compare and compare is None:
            raise ValueError(f"method {name!r} compares two texts and one was given: give a second one to compare with")
        else:
            wanted.add(name)
    if not wanted:
        raise ValueError("no method was named, expected some: name them, or leave methods out for all")
    return [name for name in METHODS if name in wanted]


def chosen_settings(methods: Sequence[str], settings: Settings | None) -> dict[str, dict[str, Any]]:
    """Returns what is chosen of each of `methods`, in the type of its default; words for a number are read as one.

    Raises:
        ValueError: settings of a method that does not run, an unknown setting, or a value that is not of its type.
    """
    chosen: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for name, own in (settings or {}).items():
        if name not in chosen:
            raise ValueError(f"settings of {name!r} were given, expected of {', '.join(methods)}: leave them out")
        known = METHODS[name].settings
        for key, value in own.items():
            if key not in known:
                expected = ", ".join(known) or "none"
                raise ValueError(
                    f"{name} has no setting {key!r}{_nearest(key, known)}, expected {expected}: leave it out"
                )
            kind = type(known[key].default)
            try:
                chosen[name][key] = kind(value)
            except ValueError as error:
                wanted = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name}.{key} is {value!r}, expected {wanted}: give one") from error
    return chosen


def parsed_settings(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns settings written as METHOD.NAME=VALUE.

    Raises:
        ValueError: words of another form.
    """
    found: dict[str, dict[str, str]] = {}
    for each in words:
        name, equals, value = each.partition("=")
        method, dot, key = name.partition(".")
        if not equals or not dot:
            raise ValueError(f"got the setting {each!r}, expected METHOD.NAME=VALUE: write it so")
        found.setdefault(method, {})[key] = value
    return found


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {near[0]})" if near else ""
