"""Two dictionaries side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from features.comparison_store import compare_and_keep, kept_comparison
from ui.browser.workspace import Page, Words, Workspace, choice, html, refusal, whole
from ui.views import compare as view

NAME, TITLE = "compare", "Compare"


def build(work: Workspace) -> Page:
    """Builds the page; its words are `a` and `b`, names of dictionaries, `kind`, `at`, and `pair`, two numbers."""
    names = work.shelf.names
    several = len(names) > 1
    kind, at, pair = (gr.State(value) for value in ("matched", 0, ""))
    with gr.Row(equal_height=True, visible=several, elem_classes="foot"):
        a = gr.Dropdown(names, value=names[0], label="First (a)", elem_id="compare-a", scale=3)
        b = gr.Dropdown(names, value=names[-1], label="Second (b)", elem_id="compare-b", scale=3)
        run = gr.Button("Compare", variant="primary", scale=0, min_width=120, elem_id="compare-run")
    shown = html("", elem_id="compare-shown")

    def pair_of(a: str, b: str) -> view.Pair:
        return view.Pair([work.shelf.get(a), work.shelf.get(b)], [a, b])

    def restore(name: str, words: Words) -> list[Any]:
        first = choice(words, "a", names, name if name in names else names[0])
        other = next((each for each in names if each != first), first)
        second = choice(words, "b", names, other)
        which, page = choice(words, "kind", list(view.KINDS), "matched"), whole(words, "at") or 0
        numbers = words.get("pair", "")
        body = view.alone(first) if not several else view.before()
        if several and first != second:
            numbered = [whole({"n": part}, "n") for part in numbers.split(",")]
            kept = kept_comparison(work.shelf.get(first), work.shelf.get(second))
            if len(numbered) == 2 and None not in numbered:
                body = view.side_by_side(pair_of(first, second), *(int(n or 0) for n in numbered))
            elif kept is not None:
                body = view.comparison(kept, pair_of(first, second), which, page)
        return [first, second, which, page, numbers, body]

    def compare(a: str, b: str, kind: str) -> Iterator[str]:
        if a == b:
            raise refusal("Both sides are the same dictionary: choose two.")
        yield view.waiting(a, b)
        try:
            found = compare_and_keep(work.shelf.get(a), work.shelf.get(b))
        except (ValueError, OSError) as error:  # stays on the page: a reason that is worth reading twice
            yield view.refused(str(error))
            return
        yield view.comparison(found, pair_of(a, b), kind, 0)

    words = "(a, b) => { const g = window.glassbox; g.note('compare', 'a', a); g.note('compare', 'b', b);"
    words += " g.note('compare', 'pair', null); g.note('compare', 'at', null); }"
    started = run.click(None, [a, b], None, js=words, api_visibility="private")
    started.then(
        compare,
        [a, b, kind],
        shown,
        show_progress="full",
        concurrency_id="compare",
        concurrency_limit=1,
        api_visibility="private",
    )
    work.remember(NAME, a=a, b=b)
    return Page([a, b, kind, at, pair, shown], restore)
