"""The JSON document of an export: features with all that is known of them, and what people said, word for word.

Enters: an opened dictionary. Leaves: one file, a feature a line, whole or not at all

    {"format": "glassbox-features", "version": 1, "exported": time, "dictionary": {name, sites, model, identity, …},
     "features": [{"feature": 7, …}, …],
     "labels": […], "explanations": […], "scores": […], "lists": […], "list_names": […]}

The five last hold rows of the tables of these names, which `features.sharing.imports` reads back exactly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from activations.progress import progress
from features import schema
from features.dictionary import Dictionary
from features.labels import now
from features.records import Feature
from features.sharing.reading import identity, partial_events, read_features

FORMAT = "glassbox-features"
VERSION = 1
RELATIONS = (
    "encoder_neighbours",
    "coactivations",
    "positions",
    "boundaries",
    "top_normed_logits",
    "bottom_normed_logits",
)
"""Fields of a feature that are lists of named tuples, as `features.records` documents them."""


def write_json(dictionary: Dictionary, features: Sequence[int], out: Path, name: str | None = None) -> Path:
    """Writes the document of some features; of lists `name` alone where one is given. Returns its path."""
    info = dictionary.info
    head = {
        "format": FORMAT,
        "version": VERSION,
        "exported": now(),
        "dictionary": {key: info.get(key) for key in ("name", "sites", "n_features", "n_tokens", "n_documents", "sae")}
        | {"model": info["model"]["name"], "created": info["created"], "identity": identity(info)}
        | {"events": info.get("events", "all"), "partial": partial_events(info)},
    }
    with partial(out) as file, progress("export", len(features), "features") as advance:
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ',\n"features": [')
        for number, feature in enumerate(read_features(dictionary, features)):
            file.write(("," if number else "") + "\n" + json.dumps(feature_record(feature), ensure_ascii=False))
            advance(1)
        file.write("\n]")
        for table, rows in people_rows(dictionary, features, name).items():
            file.write(f',\n"{table}": [')
            file.write(",".join("\n" + json.dumps(row, ensure_ascii=False) for row in rows) + "]")
        file.write("}\n")
    return out


def feature_record(feature: Feature) -> dict[str, Any]:
    """A feature as JSON has it; numbers that are float32 in the dictionary with as many digits as tell them apart."""
    statistics = ("mean_activation", "std_activation", "max_activation", "decoder_norm")
    return {
        "feature": feature.id,
        "explanation": feature.explanation,
        "count": feature.count,
        "density": feature.density,
        **{name: short(getattr(feature, name)) for name in statistics},
        "documents": feature.documents,
        "is_dead": feature.is_dead,
        "histogram": {"edges": [short(x) for x in feature.histogram.edges], "counts": feature.histogram.counts},
        "tokens": [{"token": token, "share": short(share), "count": n} for token, share, n in feature.tokens],
        "top_logits": [{**entry._asdict(), "logit": short(entry.logit)} for entry in feature.top_logits],
        "bottom_logits": [{**entry._asdict(), "logit": short(entry.logit)} for entry in feature.bottom_logits],
        "neighbours": [{"feature": other, "cosine": short(cosine)} for other, cosine in feature.neighbours],
        **{name: [entry._asdict() for entry in getattr(feature, name)] for name in RELATIONS},
        "examples": [
            {key: value for key, value in asdict(example).items() if key != "feature"}
            | {"activation": short(example.activation), "activations": [short(x) for x in example.activations]}
            for example in feature.examples
        ],
    }


def people_rows(dictionary: Dictionary, features: Sequence[int], name: str | None) -> dict[str, list[dict[str, Any]]]:
    """Rows of the label tables about some features; with `name` of that list alone."""
    wanted = set(features)
    found: dict[str, list[dict[str, Any]]] = {}
    for table in schema.PEOPLE:
        if table.name == "feature_map":
            continue  # made from the dictionary, not said by people
        rows = dictionary.store.query(f'select * from "{table.name}" order by rowid').to_pylist()
        if any(column.name == "feature" for column in table.columns):
            rows = [row for row in rows if row["feature"] in wanted]
        if name is not None and table.name in ("lists", "list_names"):
            rows = [row for row in rows if row["list"] == name]
        found[table.name] = rows
    if len(wanted) < dictionary.n_features:
        named = {row["list"] for row in found["lists"]} | {name}
        found["list_names"] = [row for row in found["list_names"] if row["list"] in named]
    return found


def short(value: float) -> float:
    """A float32 as the shortest decimal number that gives it back."""
    return 0.0 if value == 0 else float(str(np.float32(value)))


@contextmanager
def partial(path: Path) -> Iterator[IO[str]]:
    """A text file that appears under its name when it is complete; folders above it are made.

    Raises:
        FileExistsError: a folder stands there.
    """
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder, expected the name of a file: choose another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name when it is complete.

    Raises:
        FileExistsError: something stands there already.
    """
    import shutil

    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} exists already, expected a new folder: choose another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        if path.is_dir():
            path.rmdir()
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
