"""The page of one feature, in the parts between which its controls stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from ui.render import feature as render
from ui.render import feature_examples, html
from ui.render import feature_parts as parts
from ui.render.html import escape
from ui.views import lists

if TYPE_CHECKING:
    from features import Dictionary, Feature

CONTEXTS = {"snippet": None, "wider": (48, 32), "window": (256, 256)}
"""Tokens before and after an example's strongest one; the dictionary's own where None."""
CONTEXT_TITLES = {"snippet": "Snippet", "wider": "Wider", "window": "Whole window"}
LONGEST_TRIED = 300
"""Characters of a tried text that links to other features carry on."""


class FeatureParts(NamedTuple):
    """The page's fragments; all but the heading are empty where there is no such feature."""

    heading: str
    told: str
    """Explanations."""
    known: str
    """Numbers, tokens, logits, relations."""
    examples: str


def feature_parts(
    dictionary: Dictionary, feature: int | None, name: str, words: Mapping[str, str] | None = None
) -> FeatureParts:
    """Returns the page of a feature, or says which numbers exist.

    `words` are those of the address that also go on to other features: `context`, `spaces` and `try`.
    """
    words = words or {}
    if feature is None:
        return FeatureParts(
            '<div class="gb"><p class="muted">Choose a feature from the list, or search for one.</p></div>', "", "", ""
        )
    if not 0 <= feature < dictionary.n_features:
        told = f"There is no feature {feature}: this dictionary has 0 to {dictionary.n_features - 1}."
        return FeatureParts(f'<div class="gb"><p class="notice">{told}</p></div>', "", "", "")
    context = words.get("context", "")
    context = context if context in CONTEXTS else "snippet"
    width = CONTEXTS[context]
    found = dictionary.feature(feature) if width is None else dictionary.feature(feature, *width)
    near = [entry.feature for entry in (*found.neighbours, *found.encoder_neighbours, *found.coactivations)]
    known = [
        parts.facts(found),
        parts.histogram(found),
        parts.tokens(found),
        parts.logits(found),
        parts.relations(found, render.linker(name), dictionary.explanations_of(dict.fromkeys(near))),
        parts.positions(found),
    ]
    kept = {"context": context} if context != "snippet" else {}
    kept |= {"spaces": "1"} if words.get("spaces") == "1" else {}
    kept |= {"try": words["try"]} if 0 < len(words.get("try", "")) <= LONGEST_TRIED else {}
    shown = parts.notices(found, int(dictionary.info["n_indexed_tokens"]))
    if not found.is_dead:
        tools = feature_examples.Tools(name, _switch(feature, name, context, kept), "spaces" in kept)
        shown += feature_examples.examples(found, tools)
    return FeatureParts(
        _block(_heading(dictionary, found, name, kept)),
        told_of(dictionary, found),
        _block("".join(known)),
        _block(shown),
    )


def told_of(dictionary: Dictionary, feature: Feature) -> str:
    """Returns the card of explanations with their scores, and the lists that the feature is on."""
    on = dictionary.store.people_of(feature.id, ("lists",))["lists"]
    lists = {row["list"]: row["note"] for row in on}
    marks = "".join(
        f'<span class="tag" title="{escape(note or "")}">{html.link(escape(listed), "lists", list=listed)}</span>'
        for listed, note in lists.items()
    )
    shelf = f'<p class="small on-lists"><span class="muted">On</span> {marks}</p>' if lists else ""
    return _block(parts.explanations(feature, dictionary.scores_of(feature.id)) + shelf)


def feature_page(dictionary: Dictionary, feature: int | None, name: str) -> str:
    """Returns the fragments of the page one after the other."""
    return "".join(feature_parts(dictionary, feature, name))


def tried(dictionary: Dictionary, feature: int, text: str) -> str:
    """Returns a text with the feature's activation on each of its tokens. Runs the model."""
    found = dictionary.active_on(text, top=0)
    values = found.activations(feature)
    maximum = float(dictionary.max_activations[feature])
    strongest = max(range(len(values)), key=lambda index: abs(values[index]))
    if not values[strongest]:
        said = f"silent on these {len(values):,} tokens"
        peak = None
    else:
        share = f", {abs(values[strongest]) / maximum:.0%} of its maximum" if maximum else ""
        said = f"strongest {values[strongest]:.3g}{share}"
        peak = strongest
    text = html.highlighted(found.tokens, values, maximum or abs(values[strongest]), peak=peak)
    return _block(f'<div class="card tried">{text}<p class="muted small">{said}</p></div>')


def logit_effects(dictionary: Dictionary, feature: int) -> str:
    """Returns the histogram of the feature's effects on all logits. Loads the model."""
    return parts.logit_histogram(dictionary.logit_histogram(feature))


def _block(body: str) -> str:
    return f'<div class="gb"><div class="stack">{body}</div></div>'


def _switch(feature: int, name: str, context: str, kept: dict[str, str]) -> str:
    rest = {key: kept[key] for key in kept if key != "context"}
    choices = []
    for key, title in CONTEXT_TITLES.items():
        mark = ' aria-current="true"' if key == context else ""
        words = rest if key == "snippet" else rest | {"context": key}
        choices.append(html.link(title, "feature", name, f" data-context{mark}", feature=feature, **words))
    other = {key: kept[key] for key in kept if key != "spaces"} if "spaces" in kept else kept | {"spaces": "1"}
    mark = ' aria-current="true"' if "spaces" in kept else ""
    spaces = html.link("Show spaces", "feature", name, f" data-spaces{mark}", feature=feature, **other)
    return (
        f'<span class="choices" role="group" aria-label="Text around examples">{"".join(choices)}</span>'
        f'<span class="choices">{spaces}</span>'
    )


def _heading(dictionary: Dictionary, feature: Feature, name: str, kept: dict[str, str]) -> str:
    def go(to: int, shown: str, attribute: str) -> str:
        return html.link(shown, "feature", name, f' data-feature="{to}" data-{attribute}', feature=to, **kept)

    before, after = dictionary.listing.beside(feature.id)
    steer = "" if feature.is_dead else html.link("Steer with it", "steer", name, " data-steer", add=feature.id)
    star = lists.star(dictionary, feature.id, name)
    state = ' <span class="state">dead</span>' if feature.is_dead else ""
    state = ' <span class="state">very dense</span>' if feature.density >= parts.DENSE else state
    return (
        f'<div class="head"><h2>Feature {feature.id} <span class="muted small">of {dictionary.n_features:,}</span>'
        f'{state}{star}</h2><nav class="nav" aria-label="Features">{go(before, "← Previous", "previous")}'
        f"{go(after, 'Next →', 'next')}{steer}</nav></div>"
    )
