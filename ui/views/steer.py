"""What the Steer page shows: features to choose, both texts, a sweep, a conversation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from ui.render import feature as render
from ui.render import html
from ui.render.curves import Point, Scatter, legend, scatter_svg
from ui.render.html import escape
from ui.views.shelf import find

if TYPE_CHECKING:
    from features import Dictionary
    from features.side_by_side import SideBySide, SteeringCost
    from features.steering_sweep import SweepPoint

FRAME_INTERVAL_S = 0.2
"""Gradio goes through all components of all pages for a frame: more of them, and nothing else can be clicked."""
SUGGESTIONS = 8
Frame = TypeVar("Frame")

MODE_NOTES = {
    "add": "Adds the feature's direction at every place, whether it is active there or not.",
    "clamp": "Sets the feature to this share of its maximum and leaves all else as it is.",
    "min_clamp": "Raises the feature to this share of its maximum where it is weaker.",
    "scale": "Multiplies the feature where it is active: 1 changes nothing, 0 removes it, 2 doubles it.",
    "ablate": "Removes the feature where it is active: 1 removes all of it.",
    "erase": "Removes the features' directions from every place, active or not: 1 removes all; one strength for all.",
}
WHERE = {
    "add": "",
    "clamp": " where it is silent",
    "min_clamp": " where it is silent",
    "scale": " at its maximum",
    "ablate": " at its maximum",
    "erase": "",
}


def suggestions(dictionary: Dictionary, query: str, chosen: Iterable[int]) -> str:
    """Returns what a search finds as buttons; features that cannot be steered say why."""
    if not query.strip():
        return ""
    found = find(dictionary, query.strip(), SUGGESTIONS)
    taken = set(chosen)
    items = []
    for row in found:
        number = row["feature"]
        reason = "dead: never active in the indexed text" if row["is_dead"] else "chosen" if number in taken else ""
        told = escape(reason or row["why"])
        says = html.explained(row["explanation"]) or '<span class="muted">no explanation</span>'
        items.append(
            f'<li><button type="button" data-add="{number}"{" disabled" if reason else ""}><b>{number}</b>'
            f'<span class="grow">{says}</span><span class="muted small">{told}</span></button></li>'
        )
    count = f"{len(found)} found" if found else f"No feature found for {escape(query.strip())}."
    listed = f'<ul class="choices" aria-label="Features found">{"".join(items)}</ul>' if items else ""
    return f'<div class="gb"><p class="muted small" role="status">{count}</p>{listed}</div>'


def slot(dictionary: Dictionary, feature: int, name: str) -> str:
    """Returns the name of a steered feature: its number, what it is called, and its unit of strength."""
    says = html.explained(dictionary.explanations_of([feature]).get(feature, ""))
    maximum = float(dictionary.max_activations[feature])
    return (
        f'<div class="gb"><b>{render.linker(name)(feature, f"Feature {feature}")}</b> '
        f'<span class="muted small">maximum {maximum:.3g}</span><br><span class="small">{says}</span></div>'
    )


def norm(share: float, mode: str, together: bool = False) -> str:
    """Returns the length of an edit as a share of the activation's, with a bar that is full at its length."""
    who = "All together: " if together else ""
    where = "" if together else WHERE.get(mode, "")
    strong = ' <b class="bad">· longer than the activation itself</b>' if share > 1 else ""
    told = f"{who}{share:.2g} of the activation's length{where}"
    return f'<div class="gb"><p class="small muted norm">{told}{strong}</p>{html.bar(share)}</div>'


def note(text: str, kind: str = "note") -> str:
    """Returns a line of plain text; of kind `notice` where something was refused."""
    role = "alert" if kind == "notice" else "status"
    return f'<div class="gb"><p class="{kind} small" role="{role}">{escape(text)}</p></div>' if text else ""


def paced(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Passes on frames at the pace at which a page can show them, and the last one always."""
    shown, left = 0.0, None
    for frame in frames:
        left = frame
        if time.monotonic() - shown >= FRAME_INTERVAL_S:
            shown, left = time.monotonic(), None
            yield frame
    if left is not None:
        yield left


def side(prompt: str, written: SideBySide, steered: bool) -> str:
    """Returns one side of the comparison; what comes after the texts part is marked."""
    title = "Steered" if steered else "Left alone"
    own, other = (written.steered, written.unsteered) if steered else (written.unsteered, written.steered)
    many = len(own) > 1
    cards = []
    for number, (text, beside) in enumerate(zip(own, other, strict=True)):
        running = written.is_running and number == len(own) - 1
        heading = f"{title} · sample {number + 1}" if many else title
        cards.append(_card(heading, prompt, text, beside, running))
    shown = "".join(cards) or _card(title, prompt, "", "", written.is_running)
    return f'<div class="gb"><div class="stack">{shown}</div></div>'


def _card(title: str, prompt: str, text: str, beside: str, running: bool) -> str:
    return (
        f'<div class="card stack continuation"><h3>{escape(title)}</h3>'
        f'<span class="text"><span class="muted">{escape(prompt)}</span>{_parted(text, beside, running)}</span></div>'
    )


def _parted(text: str, beside: str, running: bool) -> str:
    from features.side_by_side import parting

    same = parting(text, beside)
    # where one side is only behind, nothing has parted yet
    rest = (
        f'<mark class="parted">{escape(text[same:])}</mark>' if text[same:] and beside[same:] else escape(text[same:])
    )
    cursor = '<i class="mark cursor">▍</i>' if running else ""
    return f"{escape(text[:same])}{rest}{cursor}"


def cost_facts(cost: SteeringCost, seconds: float) -> str:
    """Returns what the steering cost, under the texts."""
    pairs = {
        "perplexity left alone": _short(cost.unsteered_perplexity),
        "perplexity steered, under the model left alone": _short(cost.steered_perplexity),
        "of the activation's length written, on the prompt": f"{cost.relative_norm:.2g}",
        "time": f"{seconds:.1f} s",
    }
    return f'<div class="gb" role="status">{html.facts(pairs)}</div>'


def sweep(points: Sequence[SweepPoint], of: int, ended: str = "") -> str:
    """Returns the table of a sweep and, from two strengths on, its pictures; `ended` says how it ended early."""
    done = f"{len(points)} of {of} done" if len(points) < of and not ended else ended
    told = f'<p class="muted small" role="status">{escape(done)}</p>' if done else ""
    rows = [
        {
            "run": escape(point.run),
            "factor": f"{point.factor:g}" if point.run != "asked in words" else "",
            "concept": _short(point.concept),
            "perplexity": _short(point.perplexity),
            "distinct": _short(point.distinct),
            "text": f'<span class="text">{escape(point.texts[0])}</span>',
        }
        for point in points
    ]
    columns = {
        "run": "run",
        "factor": "×",
        "concept": "concept",
        "perplexity": "perplexity",
        "distinct": "distinct",
        "text": "text",
    }
    listed = html.table(columns, rows, "tight sweep", ("factor", "concept", "perplexity", "distinct")) if rows else ""
    meaning = (
        '<p class="muted small">concept: the features\' activation on the text as the model left alone reads it, in '
        "maxima. perplexity: of the text under that model. distinct: share of different pairs of tokens, low where "
        "text repeats itself.</p>"
    )
    return (
        f'<div class="gb"><div class="card stack">{told}{_sweep_pictures(points)}<div class="scrolls">{listed}</div>'
        f"{meaning if rows else ''}</div></div>"
    )


def _sweep_pictures(points: Sequence[SweepPoint]) -> str:
    written = [point for point in points if point.run != "asked in words"]
    asked = next((point for point in points if point.run == "asked in words"), None)
    if len(written) < 2:
        return ""
    ends = [min(point.factor for point in written), max(point.factor for point in written)]
    names: dict[str, None] = {}
    pictures = []
    for measure, label in (("concept", "concept (maxima)"), ("perplexity", "perplexity"), ("distinct", "distinct")):
        lines = {"steered": _line(written, measure)}
        given = None if asked is None else getattr(asked, measure)
        if given is not None:
            lines["asked in words"] = [Point("asked in words", x, float(given)) for x in ends]
        names |= dict.fromkeys(lines)
        chart = Scatter(title=f"{label} at each strength", x_label="times the strengths", y_label=label, series=lines)
        pictures.append(f"<div>{scatter_svg(chart)}</div>" if lines["steered"] else "")
    return f'<div class="gallery">{"".join(pictures)}</div>{legend(list(names))}'


def _line(points: Sequence[SweepPoint], measure: str) -> list[Point]:
    values = [(point, getattr(point, measure)) for point in points]
    return [Point(f"× {point.factor:g}", point.factor, float(value)) for point, value in values if value is not None]


def conversation(turns: Sequence[Mapping[str, str]], title: str, running: bool, beside: str = "") -> str:
    """Returns one side's conversation; the last answer is marked where it parts from the other side's."""
    bubbles = []
    for number, turn in enumerate(turns):
        last = number == len(turns) - 1
        says = turn["content"]
        if turn["role"] == "assistant" and last:
            shown = _parted(says, beside, running)
        else:
            shown = escape(says)
        who = "You" if turn["role"] == "user" else "Model"
        bubbles.append(
            f'<div class="turn {escape(turn["role"])}"><h4>{who}</h4><span class="text">{shown}</span></div>'
        )
    empty = '<p class="muted small">Nothing said yet.</p>'
    shown = f"<h3>{escape(title)}</h3>{''.join(bubbles) or empty}"
    return f'<div class="gb"><div class="card stack continuation">{shown}</div></div>'


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
