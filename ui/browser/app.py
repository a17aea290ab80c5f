"""The application: the header, a tab for each page, and the way from an address to what is shown."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gradio as gr
from starlette.middleware import Middleware

from ui.browser import about, analyse, api, compare, feature, features, lists, overview, steer, text
from ui.browser.guard import BODY_BYTES, Guard, door, hosts_for
from ui.browser.limits import Limits
from ui.browser.theme import style, theme
from ui.browser.workspace import EACH, QUIET, Page, Workspace, bridge, html, refusals, said
from ui.render.html import asset
from ui.serving import is_loopback
from ui.views.shelf import ModelAlone, Shelf

if TYPE_CHECKING:
    from features import Dictionary

PAGES: tuple[ModuleType, ...] = (overview, features, feature, text, steer, compare, lists, analyse, about)
ALONE: tuple[ModuleType, ...] = (analyse, about)
"""Pages of a model without dictionaries."""
AT_ONCE = 3
"""Answers of one kind that are worked on together: on two cores more of them wait for each other's turns."""
SWITCH_INTERVAL_S = 0.0005
"""A language model hands Python's lock over thousands of times; at the usual 5 ms it waits for all other answers."""
LONGEST_WORD = 60_000
"""Of an address; longer ones are cut off, as servers refuse them."""
SCRIPTS = ("browser.js", "overview.js", "feature.js", "keys.js", "text.js", "steer.js", "lists.js", "analyse.js")
KEYS = {
    "/": "search",
    "j": "next feature, or next row of the list",
    "k": "previous feature, or previous row",
    "Enter": "open the row",
    "?": "this help",
    "Esc": "close it",
}
HEADER = (
    '<div class="gb gb-header"><b>Glassbox</b><span class="muted">the features a language model thinks in</span>'
    '<button type="button" class="small-button" data-keys aria-haspopup="dialog">keys ?</button>'
    '<dialog id="keys-help" aria-labelledby="keys-title"><h2 id="keys-title">Keys</h2><table class="tight"><tbody>'
    + "".join(f"<tr><td><kbd>{key}</kbd></td><td>{told}</td></tr>" for key, told in KEYS.items())
    + '</tbody></table><p class="muted small">None of them while you write in a field.</p>'
    '<button type="button" class="small-button" data-close>Close</button></dialog></div>'
)


def serve(
    dictionaries: Sequence[Dictionary | ModelAlone],
    *,
    host: str,
    port: int,
    auth: tuple[str, str] | None = None,
    limits: Limits | None = None,
    frames: Sequence[str] = (),
    open_page: bool = False,
    block: bool = True,
) -> gr.Blocks:
    """Serves the dictionaries until interrupted, or returns at once where `block` is false.

    `auth` is the name and the password that are asked for; `frames` are the origins of pages that may frame this one.
    """
    limits = limits or Limits()
    app = build(dictionaries, limits)
    for dictionary in dictionaries:
        if not isinstance(dictionary, ModelAlone):
            dictionary.read_ahead()
    if not isinstance(dictionaries[0], ModelAlone):
        dictionaries[0].overview  # noqa: B018  read now and kept, so that the first page opens at once
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    hosts = hosts_for(host) if is_loopback(host) else None
    first = f"window.glassboxFirst = {json.dumps(_pages(dictionaries)[0].NAME)};"
    app.queue(default_concurrency_limit=AT_ONCE, max_size=limits.queue)
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
        auth=door(auth),
        auth_message="The name and the password that the browser was started with.",
        max_file_size=BODY_BYTES,
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts, frames=frames)]},
        theme=theme(),
        css=style(),
        head="".join(f"<script>{script}</script>" for script in (first, *map(asset, SCRIPTS))),
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


def _pages(dictionaries: Sequence[Dictionary | ModelAlone]) -> tuple[ModuleType, ...]:
    return ALONE if isinstance(dictionaries[0], ModelAlone) else PAGES


def build(dictionaries: Sequence[Dictionary | ModelAlone], limits: Limits | None = None) -> gr.Blocks:
    """Builds the application without serving it."""
    shelf, pages = Shelf(dictionaries), _pages(dictionaries)
    with gr.Blocks(title="Glassbox", analytics_enabled=False, fill_width=True) as app:
        with gr.Row(equal_height=True, elem_id="top"):
            html(HEADER, scale=3)
            chosen = gr.Dropdown(
                shelf.names,
                value=shelf.names[0],
                label="Dictionary",
                visible=len(shelf.names) > 1,
                interactive=True,
                scale=1,
            )
        work = Workspace(shelf, chosen, limits or Limits())
        if shelf.has_features:
            api.offer(work)  # first, so that the names are its own: events of pages are named after their functions
        bridges = {page.NAME: bridge(page.NAME) for page in pages}
        if shelf.has_features:
            lists.stars(work)
        with gr.Tabs(selected=pages[0].NAME, elem_id="pages") as tabs:
            for module in pages:
                with gr.Tab(module.TITLE, id=module.NAME) as tab:
                    page = module.build(work)
                tab.select(None, js=f"() => window.glassbox.selected('{module.NAME}')", api_visibility="private")
                event = bridges[module.NAME].click(
                    _answer(shelf, module.NAME, page),
                    None,
                    [chosen, tabs, *page.outputs],
                    **EACH,
                    **QUIET,
                )
                answered = f"(name) => window.glassbox.answered('{module.NAME}', name)"
                for ending in (event.success, event.failure):
                    ending(None, chosen, None, js=answered, api_visibility="private")
                if page.then is not None:
                    page.then(event)
                if page.unload is not None:
                    app.unload(page.unload)
        chosen.input(None, chosen, None, js="(name) => window.glassbox.dictionary(name)", api_visibility="private")
    return app


def _answer(shelf: Shelf, name: str, page: Page) -> Callable[[gr.EventData], list[Any]]:
    """Returns the function that shows what an address names: the dictionary, the tab and the page's components."""

    def answer(event: gr.EventData) -> list[Any]:
        words = {key: value[:LONGEST_WORD] for key, value in said(event).items() if isinstance(value, str)}
        asked = words.pop("dict", "")
        dictionary = asked if asked in shelf.by_name else shelf.names[0]
        with refusals():
            shown = page.restore(dictionary, words)
        return [gr.Dropdown(value=dictionary), gr.Tabs(selected=name), *shown]

    return answer
