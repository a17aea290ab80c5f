"""The page of one feature, and the editor of its label."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.browser.workspace import Page, Words, Workspace, html, refusal, refusals, whole
from ui.views import feature as view

NAME, TITLE = "feature", "Feature"


def build(work: Workspace) -> Page:
    """Builds the page; its word is `feature`, the number."""
    current = gr.State(None)
    shown = html("", elem_id="feature-page")
    with gr.Accordion("Name this feature yourself", open=False), gr.Row(elem_classes="foot"):
        text = gr.Textbox(label="Label", placeholder="what it stands for", scale=4, lines=1)
        author = gr.Textbox(label="By", placeholder="your name", scale=1, lines=1)
        save = gr.Button("Save", scale=0)

    def restore(name: str, words: Words) -> list[Any]:
        number = whole(words, "feature")
        return [number, view.feature_page(work.shelf.get(name), number, name)]

    def write(name: str, feature: int | None, text: str, author: str) -> list[Any]:
        if feature is None:
            raise refusal("Open a feature first.")
        if not text.strip():
            raise refusal("Write a label first.")
        with refusals():
            work.shelf.get(name).add_label(feature, text.strip(), author.strip() or "anonymous")
        return [view.feature_page(work.shelf.get(name), feature, name), ""]

    gr.on(
        [save.click, text.submit],
        write,
        [work.chosen, current, text, author],
        [shown, text],
        api_visibility="private",
    )
    return Page([current, shown], restore)
