"""Steering: features to choose, how strong and where, and the texts that come of it."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from ui.browser import steer_ways
from ui.browser.steer_settings import (
    MODES,
    SLOTS,
    STRENGTH,
    WIDEST_STRENGTH,
    Settings,
    check_feature,
    slider_reach,
    spec_of,
    strengths_in,
    values_in,
    values_of,
    where_settings,
    writing_settings,
)
from ui.browser.workspace import (
    EACH,
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
)
from ui.views import steer as view

NAME, TITLE = "steer", "Steer"
PICKED = "steer-picked"
PROMPT = "def "
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
LAST: dict[str, Any] = QUIET | {"trigger_mode": "always_last"}
FILE_FIELD = (
    '<div class="gb"><label class="file">Open a file <input type="file" accept=".json,application/json" '
    'id="steer-file"></label></div>'
)


def build(work: Workspace) -> Page:
    """Builds the page; its words are `features` (such as `3=1,12=-2`), those of the settings, `way` and its own."""
    shelf, chosen = work.shelf, work.chosen
    features = gr.Textbox("", visible="hidden", elem_id="steer-features")  # pyright: ignore[reportArgumentType]
    wanted = gr.Textbox(
        label="Add a feature",
        placeholder="a token, words of an explanation, or a number",
        info="Enter adds the first one found; arrow keys choose among them.",
        lines=1,
        max_lines=1,
        elem_id="steer-find",
    )
    found = html("", elem_id="steer-suggestions")
    picked = bridge(PICKED)
    told = html("", elem_id="steer-told")
    rows, names, sliders, norms, removers = [], [], [], [], []
    for number in range(SLOTS):
        with gr.Row(visible=False, elem_classes="middle slot") as row:
            names.append(html("", min_width=220))
            with gr.Column(scale=2, min_width=260):
                sliders.append(
                    gr.Slider(
                        -WIDEST_STRENGTH, WIDEST_STRENGTH, value=STRENGTH, step=0.05, elem_id=f"strength-{number}"
                    )
                )
                norms.append(html("", elem_id=f"norm-{number}"))
            removers.append(gr.Button("Remove", size="sm", scale=0, min_width=90, elem_id=f"remove-{number}"))
        rows.append(row)
    together = html("", elem_id="steer-norm")
    mode = gr.Radio(MODES, value="add", label="What to do with them", elem_id="steer-mode")
    explained = html(view.note(view.MODE_NOTES["add"]), elem_id="steer-mode-note")
    phase, positions, when, keeps_norm = where_settings()
    settings = Settings(features, mode, phase, positions, when, keeps_norm, *writing_settings(work.limits.new_tokens))
    ways = steer_ways.build(work, settings, NAME, PROMPT)
    with gr.Accordion("Keep and share", open=False):
        html('<div class="gb"><p class="muted small">The address holds all of it; a file does, too.</p></div>')
        with gr.Row(elem_classes="middle"):
            copy = gr.Button("Copy the link", size="sm", elem_id="steer-copy", min_width=120)
            keep = gr.Button("Save as a file", size="sm", elem_id="steer-save", min_width=120)
            opened = html(FILE_FIELD, js_on_load="window.glassbox.chosenFile(element, trigger);", min_width=200)
        copied = html("", elem_id="steer-copied")
        saved = gr.Textbox("", visible="hidden")  # pyright: ignore[reportArgumentType]

    slots = [features, *rows, *names, *sliders]

    def drawn(name: str, strengths: dict[int, float]) -> list[Any]:
        """Returns the features' text and the updates of the slots' rows, names and sliders."""
        from features.steering_spec import written_strengths

        dictionary, number = shelf.get(name), len(strengths)
        free = SLOTS - number
        return [
            written_strengths(strengths),
            *[gr.Row(visible=place < number) for place in range(SLOTS)],
            *[view.slot(dictionary, feature, name) for feature in strengths],
            *[""] * free,
            *[
                gr.Slider(
                    value=strength,
                    minimum=-slider_reach(strength),
                    maximum=slider_reach(strength),
                    label=f"Strength of feature {feature} (in its maxima)",
                )
                for feature, strength in strengths.items()
            ],
            *[gr.skip()] * free,
        ]

    def include(name: str, features: str, feature: int) -> list[Any]:
        from features.steering_spec import read_strengths

        strengths = read_strengths(features)
        with refusals():
            if feature not in strengths:
                if len(strengths) == SLOTS:
                    raise ValueError(f"{SLOTS} features are chosen already, expected no more: remove one first")
                check_feature(shelf.get(name), feature)
        return ["", "", *drawn(name, strengths | {feature: strengths.get(feature, STRENGTH)})]

    def include_first(name: str, features: str, query: str) -> list[Any]:
        if not query.strip():
            raise refusal("Type a feature's number, or words to find one by.")
        with refusals():
            hits = view.find(shelf.get(name), query.strip(), 1)
        if not hits:
            raise refusal(f"No feature found for {query.strip()}.")
        return include(name, features, hits[0]["feature"])

    def include_clicked(event: gr.EventData, name: str, features: str) -> list[Any]:
        with refusals():
            return include(name, features, int(said(event).get("feature", -1)))

    def suggest(name: str, query: str, features: str) -> str:
        with refusals():
            return view.suggestions(shelf.get(name), query, strengths_in(shelf.get(name), features)[0])

    def remove(place: int) -> Any:
        def without(name: str, features: str) -> list[Any]:
            from features.steering_spec import read_strengths

            left = [pair for at, pair in enumerate(read_strengths(features).items()) if at != place]
            return drawn(name, dict(left))

        return without

    def slid(features: str, *strengths: float) -> str:
        from features.steering_spec import read_strengths, written_strengths

        return written_strengths(dict(zip(read_strengths(features), strengths, strict=False)))

    def measure(name: str, features: str, mode: str) -> list[str]:
        """Returns the lengths of what is written for every slot, for all, and what the mode does."""
        from features import Steering
        from features.steering_norms import written_norms
        from features.steering_spec import read_strengths

        strengths, explanation = read_strengths(features), view.note(view.MODE_NOTES[mode])
        if not strengths:
            return [*[""] * SLOTS, "", explanation]
        try:
            lengths = written_norms(Steering(shelf.get(name), strengths, mode))  # pyright: ignore[reportArgumentType]
        except (ValueError, OSError) as error:
            return [*[""] * SLOTS, view.note(str(error), "notice"), explanation]
        each = [view.norm(lengths.each[feature], mode) for feature in strengths]
        total = view.norm(lengths.together, mode, together=True) if len(strengths) > 1 else ""
        return [*each, *[""] * (SLOTS - len(each)), total, explanation]

    adding: list[Any] = [wanted, found, *slots]
    wanted.input(suggest, [chosen, wanted, features], found, **LAST)
    wanted.submit(include_first, [chosen, features, wanted], adding, **QUIET)
    heard(picked.click(include_clicked, [chosen, features], adding, **EACH, **QUIET), PICKED)
    for place, button in enumerate(removers):
        button.click(remove(place), [chosen, features], slots, **QUIET)
    moved = [event for slider in sliders for event in (slider.input, slider.release)]
    gr.on(moved, slid, [features, *sliders], features, **LAST)
    measured = [*norms, together, explained]
    gr.on([features.change, mode.input], measure, [chosen, features, mode], measured, **LAST)
    note = f"(value) => window.glassbox.note('{NAME}', 'features', value)"
    features.change(None, features, None, js=note, **PRIVATE)
    work.remember(NAME, **settings.chosen)

    def kept(name: str, prompt: str, *given: Any) -> str:
        with refusals():
            return spec_of(shelf.get(name), work.limits, prompt, given).to_json()

    def load(event: gr.EventData, name: str) -> list[Any]:
        from features import Steering, SteeringSpec

        file, dictionary = said(event), shelf.get(name)
        with refusals():
            if int(file.get("size", 0)) and not file.get("text"):
                raise ValueError("the file is too large, expected a steering spec of at most 1 MB: choose another file")
            spec = SteeringSpec.from_json(str(file.get("text", "")))
            Steering.from_spec(dictionary, spec)
            spec_of(dictionary, work.limits, spec.prompt, [_text(spec.features), *values_of(spec)])
        shown = view.note(f"Opened: {len(spec.features)} features, mode {spec.mode}.")
        return [shown, *drawn(name, dict(spec.features)), *values_of(spec), spec.prompt]

    copy.click(None, None, copied, js="() => window.glassbox.copyAddress()", **PRIVATE)
    keep.click(kept, [chosen, ways.prompt, *settings.all], saved, **QUIET).success(
        None,
        saved,
        None,
        js="(text) => { window.glassbox.save('steering.json', text, 'application/json'); }",
        **PRIVATE,
    )
    filled = [*settings.chosen.values(), ways.prompt]
    keys = json.dumps([*settings.chosen, "prompt"])
    loading = opened.click(load, chosen, [copied, *slots, *filled], **EACH, **QUIET)
    loading.success(
        None, filled, None, js=f"(...values) => window.glassbox.noteAll('{NAME}', {keys}, values)", **PRIVATE
    )

    def restore(name: str, words: Words) -> list[Any]:
        strengths, reasons = strengths_in(shelf.get(name), words.get("features", ""))
        way = choice(words, "way", steer_ways.WAYS, steer_ways.WAYS[0])
        left_out = view.note("Left out: " + "; ".join(reasons), "notice") if reasons else ""
        return [
            "",
            "",
            left_out,
            *drawn(name, strengths),
            *values_in(words, work.limits.new_tokens),
            words.get("prompt", PROMPT),
            *ways.restored(words, way),
        ]

    def then(event: Any) -> None:
        event.then(measure, [chosen, features, mode], measured, **LAST)
        ways.after(event)

    outputs = [wanted, found, told, *slots, *settings.chosen.values(), ways.prompt, *ways.outputs]
    return Page(outputs, restore, then=then, unload=ways.unload)


def _text(strengths: Any) -> str:
    from features.steering_spec import written_strengths

    return written_strengths(strengths)
