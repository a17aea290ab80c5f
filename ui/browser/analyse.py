"""The page of the classic analyses: why the model said that, method by method, for one text or two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ui.browser.workspace import MODEL_QUEUE, QUIET, Page, Words, Workspace, html, refusal, refusals, whole
from ui.views import analyse as view

NAME, TITLE = "analyse", "Analyse"
EXAMPLE = "for number in range("
ALONE, SECOND, MODEL = "Nothing", "The second text", "The model of "
"""What a text is analysed beside."""


def build(work: Workspace) -> Page:
    """Builds the page; its words are `text`, `compare`, `target`, `contrast`, `position`, `beside` and `methods`, names
    with commas."""
    shelf, known = work.shelf, view.methods(work.shelf.has_features)
    usual = [name for name in view.DEFAULT if name in known.values()]
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
        target = _box("Token to explain", "the model's own choice", "analyse-target")
        contrast = _box("Rather than", "no other token", "analyse-contrast")
        position = _box("Said behind token", "the last one; or click a token below", "analyse-position")
        others = [f"{MODEL}{name}" for name in shelf.names]
        beside = gr.Dropdown(
            [ALONE, SECOND, *others], value=ALONE, label="Beside it", elem_id="analyse-beside", min_width=160
        )
    methods = gr.CheckboxGroup(list(known.items()), value=usual, label="Methods", elem_id="analyse-methods")
    with gr.Accordion("Settings of the methods", open=False, elem_id="analyse-settings"), gr.Row():
        values = [_setting(method, key, each) for (method, key), each in view.settings().items()]
    with gr.Row():
        run = gr.Button("Analyse", variant="primary", elem_id="analyse-run")
        stop = gr.Button("Stop", elem_id="analyse-stop")
        files = {
            kind: gr.Button(f"Save {kind.upper()}", elem_id=f"analyse-{kind}", scale=0, min_width=120)
            for kind in ("json", "html")
        }
    content = gr.Textbox(visible="hidden", elem_id="analyse-content")  # pyright: ignore[reportArgumentType]
    with gr.Row(visible=False, elem_id="analyse-head-choice") as choosing:
        layer = gr.Slider(0, 1, value=0, step=1, label="Layer", elem_id="analyse-layer")
        number = gr.Slider(0, 1, value=0, step=1, label="Head", elem_id="analyse-head")
    pattern = html("", elem_id="analyse-pattern")
    shown = html("", elem_id="analyse-result")
    kept = gr.State([])

    def analyse(
        name: str,
        text: str,
        compare: str,
        target: str,
        contrast: str,
        position: str,
        beside: str,
        methods: list[str],
        *own: Any,
    ) -> Iterator[Any]:
        if not methods and not compare:
            raise refusal("No method is chosen: choose at least one.")
        with refusals():
            work.limits.check(text, compare)
            sides = [view.Side(shelf.get(name), name, text, compare)]
            if beside == SECOND:
                if not compare:
                    raise ValueError("Beside it stands the second text, and none is given: write one.")
                sides = [view.Side(shelf.get(name), name, each) for each in (text, compare)]
            elif beside.startswith(MODEL):
                other = beside.removeprefix(MODEL)
                sides.append(view.Side(shelf.get(other), other, text, compare))
            steps = view.analyses(sides, target, contrast, methods, _place(position), view.chosen_settings(own))
            yield from work.limits.timed(steps)

    def restore(_name: str, words: Words) -> list[Any]:
        given = [method for method in words.get("methods", "").split(",") if method in set(known.values())]
        place = whole(words, "position")
        return [
            words.get("text", EXAMPLE),
            words.get("compare", ""),
            words.get("target", ""),
            words.get("contrast", ""),
            "" if place is None else str(place),
            words.get("beside", "") if words.get("beside", "") in (SECOND, *others) else ALONE,
            given or usual,
        ]

    def heads(found: list[Any]) -> list[Any]:
        layers, count = view.heads(found)
        if not layers:
            return [gr.Row(visible=False), gr.skip(), gr.skip(), ""]
        sliders = [gr.Slider(0, max(1, top - 1), value=0, step=1) for top in (layers, count)]
        return [gr.Row(visible=True), *sliders, view.head(found, 0, 0)]

    def head(found: list[Any], layer: int, number: int) -> str:
        layers, count = view.heads(found)
        return view.head(found, min(int(layer), layers - 1), min(int(number), count - 1)) if layers else ""

    def written(kind: str) -> Any:
        def write(found: list[Any]) -> str:
            with refusals():
                return view.download(found, kind)

        return write

    inputs = [text, compare, target, contrast, position, beside, methods]
    running = run.click(
        analyse,
        [work.chosen, *inputs, *values],
        [shown, kept],
        show_progress="minimal",
        api_visibility="private",
        **MODEL_QUEUE,
    )
    running.then(heads, [kept], [choosing, layer, number, pattern], **QUIET)
    stop.click(None, cancels=[running], api_visibility="private")
    for slider in (layer, number):
        slider.input(head, [kept, layer, number], pattern, trigger_mode="always_last", **QUIET)
    for kind, button in files.items():
        made = button.click(written(kind), [kept], [content], **QUIET)
        made.success(
            None,
            [content],
            [content],
            js=f"(content) => window.glassboxAnalyse.hand('{kind}', content)",
            api_visibility="private",
        )
    work.remember(NAME, text=text, compare=compare, target=target, contrast=contrast, position=position, beside=beside)
    methods.input(
        None,
        methods,
        None,
        js=f"(names) => window.glassbox.note('{NAME}', 'methods', names.join(','))",
        api_visibility="private",
    )
    return Page(inputs, restore)


def _box(label: str, placeholder: str, name: str) -> gr.Textbox:
    return gr.Textbox(label=label, placeholder=placeholder, elem_id=name, scale=1, min_width=160)


def _setting(method: str, key: str, setting: Any) -> Any:
    """Returns the component for one setting of a method."""
    common: dict[str, Any] = {"label": f"{method}.{key}", "info": setting.about, "min_width": 220}
    if setting.choices:
        return gr.Dropdown(list(setting.choices), value=setting.default, allow_custom_value=True, **common)
    if isinstance(setting.default, str):
        return gr.Textbox(setting.default, **common)
    return gr.Number(
        setting.default,
        minimum=setting.least,
        maximum=setting.most,
        precision=0 if isinstance(setting.default, int) else None,
        **common,
    )


def _place(words: str) -> int | None:
    if not words.strip():
        return None
    try:
        return int(words)
    except ValueError as error:
        raise ValueError(
            f"position {words!r} is no whole number, expected one: click a token, or leave it out"
        ) from error
