"""Why the model said that: the classic analyses of one text, as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ui.render import analysis as render
from ui.render.html import escape, visible
from ui.render.links import linker

if TYPE_CHECKING:
    from activations.analyses import Analysis
    from features import Dictionary

FEATURES = "features"
"""Beside the methods: the dictionary's features by their effect on the target."""
METHODS = {
    "Attribution: five methods": "attributions",
    "Do they agree?": "agreement",
    "Logit lens": "lens",
    "Direct effect of heads and MLPs": "direct",
    "Attention patterns": "attention",
    "Rollout and flow": "routes",
    "Ablation": "ablation",
    "Lengths of activations": "norms",
    "What heads do in general": "roles",
    "Features of the dictionary": FEATURES,
}
DEFAULT = ("attributions", "lens", "direct", "ablation", FEATURES)
COMPARED = ("patching", "compared_attention")
"""Run beside the chosen ones where a second text is given."""


def analyses(
    dictionary: Dictionary,
    name: str,
    text: str,
    compare: str,
    target: str,
    contrast: str,
    methods: Sequence[str],
) -> Iterator[str]:
    """Yields the page after each method.

    Raises:
        ValueError: what `activations.analyses.analyze` refuses, or no method.
    """
    from activations.analyses.running import analyze_stepwise, chosen_methods

    chosen = [method for method in methods if method != FEATURES]
    chosen += COMPARED if compare else ()
    features = ""
    if FEATURES in methods:
        found = dictionary.active_on(text, by="attribution", target=target or None)
        features = render.features_section(found, linker(name))
    if not chosen and features:
        yield _page(features, "")
        return
    steps = analyze_stepwise(
        dictionary.lm, text, chosen, compare=compare or None, target=target or None, contrast=contrast or None
    )
    last = chosen_methods(chosen, compare or None)[-1]
    for done in steps:
        told = _told(done, running=done.ended != last)
        yield _page(_head(done) + "".join(render.sections(done)) + features, told)


def _page(body: str, told: str) -> str:
    return f'<div class="gb"><div class="stack analysis">{told}{body}</div></div>'


def _told(done: Analysis, running: bool) -> str:
    seconds = sum(done.time_s.values())
    ended = ", ".join(done.results)
    state = f"{escape(ended)} done, more to come" if running else f"done in {seconds:.1f} s"
    return f'<p class="muted small" data-running="{str(running).lower()}">{state}</p>'


def _head(done: Analysis) -> str:
    tokens = "".join(visible(token) for token in done.tokens)
    other = (
        f'<p class="muted small">compared with</p><div class="text">{visible(done.compare)}</div>'
        if done.compare
        else ""
    )
    return (
        f'<section class="card"><p>Explained: <b>{escape(done.target)}</b></p>'
        f'<div class="text">{tokens}</div>{other}</section>'
    )
