"""The list of features: pages of it, and what a search finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ui.render import feature as render
from ui.render.html import escape
from ui.views.shelf import find

if TYPE_CHECKING:
    from features import Dictionary

PAGE_FEATURES = 50
ORDERS = {
    "Number": "feature",
    "Frequent first": "density",
    "Rare first": "rare",
    "Maximum": "max_activation",
    "Score": "score",
    "Random": "random",
}
SHOWN = ("Live", "Silent", "All")


def feature_list(
    dictionary: Dictionary, query: str, order: str, shown: str, page: int, name: str
) -> tuple[str, int, int]:
    """Returns the list, the page it is (from 0), and how many pages there are."""
    link = render.linker(name)
    if query.strip():
        found = find(dictionary, query.strip(), PAGE_FEATURES)
        told = f"{len(found)} found" if len(found) < PAGE_FEATURES else f"the best {len(found)}"
        head = f'<p class="muted small">{told} for <b>{escape(query.strip())}</b></p>'
        return f'<div class="gb">{head}{render.feature_list(found, link)}</div>', 0, 1
    page = max(page, 0)
    for start in (page * PAGE_FEATURES, 0):
        if shown == "Silent":
            total, rows = _silent(dictionary, start)
        else:
            by = ORDERS.get(order, "feature")
            listed = dictionary.features(order=by, live_only=shown == "Live", limit=PAGE_FEATURES, offset=start)
            total, rows = listed.total, listed.features
        if rows:
            break
        page = 0
    pages = max(-(-total // PAGE_FEATURES), 1)
    return f'<div class="gb">{render.feature_list(rows, link)}</div>', page, pages


def _silent(dictionary: Dictionary, start: int) -> tuple[int, list[dict[str, Any]]]:
    rows = dictionary.sql(
        "select feature, density, max_activation, is_dead from features where is_dead "
        f"order by feature limit {PAGE_FEATURES} offset {start}"
    )
    return dictionary.info["n_features"] - dictionary.info["n_live"], rows.to_pylist()
