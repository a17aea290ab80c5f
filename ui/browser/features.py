"""The list of features: searched as one types, filtered, in pages."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.browser.workspace import QUIET, Page, Words, Workspace, choice, html, whole
from ui.views import features as view

NAME, TITLE = "features", "Features"
FIRST_ORDER = next(iter(view.ORDERS))


def build(work: Workspace) -> Page:
    """Builds the page; its words are `q`, `order`, `show` and `at`, the number of the list's page from 0."""
    at = gr.State(0)
    with gr.Row(equal_height=True):
        query = gr.Textbox(
            label="Search",
            placeholder="a token, part of one, words of an explanation, or a number",
            scale=4,
            lines=1,
            min_width=300,
            elem_id="search",
        )
        order = gr.Dropdown(list(view.ORDERS), value=FIRST_ORDER, label="Order", scale=2)
        shown = gr.Dropdown(list(view.SHOWN), value=view.SHOWN[0], label="Show", scale=1, min_width=120)
    table = html("", elem_id="feature-list")
    with gr.Row(equal_height=True):
        previous = gr.Button("← Previous page", size="sm", scale=0, min_width=140)
        where = html("")
        following = gr.Button("Next page →", size="sm", scale=0, min_width=140)

    def listed(name: str, query: str, order: str, shown: str, page: int) -> list[Any]:
        body, page, pages = view.feature_list(work.shelf.get(name), query, order, shown, page, name)
        line = f'<div class="gb"><p class="muted small where">page {page + 1} of {pages}</p></div>'
        return [body, line, page]

    def restore(name: str, words: Words) -> list[Any]:
        query = words.get("q", "")
        order = choice(words, "order", list(view.ORDERS), FIRST_ORDER)
        shown = choice(words, "show", view.SHOWN, view.SHOWN[0])
        return [query, order, shown, *listed(name, query, order, shown, whole(words, "at") or 0)]

    inputs, outputs = [work.chosen, query, order, shown, at], [table, where, at]
    last: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
    gr.on([query.input, order.input, shown.input], lambda *given: listed(*given[:4], 0), inputs, outputs, **last)
    for button, step in ((previous, -1), (following, 1)):
        turned = button.click(lambda *given, step=step: listed(*given[:4], given[4] + step), inputs, outputs, **last)
        turned.then(
            None, at, None, js=f"(page) => window.glassbox.note('{NAME}', 'at', page || null)", api_visibility="private"
        )
    work.remember(NAME, q=query, order=order, show=shown)
    return Page([query, order, shown, *outputs], restore)
