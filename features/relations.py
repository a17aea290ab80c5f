"""What one feature has to do with tokens, places and other features: the small tables of a feature's page.

Enters: an opened store and a feature. Leaves: the fields of `features.records.Feature` that come from these tables.
"""

from __future__ import annotations

from typing import Any

from features.records import Boundary, Coactivation, LogitToken, Neighbour, PositionBin
from features.store import Store


def relations_of(store: Store, feature: int) -> dict[str, list[Any]]:
    """Logits, neighbours, co-activations, positions and boundaries of a feature, by the names of its record's fields.

    Tables that came after a dictionary was built give empty lists.
    """

    def rows(query: str) -> list[dict[str, Any]]:
        return store.query(query, [feature]).to_pylist()

    def logits(table: str) -> tuple[list[LogitToken], list[LogitToken]]:
        sides: dict[str, list[LogitToken]] = {"top": [], "bottom": []}
        for row in rows(f"select side, token, token_id, logit from {table} where feature = ? order by rank"):
            sides[row.pop("side")].append(LogitToken(**row))
        return sides["top"], sides["bottom"]

    def neighbours(table: str) -> list[Neighbour]:
        found = f"select neighbour as feature, cosine from {table} where feature = ? order by rank"
        return [Neighbour(**row) for row in rows(found)]

    together = "select neighbour as feature, jaccard, count, pmi from coactivations where feature = ? order by rank"
    positions = """select low, high, tokens, count, density, mean_activation from position_profiles
        where feature = ? order by bin"""
    boundaries = "select place, count, share, base_share from boundaries where feature = ?"
    top, bottom = logits("logits")
    top_normed, bottom_normed = logits("normed_logits")
    return {
        "top_logits": top,
        "bottom_logits": bottom,
        "top_normed_logits": top_normed,
        "bottom_normed_logits": bottom_normed,
        "neighbours": neighbours("neighbours"),
        "encoder_neighbours": neighbours("encoder_neighbours"),
        "coactivations": [Coactivation(**row) for row in rows(together)],
        "positions": [PositionBin(**row) for row in rows(positions)],
        "boundaries": [Boundary(**row) for row in rows(boundaries)],
    }
