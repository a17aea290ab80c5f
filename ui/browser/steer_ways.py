"""What comes of a steering: two texts side by side, a sweep over strengths, a conversation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.browser.runs import Run, Runs
from ui.browser.steer_settings import Settings, spec_of
from ui.browser.workspace import MODEL_QUEUE, QUIET, Words, Workspace, html, refusal, refusals
from ui.views import steer as view

if TYPE_CHECKING:
    from features.side_by_side import SideBySide

WAYS = ("Side by side", "Sweep", "Conversation")
FACTORS = "0, 0.5, 1, 2, 4"
MOST_FACTORS = 12
WAITING = "Waiting for the model…"
STOPPED = "Stopped."
QUEUED: dict[str, Any] = MODEL_QUEUE | {"api_visibility": "private", "show_progress": "minimal"}
NO_TURNS: tuple[tuple[dict[str, str], ...], tuple[dict[str, str], ...]] = ((), ())


@dataclass(frozen=True)
class Ways:
    """The built ways: what an address fills, and what follows."""

    prompt: gr.Textbox
    outputs: Sequence[Any]
    restored: Callable[[Words, str], list[Any]]
    """The values of `outputs` for the words of an address and the way to open."""
    after: Callable[[Any], None]
    unload: Callable[[gr.Request], None]


def build(work: Workspace, settings: Settings, page: str, first_prompt: str) -> Ways:
    """Builds the ways of a page; their words are `way`, `prompt`, `factors` and `asked`."""
    shelf, chosen, runs = work.shelf, work.chosen, Runs()
    ticket = gr.State(0)
    way = gr.Radio(list(WAYS), value=WAYS[0], label="Write", elem_id="steer-way")
    no_chat = html("", elem_id="steer-no-chat")
    with gr.Column() as texts:
        prompt = gr.Textbox(first_prompt, label="Prompt", lines=3, max_lines=12, elem_id="steer-prompt")
    with gr.Column(visible=False) as sweeping, gr.Row():
        factors = gr.Textbox(
            FACTORS,
            label="Multiples of the strengths",
            info="0 is the model left alone.",
            elem_id="steer-factors",
            min_width=220,
        )
        asked = gr.Textbox(
            label="Beside it, ask in words",
            placeholder="for example: # about errors",
            info="Put before the prompt: the baseline that steering has to beat.",
            elem_id="steer-asked",
            min_width=220,
        )
    with gr.Column(visible=False) as talking:
        says = gr.Textbox(label="You say", lines=2, max_lines=8, elem_id="steer-says")
    with gr.Row():
        run = gr.Button("Write", variant="primary", elem_id="steer-run", min_width=120)
        stop = gr.Button("Stop", elem_id="steer-stop", min_width=120)
        afresh = gr.Button("Start over", visible=False, elem_id="steer-afresh", min_width=120)
    status = html("", elem_id="steer-status")
    with gr.Row(equal_height=False):
        plain = html("", elem_id="steer-plain", min_width=280)
        changed = html("", elem_id="steer-changed", min_width=280)
    swept = html("", elem_id="steer-swept")
    turns = gr.State(NO_TURNS)
    results = [status, plain, changed, swept, turns]

    def begin(request: gr.Request, name: str, way: str, says: str, asked: str, prompt: str, *given: Any) -> list[Any]:
        """Refuses what cannot be written before it waits for its turn."""
        from features import Steering

        dictionary = shelf.get(name)
        with refusals():
            Steering.from_spec(dictionary, spec_of(dictionary, work.limits, prompt, given))
            work.limits.check(*((says,) if way == WAYS[2] else (asked,) if way == WAYS[1] else ()))
        if way == WAYS[2] and not says.strip():
            raise refusal("Say something first.")
        return [runs.begin(_session(request)), view.note(WAITING)]

    def write(
        request: gr.Request,
        ticket: int,
        name: str,
        way: str,
        turns: Any,
        says: str,
        factors: str,
        asked: str,
        prompt: str,
        *given: Any,
    ) -> Iterator[list[Any]]:
        with _turn(runs, _session(request), ticket) as run:
            if run is None:
                yield [view.note(STOPPED), *[gr.skip()] * 4]
                return
            dictionary = shelf.get(name)
            run.ends = time.monotonic() + work.limits.model_seconds
            try:
                spec = spec_of(dictionary, work.limits, prompt, given)
                if way == WAYS[1]:
                    yield from _sweep(dictionary, spec, factors, asked, run)
                elif way == WAYS[2]:
                    yield from _talk(dictionary, spec, turns, says.strip(), run)
                else:
                    yield from _side_by_side(dictionary, spec, run)
            except (ValueError, OSError) as error:
                yield [view.note(str(error), "notice"), *[gr.skip()] * 4]

    inputs = [chosen, way, says, asked, prompt, *settings.all]
    starting = gr.on([run.click, says.submit], begin, inputs, [ticket, status], **QUIET)
    writing = starting.success(
        write,
        [ticket, chosen, way, turns, says, factors, asked, prompt, *settings.all],
        results,
        show_progress_on=status,
        **QUEUED,
    )
    writing.success(lambda way: "" if way == WAYS[2] else gr.skip(), way, says, **QUIET)
    stop.click(_stopper(runs), None, None, queue=False, **QUIET)

    def emptied() -> list[Any]:
        return ["", view.conversation((), "Left alone", False), view.conversation((), "Steered", False), "", NO_TURNS]

    def opened(way: str) -> list[Any]:
        """Returns what is shown of a way, and clears what another one wrote."""
        kinds = [way != WAYS[2], way == WAYS[1], way == WAYS[2]]
        blank = emptied() if way == WAYS[2] else ["", "", "", "", NO_TURNS]
        return [
            *[gr.Column(visible=kind) for kind in kinds],
            gr.Button({WAYS[1]: "Sweep", WAYS[2]: "Say it"}.get(way, "Write")),
            gr.Button(visible=way == WAYS[2]),
            *blank,
        ]

    parts = [texts, sweeping, talking, run, afresh, *results]
    way.input(opened, way, parts, **QUIET)
    afresh.click(emptied, None, results, **QUIET)
    work.remember(page, way=way, prompt=prompt, factors=factors, asked=asked)

    def talkable(name: str, way: str) -> list[Any]:
        """Offers conversation where the model can be talked with; says why where it cannot."""
        from activations.chat import why_no_chat

        try:
            reason = why_no_chat(shelf.get(name).lm)
        except (ValueError, OSError) as error:
            reason = str(error)
        left = list(WAYS[:2]) if reason else list(WAYS)
        way = way if way in left else left[0]
        told = view.note(f"No conversation: {reason}") if reason else ""
        return [gr.Radio(choices=left, value=way), told, *opened(way)]  # pyright: ignore[reportArgumentType]

    return Ways(
        prompt=prompt,
        outputs=[way, factors, asked, *parts],
        restored=lambda words, way: [way, words.get("factors", FACTORS), words.get("asked", ""), *opened(way)],
        after=lambda event: event.then(
            talkable, [chosen, way], [way, no_chat, *parts], trigger_mode="always_last", **QUIET
        ),
        unload=_stopper(runs),
    )


def _session(request: gr.Request) -> str:
    return str(request.session_hash)


def _stopper(runs: Runs) -> Callable[[gr.Request], None]:
    def stop(request: gr.Request) -> None:
        runs.end(_session(request))

    return stop


@contextmanager
def _turn(runs: Runs, session: str, number: int) -> Iterator[Run | None]:
    try:
        yield runs.get(session, number)
    finally:
        runs.end(session, number)


def _why_stopped(run: Run) -> str:
    return "Stopped: this took as long as one answer may." if run.is_late() else STOPPED


def _side_by_side(dictionary: Any, spec: Any, run: Run) -> Iterator[list[Any]]:
    from features import Steering
    from features.side_by_side import steering_cost, written_side_by_side

    started = time.monotonic()
    steering = Steering.from_spec(dictionary, spec)
    frames = written_side_by_side(
        steering, spec.prompt, samples=spec.samples, is_stopped=run.is_stopped, **spec.decoding()
    )
    last: SideBySide | None = None
    with closing(frames):  # pyright: ignore[reportArgumentType]
        for last in view.paced(frames):
            told = "Writing…" if last.is_running else "Measuring…"
            yield _frame(view.note(told), spec.prompt, last)
    assert last is not None
    if last.is_stopped:
        yield _frame(view.note(_why_stopped(run)), spec.prompt, last)
        return
    seconds = time.monotonic() - started
    yield _frame(view.cost_facts(steering_cost(steering, spec.prompt, last), seconds), spec.prompt, last)


def _frame(status: str, prompt: str, written: SideBySide) -> list[Any]:
    return [status, view.side(prompt, written, False), view.side(prompt, written, True), "", gr.skip()]


def _sweep(dictionary: Any, spec: Any, factors: str, asked: str, run: Run) -> Iterator[list[Any]]:
    from features.steering_sweep import read_factors, sweep_points

    multiples = read_factors(factors)
    if len(multiples) > MOST_FACTORS:
        raise ValueError(f"got {len(multiples)} multiples, expected at most {MOST_FACTORS} on this page: name fewer")
    of = len(multiples) + bool(asked.strip())
    found = []
    yield [view.note(f"Writing 1 of {of}…"), "", "", view.sweep(found, of), gr.skip()]
    for point in sweep_points(
        dictionary,
        spec.features,
        multiples,
        [spec.prompt],
        spec.mode,
        asked=f"{asked.strip()}\n" if asked.strip() else None,
        steering=spec.limits,
        is_stopped=run.is_stopped,
        **spec.decoding(),
    ):
        found.append(point)
        told = f"Writing {len(found) + 1} of {of}…" if len(found) < of else "Done."
        yield [view.note(told), "", "", view.sweep(found, of), gr.skip()]
    if len(found) < of:
        yield [
            view.note(_why_stopped(run)),
            "",
            "",
            view.sweep(found, of, f"Stopped after {len(found)} of {of}."),
            gr.skip(),
        ]


def _talk(dictionary: Any, spec: Any, turns: Any, says: str, run: Run) -> Iterator[list[Any]]:
    from features import Steering
    from features.side_by_side import written_side_by_side

    said = {"role": "user", "content": says}
    before, steered_before = [*turns[0], said], [*turns[1], said]
    steering = Steering.from_spec(dictionary, spec)
    frames = written_side_by_side(
        steering, before, steered_prompt=steered_before, is_stopped=run.is_stopped, **spec.decoding()
    )
    with closing(frames):  # pyright: ignore[reportArgumentType]
        for frame in view.paced(frames):
            answers = frame.unsteered[0], frame.steered[0]
            sides = [
                [*old, {"role": "assistant", "content": text}]
                for old, text in zip((before, steered_before), answers, strict=True)
            ]
            told = "Writing…" if frame.is_running else _why_stopped(run) if frame.is_stopped else ""
            yield [
                view.note(told),
                view.conversation(sides[0], "Left alone", frame.is_running, answers[1]),
                view.conversation(sides[1], "Steered", frame.is_running, answers[0]),
                "",
                (tuple(sides[0]), tuple(sides[1])),
            ]
