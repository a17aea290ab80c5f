"""What a dictionary is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ui.render import figures, html
from ui.render.html import escape

if TYPE_CHECKING:
    from features import Dictionary


def overview(dictionary: Dictionary) -> str:
    """Returns the strip over the feature list: what this dictionary is."""
    info = dictionary.info
    pairs = {
        "features": f"{info['n_features']:,}",
        "never fired": f"{info['n_features'] - info['n_live']:,}",
        "tokens of text": f"{info['n_tokens']:,}",
        "documents": f"{info['n_documents']:,}",
        "active per token": f"{info['n_events'] / max(info['n_indexed_tokens'], 1):.1f}",
    }
    model, architecture = str(info["model"]["name"]), str(info["sae"].get("architecture") or "sae")
    source = escape(f"{model.rstrip('/').rpartition('/')[2]} · {info['site']} · {architecture}")
    densities = dictionary.sql("select density from features where not is_dead")["density"].to_pylist()
    chart = figures.svg(figures.density_chart(densities), 120)
    return (
        f'<div class="gb"><div class="card overview"><div class="stack"><p class="muted small mono">{source}</p>'
        f'{html.facts(pairs)}</div><div class="wide-only">{chart}</div></div></div>'
    )
