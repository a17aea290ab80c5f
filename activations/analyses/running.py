"""Several analyses of one text by one call.

    analyze(model, text, methods=None, *, compare=None, target=None, contrast=None, position=None) -> Analysis

Enters: a model (or the name of one), a text, perhaps a second text to hold it against. Leaves: an `Analysis`: every
method's own result by name. `METHODS` lists them; `attributions` stands for all attributions. Where no methods are
named, all run that the model and the texts allow, and `left_out` says why others did not; a method that is named and
cannot run is an error.

The target is resolved once, on the text, so that all methods explain the same token.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from activations.analyses import ablation, agreement, attention, attribution, direct, lens, norms, patching, roles
from activations.analyses.plain import to_json
from activations.analyses.targets import Continuation, Metric, Target
from activations.progress import progress

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class Analysis:
    """The results of one text (and perhaps a second one) in one model."""

    model: str
    text: str
    compare: str | None
    tokens: tuple[str, ...]
    target: str
    """What was explained."""
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


@dataclass(frozen=True)
class _Question:
    """What all methods are asked about."""

    lm: LanguageModel
    text: str
    compare: str | None
    metric: Metric
    target: Target
    contrast: str | int | None
    position: int | None
    done: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        return {"target": self.target, "contrast": self.contrast, "position": self.position}


def _attribution(name: str) -> Callable[[_Question], Any]:
    return lambda asked: attribution.attribute(asked.lm, asked.text, method=name, **asked.about)


def _agreement(asked: _Question) -> Any:
    found = {name: result for name, result in asked.done.items() if isinstance(result, attribution.Attribution)}
    return agreement.compare_methods(found)


def _patterns(asked: _Question) -> Any:
    return asked.done.get("attention") or attention.attention_patterns(asked.lm, asked.text)


def _routes(asked: _Question) -> Any:
    return attention.attention_routes(_patterns(asked), asked.metric.position)


def _compared(asked: _Question) -> Any:
    assert asked.compare is not None
    return attention.compare_attention(_patterns(asked), attention.attention_patterns(asked.lm, asked.compare))


def _lens(asked: _Question) -> Any:
    return lens.logit_lens(asked.lm, asked.text)


def _direct(asked: _Question) -> Any:
    if isinstance(asked.target, (str, int)) and not asked.metric.is_classifier:
        return direct.direct_logit_attribution(
            asked.lm, asked.text, target=asked.target, contrast=asked.contrast, position=asked.metric.position
        )
    raise ValueError(f"the target is the {asked.metric.name}, expected a token: direct effects are on single logits")


def _patching(asked: _Question) -> Any:
    assert asked.compare is not None
    about = asked.about
    if asked.contrast is None and isinstance(asked.target, (str, int)):
        other = Metric(asked.lm, asked.compare, position=asked.position).token
        about |= {"contrast": other if other is not None and other != asked.metric.token else None}
    return patching.patch_activations(asked.lm, asked.text, asked.compare, **about)


ATTRIBUTIONS = tuple(attribution.METHODS)
METHODS: dict[str, Callable[[_Question], Any]] = {
    **{name: _attribution(name) for name in ATTRIBUTIONS},
    "agreement": _agreement,
    "lens": _lens,
    "direct": _direct,
    "attention": lambda asked: attention.attention_patterns(asked.lm, asked.text),
    "routes": _routes,
    "ablation": lambda asked: ablation.ablate_components(asked.lm, asked.text, **asked.about),
    "norms": lambda asked: norms.activation_norms(asked.lm, asked.text),
    "roles": lambda asked: roles.head_roles(asked.lm),
    "patching": _patching,
    "compared_attention": _compared,
}
"""In the order in which they run."""
WITH_COMPARE = ("patching", "compared_attention")
"""Methods that need a second text."""
ON_REQUEST = ("roles",)
"""Methods that say nothing of this text, and run where they are named."""


def analyze(
    model: LanguageModel | str,
    text: str,
    methods: Sequence[str] | None = None,
    *,
    compare: str | None = None,
    target: Target = None,
    contrast: str | int | None = None,
    position: int | None = None,
) -> Analysis:
    """Runs `methods` (default: all that apply) on `text`, with a progress bar.

    Raises:
        ValueError: an empty or too long text, an unknown method, a method without what it needs, an unknown target.
        FileNotFoundError: no model of this name.
    """
    with progress("Analyse", len(chosen_methods(methods, compare)), "methods") as advance:
        for found in analyze_stepwise(
            model, text, methods, compare=compare, target=target, contrast=contrast, position=position
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
) -> Iterator[Analysis]:
    """Yields what is known after each method of `analyze`, so that it can be shown, or stopped, before the next.

    Raises:
        ValueError, FileNotFoundError: as `analyze`.
    """
    from activations.model import LanguageModel

    chosen = chosen_methods(methods, compare)
    lm = LanguageModel.load(model) if isinstance(model, str) else model
    metric = Metric(lm, text, target, contrast=contrast, position=position)
    fixed = metric.token if metric.token is not None and not isinstance(target, Continuation) else target
    asked = _Question(lm, text, compare, metric, fixed, contrast, position, {})
    tokens = tuple(lm.token_strings(metric.tokens[0, : metric.count]))
    times: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name in chosen:
        begun = time.perf_counter()
        try:
            asked.done[name] = METHODS[name](asked)
        except ValueError as error:
            if methods is not None:
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
            results=dict(asked.done),
            time_s=dict(times),
            left_out=dict(left_out),
            ended=name,
        )


def chosen_methods(methods: Sequence[str] | None, compare: str | None) -> list[str]:
    """Returns names of methods in the order in which they run.

    Raises:
        ValueError: an unknown name, or a method that needs a second text where there is none.
    """
    if methods is None:
        return [
            name for name in METHODS if name not in ON_REQUEST and (compare is not None or name not in WITH_COMPARE)
        ]
    wanted: set[str] = set()
    for name in methods:
        if name == "attributions":
            wanted |= set(ATTRIBUTIONS)
        elif name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ValueError(
                f"method {name!r} is unknown{hint}, expected attributions, {', '.join(METHODS)}: choose among these"
            )
        elif name in WITH_COMPARE and compare is None:
            raise ValueError(f"method {name!r} compares two texts and one was given: give a second one to compare with")
        else:
            wanted.add(name)
    if not wanted:
        raise ValueError("no method was named, expected some: name them, or leave methods out for all")
    return [name for name in METHODS if name in wanted]
