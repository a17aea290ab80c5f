"""A dictionary, a list or a few features as HTML that opens anywhere: offline, light and dark, in any browser.

Enters: an opened dictionary and numbers of features. Leaves: one file where the name ends in `.html` (at most
`SINGLE_FEATURES`), otherwise a folder with `index.html` and pages of `PAGE_FEATURES` features each. The index is
searched and sorted by a script of ours, the only one that the pages' policy lets run; nothing is fetched. A feature
takes about 20 kB: its `STRONGEST` strongest examples and `WEAKER` of each sample of weaker ones are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ui.render import feature as render
from ui.render import html
from ui.render.html import bar, chip, escape, explained
from ui.render.report import write_page

if TYPE_CHECKING:
    from features import Dictionary
    from features.lists import NamedList
    from features.records import Feature

SINGLE_FEATURES = 100
PAGE_FEATURES = 20
INDEX_FEATURES = 20_000
STRONGEST, WEAKER = 8, 2
CHIPS = 4


def write_pages(dictionary: Dictionary, features: Sequence[int], out: Path, shown: NamedList | None = None) -> Path:
    """Writes the pages and returns the one to open; `shown` is the list that the features are on.

    Raises:
        ValueError: more features than one file, or one index, can hold.
        FileExistsError: the folder exists already.
    """
    from features.sharing.documents import partial_folder

    if out.suffix == ".html":
        if len(features) > SINGLE_FEATURES:
            raise ValueError(
                f"{len(features):,} features for the one file {out}, expected at most {SINGLE_FEATURES}: name a "
                "folder, or choose features or a list"
            )
        if out.is_dir():
            raise FileExistsError(f"{out} is a folder, expected the name of a file: choose another one")
        out.parent.mkdir(parents=True, exist_ok=True)
        sections, rows = _sections(dictionary, features, lambda _: "", shown)
        several = len(rows) > 1
        body = _head(dictionary, len(rows), shown) + (_index(rows, "") if several else "") + "".join(sections)
        return write_page(out, html.page(_title(dictionary, features), body, _script() if several else ""))
    if len(features) > INDEX_FEATURES:
        raise ValueError(
            f"{len(features):,} features, expected at most {INDEX_FEATURES:,} in one set of pages: choose features or "
            "a list, or export json or parquet"
        )
    pages = {feature: f"features-{number // PAGE_FEATURES:04d}.html" for number, feature in enumerate(features)}
    names = list(dict.fromkeys(pages.values()))
    with partial_folder(out) as folder:
        rows = []
        for number, name in enumerate(names):
            some = list(features[number * PAGE_FEATURES : (number + 1) * PAGE_FEATURES])
            sections, found = _sections(dictionary, some, lambda f, name=name: _page_of(pages, f, name), shown)
            rows += found
            around = _around(dictionary, names, number)
            title = f"{dictionary.name}: features {some[0]} to {some[-1]}"
            write_page(folder / name, html.page(title, around + "".join(sections) + around))
        index = _head(dictionary, len(rows), shown) + _index(rows, pages)
        write_page(folder / "index.html", html.page(_title(dictionary, features), index, _script()))
    return out / "index.html"


def _page_of(pages: dict[int, str], feature: int, name: str) -> str | None:
    page = pages.get(feature)
    return "" if page == name else page


def _sections(
    dictionary: Dictionary, features: Sequence[int], page_of: Callable[[int], str | None], shown: NamedList | None
) -> tuple[list[str], list[dict[str, Any]]]:
    """The features' sections, and what the index says of each."""
    from features.sharing.reading import read_features

    inside = set(features)

    def link(feature: int, text: str) -> str:
        page = page_of(feature)
        if page is None or (page == "" and feature not in inside):
            return f"<b>{text}</b>"
        return f'<a href="{escape(page)}#f{feature}">{text}</a>'

    found = list(read_features(dictionary, features))
    near = sorted({other for feature in found for other, _ in feature.neighbours})
    says = dictionary.explanations_of(near)
    sections, rows = [], []
    for feature in found:
        heading = f'<div class="head"><h2 id="f{feature.id}">Feature {feature.id}</h2>{_notes(feature, shown)}</div>'
        kept = dataclasses.replace(feature, examples=list(_examples(feature)))
        n_tokens = int(dictionary.info["n_indexed_tokens"])
        sections.append(render.feature_page(kept, n_tokens, link, heading, says))
        rows.append(_row(feature))
    return sections, rows


def _examples(feature: Feature) -> Iterator[Any]:
    for example in feature.examples:
        if example.rank < (STRONGEST if example.stratum == 0 else WEAKER):
            yield example


def _notes(feature: Feature, shown: NamedList | None) -> str:
    notes = [entry for entry in shown.entries if entry.feature == feature.id and entry.note] if shown else []
    return "".join(f'<span class="muted small">{escape(e.note)} ({escape(e.author)})</span>' for e in notes)


def _row(feature: Feature) -> dict[str, Any]:
    return {
        "feature": feature.id,
        "explanation": feature.explanation,
        "density": feature.density,
        "maximum": feature.max_activation,
        "promotes": [entry.token for entry in feature.top_logits[:CHIPS]],
        "is_dead": feature.is_dead,
    }


def _index(rows: Sequence[dict[str, Any]], pages: dict[int, str] | str) -> str:
    """The table of all features, which the script searches and sorts; cells carry what they sort by."""
    densest = max((row["density"] for row in rows), default=0.0) or 1.0
    lines = []
    for row in rows:
        number = row["feature"]
        page = pages if isinstance(pages, str) else pages[number]
        says = '<span class="muted">never fired</span>' if row["is_dead"] else explained(row["explanation"])
        cells = (
            (number, "id", f'<a href="{escape(page)}#f{number}">{number}</a>'),
            (row["explanation"][:60], "", says),
            (row["density"], "num", f"{row['density']:.3%}{bar((row['density'] / densest) ** 0.5)}"),
            (f"{row['maximum']:.6g}", "num", f"{row['maximum']:.3g}"),
            (" ".join(row["promotes"]), "", " ".join(chip(token) for token in row["promotes"])),
        )
        shown = "".join(f'<td class="{kind}" data-by="{escape(by)}">{cell}</td>' for by, kind, cell in cells)
        lines.append(f"<tr>{shown}</tr>")
    names = ("Feature", "Explanation", "Density", "Maximum", "Promotes")
    kinds = ("", "", "num", "num", "")
    head = "".join(
        f'<th class="{kind}"><button type="button">{name}</button></th>'
        for name, kind in zip(names, kinds, strict=True)
    )
    return (
        '<section><div class="head"><input id="words" type="search" placeholder="Words or tokens to look for" '
        'aria-label="Search" autocomplete="off"><span class="muted small" id="found"></span></div>'
        f'<div class="card scrolls"><table class="list index"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _head(dictionary: Dictionary, n: int, shown: NamedList | None) -> str:
    from features.sharing.reading import partial_events

    info = dictionary.info
    source = escape(f"{Path(str(info['model']['name'])).name} · {info['site']}")
    title = escape(dictionary.name if shown is None else shown.name)
    what = f"{n:,} of {dictionary.n_features:,} features" if n < dictionary.n_features else f"{n:,} features"
    lead = f"{what} of a sparse dictionary, read off {info['n_tokens']:,} tokens of text."
    note = f"<p class='note'>{escape(shown.note)}</p>" if shown and shown.note else ""
    partial = partial_events(info)
    note += f"<p class='note'>{escape(partial)}.</p>" if partial else ""
    by = f" · list by {escape(shown.author)}, {escape(shown.time[:10])}" if shown else ""
    return (
        f"<header class='stack'><h3>Glassbox · {source}{by}</h3><h1>{title}</h1><p class='lead'>{lead} "
        f"A token's colour is the feature's activation on it, as a share of the feature's maximum.</p>{note}</header>"
    )


def _around(dictionary: Dictionary, names: Sequence[str], number: int) -> str:
    before = f'<a href="{names[number - 1]}">← Previous</a>' if number else ""
    after = f'<a href="{names[number + 1]}">Next →</a>' if number + 1 < len(names) else ""
    back = f'<a href="index.html">{escape(dictionary.name)}: all features</a>'
    return f'<div class="head">{back}<nav class="nav">{before}{after}</nav></div>'


def _title(dictionary: Dictionary, features: Sequence[int]) -> str:
    return f"{dictionary.name}: feature {features[0]}" if len(features) == 1 else f"{dictionary.name}: features"


def _script() -> str:
    return html.asset("pages.js")
