"""The page and the tables that show two models as a crosscoder sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from ui.render import html
from ui.render.comparison import LISTED, SHOWN, entry_card, listing, percent, section, short
from ui.render.html import escape, explained, highlighted
from ui.render.report import write_page
from ui.render.tables import records_table

if TYPE_CHECKING:
    from features.crosscoder_comparison import ModelComparison

MODEL_KINDS = {
    "vanished": (
        "Written in the first model alone. Nearest is the largest cosine with any feature's block in the second model: "
        "where it is high, the penalty may have split one feature in two."
    ),
    "appeared": "Written in the second model alone. Nearest as above, in the first model.",
    "turned": "Written in both, along other directions.",
    "between": "Written in both, much more in one.",
    "shared": "Written in both, along much the same direction.",
}


def write_models_report(result: ModelComparison, path: Path) -> Path:
    """Writes the page of two models, and all of it as JSON beside it; returns the page's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path.with_suffix(".json"), result.to_json() + "\n")
    return write_page(path, models_page(result))


def models_tables(result: ModelComparison) -> list[Table]:
    """Returns the kinds of features, and the first of each, for the terminal."""
    found = [records_table(f"{result.first} and {result.second}, by {result.name}", result.summary())]
    for kind in MODEL_KINDS:
        entries = [entry for entry in result.features if entry.kind == kind]
        rows = [
            {"feature": entry.feature, "relative norm": short(entry.relative_norm), "cosine": short(entry.cosine)}
            | {"nearest": short(entry.nearest), "density": f"{entry.density:.3%}", "share": percent(entry.share)}
            | {"explanation": entry.explanation}
            for entry in entries[:SHOWN]
        ]
        found += listing(kind.capitalize(), rows, len(entries))
    return found


def models_page(result: ModelComparison) -> str:
    """Returns the page of two models."""
    summary = [
        {"kind": row["kind"], "features": f"{row['features']:,}", "share": percent(row["share"])}
        for row in result.summary()
    ]
    columns = {"kind": "", "features": "features", "share": "share of activation"}
    figures = html.table(columns, summary, "tight", ["features", "share"])
    sections = []
    for kind, lead in MODEL_KINDS.items():
        entries = [entry for entry in result.features if entry.kind == kind]
        shown = []
        for entry in entries[:LISTED]:
            told = {"relative norm": short(entry.relative_norm), "cosine of the blocks": short(entry.cosine)}
            told |= {"nearest in the other model": short(entry.nearest), "share": percent(entry.share)}
            told |= {"density": f"{entry.density:.3%}"}
            scale = entry.max_activation
            texts = "".join(
                f'<div class="example"><div class="source"><span>{escape(example.document_name)}</span></div>'
                f"{highlighted(example.tokens, example.activations, scale, peak=example.center)}</div>"
                for example in entry.examples
            )
            shown.append(entry_card(f"feature {entry.feature}", explained(entry.explanation), told, [], "", texts))
        if shown:
            sections.append(section(kind.capitalize(), lead, shown, len(entries)))
    facts = html.facts({"first model": result.first, "second model": result.second, "crosscoder": result.name})
    head = (
        f'<header class="stack"><h3>Glassbox</h3><h1>Two models</h1>{facts}<div class="card">{figures}</div></header>'
    )
    return html.page("Glassbox: two models", head + "".join(sections))
