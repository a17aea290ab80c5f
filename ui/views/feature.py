"""The page of one feature."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ui.render import feature as render
from ui.render import html

if TYPE_CHECKING:
    from features import Dictionary, Feature


def feature_page(dictionary: Dictionary, feature: int | None, name: str) -> str:
    """Returns the page of a feature, or says which numbers exist."""
    if feature is None:
        return '<div class="gb"><p class="muted">Choose a feature from the list, or search for one.</p></div>'
    if not 0 <= feature < dictionary.n_features:
        told = f"There is no feature {feature}: this dictionary has 0 to {dictionary.n_features - 1}."
        return f'<div class="gb"><p class="notice">{told}</p></div>'
    found = dictionary.feature(feature)
    return render.feature_page(
        found,
        dictionary.info["n_indexed_tokens"],
        render.linker(name),
        _heading(found, dictionary.n_features, name),
        dictionary.explanations_of([neighbour.feature for neighbour in found.neighbours]),
    )


def _heading(feature: Feature, n_features: int, name: str) -> str:
    link = render.linker(name)
    before, after = (feature.id - 1) % n_features, (feature.id + 1) % n_features
    steer = "" if feature.is_dead else html.link("Steer with it", "steer", name, " data-steer", features=feature.id)
    return (
        f'<div class="head"><h2>Feature {feature.id} <span class="muted small">of {n_features:,}</span></h2>'
        f'<nav class="nav">{link(before, "← Previous")}{link(after, "Next →")}{steer}</nav></div>'
    )
