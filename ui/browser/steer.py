"""Steered text beside the text as it would have been, streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from ui.browser.workspace import MODEL_QUEUE, Page, Words, Workspace, html, refusal, refusals
from ui.views import steer as view
from ui.views.shelf import Shelf, find

NAME, TITLE = "steer", "Steer"
SLOTS = 4
STRENGTH = 1  # of a feature just added, in maxima
STARTED = "(...given) => { document.body.classList.add('gb-writing'); return given; }"
STOPPED = "() => document.body.classList.remove('gb-writing')"
MODES = [("Add to it", "add"), ("Hold it at", "clamp"), ("Remove it", "ablate")]


def build(work: Workspace) -> Page:
    """Builds the page; its words are `features`, numbers with commas, and `prompt`."""
    shelf, chosen = work.shelf, work.chosen
    steered = gr.State([])
    with gr.Row(elem_classes="foot"):
        wanted = gr.Textbox(label="Feature", placeholder="number or words", scale=4, lines=1, elem_id="steer-find")
        add = gr.Button("Add", scale=0, elem_id="steer-add")
    rows, names, sliders, removers = [], [], [], []
    for number in range(SLOTS):
        with gr.Row(visible=False, elem_classes="middle") as row:
            names.append(html("", min_width=240))
            sliders.append(
                gr.Slider(
                    -10, 10, value=STRENGTH, step=0.25, label="Strength (maxima)", elem_id=f"strength-{number}", scale=2
                )
            )
            removers.append(gr.Button("Remove", size="sm", scale=0))
        rows.append(row)
    slots = [*rows, *names]
    with gr.Row():
        mode = gr.Radio(MODES, value="add", label="What to do with it", scale=2)
        tokens = gr.Slider(1, 200, value=60, step=1, label="Tokens", scale=1, elem_id="steer-tokens")
        temperature = gr.Slider(0, 1.5, value=0, step=0.05, label="Temperature", scale=1)
        seed = gr.Number(0, precision=0, label="Seed", scale=1)
    prompt = gr.Textbox("def ", label="Prompt", lines=3, elem_id="steer-prompt")
    with gr.Row():
        run = gr.Button("Write", variant="primary", elem_id="steer-run")
        stop = gr.Button("Stop", elem_id="steer-stop")
    with gr.Row():
        plain = html("", elem_id="steer-plain", min_width=280)
        changed = html("", elem_id="steer-changed", min_width=280)

    def include(name: str, ids: list[int], query: str) -> list[Any]:
        dictionary = shelf.get(name)
        if not query.strip():
            raise refusal("Type a feature's number, or words to find one by.")
        found = find(dictionary, query.strip(), 1)
        if not found:
            raise refusal(f"No feature found for {query.strip()}.")
        ids = _added(shelf, name, ids, found[0]["feature"])
        return ["", ids, *_drawn(shelf, name, ids)]

    def remove(position: int) -> Any:
        def without(name: str, ids: list[int], *strengths: float) -> list[Any]:
            ids = [feature for index, feature in enumerate(ids) if index != position]
            kept = [strength for index, strength in enumerate(strengths) if index != position]
            return [ids, *_drawn(shelf, name, ids), *kept, STRENGTH]

        return without

    def write(
        name: str, ids: list[int], mode: str, prompt: str, tokens: int, temperature: float, seed: int, *strengths: float
    ) -> Iterator[list[str]]:
        from features import Steering

        if not ids:
            raise refusal("Add a feature first.")
        dictionary = shelf.get(name)
        how = {
            "max_new_tokens": int(tokens),
            "do_sample": temperature > 0,
            "temperature": temperature or 1.0,
            "seed": int(seed or 0),
        }
        with refusals():
            amounts = strengths if mode != "ablate" else [1.0] * len(ids)  # there is nothing to turn up
            steering = Steering(dictionary, dict(zip(ids, amounts, strict=False)), mode=mode)  # pyright: ignore[reportArgumentType]
            for left, right, running in view.merged(
                dictionary.lm.stream(prompt, **how), steering.stream(prompt, **how)
            ):
                yield [
                    view.continuation(prompt, left, "Left alone", running),
                    view.continuation(prompt, right, "Steered", running),
                ]

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on([add.click, wanted.submit], include, [chosen, steered, wanted], [wanted, steered, *slots], **private)
    for position, button in enumerate(removers):
        button.click(remove(position), [chosen, steered, *sliders], [steered, *slots, *sliders], **private)
    inputs = [chosen, steered, mode, prompt, tokens, temperature, seed, *sliders]
    writing = run.click(write, inputs, [plain, changed], js=STARTED, **private, **MODEL_QUEUE)
    stop.click(None, cancels=[writing], js=STOPPED, api_visibility="private")

    def restore(name: str, words: Words) -> list[Any]:
        ids: list[int] = []
        for number in words.get("features", "").split(",")[:SLOTS]:
            if number.isascii() and number.isdigit():
                ids = _added(shelf, name, ids, int(number))
        return [ids, words.get("prompt", "def "), *_drawn(shelf, name, ids)]

    work.remember(NAME, prompt=prompt)
    return Page([steered, prompt, *slots], restore)


def _added(shelf: Shelf, name: str, ids: list[int], feature: int) -> list[int]:
    if not 0 <= feature < shelf.get(name).n_features:
        raise refusal(f"There is no feature {feature}.")
    if feature in ids:
        return ids
    if len(ids) == SLOTS:
        raise refusal(f"{SLOTS} features are steered already: remove one first.")
    return [*ids, feature]


def _drawn(shelf: Shelf, name: str, ids: Sequence[int]) -> list[Any]:
    """Returns the updates of the slots' rows and names for these features."""
    rows = [gr.Row(visible=index < len(ids)) for index in range(SLOTS)]
    names = [view.slot(shelf.get(name), feature, name) for feature in ids]
    return [*rows, *names, *[""] * (SLOTS - len(ids))]
