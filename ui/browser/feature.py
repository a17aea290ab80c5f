"""The page of one feature: what is known, what people say, and what it does on a text as one types it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.browser.workspace import MODEL_QUEUE, QUIET, Page, Words, Workspace, html, refusal, refusals, whole
from ui.views import feature as view

NAME, TITLE = "feature", "Feature"
REMEMBERED = "glassbox-author"


def build(work: Workspace) -> Page:
    """Builds the page; its words are `feature`, the number, and those of `view.feature_parts`."""
    current = gr.State(None)
    with gr.Column(elem_id="feature-page", elem_classes="feature-page"):
        heading = html(padding=False)
        with gr.Row(visible=False, elem_classes="feature-columns") as body:
            with gr.Column(scale=1, min_width=300, elem_classes="feature-left"):
                told = html(padding=False)
                with gr.Accordion("Name this feature yourself", open=False, elem_id="label-editor"):
                    text = gr.Textbox(label="Label", placeholder="what it stands for", lines=1)
                    author = gr.Textbox(label="By", placeholder="your name", lines=1, elem_id="author")
                    with gr.Row():
                        save = gr.Button("Save", size="sm", variant="primary", min_width=80)
                        remove = gr.Button("Remove my labels", size="sm", min_width=120)
                with gr.Accordion("Put it on a list", open=False, elem_id="list-editor"):
                    to = gr.Dropdown(
                        [], value=None, label="List", allow_custom_value=True, interactive=True, elem_id="to-list"
                    )
                    note = gr.Textbox(label="Note", placeholder="why (optional)", lines=1)
                    put = gr.Button("Add to the list", size="sm")
                said = html(elem_classes="said on-demand", padding=False)
                known = html(padding=False)
                effects = gr.Button("Effects on all logits", size="sm", elem_id="logit-effects")
                all_logits = html(elem_id="all-logits", padding=False, elem_classes="on-demand")
            with gr.Column(scale=2, min_width=300):
                attempt = gr.Textbox(
                    label="Try a text",
                    placeholder="Type, and see where this feature fires",
                    lines=2,
                    max_lines=8,
                    elem_id="try-text",
                )
                result = html(elem_id="try-result", padding=False, elem_classes="on-demand")
                examples = html(elem_id="examples", padding=False)

    def restore(name: str, words: Words) -> list[Any]:
        number = whole(words, "feature")
        found = view.feature_parts(work.shelf.get(name), number, name, words)
        return [number, gr.Row(visible=bool(found.told)), *found, words.get("try", ""), "", "", "", lists(name)]

    def again(name: str, feature: int) -> str:
        dictionary = work.shelf.get(name)
        return view.told_of(dictionary, dictionary.feature(feature, 0, 0))

    def write(name: str, feature: int | None, text: str, author: str) -> list[Any]:
        feature = _open(feature)
        if not text.strip():
            raise refusal("Write a label first.")
        with refusals():
            work.shelf.get(name).add_label(feature, text.strip(), author.strip() or "anonymous")
        return [again(name, feature), "", _said("Saved.")]

    def unwrite(name: str, feature: int | None, author: str) -> list[Any]:
        feature = _open(feature)
        with refusals():
            gone = work.shelf.get(name).remove_labels(feature, author.strip() or "anonymous")
        # what was removed stands in the editor: saving brings the newest back
        return [again(name, feature), gone[-1].text, _said(f"Removed {len(gone)} of your labels.")]

    def add(name: str, feature: int | None, to: str | None, note: str, author: str) -> list[Any]:
        from features.lists import BOOKMARKS

        feature, named = _open(feature), (to or "").strip() or BOOKMARKS
        with refusals():
            new = work.shelf.get(name).add_to_list(
                named, [feature], author.strip() or "anonymous", note.strip() or None
            )
        message = "Added." if new or note.strip() else "It is on this list already."
        return [again(name, feature), "", _said(message), lists(name, named)]

    def lists(name: str, value: str | None = None) -> Any:
        return gr.Dropdown(choices=[known.name for known in work.shelf.get(name).lists.all()], value=value)

    def live(name: str, feature: int | None, text: str) -> str:
        if feature is None or not text.strip():
            return ""
        with refusals():
            work.limits.check(text)
            return view.tried(work.shelf.get(name), feature, text)

    def logits(name: str, feature: int | None) -> str:
        with refusals():
            return view.logit_effects(work.shelf.get(name), _open(feature))

    chosen = work.chosen
    gr.on([save.click, text.submit], write, [chosen, current, text, author], [told, text, said], **QUIET)
    remove.click(unwrite, [chosen, current, author], [told, text, said], **QUIET)
    put.click(add, [chosen, current, to, note, author], [told, note, said, to], **QUIET)
    trying: dict[str, Any] = QUIET | MODEL_QUEUE | {"trigger_mode": "always_last"}
    attempt.input(live, [chosen, current, attempt], result, **trying)
    effects.click(
        logits, [chosen, current], all_logits, show_progress="minimal", api_visibility="private", **MODEL_QUEUE
    )
    remembers = f"(name) => {{ try {{ localStorage.setItem('{REMEMBERED}', name); }} catch {{}} }}"
    author.input(None, author, None, js=remembers, api_visibility="private")
    recalled = f"() => {{ try {{ return localStorage.getItem('{REMEMBERED}') || ''; }} catch {{ return ''; }} }}"
    gr.on([text.focus, to.focus], None, None, author, js=recalled, api_visibility="private")
    work.remember(NAME, **{"try": attempt})
    return Page(
        [current, body, heading, told, known, examples, attempt, result, all_logits, said, to],
        restore,
        then=lambda event: event.then(live, [chosen, current, attempt], result, **trying),
    )


def _open(feature: int | None) -> int:
    if feature is None:
        raise refusal("Open a feature first.")
    return feature


def _said(message: str) -> str:
    return f'<div class="gb"><p class="small good" role="status">{message}</p></div>'
