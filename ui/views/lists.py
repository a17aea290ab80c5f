"""People's lists: which there are, and what is on one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from features.lists import BOOKMARKS, is_bookmarked
from ui.render import feature as render
from ui.render import html
from ui.render.html import escape, explained

if TYPE_CHECKING:
    from features import Dictionary
    from features.lists import NamedList

SORTS = ("As added", "Number", "Newest first", "Author", "Most frequent", "Strongest")
SHOWN_FEATURES = 500


def index(dictionary: Dictionary, opened: str | None, name: str) -> str:
    """Returns the names of all lists as links, the bookmarks first."""
    known = sorted(dictionary.lists.all(), key=lambda each: each.name != BOOKMARKS)
    rows = []
    for each in known:
        current = ' aria-current="true"' if each.name == opened else ""
        rows.append(
            f"<li>{html.link(escape(each.name), 'lists', name, current, list=each.name)} "
            f'<span class="muted small">{len(each.features):,} · by {escape(each.author)}</span></li>'
        )
    body = f'<ul class="lists">{"".join(rows)}</ul>' if rows else '<p class="muted small">No list yet.</p>'
    return f'<div class="gb"><nav aria-label="Lists"><h3>Lists</h3>{body}</nav></div>'


def chosen(dictionary: Dictionary, asked: str | None) -> str | None:
    """Returns the name of the list to show: the one asked for, else the bookmarks, else the first; None: no list."""
    names = [each.name for each in dictionary.lists.all()]
    if asked in names:
        return asked
    return BOOKMARKS if BOOKMARKS in names else (names[0] if names else None)


def entries(dictionary: Dictionary, opened: str | None, sort: str, name: str, asked: str = "") -> str:
    """Returns what is on a list, with who put it there, when and why; `asked` is the list that an address names."""
    missing = ""
    if asked and asked != opened:
        missing = f'<p class="notice">There is no list <b>{escape(asked)}</b> in this dictionary.</p>'
    if opened is None:
        return (
            f'<div class="gb stack">{missing}<p class="notice">Nothing is kept yet. Press ☆ on a feature to bookmark '
            "it, or make a list here and add features by number.</p></div>"
        )
    found = dictionary.lists.get(opened)
    note = f'<p class="says">{escape(found.note)}</p>' if found.note else ""
    by = f'<span class="muted small">by {escape(found.author)}, {_day(found.time)}</span>'
    head = f'{missing}<div class="head"><h2>{escape(found.name)}</h2>{by}</div>{note}'
    if not found.entries:
        return (
            f'<div class="gb stack">{head}<p class="muted">Nothing is on this list yet: add features below.</p></div>'
        )
    features = found.features
    shown = _sorted(dictionary, found, sort)
    more = f" The first {SHOWN_FEATURES} are shown; an export has all." if len(features) > SHOWN_FEATURES else ""
    told = f'<p class="muted small">{len(features):,} features.{more}</p>'
    return f'<div class="gb stack">{head}{_entries(dictionary, found, shown[:SHOWN_FEATURES], name)}{told}</div>'


def star(dictionary: Dictionary, feature: int, name: str) -> str:
    """Returns the button that puts a feature on the bookmarks and takes it off (`lists.js`)."""
    is_on = is_bookmarked(dictionary.store, feature)
    return (
        f'<button type="button" data-star="{feature}" data-dict="{escape(name)}" '
        f'aria-pressed="{str(is_on).lower()}" aria-label="Bookmark feature {feature}">{"★" if is_on else "☆"}</button>'
    )


def _sorted(dictionary: Dictionary, found: NamedList, sort: str) -> list[int]:
    features = found.features
    if sort == "Number":
        return sorted(features)
    if sort == "Strongest":
        return sorted(features, key=lambda feature: -float(dictionary.max_activations[feature]))
    if sort == "Most frequent":
        density = {row["feature"]: row["density"] for row in _facts(dictionary, features)}
        return sorted(features, key=lambda feature: -density[feature])
    order = {"Newest first": lambda entry: entry.time, "Author": lambda entry: entry.author}.get(sort)
    if order is None:
        return features
    ordered = sorted(found.entries, key=order, reverse=sort == "Newest first")
    return list(dict.fromkeys(entry.feature for entry in ordered))


def _facts(dictionary: Dictionary, features: list[int]) -> list[dict[str, Any]]:
    wanted = ", ".join(map(str, features))
    question = f"select feature, density, max_activation, is_dead from features where feature in ({wanted})"
    return dictionary.sql(question).to_pylist()


def _entries(dictionary: Dictionary, found: NamedList, features: list[int], name: str) -> str:
    says, link = dictionary.explanations_of(features), render.linker(name)
    facts = {row["feature"]: row for row in _facts(dictionary, features)}
    rows = []
    for feature in features:
        of_feature = [entry for entry in found.entries if entry.feature == feature]
        notes = "".join(f'<div class="why">“{escape(e.note)}” {escape(e.author)}</div>' for e in of_feature if e.note)
        told = explained(says.get(feature, "")) or '<span class="muted">no explanation</span>'
        if facts[feature]["is_dead"]:
            told = '<span class="muted">never fired</span>'
        first = of_feature[0]
        data = f'data-dict="{escape(name)}" data-list="{escape(found.name)}" data-feature-number="{feature}"'
        data += f' aria-label="Remove feature {feature}"'
        rows.append(
            {
                "feature": f'<span class="id">{link(feature, str(feature))}</span>',
                "says": told + notes,
                "by": f"{escape(first.author)}<br><span class='muted small'>{_day(first.time)}</span>",
                "density": f"{facts[feature]['density']:.3%}",
                "off": f'<button type="button" data-unlist {data}>Remove</button>',
            }
        )
    columns = {"feature": "Feature", "says": "Explanation and notes", "off": "", "by": "By", "density": "Density"}
    return html.table(columns, rows, "list", numbers=("density",))


def _day(time: str) -> str:
    return escape(time[:16].replace("T", " "))
