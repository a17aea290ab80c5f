"""What is active on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ui.render import feature as render

if TYPE_CHECKING:
    from features import Dictionary

ACTIVE_FEATURES = 12


def active(dictionary: Dictionary, text: str, name: str) -> str:
    """Returns the features that are active on a text, over all of it and token by token."""
    if not text:
        return '<div class="gb"><p class="muted">Type or paste a text.</p></div>'
    found = dictionary.active_on(text, top=ACTIVE_FEATURES)
    shown = {feature for row in found.per_token for feature, _ in row[: render.PER_TOKEN]}
    explanations = dictionary.explanations_of(shown)
    return render.active_features(found, explanations, dictionary.max_activations.tolist(), render.linker(name))
