"""People's lists: bookmarks, notes, what leaves as a file and what comes in as one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from features.lists import BOOKMARKS, feature_numbers
from ui.browser.workspace import EACH, QUIET, Page, Words, Workspace, bridge, choice, heard, html, refusal, refusals
from ui.browser.workspace import said as said_over
from ui.exports import FORMATS, download
from ui.render.html import escape
from ui.views import lists as view

NAME, TITLE = "lists", "Lists"
REMOVED = "lists-removed"
SCOPES = ("This list", "The whole dictionary")
STARS = "window.glassbox.stars(server);"


def stars(work: Workspace) -> None:
    """Lets the stars on features bookmark them; stands outside the tabs, since features are shown on several."""

    def star(asked: list[Any]) -> dict[str, Any]:
        name, feature, on = asked
        dictionary = work.shelf.get(str(name))
        try:
            number = dictionary.check_feature(int(feature))
            if on:
                dictionary.add_to_list(BOOKMARKS, [number])
            elif number in {f for known in dictionary.lists.all() if known.name == BOOKMARKS for f in known.features}:
                dictionary.lists.remove(BOOKMARKS, [number])
        except (ValueError, OSError) as error:
            return {"refused": str(error)}
        return {"on": bool(on)}

    gr.HTML("", elem_classes="bridge", js_on_load=STARS, server_functions=[star])


def build(work: Workspace) -> Page:
    """Builds the page; its words are `list`, a name, and `sort`."""
    opened = gr.State(None)
    removed = bridge(REMOVED)
    with gr.Row():
        with gr.Column(scale=1, min_width=220):
            index = html("", elem_id="lists-index")
            with gr.Accordion("New list", open=False):
                new_name = gr.Textbox(label="Name", lines=1)
                new_note = gr.Textbox(label="What it is for", lines=1)
                new_by = gr.Textbox(label="By", placeholder="your name", lines=1)
                create = gr.Button("Create", size="sm")
            with gr.Accordion("Import", open=False):
                gr.Markdown("Lists and labels: our JSON, CSV or Parquet, or Neuronpedia's and SAEDashboard's files.")
                import_by = gr.Textbox(label="By, where the file names nobody", placeholder="your name", lines=1)
                upload = gr.UploadButton("Choose a file", size="sm", elem_id="lists-import")
        with gr.Column(scale=3, min_width=320):
            sort = gr.Dropdown(list(view.SORTS), value=view.SORTS[0], label="Order", elem_id="lists-sort")
            shown = html("", elem_id="lists-shown")
            with gr.Row(elem_classes="foot"):
                numbers = gr.Textbox(label="Add features", placeholder="7, 12, 40-45", lines=1, scale=2, min_width=120)
                note = gr.Textbox(label="Note", placeholder="why (may stay empty)", lines=1, scale=3, min_width=120)
                by = gr.Textbox(label="By", placeholder="your name", lines=1, scale=2, min_width=100)
                add = gr.Button("Add", size="sm", scale=0, min_width=80)
            with gr.Row(elem_classes="foot"):
                kind = gr.Dropdown(list(FORMATS), value=FORMATS[0], label="Export as", scale=2, min_width=120)
                scope = gr.Dropdown(list(SCOPES), value=SCOPES[0], label="What", scale=2, min_width=120)
                export = gr.Button("Export", size="sm", scale=0, min_width=80)
            with gr.Row(elem_classes="foot"):
                new = gr.Textbox(label="New name", lines=1, scale=3, min_width=140)
                rename = gr.Button("Rename", size="sm", scale=0, min_width=80)
                delete = gr.Button("Delete list", size="sm", scale=0, min_width=100)
            with gr.Row(visible=False, elem_id="lists-sure") as sure:
                question = html("")
                confirm = gr.Button("Delete it", variant="stop", size="sm", scale=0, min_width=100)
                keep = gr.Button("Keep it", size="sm", scale=0, min_width=100)
            said = html("", elem_id="lists-said")
            payload = gr.Textbox(visible="hidden")
    panes = [opened, index, shown, said, sure]

    def panes_of(name: str, asked: str | None, sort: str, told: str = "", asked_by: str = "") -> list[Any]:
        dictionary = work.shelf.get(name)
        found = view.chosen(dictionary, asked)
        line = f'<div class="gb"><p class="small" role="status">{escape(told)}</p></div>' if told else ""
        body = view.entries(dictionary, found, sort, name, asked_by)
        return [found, view.index(dictionary, found, name), body, line, gr.Row(visible=False)]

    def restore(name: str, words: Words) -> list[Any]:
        order = choice(words, "sort", view.SORTS, view.SORTS[0])
        asked = words.get("list", "")
        return [order, *panes_of(name, asked or None, order, asked_by=asked)]

    def named(opened: str | None) -> str:
        if opened is None:
            raise refusal("There is no list yet: make one first.")
        return opened

    def make(name: str, order: str, title: str, note: str, by: str) -> list[Any]:
        with refusals():
            made = work.shelf.get(name).lists.create(title, note, by.strip() or None)
        return [*panes_of(name, made.name, order, f"Made the list {made.name}."), "", ""]

    def put(name: str, opened: str | None, order: str, numbers: str, note: str, by: str) -> list[Any]:
        with refusals():
            wanted = feature_numbers(numbers)
            fresh = work.shelf.get(name).add_to_list(opened or BOOKMARKS, wanted, by.strip() or None, note)
        told = f"{len(fresh)} new of {len(wanted)} features."
        return [*panes_of(name, opened or BOOKMARKS, order, told), "", ""]

    def take(event: gr.EventData, order: str) -> list[Any]:
        asked = said_over(event)
        name, title = str(asked.get("dict", "")), str(asked.get("list", ""))
        with refusals():
            gone = work.shelf.get(name).lists.remove(title, feature_numbers(str(asked.get("feature", ""))))
        notes = "; ".join(f"{entry.note} ({entry.author})" for entry in gone if entry.note)
        told = f"Took feature {gone[0].feature} off" + (f"; its notes were: {notes}" if notes else ".")
        return panes_of(name, title, order, told)

    def call(name: str, opened: str | None, order: str, new: str) -> list[Any]:
        with refusals():
            work.shelf.get(name).lists.rename(named(opened), new)
        return [*panes_of(name, new.strip(), order, "Renamed."), ""]

    def ask(name: str, opened: str | None) -> list[Any]:
        count = len(work.shelf.get(name).lists.get(named(opened)).features)
        told = f"Delete {opened} with its {count:,} features and their notes? This cannot be undone."
        return [gr.Row(visible=True), f'<div class="gb"><p>{escape(told)}</p></div>']

    def drop(name: str, opened: str | None, order: str) -> list[Any]:
        with refusals():
            gone = work.shelf.get(name).lists.delete(named(opened))
        return panes_of(name, None, order, f"Deleted {gone.name}, which had {len(gone.features):,} features.")

    def leave(name: str, opened: str | None, kind: str, scope: str) -> str:
        with refusals():
            made = download(work.shelf.get(name), kind, named(opened) if scope == SCOPES[0] else None)
        return json.dumps({"name": made.name, "data": base64.b64encode(made.content).decode()})

    def take_in(name: str, opened: str | None, order: str, file: str | None, by: str) -> list[Any]:
        from features.sharing.imports import import_files

        if not file:
            raise refusal("Choose a file first.")
        try:
            with refusals():
                report = import_files(work.shelf.get(name), [file], by.strip() or None)
        except gr.Error as error:  # the library names the file by its path, which is this server's
            raise gr.Error(str(error.message).replace(escape(file), "the file"), print_exception=False) from None
        finally:
            Path(file).unlink(missing_ok=True)  # else it stays where whoever knows its path can read it
        new = ", ".join(f"{row['added']:,} {row['table']}" for row in report.rows())
        return panes_of(name, opened, order, f"Imported: {new or 'nothing new'}.")

    noted: dict[str, Any] = {"api_visibility": "private"}

    def then_named(event: Any) -> Any:
        """Writes the list that is open now into the address, from what is shown of it."""
        return event.then(None, js="() => window.glassbox.listShown()", **noted)

    def on(button: Any, does: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
        return then_named(button.click(does, inputs, outputs, **QUIET))

    on(create, make, [work.chosen, sort, new_name, new_note, new_by], [*panes, new_name, new_note])
    then_named(
        gr.on(
            [add.click, numbers.submit],
            put,
            [work.chosen, opened, sort, numbers, note, by],
            [*panes, numbers, note],
            **QUIET,
        )
    )
    on(rename, call, [work.chosen, opened, sort, new], [*panes, new])
    delete.click(ask, [work.chosen, opened], [sure, question], **QUIET)
    keep.click(lambda: gr.Row(visible=False), None, sure, **QUIET)
    on(confirm, drop, [work.chosen, opened, sort], panes)
    heard(removed.click(take, sort, panes, **EACH, **QUIET), REMOVED)
    saved = export.click(leave, [work.chosen, opened, kind, scope], payload, show_progress="minimal", **noted)
    saved.success(None, payload, payload, js="(made) => { window.glassbox.saveExport(made); return ''; }", **noted)
    then_named(
        upload.upload(take_in, [work.chosen, opened, sort, upload, import_by], panes, show_progress="minimal", **noted)
    )
    sort.input(lambda *given: panes_of(*given), [work.chosen, opened, sort], panes, **QUIET)
    work.remember(NAME, sort=sort)
    return Page([sort, *panes], restore)
