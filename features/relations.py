"""What features have to do with tokens, places and other features: the small tables of a feature's page.

Enters: an opened store and a feature, or a range of them. Leaves: the fields of `features.records.Feature` that
come from these tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from features.records import Boundary, Coactivation, LogitToken, Neighbour, PositionBin
from features.store import Store

Relations = dict[str, list[Any]]


def relations_of(store: Store, feature: int) -> Relations:
    """Logits, neighbours, co-activations, positions and boundaries of a feature, by the names of its record's fields.

    Tables that came after a dictionary was built give empty lists.
    """
    return relations_between(store, feature, feature)[feature]


def relations_between(store: Store, low: int, high: int) -> dict[int, Relations]:
    """The same of all features from `low` to `high`, asked together."""
    found: dict[int, Relations] = {feature: {} for feature in range(low, high + 1)}

    def take(field: str, make: Callable[..., Any], columns: str, table: str, order: str, side: str = "") -> None:
        for relations in found.values():
            relations[field] = []
        only = f"and side = '{side}'" if side else ""
        query = (
            f"select feature as owner, {columns} from {table} where feature between ? and ? {only} "
            f"order by owner {order}"
        )
        for row in store.query(query, [low, high]).to_pylist():
            found[row.pop("owner")][field].append(make(**row))

    for field, table in (("logits", "logits"), ("normed_logits", "normed_logits")):
        for side in ("top", "bottom"):
            take(f"{side}_{field}", LogitToken, "token, token_id, logit", table, ", rank", side)
    for field in ("neighbours", "encoder_neighbours"):
        take(field, Neighbour, "neighbour as feature, cosine", field, ", rank")
    take("coactivations", Coactivation, "neighbour as feature, jaccard, count, pmi", "coactivations", ", rank")
    columns = "low, high, tokens, count, density, mean_activation"
    take("positions", PositionBin, columns, "position_profiles", ", bin")
    take("boundaries", Boundary, "place, count, share, base_share", "boundaries", "")
    return found
