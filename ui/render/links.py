"""Links to features, and how often one fires in words."""

from __future__ import annotations

from collections.abc import Callable

from ui.render import html

Link = Callable[[int, str], str]
"""Makes a link to a feature from its number and the text to show (HTML already)."""


def plain(_feature: int, shown: str) -> str:
    """Shows a feature's number without a link: the `Link` of reports."""
    return f"<b>{shown}</b>"


def linker(dictionary: str) -> Link:
    """Returns the `Link` of the browser for the dictionary of that name."""

    def link(feature: int, shown: str) -> str:
        return html.link(shown, "feature", dictionary, f' data-feature="{feature}"', feature=feature)

    return link


def frequency(density: float) -> str:
    """Says a density in words: `1 in 230 tokens`."""
    if density > 0.5:
        return f"{density:.0%} of tokens"
    return f"1 in {round(1 / density):,} tokens" if density > 0 else "never"
