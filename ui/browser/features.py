"""The list of features: searched as one types, filtered, in pages."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ui.browser.workspace import QUIET, Page, Words, Workspace, choice, html, whole
from ui.views import features as view

NAME, TITLE = "features", "Features"


def build(work: Workspace) -> Page:
    """Builds the page; its words are those of `view.feature_list`, and `at`, the number of the list's page from 0."""
    with gr.Row(equal_height=True):
        query = gr.Textbox(
            label="Search",
            placeholder="a token, part of one, words of an explanation, or a number",
            scale=4,
            lines=1,
            min_width=280,
            elem_id="search",
        )
        kind = gr.Dropdown(list(view.KINDS), value="Anything", label="Look in", scale=2, min_width=160, elem_id="kind")
        order = gr.Dropdown(
            [view.BEST, *view.ORDERS], value=view.BEST, label="Order", scale=2, min_width=140, elem_id="order"
        )
        shown = gr.Dropdown(list(view.SHOWN), value="Live", label="Show", scale=1, min_width=120, elem_id="show")
    with gr.Accordion("Filters", open=False, elem_id="filters"), gr.Row(equal_height=True):
        density = gr.Dropdown(list(view.DENSITIES), value=view.ANY, label="Density", min_width=140, elem_id="density")
        score = gr.Slider(0, 1, value=0, step=0.05, label="Score at least", min_width=160, elem_id="least-score")
        listed = gr.Dropdown([view.ANY], value=view.ANY, label="On the list", min_width=140, elem_id="on-list")
        cluster = gr.Dropdown([view.ANY], value=view.ANY, label="Cluster", min_width=120, elem_id="cluster")
        labelled = gr.Checkbox(False, label="Named by a person", min_width=140, elem_id="labelled")
    table = html("", elem_id="feature-list")

    asked: dict[str, Any] = {
        "q": query,
        "kind": kind,
        "order": order,
        "show": shown,
        "density": density,
        "labelled": labelled,
        "score": score,
        "list": listed,
        "cluster": cluster,
    }

    def show(name: str, *given: Any) -> str:
        words = dict(zip(asked, map(_word, given), strict=True))
        return view.feature_list(work.shelf.get(name), words, 0, name)

    def restore(name: str, words: Words) -> list[Any]:
        dictionary = work.shelf.get(name)
        on_list, in_cluster = words.get("list", view.ANY), words.get("cluster", view.ANY)
        fields = [
            words.get("q", ""),
            choice(words, "kind", list(view.KINDS), "Anything"),
            choice(words, "order", list(view.ORDERS), view.BEST),
            choice(words, "show", list(view.SHOWN), "Live"),
            choice(words, "density", list(view.DENSITIES), view.ANY),
            words.get("labelled") == "true",
            view.share(words.get("score", "")) or 0,
            gr.Dropdown([view.ANY, *dict.fromkeys([on_list])], value=on_list),
            gr.Dropdown([view.ANY, *dict.fromkeys([in_cluster])], value=in_cluster),
        ]
        return [*fields, view.feature_list(dictionary, words, whole(words, "at") or 0, name)]

    def known(name: str) -> Any:
        return gr.Dropdown([view.ANY, *[found.name for found in work.shelf.get(name).lists.all()]])

    def clusters(name: str) -> Any:
        return gr.Dropdown([view.ANY, *view.clusters(work.shelf.get(name))])

    listed.focus(known, work.chosen, listed, **QUIET)
    cluster.focus(clusters, work.chosen, cluster, **QUIET)
    changes = [component.input for component in asked.values()]
    gr.on(changes, show, [work.chosen, *asked.values()], table, trigger_mode="always_last", **QUIET)
    # another question starts on its first page
    gr.on(changes, None, None, None, js=f"() => window.glassbox.note('{NAME}', 'at', null)", api_visibility="private")
    work.remember(NAME, **asked)
    return Page([*asked.values(), table], restore)


def _word(given: Any) -> str:
    """A field's value as the address has it."""
    if isinstance(given, bool):
        return "true" if given else ""
    return "" if given in (None, 0, view.ANY, view.BEST) else str(given)
