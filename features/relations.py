"""What features have to do with tokens, places and other features: the small tables of a feature's page.

Enters: the rows of a feature (`features.feature_rows`), or an opened store and a range of features. Leaves: the fields
of `features.records.Feature` that come from these tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from features.feature_rows import FeatureRows, records
from features.records import Boundary, Coactivation, LogitToken, Neighbour, PositionBin
from features.schema import OPTIONAL
from features.store import Store

LOGITS = ("side", "token_id", "logit")
NEIGHBOURS = ("neighbour", "cosine")
TABLES = {
    "logit_ids": LOGITS,
    "normed_logit_ids": LOGITS,
    "neighbours": NEIGHBOURS,
    "encoder_neighbours": NEIGHBOURS,
    "coactivations": ("neighbour", "jaccard", "count", "pmi"),
    "position_profiles": ("low", "high", "tokens", "count", "density", "mean_activation"),
    "boundaries": ("place", "count", "share", "base_share"),
}
"""Their columns in the order of the records' fields; rows stand in the order that the page shows."""
PAGE = {
    "features": (
        *("density", "mean_activation", "std_activation", "max_activation", "count", "documents", "is_dead"),
        "decoder_norm",
    ),
    "histograms": ("low", "high", "count"),
    "page_tokens": ("token_id", "mass", "count"),
}
EXAMPLE = ("stratum", "rank", "document", "position", "activation")
PAGE_TABLES = {**PAGE, "examples": EXAMPLE, **TABLES}
"""All that a page takes from tables that are ordered by feature (`features.pages`)."""

Relations = dict[str, list[Any]]


def relations_of(rows: FeatureRows, vocabulary: list[str], feature: int) -> dict[str, Any]:
    """Logits, neighbours, co-activations, positions and boundaries of a feature, by the names of its record's fields.

    Tables that came after a dictionary was built give empty lists.
    """
    found: dict[str, Any] = rows.rows(
        feature, {name: of for name, of in TABLES.items() if name not in OPTIONAL or rows.has(name)}
    )

    def kept(table: str, kind: Any) -> list[Any]:
        return [kind(*row) for row in records(found[table])] if table in found else []

    def side(table: str, name: str) -> list[LogitToken]:
        listed = records(found[table]) if table in found else ()
        return [
            LogitToken(vocabulary[int(token)], int(token), float(logit)) for at, token, logit in listed if at == name
        ]

    return {
        "top_logits": side("logit_ids", "top"),
        "bottom_logits": side("logit_ids", "bottom"),
        "top_normed_logits": side("normed_logit_ids", "top"),
        "bottom_normed_logits": side("normed_logit_ids", "bottom"),
        "neighbours": kept("neighbours", Neighbour),
        "encoder_neighbours": kept("encoder_neighbours", Neighbour),
        "coactivations": kept("coactivations", Coactivation),
        "positions": kept("position_profiles", PositionBin),
        "boundaries": kept("boundaries", Boundary),
    }


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
