"""The dictionary as a picture: features that point in similar directions stand close, and form clusters.

Enters: decoder rows of live features. Leaves: the table `feature_map` beside people's labels (the build never changes),
and a `FeatureMap`.

1. UMAP (McInnes, Healy and Melville 2018) of the decoder rows by cosine, into a plane. It starts from the rows' two
   principal components and draws by seed, so that a machine gives the same map again.
2. HDBSCAN (Campello, Moulavi and Sander 2013) on the plane: clusters are dense places of the picture, numbered from the
   largest; what lies between them is in none (−1).
3. A cluster is told by the tokens that hold a larger share of its features' activation than of all features'.

Distances in the plane are a picture, not a measure: for measured closeness there are the tables of neighbours.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from features import labels, schema
from features.store import Store

if TYPE_CHECKING:
    from features.dictionary import Dictionary

NEAREST = 15
"""Neighbours of each feature whose nearness the plane keeps."""
FEWEST = 10
"""Features below which there is nothing to draw."""
CLUSTER_DENSITY = 5
"""Neighbours on the plane by whose distance a place counts as dense."""
CLUSTER_TOKENS = 3


@dataclass(frozen=True)
class Cluster:
    """Features that stand close on the map."""

    cluster: int
    """0 is the largest."""
    features: int
    tokens: list[str]
    """Tokens that tell it apart, from the most telling."""


@dataclass(frozen=True)
class FeatureMap:
    """Places of the live features on a plane, one entry of each list for a feature."""

    features: list[int]
    x: list[float]
    y: list[float]
    cluster: list[int]
    """−1: in none."""
    explanations: list[str]
    clusters: list[Cluster]

    def rows(self) -> list[dict[str, Any]]:
        """The clusters, largest first."""
        return [asdict(cluster) for cluster in self.clusters]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


def feature_map(dictionary: Dictionary, seed: int = 0, again: bool = False) -> FeatureMap:
    """The map that stands beside the labels; makes and keeps one where there is none of this build, or `again`.

    Raises:
        ImportError: a map is to be made, and umap-learn is not installed.
        ValueError: fewer than `FEWEST` live features.
    """
    store = dictionary.store
    live = store.query("select feature from features where not is_dead order by feature")["feature"].to_numpy()
    stored = store.query("select feature from feature_map order by feature")["feature"].to_numpy()
    if again or not np.array_equal(stored, live):
        if live.size < FEWEST:
            raise ValueError(
                f"dictionary {dictionary.name} has {live.size} live features, expected at least {FEWEST} for a map: "
                "index more text, or another SAE"
            )
        place, cluster = lay_out(dictionary.sae.W_dec.detach().float().cpu().numpy()[live], seed)
        columns = [live, place[:, 0], place[:, 1], cluster, [seed] * live.size, [labels.now()] * live.size]
        rows = pa.table(columns, schema=schema.TABLES["feature_map"].arrow_schema())
        store.write_labels("feature_map", rows, replace_where="true")
    return _read(dictionary)


def stored_map(dictionary: Dictionary) -> FeatureMap | None:
    """The map where one of this build was made; None, without making it, where there is none."""
    store = dictionary.store
    live = store.query("select feature from features where not is_dead order by feature")["feature"].to_numpy()
    stored = store.query("select feature from feature_map order by feature")["feature"].to_numpy()
    return _read(dictionary) if stored.size and np.array_equal(stored, live) else None


def _read(dictionary: Dictionary) -> FeatureMap:
    store = dictionary.store
    points = store.query("select feature, x, y, cluster from feature_map order by feature").to_pydict()
    says = dictionary.explanations_of(points["feature"])
    return FeatureMap(
        features=points["feature"],
        x=points["x"],
        y=points["y"],
        cluster=points["cluster"],
        explanations=[says.get(feature, "") for feature in points["feature"]],
        clusters=_clusters(store),
    )


def lay_out(directions: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places float32 [n, 2] and clusters int32 [n] of n directions."""
    try:
        import umap  # pyright: ignore[reportMissingImports]
        from sklearn.cluster import HDBSCAN  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"a map needs umap-learn, which cannot be imported ({error}), expected it beside this package: "
            "install the extra with `pip install 'glassbox-sae[map]'`"
        ) from None
    nearest = min(NEAREST, len(directions) - 1)
    # with a seed it works in one thread, and says so unless asked for one
    plane = umap.UMAP(n_neighbors=nearest, metric="cosine", init="pca", random_state=seed, n_jobs=1)
    place = np.asarray(plane.fit_transform(directions), dtype=np.float32)
    # the leaves of the tree: many small clusters say more than a few that hold half the map
    clustering = HDBSCAN(
        min_cluster_size=smallest_cluster(len(directions)),
        min_samples=CLUSTER_DENSITY,
        cluster_selection_method="leaf",
        copy=True,  # pyright: ignore[reportArgumentType]  (taken from the default, "warn")
    )
    found = clustering.fit_predict(place)
    return place, by_size(found)


def smallest_cluster(n_features: int) -> int:
    """Features that make a cluster, which grow with the map as its root."""
    return max(5, round(n_features**0.5 / 4))


def by_size(clusters: np.ndarray) -> np.ndarray:
    """Numbers clusters from the largest, equal ones by their first feature; −1 stays."""
    known, first, counts = np.unique(clusters, return_index=True, return_counts=True)
    order = [i for i in np.lexsort((first, -counts)) if known[i] >= 0]
    number = {int(known[i]): place for place, i in enumerate(order)} | {-1: -1}
    return np.array([number[int(cluster)] for cluster in clusters], dtype=np.int32)


def _clusters(store: Store) -> list[Cluster]:
    sizes = store.query("select cluster, count(*) as n from feature_map where cluster >= 0 group by cluster order by 1")
    tokens = store.query(
        """with held as (
            select cluster, token_id, sum(mass) as mass
            from feature_tokens join feature_map using (feature) group by all
        ), sizes as (select cluster, count(*) as n from feature_map group by cluster),
        everywhere as (select token_id, sum(mass) / (select count(*) from feature_map) as share from held group by all),
        telling as (
            select cluster, token_id, mass / n - share as more
            from held join sizes using (cluster) join everywhere using (token_id) where cluster >= 0
        )
        select cluster, token from telling join vocabulary using (token_id)
        qualify row_number() over (partition by cluster order by more desc, token_id) <= ?
        order by cluster, more desc, token_id""",
        [CLUSTER_TOKENS],
    )
    told: dict[int, list[str]] = {}
    for row in tokens.to_pylist():
        told.setdefault(row["cluster"], []).append(row["token"])
    return [Cluster(row["cluster"], row["n"], told.get(row["cluster"], [])) for row in sizes.to_pylist()]
