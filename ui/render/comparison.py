"""The page and the tables that show two dictionaries beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ui.render import html
from ui.render.html import escape, explained, highlighted
from ui.render.report import write_page
from ui.render.tables import records_table

if TYPE_CHECKING:
    from features.comparison_records import Comparison, PairedExample

LISTED = 100
"""Relations of each kind on the page; the JSON beside it holds all."""
SHOWN = 8
"""Relations of each kind in the terminal."""
WHAT = {
    "matched": (
        "Features that both have: each the other's nearest by direction, and active at the same tokens. Share is the "
        "part of the dictionary's summed activation (times decoder norm) that is theirs."
    ),
    "changed": (
        "Features of one SAE, or matched ones, read in the two models over the same text: what moved most first."
    ),
    "unique": (
        "Neither a direction nor events like these in the other dictionary. Covered is the share of the activation at "
        "tokens where up to eight features of the other are active that are mostly active there: high where it has the "
        "feature in pieces, low where it has nothing of the kind."
    ),
    "splits": (
        "One feature's events, divided among several of the other dictionary. Precision: share of the part's events "
        "inside the whole's; recall: share of the whole's events at which the part is active."
    ),
    "absorptions": (
        "A general feature whose counterpart is silent exactly where a more specific one of its own dictionary is "
        "active, and active elsewhere: the specific one has taken over the general one's work there."
    ),
}


def write_comparison_report(result: Comparison, path: Path) -> Path:
    """Writes the page of a comparison, and all of it as JSON beside it; returns the page's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path.with_suffix(".json"), result.to_json() + "\n")
    return write_page(path, comparison_page(result))


def comparison_page(result: Comparison) -> str:
    """Returns the page of a comparison."""
    notes = "".join(f'<p class="notice">{escape(note)}</p>' for note in result.notes)
    text = f"{result.shared_tokens:,} tokens of {result.shared_documents:,} documents"
    facts = {"matched by": result.by, "indexed by both": text}
    if result.stability is not None:
        facts["MCC, one to one"] = f"{result.stability['mcc']:.3f}"
    body = (
        f'<header class="stack"><h3>Glassbox</h3><h1>Two dictionaries</h1>{_sides(result)}{html.facts(facts)}{notes}'
        f"{_summary(result)}</header>{_matched(result)}{_unique(result)}{_splits(result)}{_absorptions(result)}"
    )
    return html.page("Glassbox: comparison", body)


def comparison_tables(result: Comparison) -> list[Table]:
    """Returns the figures of a comparison, and the first relations of each kind, for the terminal."""
    title = (
        f"a: {result.a.name}   b: {result.b.name}   ({result.shared_tokens:,} shared tokens, matched by {result.by})"
    )
    found = [records_table(title, result.summary())]
    if result.notes:
        found.append(records_table("", [{"note": note} for note in result.notes]))
    rows = [
        {"a": match.a, "b": match.b, "cosine": short(match.cosine), "correlation": short(match.correlation)}
        | {"share": percent(match.share_a)}
        | (_shift_cells(match.shift) if match.shift is not None else {})
        | {"explanation": match.explanation_a or match.explanation_b}
        for match in result.matched[:SHOWN]
    ]
    found += listing("Matched", rows, len(result.matched))
    rows = [
        {"in": entry.side, "feature": entry.feature, "share": percent(entry.share), "cosine": short(entry.cosine)}
        | {"correlation": short(entry.correlation), "covered": percent(entry.covered)}
        | {"explanation": entry.explanation}
        for entry in result.unique[:SHOWN]
    ]
    found += listing("Unique", rows, len(result.unique))
    rows = [
        {"in": split.side, "feature": split.feature, "parts": ", ".join(str(part.feature) for part in split.parts)}
        | {"coverage": percent(split.coverage), "share": percent(split.share), "explanation": split.explanation}
        for split in result.splits[:SHOWN]
    ]
    found += listing("Split by the other", rows, len(result.splits))
    rows = [
        {"in": entry.side, "feature": entry.feature, "counterpart": entry.counterpart, "absorber": entry.absorber}
        | {"silent": percent(entry.silent), "elsewhere": percent(entry.active_elsewhere)}
        | {"explanation": entry.explanation, "absorber is": entry.absorber_explanation}
        for entry in result.absorptions[:SHOWN]
    ]
    return found + listing("Absorbed in the other", rows, len(result.absorptions))


def listing(title: str, rows: Sequence[dict[str, Any]], total: int) -> list[Table]:
    """Returns a table of the first of several relations, or nothing where there is none."""
    more = f" (first {len(rows)} of {total:,}; all with --json or --out)" if total > len(rows) else ""
    return [records_table(title + more, rows)] if rows else []


def _sides(result: Comparison) -> str:
    rows = []
    for side, facts in (("a", result.a), ("b", result.b)):
        rows.append(
            {"side": side, "name": escape(facts.name), "model": escape(facts.model), "site": escape(facts.site)}
            | {"kind": escape(facts.architecture), "features": f"{facts.live:,} of {facts.n_features:,}"}
        )
    columns = {"side": "", "name": "dictionary", "model": "model", "site": "site", "kind": "kind", "features": "live"}
    return f'<div class="card scrolls">{html.table(columns, rows, "tight", ["features"])}</div>'


def _summary(result: Comparison) -> str:
    rows = [
        {"figure": escape(row["figure"])} | {side: figure(row["figure"], row[side]) for side in ("a", "b")}
        for row in result.summary()
    ]
    return f'<div class="card">{html.table({"figure": "", "a": "a", "b": "b"}, rows, "tight", ["a", "b"])}</div>'


def figure(name: str, value: Any) -> str:
    """Returns a figure of the summary as text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1%}" if name.startswith("share") else f"{value:.3f}"
    return f"{value:,}"


def _matched(result: Comparison) -> str:
    if not result.matched:
        return ""
    has_shifts = any(match.shift is not None for match in result.matched)
    entries = []
    for match in result.matched[:LISTED]:
        figures = {"cosine": short(match.cosine), "correlation": short(match.correlation)}
        figures |= {"Jaccard": short(match.jaccard), "share in a": percent(match.share_a)}
        figures |= {"share in b": percent(match.share_b)}
        figures |= {"density": f"a {match.density_a:.2%}, b {match.density_b:.2%}"}
        if match.shift is not None:
            figures |= _shift_cells(match.shift)
        says = explained(match.explanation_a)
        if match.explanation_b and match.explanation_b != match.explanation_a:
            says += f' <span class="muted">b:</span> {explained(match.explanation_b)}'
        entries.append(entry_card(f"a {match.a} = b {match.b}", says, figures, match.examples))
    heading = "What changed" if has_shifts else "Matched"
    return section(heading, WHAT["changed" if has_shifts else "matched"], entries, len(result.matched))


def _unique(result: Comparison) -> str:
    parts = []
    for side, name in (("a", result.a.name), ("b", result.b.name)):
        found = [entry for entry in result.unique if entry.side == side]
        other = "b" if side == "a" else "a"
        entries = []
        for entry in found[:LISTED]:
            figures = {"share": percent(entry.share), "density": f"{entry.density:.3%}"}
            if entry.nearest is not None:
                figures["closest direction"] = f"{other} {entry.nearest}, {short(entry.cosine)}"
            if entry.companion is not None:
                figures["closest events"] = f"{other} {entry.companion}, {short(entry.correlation)}"
            if entry.covered is not None:
                figures["covered"] = percent(entry.covered)
            entries.append(entry_card(f"{side} {entry.feature}", explained(entry.explanation), figures, entry.examples))
        if entries:
            parts.append(section(f"Only in {side}, {name}", WHAT["unique"], entries, len(found)))
    return "".join(parts)


def _splits(result: Comparison) -> str:
    entries = []
    for split in result.splits[:LISTED]:
        other = "b" if split.side == "a" else "a"
        figures = {"coverage": percent(split.coverage), "direction in their span": percent(split.in_span)}
        figures |= {"share": percent(split.share), "density": f"{split.density:.3%}"}
        rows = [
            {"feature": f"{other} {part.feature}", "says": explained(part.explanation)}
            | {"precision": percent(part.precision), "recall": percent(part.recall), "cosine": short(part.cosine)}
            for part in split.parts
        ]
        columns = {"feature": "part", "says": "", "precision": "precision", "recall": "recall", "cosine": "cosine"}
        parts = html.table(columns, rows, "tight", ["precision", "recall", "cosine"])
        title = f"{split.side} {split.feature}"
        entries.append(entry_card(title, explained(split.explanation), figures, split.examples, parts))
    return section("Splits", WHAT["splits"], entries, len(result.splits)) if entries else ""


def _absorptions(result: Comparison) -> str:
    entries = []
    for entry in result.absorptions[:LISTED]:
        other = "b" if entry.side == "a" else "a"
        figures = {"absorbed events": f"{entry.events:,}", "counterpart silent there": percent(entry.silent)}
        figures |= {"active elsewhere": percent(entry.active_elsewhere), "of all its events": percent(entry.recall)}
        figures |= {"cosine of the absorber": short(entry.absorber_cosine)}
        figures |= {"cosine of the counterpart": short(entry.counterpart_cosine)}
        rows = [
            {"role": "counterpart", "feature": f"{other} {entry.counterpart}"}
            | {"says": explained(entry.counterpart_explanation)},
            {"role": "absorber", "feature": f"{other} {entry.absorber}", "says": explained(entry.absorber_explanation)},
        ]
        parts = html.table({"role": "", "feature": "", "says": ""}, rows, "tight")
        title = f"{entry.side} {entry.feature}"
        entries.append(entry_card(title, explained(entry.explanation), figures, entry.examples, parts))
    return section("Absorptions", WHAT["absorptions"], entries, len(result.absorptions)) if entries else ""


def section(heading: str, text: str, entries: Sequence[str], total: int) -> str:
    """Returns a part of the page: what its entries are, and how many are not shown."""
    more = f" The first {len(entries):,} of {total:,}; the JSON file has all." if total > len(entries) else ""
    lead = f'<p class="muted">{escape(text + more)}</p>'
    return (
        f'<section class="stack"><h2>{escape(heading)}</h2>{lead}<div class="card">{"".join(entries)}</div></section>'
    )


def entry_card(
    title: str,
    says: str,
    figures: dict[str, str],
    examples: Sequence[PairedExample],
    parts: str = "",
    texts: str = "",
    linked: bool = False,
) -> str:
    """Returns one relation: its figures, what it says, and its texts, folded; a title that is `linked` is HTML."""
    told = " · ".join(f"{escape(name)} {escape(value)}" for name, value in figures.items() if value)
    texts += "".join(_example(example) for example in examples)
    name = title if linked else escape(title)
    shown = f"<details><summary class='small muted'>text</summary>{texts}</details>" if texts else ""
    return (
        f'<div class="example"><div class="head"><b>{name}</b><span class="small muted">{told}</span></div>'
        f'<div class="small">{says}</div>{parts}{shown}</div>'
    )


def _example(example: PairedExample) -> str:
    lines = "".join(
        f'<div class="source"><span>{escape(name.replace(":", " "))}</span></div>'
        + highlighted(example.tokens, activations, 1.0, peak=example.center, unit="share")
        for name, activations in example.activations.items()
    )
    return f'<div class="example"><div class="source"><span>{escape(example.document_name)}</span></div>{lines}</div>'


def _shift_cells(shift: Any) -> dict[str, str]:
    return {
        "density shift": f"{shift.density:+.3%} ({shift.density_low:+.3%} to {shift.density_high:+.3%})",
        "mean shift": f"{shift.mean:+.3g} ({shift.mean_low:+.3g} to {shift.mean_high:+.3g})",
        "changed": "yes" if shift.is_change else "",
    }


def short(value: float | None) -> str:
    """Returns a figure between −1 and 1 as text; nothing for None."""
    return "" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """Returns a share as text; nothing for None."""
    return "" if value is None else f"{value:.2%}" if value < 0.1 else f"{value:.0%}"
