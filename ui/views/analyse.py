"""Why the model said that: the classic analyses of one text, or of two beside each other, as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ui.render import analysis as render
from ui.render.analyses.attention import head_heatmap
from ui.render.heatmap import heatmap_svg
from ui.render.html import escape, visible
from ui.render.links import linker

if TYPE_CHECKING:
    from activations.analyses import Analysis
    from activations.analyses.methods import Setting
    from features import Dictionary

FEATURES = "features"
"""Beside the methods: the dictionary's features by their effect on the target."""
DEFAULT = ("attributions", "lens", "direct", "ablation", FEATURES)
FILES = "file"
"""A setting that names a file of this machine: not for a browser."""


@dataclass(frozen=True)
class Side:
    """One text in one dictionary's model."""

    dictionary: Dictionary
    name: str
    text: str
    compare: str = ""


@cache
def methods(features: bool = True) -> dict[str, str]:
    """Returns what can be chosen, by what people read; `features` where there is a dictionary."""
    from activations.analyses.methods import ATTRIBUTIONS, METHODS

    found = {f"Attribution: {len(ATTRIBUTIONS)} methods": "attributions"}
    for name, method in METHODS.items():
        runs_by_itself = method.needs_compare and not method.on_request
        if name not in ATTRIBUTIONS and not runs_by_itself and FILES not in method.settings:
            found[render.DRAWINGS[name].heading] = name
    return found | ({"Features of the dictionary": FEATURES} if features else {})


@cache
def settings() -> dict[tuple[str, str], Setting]:
    """Returns what can be set, by method and name."""
    from activations.analyses.methods import METHODS

    return {
        (name, key): setting
        for name, method in METHODS.items()
        if FILES not in method.settings
        for key, setting in method.settings.items()
    }


def chosen_settings(values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Returns the settings that are not as by default, from a value for each of `settings`."""
    found: dict[str, dict[str, Any]] = {}
    for ((method, key), setting), value in zip(settings().items(), values, strict=True):
        if value not in (None, "") and type(setting.default)(value) != setting.default:
            found.setdefault(method, {})[key] = value
    return found


def analyses(
    sides: Sequence[Side],
    target: str,
    contrast: str,
    chosen: Sequence[str],
    position: int | None = None,
    own: dict[str, dict[str, Any]] | None = None,
) -> Iterator[tuple[str, list[Analysis]]]:
    """Yields the page after each method, and the results so far: one for each side.

    Raises:
        ValueError: what `activations.analyses.analyze` refuses, or no method.
    """
    done: list[tuple[str, Analysis | None]] = []
    for number, side in enumerate(sides):
        for told, body, found in _one(side, target, contrast, chosen, position, own or {}, number + 1 == len(sides)):
            shown = [*done, (body, found)]
            parts = "".join(f'<div class="stack analysis">{each}</div>' for each, _ in shown)
            layout = f'<div class="pair">{parts}</div>' if len(sides) > 1 else parts
            yield (
                f'<div class="gb"><div class="stack">{told}{layout}</div></div>',
                [each for _, each in shown if each is not None],
            )
        done.append((body, found))


def _one(
    side: Side,
    target: str,
    contrast: str,
    chosen: Sequence[str],
    position: int | None,
    own: dict[str, dict[str, Any]],
    is_last: bool,
) -> Iterator[tuple[str, str, Analysis | None]]:
    from activations.analyses.methods import METHODS
    from activations.analyses.running import analyze_stepwise, chosen_methods

    named = [method for method in chosen if method != FEATURES]
    if side.compare:
        named += [name for name, method in METHODS.items() if method.needs_compare and not method.on_request]
    features = ""
    if FEATURES in chosen:
        found = side.dictionary.active_on(side.text, by="attribution", target=target or None)
        features = render.features_section(found, linker(side.name))
    if not named and features:
        yield "" if is_last else _told("features", 0, 0, 0.0), features, None
        return
    order = chosen_methods(named, side.compare or None)
    steps = analyze_stepwise(
        side.dictionary.lm,
        side.text,
        named,
        compare=side.compare or None,
        target=target or None,
        contrast=contrast or None,
        position=position,
        settings={name: each for name, each in own.items() if name in order},
    )
    for done in steps:
        ended = done.ended == order[-1] and is_last
        count = 0 if ended else order.index(done.ended) + 1
        told = _told(done.ended, count, len(order), sum(done.time_s.values()))
        yield told, _head(done, side.name) + "".join(render.sections(done)) + features, done


def _told(ended: str, count: int, total: int, seconds: float) -> str:
    running = "true" if count else "false"
    state = f"{count} of {total} methods done, last {escape(ended)}" if count else f"done in {seconds:.1f} s"
    bar = f'<progress max="{total}" value="{count}"></progress> ' if count else ""
    return f'<p class="muted small" data-running="{running}">{bar}{state}</p>'


def _head(done: Analysis, name: str) -> str:
    tokens = "".join(
        f'<span data-at="{place}" title="token {place}: explain what is said here">{visible(token)}</span>'
        for place, token in enumerate(done.tokens)
    )
    other = (
        f'<p class="muted small">compared with</p><div class="text">{visible(done.compare)}</div>'
        if done.compare
        else ""
    )
    return (
        f'<section class="card"><p>Explained: <b>{escape(done.target)}</b> in {escape(done.model)} '
        f'<span class="muted small">({escape(name)}; click a token to explain what is said there)</span></p>'
        f'<div class="text">{tokens}</div>{other}</section>'
    )


def heads(results: Sequence[Analysis]) -> tuple[int, int]:
    """Returns how many layers and heads the results have patterns of; 0, 0 where attention was not asked about."""
    shapes = [found.results["attention"].patterns.shape for found in results if "attention" in found.results]
    return (min(shape[0] for shape in shapes), min(shape[1] for shape in shapes)) if shapes else (0, 0)


def head(results: Sequence[Analysis], layer: int, number: int) -> str:
    """Returns one head's pattern, large, in each of the results."""
    maps = [
        f'<div class="card scrolls stack"><p class="small muted">{escape(chart.title)}</p>{heatmap_svg(chart)}</div>'
        for found in results
        if "attention" in found.results
        for chart in [head_heatmap(found.results["attention"], layer, number)]
    ]
    return f'<div class="gb"><div class="{"pair" if len(maps) > 1 else "stack"}">{"".join(maps)}</div></div>'


def download(results: Sequence[Analysis], kind: str) -> str:
    """Returns the results as a file's content: `json` or `html`.

    Raises:
        ValueError: there are none.
    """
    if not results:
        raise ValueError("Nothing was analysed yet: press Analyse first.")
    if kind == "json":
        made = [found.to_json() for found in results]
        return made[0] if len(made) == 1 else f"[{','.join(made)}]"
    return render.analysis_page(results[0]) if len(results) == 1 else render.pair_page(results)
