"""HTML of a feature's examples, by stratum, with what a person can do with each.

Enters: examples. Leaves: cards. In the browser each example links to its source and to steering, and has a button that
copies it (`ui/assets/feature.js`); elsewhere (`tools=None`) there are none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ui.render import html
from ui.render.html import escape, highlighted

if TYPE_CHECKING:
    from features import Feature

PROMPT_TOKENS = 40
PROMPT_CHARACTERS = 300


@dataclass(frozen=True)
class Tools:
    """What the browser offers beside examples."""

    dictionary: str
    """The name it is open under."""
    switch: str
    """HTML of the choice of context."""
    spaces: bool = False
    """Mark spaces."""


def examples(feature: Feature, tools: Tools | None = None) -> str:
    """Returns all examples of a live feature, strongest first."""
    strata: dict[int, list[Any]] = {}
    for entry in feature.examples:
        strata.setdefault(entry.stratum, []).append(entry)
    sections = []
    for stratum, found in sorted(strata.items()):
        shown = "".join(example(entry, feature.max_activation, tools) for entry in found)
        sections.append(f'<section class="card"><h3>{_title(stratum, found, len(strata))}</h3>{shown}</section>')
    lines = f'<label class="switch"><input type="checkbox" id="lines-{feature.id}" data-lines> break lines</label>'
    more = "" if tools is None else tools.switch
    readout = '<p class="readout muted small" data-readout aria-live="polite"></p>' if tools else ""
    return (
        f'<div class="head examples-head"><h3>Examples</h3><div class="nav">{more}{lines}</div></div>'
        f"{readout}{''.join(sections)}"
    )


def example(entry: Any, scale: float, tools: Tools | None = None) -> str:
    """Returns one example."""
    text = highlighted(
        entry.tokens, entry.activations, scale, peak=entry.center, spaces=tools is not None and tools.spaces
    )
    place = f"{escape(entry.document_name)} · token {entry.position:,}"
    more = ""
    if tools is not None:
        place = html.link(
            place,
            "text",
            tools.dictionary,
            " data-source",
            document=entry.document,
            position=entry.position,
            feature=entry.feature,
        )
        prompt = "".join(entry.tokens[max(entry.center + 1 - PROMPT_TOKENS, 0) : entry.center + 1])[-PROMPT_CHARACTERS:]
        steer = html.link("steer from here", "steer", tools.dictionary, "", features=entry.feature, prompt=prompt)
        more = f'<button type="button" class="small-button" data-copy>copy</button>{steer}'
    source = f"<span>{place}</span>"
    return (
        f'<div class="example"><div class="source">{source}<span class="tools">{more}'
        f"<b>{entry.activation:.3g}</b></span></div>{text}</div>"
    )


def _title(stratum: int, found: Sequence[Any], strata: int) -> str:
    if stratum == 0:
        return "Strongest"
    low = min(entry.activation for entry in found)
    high = max(entry.activation for entry in found)
    where = "weakest" if stratum == strata - 1 else ("strong" if stratum == 1 else "weaker")
    return f"Sample of {where} activations · {low:.3g} to {high:.3g}"
