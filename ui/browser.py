"""The Gradio browser: a searchable feature list, feature pages, what is active on a text, and steering.

Enters: opened dictionaries. Leaves: a page on the loopback address. Everything shown is made by `ui.views`; this file
only wires it. A feature's address is `?dict=NAME&feature=NUMBER`. No handle is kept in a session, no file is offered,
and nothing is sent or fetched outside.
"""

from __future__ import annotations

import hmac
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported; without it the start-up calls out

import gradio as gr

from ui import views
from ui.render import html
from ui.render.html import escape

if TYPE_CHECKING:
    from features import Dictionary

SLOTS = 4
STRENGTH = 1  # of a feature just added, in maxima
MODEL_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
BRIDGE = "window.glassbox.ready((data) => trigger('click', data));"
STARTED = "(...given) => { document.body.classList.add('gb-writing'); return given; }"
STOPPED = "() => document.body.classList.remove('gb-writing')"
HEADER = (
    '<div class="gb gb-header"><b>Glassbox</b><span class="muted">the features a language model thinks in</span></div>'
)
MODES = [("Add to it", "add"), ("Hold it at", "clamp"), ("Remove it", "ablate")]


def serve(
    dictionaries: Sequence[Dictionary],
    *,
    host: str,
    port: int,
    password: str | None = None,
    open_page: bool = False,
    block: bool = True,
) -> gr.Blocks:
    """Serves the dictionaries until interrupted, or returns at once where `block` is false."""
    app = build(dictionaries)
    app.queue(default_concurrency_limit=8)
    app.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_page and _has_screen(),
        share=False,
        quiet=True,
        show_error=False,  # what is not a refusal of ours may quote anything, and toasts are HTML
        footer_links=[],
        allowed_paths=[],
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        auth=_guard(password),
        auth_message="Any user name, and the password that the browser was started with.",
        theme=_theme(),
        css=f"{html.stylesheet('.dark .gb')}\n{html.asset('browser.css')}",
        head=f"<script>{html.asset('browser.js')}</script>",
        prevent_thread_lock=True,
    )
    if block:
        print(f"Browse at http://{host}:{port} (Ctrl-C ends it)", flush=True)  # noqa: T201
        try:
            threading.Event().wait()
        finally:
            app.close(verbose=False)
    return app


def _has_screen() -> bool:
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextmanager
def _refusals() -> Iterator[None]:
    """Shows what the library refuses; Gradio's toasts are HTML, and a refusal may quote anybody's words."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise _refusal(str(error)) from error


def _refusal(message: str) -> gr.Error:
    return gr.Error(escape(message), print_exception=False)


def _guard(password: str | None) -> Any:
    if not password:
        return None
    return lambda _user, given: hmac.compare_digest(given.encode(), password.encode())


def _theme() -> gr.Theme:
    sans = ["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    mono = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
    light, dark = html.LIGHT, html.DARK
    return gr.themes.Base(
        primary_hue="teal", neutral_hue="stone", font=sans, font_mono=mono, radius_size="sm", spacing_size="md"
    ).set(
        body_background_fill=light["paper"],
        body_background_fill_dark=dark["paper"],
        block_background_fill=light["card"],
        block_background_fill_dark=dark["card"],
        border_color_primary=light["line"],
        border_color_primary_dark=dark["line"],
        input_background_fill=light["card"],
        input_background_fill_dark=dark["card"],
        color_accent=light["accent"],
        button_primary_background_fill=light["accent"],
        button_primary_background_fill_dark="#1d7f78",
        button_primary_background_fill_hover="#0d7d77",
        button_primary_text_color="#ffffff",
        block_shadow="none",
    )


def _html(value: str = "", **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **options)


def build(dictionaries: Sequence[Dictionary]) -> gr.Blocks:
    """Builds the app without serving it."""
    shelf = views.Shelf(dictionaries)
    with gr.Blocks(title="Glassbox", analytics_enabled=False, fill_width=True) as app:
        with gr.Row(equal_height=True, elem_id="top"):
            _html(HEADER, scale=3)
            many = len(shelf.names) > 1
            chosen = gr.Dropdown(
                shelf.names, value=shelf.names[0], label="Dictionary", visible=many, interactive=True, scale=1
            )
        bridge = gr.HTML("", elem_id="bridge", js_on_load=BRIDGE)
        current = gr.State(None)
        page = gr.State(0)
        steered: gr.State = gr.State([])
        with gr.Tabs(selected="features") as tabs:
            with gr.Tab("Features", id="features") as features_tab:
                listing = _features_tab(shelf, chosen, page)
            with gr.Tab("Feature", id="feature") as feature_tab:
                shown = _html(views.feature_page(shelf.get(None), None, ""), elem_id="feature-page")
                _label_editor(shelf, chosen, current, shown)
            with gr.Tab("Active on a text", id="text") as text_tab:
                _text_tab(shelf, chosen)
            with gr.Tab("Steering", id="steering") as steering_tab:
                slots = _steering_tab(shelf, chosen, steered)
        for tab, name in (
            (features_tab, "features"),
            (feature_tab, "feature"),
            (text_tab, "text"),
            (steering_tab, "steering"),
        ):
            tab.select(None, js=f"() => window.glassbox.tab('{name}')")

        def act(name: str, ids: list[int], event: gr.EventData) -> list[Any]:
            """Answers a followed link, or a step back in the web browser's history."""
            asked = getattr(event, "_data", None) or {}
            if asked.get("dict") in shelf.by_name:
                name = str(asked.get("dict"))
            feature = asked.get("feature")
            feature = feature if isinstance(feature, int) and not isinstance(feature, bool) else None
            action = asked.get("action")
            keep = [gr.skip()] * len(slots)
            if action == "steer" and feature is not None:
                ids = _added(shelf, name, ids, feature)
                return [gr.skip(), gr.skip(), gr.skip(), gr.Tabs(selected="steering"), ids, *_drawn(shelf, name, ids)]
            if action == "open" and feature is not None:
                body = views.feature_page(shelf.get(name), feature, name)
                return [gr.Dropdown(value=name), feature, body, gr.Tabs(selected="feature"), gr.skip(), *keep]
            tab = asked.get("tab") if asked.get("tab") in ("text", "steering") else "features"
            return [gr.Dropdown(value=name), gr.skip(), gr.skip(), gr.Tabs(selected=tab), gr.skip(), *keep]

        def load(request: gr.Request) -> list[Any]:
            """Restores what the address names."""
            query = dict(request.query_params)
            name = query["dict"] if query.get("dict") in shelf.by_name else shelf.names[0]
            number = query.get("feature", "")
            opened = [views.overview(shelf.get(name)), *listing.render("", "Number", "Live", 0, name)]
            if number.isascii() and number.isdigit():
                body = views.feature_page(shelf.get(name), int(number), name)
                return [gr.Dropdown(value=name), int(number), body, gr.Tabs(selected="feature"), *opened]
            tab = query.get("tab") if query.get("tab") in ("text", "steering", "feature") else "features"
            return [gr.Dropdown(value=name), None, gr.skip(), gr.Tabs(selected=tab), *opened]

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        bridge.click(act, [chosen, steered], [chosen, current, shown, tabs, steered, *slots], **quiet)
        app.load(load, None, [chosen, current, shown, tabs, *listing.outputs], **quiet)
        chosen.input(
            lambda name: [None, views.feature_page(shelf.get(name), None, name), [], *_drawn(shelf, name, [])],
            chosen,
            [current, shown, steered, *slots],
            js="(name) => { window.glassbox.dict(name); return [name]; }",
            **quiet,
        )
    return app


class _Listing:
    """The feature list's outputs, and the function that fills them."""

    def __init__(self, shelf: views.Shelf, overview: gr.HTML, table: gr.HTML, label: gr.HTML, page: gr.State) -> None:
        self.shelf = shelf
        self.outputs = [overview, table, label, page]

    def render(self, query: str, order: str, shown: str, page: int, name: str) -> list[Any]:
        """Returns the list, the line that says where one is, and the page's number."""
        body, page, pages = views.feature_list(self.shelf.get(name), query, order, shown, page, name)
        where = f'<div class="gb"><p class="muted small where">page {page + 1} of {pages}</p></div>'
        return [body, where, page]


def _features_tab(shelf: views.Shelf, chosen: gr.Dropdown, page: gr.State) -> _Listing:
    overview = _html("")
    with gr.Row(equal_height=True):
        query = gr.Textbox(
            label="Search",
            placeholder="a token, part of one, words of an explanation, or a number",
            scale=4,
            lines=1,
            min_width=300,
            elem_id="search",
        )
        order = gr.Dropdown(list(views.ORDERS), value="Number", label="Order", scale=2)
        shown = gr.Dropdown(list(views.SHOWN), value="Live", label="Show", scale=1, min_width=120)
    table = _html("", elem_id="feature-list")
    with gr.Row(equal_height=True):
        previous = gr.Button("← Previous page", size="sm", scale=0, min_width=140)
        label = _html("")
        following = gr.Button("Next page →", size="sm", scale=0, min_width=140)
    listing = _Listing(shelf, overview, table, label, page)
    inputs = [query, order, shown, page, chosen]
    outputs = [table, label, page]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}

    def first(query: str, order: str, shown: str, _page: int, name: str) -> list[Any]:
        return listing.render(query, order, shown, 0, name)

    query.change(first, inputs, outputs, **quiet)
    order.input(first, inputs, outputs, **quiet)
    shown.input(first, inputs, outputs, **quiet)
    chosen.change(
        lambda *given: [views.overview(shelf.get(given[-1])), *first(*given)], inputs, [overview, *outputs], **quiet
    )
    previous.click(lambda q, o, s, p, n: listing.render(q, o, s, p - 1, n), inputs, outputs, **quiet)
    following.click(lambda q, o, s, p, n: listing.render(q, o, s, p + 1, n), inputs, outputs, **quiet)
    return listing


def _label_editor(shelf: views.Shelf, chosen: gr.Dropdown, current: gr.State, shown: gr.HTML) -> None:
    with gr.Accordion("Name this feature yourself", open=False), gr.Row(elem_classes="foot"):
        text = gr.Textbox(label="Label", placeholder="what it stands for", scale=4, lines=1)
        author = gr.Textbox(label="By", placeholder="your name", scale=1, lines=1)
        save = gr.Button("Save", scale=0)

    def write(name: str, feature: int | None, text: str, author: str) -> list[Any]:
        if feature is None:
            raise _refusal("Open a feature first.")
        if not text.strip():
            raise _refusal("Write a label first.")
        with _refusals():
            shelf.get(name).add_label(feature, text.strip(), author.strip() or "anonymous")
        return [views.feature_page(shelf.get(name), feature, name), ""]

    gr.on([save.click, text.submit], write, [chosen, current, text, author], [shown, text], api_visibility="private")


def _text_tab(shelf: views.Shelf, chosen: gr.Dropdown) -> None:
    text = gr.Textbox(label="Text", lines=5, max_lines=14, placeholder="Paste a few lines", elem_id="active-text")
    run = gr.Button("Show active features", variant="primary", elem_id="active-run")
    found = _html("", elem_id="active-result")

    def show(name: str, text: str) -> str:
        with _refusals():
            return views.active(shelf.get(name), text, name)

    run.click(
        show,
        [chosen, text],
        found,
        show_progress="minimal",
        api_visibility="private",
        **MODEL_QUEUE,
    )


def _steering_tab(shelf: views.Shelf, chosen: gr.Dropdown, steered: gr.State) -> list[Any]:
    """Builds the tab; returns the parts of its slots, which `_drawn` fills."""
    with gr.Row(elem_classes="foot"):
        find = gr.Textbox(label="Feature", placeholder="number or words", scale=4, lines=1, elem_id="steer-find")
        add = gr.Button("Add", scale=0, elem_id="steer-add")
    rows, names, sliders, removers = [], [], [], []
    for number in range(SLOTS):
        with gr.Row(visible=False, elem_classes="middle") as row:
            names.append(_html("", min_width=240))
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
        plain = _html("", elem_id="steer-plain", min_width=280)
        changed = _html("", elem_id="steer-changed", min_width=280)

    def include(name: str, ids: list[int], query: str) -> list[Any]:
        dictionary = shelf.get(name)
        if not query.strip():
            raise _refusal("Type a feature's number, or words to find one by.")
        found = views.find(dictionary, query.strip(), 1)
        if not found:
            raise _refusal(f"No feature found for {query.strip()}.")
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
            raise _refusal("Add a feature first.")
        dictionary = shelf.get(name)
        how = {
            "max_new_tokens": int(tokens),
            "do_sample": temperature > 0,
            "temperature": temperature or 1.0,
            "seed": int(seed or 0),
        }
        with _refusals():
            amounts = strengths if mode != "ablate" else [1.0] * len(ids)  # there is nothing to turn up
            steering = Steering(dictionary, dict(zip(ids, amounts, strict=False)), mode=mode)  # pyright: ignore[reportArgumentType]
            for left, right, running in views.merged(
                dictionary.lm.stream(prompt, **how), steering.stream(prompt, **how)
            ):
                yield [
                    views.continuation(prompt, left, "Left alone", running),
                    views.continuation(prompt, right, "Steered", running),
                ]

    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on([add.click, find.submit], include, [chosen, steered, find], [find, steered, *slots], **private)
    for position, button in enumerate(removers):
        button.click(remove(position), [chosen, steered, *sliders], [steered, *slots, *sliders], **private)
    inputs = [chosen, steered, mode, prompt, tokens, temperature, seed, *sliders]
    writing = run.click(write, inputs, [plain, changed], js=STARTED, **private, **MODEL_QUEUE)
    stop.click(None, cancels=[writing], js=STOPPED, api_visibility="private")
    return slots


def _added(shelf: views.Shelf, name: str, ids: list[int], feature: int) -> list[int]:
    if not 0 <= feature < shelf.get(name).n_features:
        raise _refusal(f"There is no feature {feature}.")
    if feature in ids:
        return ids
    if len(ids) == SLOTS:
        raise _refusal(f"{SLOTS} features are steered already: remove one first.")
    return [*ids, feature]


def _drawn(shelf: views.Shelf, name: str, ids: Sequence[int]) -> list[Any]:
    """Returns the updates of the slots' rows and names for these features."""
    rows = [gr.Row(visible=index < len(ids)) for index in range(SLOTS)]
    names = [views.slot(shelf.get(name), feature, name) for feature in ids]
    return [*rows, *names, *[""] * (SLOTS - len(ids))]
