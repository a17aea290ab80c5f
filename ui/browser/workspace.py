"""What the pages share: the dictionaries, what an address says, how refusals are shown, and who may use the model.

A page is a module with `NAME` (its `view=` in the address), `TITLE` and `build(work) -> Page`, which is called inside
the page's tab. An address is `?view=NAME&dict=DICTIONARY` and the page's own words, such as `feature=12`. Links are
made by `ui.render.html.address` with the attribute `data-go`; `ui/assets/browser.js` turns them, the tabs and the
history into one event for the page, whose `restore` answers with what its components are to show. A component whose
value belongs to the address is named to `Workspace.remember`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.browser.limits import Limits
from ui.render.html import escape
from ui.views.shelf import Shelf

Words = Mapping[str, str]
"""What an address says beside the page and the dictionary."""

MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Of events that run a language model: one at a time."""
EACH: dict[str, Any] = {"trigger_mode": "multiple"}
"""Of events over a bridge, which says one thing at a time by itself."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events that answer at once."""


@dataclass(frozen=True)
class Page:
    """A built page: the components that an address fills, and the function that fills them.

    `restore(dictionary, words)` returns a value for each of `outputs`; `then` is called with the event, for pages that
    go on (with a language model, say) after their components are filled, and `unload` when a person closes them.
    """

    outputs: Sequence[Any]
    restore: Callable[[str, Words], list[Any]]
    then: Callable[[Any], None] | None = None
    unload: Callable[[gr.Request], None] | None = None


class Workspace:
    """What every page is built with."""

    def __init__(self, shelf: Shelf, chosen: gr.Dropdown, limits: Limits) -> None:
        self.shelf = shelf
        self.chosen = chosen
        """Its value is the name of the dictionary that is open."""
        self.limits = limits
        """`limits.check(text)` before a model reads it, `limits.timed(stream)` around what it writes."""

    def remember(self, page: str, **components: Any) -> None:
        """Keeps the values that people give to components in the address, each under its name."""
        for key, component in components.items():
            note = f"(value) => window.glassbox.note({json.dumps(page)}, {json.dumps(key)}, value)"
            component.input(None, component, None, js=note, api_visibility="private")


def bridge(name: str) -> gr.HTML:
    """Returns a hidden component through which `glassbox.ask(name, data)` speaks to Python; see `heard`."""
    ready = f"window.glassbox.ready({json.dumps(name)}, (data) => trigger('click', data));"
    return gr.HTML("", elem_classes="bridge", js_on_load=ready)


def said(event: gr.EventData) -> dict[str, Any]:
    """Returns what came over a bridge."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}


def heard(event: Any, name: str) -> None:
    """Lets a bridge say the next thing, once the event of this one has ended, well or not."""
    for ending in (event.success, event.failure):
        ending(None, js=f"() => window.glassbox.heard({json.dumps(name)})", api_visibility="private")


def html(value: str = "", **options: Any) -> gr.HTML:
    """Returns a component for a fragment of `ui.views`."""
    return gr.HTML(value, apply_default_css=False, **options)


def whole(words: Words, key: str) -> int | None:
    """Returns the number ≥ 0 that the address gives for a key, or None."""
    given = words.get(key, "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 10 else None


def choice(words: Words, key: str, allowed: Sequence[str], default: str) -> str:
    """Returns what the address gives for a key where it is one of those allowed."""
    given = words.get(key, default)
    return given if given in allowed else default


@contextmanager
def refusals() -> Iterator[None]:
    """Shows what the library refuses; Gradio's toasts are HTML, and a refusal may quote anybody's words."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise refusal(str(error)) from error


def refusal(message: str) -> gr.Error:
    """Returns the error that shows a message as text."""
    return gr.Error(escape(message), print_exception=False)
