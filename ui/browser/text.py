"""What is active on a text."""

from __future__ import annotations

import gradio as gr

from ui.browser.workspace import MODEL_QUEUE, Page, Words, Workspace, html, refusals
from ui.views import text as view

NAME, TITLE = "text", "Text"


def build(work: Workspace) -> Page:
    """Builds the page; its word is `text`."""
    text = gr.Textbox(label="Text", lines=5, max_lines=14, placeholder="Paste a few lines", elem_id="active-text")
    run = gr.Button("Show active features", variant="primary", elem_id="active-run")
    found = html("", elem_id="active-result")

    def show(name: str, text: str) -> str:
        with refusals():
            return view.active(work.shelf.get(name), text, name)

    def restore(_name: str, words: Words) -> list[str]:
        return [words.get("text", "")]

    inputs = [work.chosen, text]
    run.click(show, inputs, found, show_progress="minimal", api_visibility="private", **MODEL_QUEUE)
    work.remember(NAME, text=text)
    return Page(
        [text],
        restore,
        then=lambda event: event.then(
            show, inputs, found, show_progress="minimal", api_visibility="private", **MODEL_QUEUE
        ),
    )
