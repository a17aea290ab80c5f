"""Many features at once, as `Dictionary.feature` gives them one by one, without asking anew for each.

Enters: an opened dictionary and numbers of features. Leaves: `Feature` records in the same order. Consecutive numbers
are read together: one question to each table, one read of their events.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from features.dictionary import CONTEXT_AFTER, CONTEXT_BEFORE, Dictionary
from features.events import read_events
from features.feature_rows import FeatureEvents
from features.labels import Explanation
from features.records import Feature, histogram_of
from features.relations import relations_between
from features.store import SHOWN_AFTER, SHOWN_BEFORE

RUN_FEATURES = 128
RUN_EVENTS = 1_500_000
TOKENS_SHOWN = 20


def select_features(
    dictionary: Dictionary, features: Iterable[int] | None = None, name: str | None = None
) -> list[int]:
    """The features to share: those given, those on the list `name`, or all.

    Raises:
        ValueError: both were given, a feature that does not exist, an unknown list, or nothing at all.
    """
    if features is not None and name is not None:
        raise ValueError(f"features and the list {name!r} were both given, expected one of them: leave one out")
    if features is None and name is None:
        return list(range(dictionary.n_features))
    wanted = dictionary.lists.get(name).features if name is not None else list(features or [])
    found = list(dict.fromkeys(dictionary.check_feature(feature) for feature in wanted))
    if not found:
        what = f"the list {name!r} is empty" if name is not None else "no feature was named"
        raise ValueError(f"{what}, expected at least one feature: name some")
    return found


def identity(info: dict[str, Any]) -> dict[str, Any]:
    """What makes feature numbers of two dictionaries mean the same: the SAE's weights and kind, the model's weights."""
    weights = info["files"].get("sae/sae_weights.safetensors", {}).get("sha256")
    encoding = [info["sae"].get("architecture"), info["sae"].get("k"), info.get("sites"), info.get("target_sites")]
    kind = hashlib.sha256(json.dumps(encoding).encode()).hexdigest()[:16]
    return {"sae": weights, "kind": kind, "model": info["model"]["weight_hash"], "n_features": info["n_features"]}


def partial_events(info: Mapping[str, Any]) -> str | None:
    """What is less than in a dictionary of all events, in a sentence; None where nothing is."""
    if info.get("events", "all") == "all":
        return None
    return (
        f"{info['n_kept_events']:,} of {info['n_events']:,} events are kept, those around examples: statistics and "
        f"examples are of all, no example shows more than {SHOWN_BEFORE} tokens before and {SHOWN_AFTER} after"
    )


def read_features(
    dictionary: Dictionary, features: Sequence[int], before: int = CONTEXT_BEFORE, after: int = CONTEXT_AFTER
) -> Iterator[Feature]:
    """Yields features with all that the dictionary knows of them; examples with that many tokens around."""
    facts = dictionary.store.query("select * from features order by feature").to_pylist()
    bounds = dictionary.store.event_bounds()
    start = 0
    while start < len(features):
        low, stop = features[start], start + 1
        while stop < len(features) and stop - start < RUN_FEATURES and features[stop] == features[stop - 1] + 1:
            if bounds[features[stop] + 1] - bounds[low] > RUN_EVENTS:
                break
            stop += 1
        high = features[stop - 1] + 1
        yield from _read_run(dictionary, facts[low:high], bounds[low : high + 1], before, after)
        start = stop


def _read_run(
    dictionary: Dictionary, run: list[dict[str, Any]], rows: np.ndarray, before: int, after: int
) -> Iterator[Feature]:
    """Features with consecutive numbers; `rows` [n + 1] bound their events."""
    store = dictionary.store
    bounds = {"low": run[0]["feature"], "high": run[-1]["feature"]}

    def ask(question: str) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in store.query(question, bounds).to_pylist():
            found[row["feature"]].append(row)
        return found

    of = "where feature between $low and $high"
    bins = ask(f"select feature, low, high, count from histograms {of} order by bin")
    relations = relations_between(store, bounds["low"], bounds["high"])
    tokens = ask(
        f"""select feature, token, mass, feature_tokens.count as n from feature_tokens join vocabulary using (token_id)
        {of} qualify row_number() over (partition by feature order by mass desc) <= {TOKENS_SHOWN} order by mass desc"""
    )
    examples = ask(f"select * from examples {of} order by stratum, rank")
    labels = ask(f"select * from labels {of} order by created desc, rowid desc")
    written = ask(f"select * from explanations {of} order by score desc nulls last, rowid")
    events = read_events(store.build / "events.parquet", int(rows[0]), int(rows[-1]))
    for number, row in enumerate(run):
        feature = row["feature"]
        place = slice(rows[number] - rows[0], rows[number + 1] - rows[0])
        columns = {"document": events.documents, "position": events.positions, "activation": events.activations}
        own = FeatureEvents.of({name: column[place] for name, column in columns.items()})
        said = [Explanation(e["text"], "label", None, e["author"], e["created"]) for e in labels[feature]]
        said += [
            Explanation(e["text"], e["method"], e["score"], e["author"], e["created"], e["rule"])
            for e in written[feature]
        ]
        yield Feature(
            id=feature,
            density=row["density"],
            mean_activation=row["mean_activation"],
            std_activation=row["std_activation"],
            max_activation=row["max_activation"],
            count=row["count"],
            documents=row["documents"],
            is_dead=row["is_dead"],
            decoder_norm=row["decoder_norm"],
            histogram=histogram_of(bins[feature]),
            examples=dictionary.examples_at(feature, own, before, after, examples[feature]),
            **relations[feature],
            explanations=said,
            tokens=[(r["token"], r["mass"], r["n"]) for r in tokens[feature]],
        )
