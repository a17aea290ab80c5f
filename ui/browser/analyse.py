"""The page of the classic analyses: why the model said that, method by method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ui.browser.workspace import MODEL_QUEUE, Page, Words, Workspace, html, refusal, refusals
from ui.views import analyse as view

NAME, TITLE = "analyse", "Analyse"
EXAMPLE = "for number in range("


def build(work: Workspace) -> Page:
    """Builds the page; its words are `text`, `compare`, `target`, `contrast` and `methods`, names with commas."""
    with gr.Row():
        text = gr.Textbox(EXAMPLE, label="Text", lines=3, max_lines=8, elem_id="analyse-text", scale=1, min_width=280)
        compare = gr.Textbox(
            label="Compare with (optional)",
            info="A text of as many tokens: what differs is patched from one into the other.",
            lines=2,
            max_lines=8,
            elem_id="analyse-compare",
            scale=1,
            min_width=280,
        )
    with gr.Row():
        target = gr.Textbox(
            label="Token to explain",
            placeholder="the model's own choice",
            elem_id="analyse-target",
            scale=1,
            min_width=200,
        )
        contrast = gr.Textbox(
            label="Rather than", placeholder="no other token", elem_id="analyse-contrast", scale=1, min_width=200
        )
    methods = gr.CheckboxGroup(
        list(view.METHODS.items()), value=list(view.DEFAULT), label="Methods", elem_id="analyse-methods"
    )
    with gr.Row():
        run = gr.Button("Analyse", variant="primary", elem_id="analyse-run")
        stop = gr.Button("Stop", elem_id="analyse-stop")
    shown = html("", elem_id="analyse-result")

    def analyse(name: str, text: str, compare: str, target: str, contrast: str, methods: list[str]) -> Iterator[str]:
        if not methods and not compare:
            raise refusal("No method is chosen: choose at least one.")
        with refusals():
            work.limits.check(text, compare)
            steps = view.analyses(work.shelf.get(name), name, text, compare, target, contrast, methods)
            yield from work.limits.timed(steps)

    def restore(_name: str, words: Words) -> list[Any]:
        known = set(view.METHODS.values())
        given = [method for method in words.get("methods", "").split(",") if method in known]
        return [
            words.get("text", EXAMPLE),
            words.get("compare", ""),
            words.get("target", ""),
            words.get("contrast", ""),
            given or list(view.DEFAULT),
        ]

    inputs = [text, compare, target, contrast, methods]
    running = run.click(
        analyse, [work.chosen, *inputs], shown, show_progress="minimal", api_visibility="private", **MODEL_QUEUE
    )
    stop.click(None, cancels=[running], api_visibility="private")
    work.remember(NAME, text=text, compare=compare, target=target, contrast=contrast)
    methods.input(
        None,
        methods,
        None,
        js=f"(names) => window.glassbox.note('{NAME}', 'methods', names.join(','))",
        api_visibility="private",
    )
    return Page(inputs, restore)
