"""What is active on a text or a document: features over tokens, one token's features and lens, two readings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from ui.browser.workspace import (
    EACH,
    MODEL_QUEUE,
    QUIET,
    Page,
    Words,
    Workspace,
    bridge,
    choice,
    heard,
    html,
    refusal,
    refusals,
    said,
    whole,
)
from ui.views import text as view

NAME, TITLE = "text", "Text"
TOKEN = "text-token"
ALONE, SECOND, OTHER = "Nothing", "Another text", "Another dictionary"
READING: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"} | MODEL_QUEUE
AGAIN: dict[str, Any] = {"trigger_mode": "always_last"}
"""Of events that may be asked for again before they are answered: else the second asking is lost."""
# a pasted text takes the place of a document, and what was chosen in another text means nothing in this one
ASKED = "(...given) => { window.glassboxText.asked(given[1]); return given; }"


def build(work: Workspace) -> Page:
    """Builds the page; its words are `text`, or `document` and `at`, `by`, `target`, `top`, `second` (a text) or
    `other` (a dictionary), and what is chosen: `feature`, `token`."""
    shelf = work.shelf
    readings = view.Readings(shelf, work.limits.check)
    asked, stands = gr.State(None), gr.State((None, None))
    with gr.Row(equal_height=False):
        text = gr.Textbox(
            label="Text",
            lines=5,
            max_lines=12,
            placeholder="Paste a text",
            elem_id="active-text",
            scale=3,
            min_width=280,
        )
        with gr.Column(scale=2, min_width=260):
            find = gr.Textbox(
                label="Or a document of the dictionary",
                placeholder="part of its name, or its number",
                lines=1,
                elem_id="text-find",
            )
            hits = html("", elem_id="text-hits")
    with gr.Row(elem_classes="foot"):
        by = gr.Dropdown(
            list(view.MEASURES.items()), value="activation", label="Rank by", elem_id="text-by", scale=2, min_width=180
        )
        target = gr.Textbox(
            label="Target token",
            placeholder="the expected one",
            lines=1,
            visible=False,
            elem_id="text-target",
            scale=1,
            min_width=140,
        )
        top = gr.Dropdown(
            [str(n) for n in view.SHOWN_FEATURES],
            value="16",
            label="Features",
            elem_id="text-top",
            scale=1,
            min_width=90,
        )
        beside = gr.Dropdown(
            [ALONE, SECOND, *([OTHER] if len(shelf.names) > 1 else [])],
            value=ALONE,
            label="Beside it",
            elem_id="text-beside",
            scale=2,
            min_width=160,
        )
        other = gr.Dropdown(
            shelf.names,
            value=shelf.names[-1],
            label="Which",
            visible=False,
            elem_id="text-other",
            scale=2,
            min_width=160,
        )
        run = gr.Button("Show features", variant="primary", elem_id="active-run", scale=1, min_width=190)
    second = gr.Textbox(label="Second text", lines=4, max_lines=12, visible=False, elem_id="text-second")
    with gr.Row(equal_height=False, elem_classes="reading-row"):
        with gr.Column(scale=3, min_width=300):
            result = html("", elem_id="active-result")
        with gr.Column(scale=1, min_width=270, elem_classes="reading-side"):
            panel = html("", elem_id="text-panel")
            lens = html("", elem_id="text-lens")
    with gr.Row(elem_classes="foot"):
        buttons = {
            kind: gr.Button(label, size="sm", scale=0, min_width=150, elem_id=f"text-{kind}")
            for kind, label in (("json", "Download JSON"), ("csv", "Download CSV"), ("copy", "Copy as table"))
        }
    content = gr.Textbox(visible="hidden", elem_id="text-content")  # pyright: ignore[reportArgumentType]
    pick = bridge(TOKEN)

    def controls(by: str, beside: str) -> list[Any]:
        shown = by in view.AIMED, beside == SECOND, beside == OTHER
        return [gr.Textbox(visible=shown[0]), gr.Textbox(visible=shown[1]), gr.Dropdown(visible=shown[2])]

    def ask(
        name: str, text: str, stands: tuple[int | None, int | None], by: str, target: str, top: str, beside: str,
        second: str, other: str,
    ) -> list[Any]:  # fmt: skip
        if text:
            stands = (None, None)
        if beside == SECOND and not second:
            raise refusal("The second text is empty: write it, or choose nothing beside the first.")
        if not text and stands[0] is None:
            raise refusal("The text is empty: paste one, or pick a document.")
        made = view.Ask(
            name, text, *stands, by, target if by in view.AIMED else "", int(top),
            second=second if beside == SECOND else "", other=other if beside == OTHER else "",
        )  # fmt: skip
        return [made, stands]

    def answer(ask: view.Ask | None) -> list[Any]:
        """Returns the reading with its token: what can be clicked stands beside what a click opens, from the first."""
        return [view.shown(readings, ask), view.token_panel(readings, ask), ""]

    def stored(ask: view.Ask | None) -> Any:
        return answer(ask) if ask is None or ask.is_empty or ask.is_stored else [gr.skip()] * 3

    def read(ask: view.Ask | None) -> Any:
        return [gr.skip()] * 3 if ask is None or ask.is_empty or ask.is_stored else answer(ask)

    def lens_of(ask: view.Ask | None) -> Any:
        return view.lens_panel(readings, ask) or gr.skip()

    def picked(ask: view.Ask | None, event: gr.EventData) -> list[Any]:
        token = said(event).get("token", "")
        if ask is None or not isinstance(token, str) or view.place(token) is None:
            return [gr.skip(), gr.skip(), gr.skip()]
        ask = replace(ask, token=token)
        return [ask, view.token_panel(readings, ask), ""]

    def goes_on(event: Any) -> None:
        shown = [result, panel, lens]
        done = event.success(stored, [asked], shown, **AGAIN, **QUIET).then(read, [asked], shown, **AGAIN, **READING)
        done.then(lens_of, [asked], [lens], **AGAIN, **READING)

    gr.on([by.change, beside.change], controls, [by, beside], [target, second, other], **QUIET)
    find.change(
        lambda name, words, by: view.documents(shelf.get(name), words, name, by) if words.strip() else "",
        [work.chosen, find, by], hits, trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    inputs = [work.chosen, text, stands, by, target, top, beside, second, other]
    goes_on(run.click(ask, inputs, [asked, stands], js=ASKED, **QUIET))
    tapped = pick.click(picked, [asked], [asked, panel, lens], **EACH, **QUIET)
    heard(tapped, TOKEN)
    tapped.then(lens_of, [asked], [lens], **AGAIN, **READING)

    def written(kind: str) -> Any:
        def write(ask: view.Ask | None) -> str:
            if ask is None or ask.is_empty:
                raise refusal("Nothing is shown yet.")
            with refusals():
                return view.download(readings, ask, kind)

        return write

    for kind, button in buttons.items():
        made = button.click(written("csv" if kind == "copy" else kind), [asked], [content], **READING)
        made.success(
            None, [content], [content], js=f"(content) => window.glassboxText.hand('{kind}', content)",
            api_visibility="private",
        )  # fmt: skip

    def restore(name: str, words: Words) -> list[Any]:
        rank = choice(words, "by", list(view.MEASURES.values()), "activation")
        shown = choice(words, "top", [str(n) for n in view.SHOWN_FEATURES], "16")
        again, elsewhere = words.get("second", ""), words.get("other", "")
        elsewhere = elsewhere if elsewhere in shelf.by_name and elsewhere != name else ""
        given = words.get("text", "")
        place = (None, None) if given else (whole(words, "document"), whole(words, "at"))
        how = SECOND if again else OTHER if elsewhere else ALONE
        made = view.Ask(
            name, given, *place, rank, words.get("target", "") if rank in view.AIMED else "", int(shown), again,
            elsewhere, whole(words, "feature"), words.get("token", ""),
        )  # fmt: skip
        others = [each for each in shelf.names if each != name]
        return [
            given, rank, gr.Textbox(words.get("target", ""), visible=rank in view.AIMED), shown, how,
            gr.Textbox(again, visible=how == SECOND),
            gr.Dropdown(others, value=elsewhere or (others[0] if others else None), visible=how == OTHER), place, made,
        ]  # fmt: skip

    work.remember(NAME, text=text, by=by, target=target, top=top, second=second, other=other)
    return Page([text, by, target, top, beside, second, other, stands, asked], restore, then=goes_on)
