"""Whether a dictionary folder is what its build left: every file, and everything that its tables promise each other.

Enters: a folder. Leaves: one check per promise, each met or with the file and the row that breaks it.

1. Files: size and hash of each against `dictionary.json`.
2. Large tables (events, token_ids) pass through once, batch by batch; order, bounds, and sums per feature are gathered.
3. Small tables are compared with these sums, or asked in SQL for the first row that breaks a promise.
4. People's labels can be read and name features that exist.

Checks go on after a failure, so that one look tells the extent of the damage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import schema, text_events
from features.store import LABELS, Store, file_hash, read_manifest

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COSINE_TOLERANCE = 1e-4
"""Cosines of a pair are computed twice, in different blocks."""
MEAN_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One promise: which file holds it, what it says, and where it is broken (empty: nowhere)."""

    file: str
    promise: str
    broken: str

    @property
    def ok(self) -> bool:
        return not self.broken


@dataclass(frozen=True)
class Verification:
    """All checks of one dictionary."""

    path: str
    checks: list[Check]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"file": c.file, "check": c.promise, "": "pass" if c.ok else "fail", "where": c.broken} for c in self.checks
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"ok": self.ok}, ensure_ascii=False)


def _of_neighbours(table: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (
            table,
            "neighbours are other features, cosines lie in [−1, 1]",
            f"""select row from {table} anti join (select feature as neighbour from features) using (neighbour)
            union all select row from {table} where neighbour = feature or not abs(cosine) <= 1.0001""",
        ),
        (
            table,
            "cosines fall with their rank",
            f"""select row from (select row, rank, cosine, lag(rank) over one as before, lag(cosine) over one as above
            from {table} window one as (partition by feature order by row))
            where rank != coalesce(before + 1, 0) or cosine > above""",
        ),
        (
            table,
            "a pair has one cosine, seen from both sides",
            f"""select a.row from {table} a join {table} b on a.feature = b.neighbour and a.neighbour = b.feature
            where abs(a.cosine - b.cosine) > {COSINE_TOLERANCE}""",
        ),
    )


def _of_logits(table: str) -> tuple[str, str, str]:
    return (
        table,
        "tokens are in the vocabulary, logits are finite",
        f"""select row from {table} anti join vocabulary using (token_id)
        union all select row from {table} where not isfinite(logit) or side not in ('top', 'bottom')""",
    )


# promises of the small tables: file, what holds, and a query for the first row that breaks it
QUESTIONS = (
    ("features", "one row per latent, in order", "select row from features where feature != row"),
    (
        "examples",
        "every example is an event",
        "select row from examples anti join events using (feature, document, position, activation)",
    ),
    (
        "examples",
        "the first example is the recorded maximum",
        """select examples.row from examples join features using (feature)
        where stratum = 0 and rank = 0 and abs(activation) != max_activation""",
    ),
    (
        "features",
        "every live feature has a first example",
        """select row from features anti join (from examples where stratum = 0 and rank = 0) using (feature)
        where not is_dead""",
    ),
    (
        "examples",
        "examples of a stratum fall with their rank",
        """select row from (select row, rank, abs(activation) as size, lag(rank) over one as before,
        lag(abs(activation)) over one as above from examples window one as (partition by feature, stratum order by row))
        where rank != coalesce(before + 1, 0) or size > above""",
    ),
    ("histograms", "edges rise and counts are positive", "select row from histograms where low >= high or count < 1"),
    (
        "histograms",
        "counts add up to the feature's events",
        """select h.row from (select feature, sum(count) as total, min(row) as row from histograms group by feature) h
        left join features using (feature) where total is distinct from features.count""",
    ),
    (
        "features",
        "every live feature has a histogram",
        "select row from features anti join histograms using (feature) where not is_dead",
    ),
    *_of_neighbours("neighbours"),
    *_of_neighbours("encoder_neighbours"),
    _of_logits("logit_ids"),
    _of_logits("normed_logit_ids"),
    (
        "coactivations",
        "neighbours are other live features; Jaccard and counts are possible",
        """select row from coactivations anti join (from features where not is_dead) using (feature)
        union all select c.row from coactivations c
        anti join (select feature as neighbour from features where not is_dead) f using (neighbour)
        union all select row from coactivations where neighbour = feature or count < 1 or not isfinite(pmi)
        or not jaccard between 0 and 1""",
    ),
    (
        "coactivations",
        "Jaccard falls with its rank",
        """select row from (select row, rank, jaccard, lag(rank) over one as before, lag(jaccard) over one as above
        from coactivations window one as (partition by feature order by row))
        where rank != coalesce(before + 1, 0) or jaccard > above""",
    ),
    (
        "coactivations",
        "a pair has one count, seen from both sides",
        """select a.row from coactivations a join coactivations b on a.feature = b.neighbour and a.neighbour = b.feature
        where a.count != b.count or a.jaccard != b.jaccard or abs(a.pmi - b.pmi) > 1e-5""",
    ),
    (
        "position_profiles",
        "counts add up to the feature's events",
        """select p.row from
        (select feature, sum(count) as total, min(row) as row from position_profiles group by feature) p
        left join features using (feature) where total is distinct from features.count""",
    ),
    (
        "position_profiles",
        "bins rise; no more events than tokens, and a density that says so",
        """select row from position_profiles where count > tokens or abs(density - count / tokens) > 1e-9
        or low >= high or mean_activation < 0
        union all select row from (select row, low, lag(high) over (partition by feature order by row) as before
        from position_profiles) where low < before""",
    ),
    (
        "boundaries",
        "a live feature has four places, with shares of its events",
        """select b.row from boundaries b left join features f using (feature)
        where f.is_dead is distinct from false or b.count > f.count or abs(b.share - b.count / f.count) > 1e-9
        or not b.base_share between 0 and 1
        or b.place not in ('document_first', 'document_last', 'context_first', 'context_last')
        union all
        select min(row) from boundaries group by feature having count(distinct place) != 4 or count(*) != 4""",
    ),
    (
        "feature_tokens",
        "features and tokens exist, shares lie in [0, 1]",
        """select row from feature_tokens anti join vocabulary using (token_id)
        union all select row from feature_tokens anti join (from features where not is_dead) using (feature)
        union all select row from feature_tokens where not mass between 0 and 1.0001 or count < 1""",
    ),
    ("vocabulary", "one row per token, in order", "select row from vocabulary where token_id != row"),
)


def verify(folder: str | Path) -> Verification:
    """Checks a dictionary folder; raises only where it has no readable `dictionary.json`.

    Raises:
        FileNotFoundError: no dictionary in the folder.
        ValueError: a manifest of another format.
    """
    import duckdb

    folder = Path(folder).absolute()
    info = read_manifest(folder)
    build = folder / str(info["build"])
    checks = [_check_file(build, name, facts) for name, facts in sorted(info["files"].items())]
    damaged = {Path(check.file).stem for check in checks if not check.ok and check.file.endswith(".parquet")}

    def check(file: str, promise: str, find: Callable[[], str]) -> None:
        try:
            broken = find()
        except (duckdb.Error, pa.ArrowException, OSError, ValueError, IndexError) as error:
            cause = " (its bytes have changed)" if file in damaged else ""
            broken = f"cannot be read{cause}: {' '.join(str(error).split())[:200]}"
        checks.append(Check(f"{file}.parquet" if file in schema.TABLES else file, promise, broken))

    with duckdb.connect() as connection:
        for table in schema.STORED:
            source = str(build / f"{table.name}.parquet").replace("'", "''")
            if (build / f"{table.name}.parquet").is_file():
                reads = f"read_parquet('{source}', file_row_number = true)"
                try:
                    connection.execute(f'create view "{table.name}" as select *, file_row_number as "row" from {reads}')
                except duckdb.Error:
                    continue  # every question about the table says so
        check(
            "events", "ordered by feature, document and position; statistics as recorded", lambda: _events(build, info)
        )
        if text_events.NAME in info["files"]:
            promise = "the events of the table, token by token"
            check(text_events.NAME, promise, lambda: _text_events(build, int(info["n_features"])))
        check("token_ids", "positions are consecutive; documents and counts as recorded", lambda: _tokens(build, info))
        # what was imported tells of the whole text what only its source knows, and holds a part of it
        kept = [entry for entry in QUESTIONS if not info.get("imported") or "counts add up" not in entry[1]]
        for file, promise, question in kept:
            if file in schema.OPTIONAL and f"{file}.parquet" not in info["files"]:
                continue
            check(file, promise, lambda question=question, file=file: _first(connection, file, question))
    check(LABELS, "can be read, and names features that exist", lambda: _labels(folder, int(info["n_features"])))
    return Verification(str(folder), checks)


def _check_file(build: Path, name: str, facts: dict[str, Any]) -> Check:
    path, broken = build / name, ""
    if not path.is_file():
        broken = f"{path} is missing"
    elif (size := path.stat().st_size) != facts["bytes"]:
        broken = f"{path} has {size} bytes, recorded are {facts['bytes']}"
    elif file_hash(path) != facts["sha256"]:
        broken = f"{path} has other bytes than recorded"
    return Check(name, "size and hash as recorded", broken)


def _first(connection: DuckDBPyConnection, file: str, question: str) -> str:
    found = connection.execute(f'select min("row") as at, count(*) as n from ({question})').fetchone()
    if found is None or not found[1]:
        return ""
    row = connection.execute(f'select * exclude ("row", file_row_number) from "{file}" where "row" = {found[0]}')
    names = [column[0] for column in row.description]
    values = ", ".join(f"{name}={value}" for name, value in zip(names, row.fetchone() or (), strict=False))
    return f"row {found[0]} ({values})" + (f" and {found[1] - 1} more" if found[1] > 1 else "")


def _events(build: Path, info: dict[str, Any]) -> str:
    """Goes through all events once; a feature's statistics are compared with those of the table features.

    Where only the events around examples are kept, there are no more of a feature than counted, and the largest is one.
    """
    n = int(info["n_features"])
    counts, sums, largest = np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n, dtype=np.float32)
    start, last = 0, (-1, -1, -1)
    for batch in pq.ParquetFile(build / "events.parquet").iter_batches(1 << 18):
        feature, document, position, activation = (batch.column(i).to_numpy() for i in range(4))
        wrong = (feature < 0) | (feature >= n) | ~np.isfinite(activation) | (activation == 0)
        f, d, p = (np.concatenate(([before], x)) for before, x in zip(last, (feature, document, position), strict=True))
        rises = (f[1:] > f[:-1]) | ((f[1:] == f[:-1]) & ((d[1:] > d[:-1]) | ((d[1:] == d[:-1]) & (p[1:] > p[:-1]))))
        wrong |= ~rises
        if wrong.any():
            at = int(np.argmax(wrong))
            why = "is out of order" if not rises[at] else "has an impossible feature or activation"
            return (
                f"row {start + at} (feature={feature[at]}, document={document[at]}, position={position[at]}, "
                f"activation={activation[at]}) {why}"
            )
        sizes = np.abs(activation)
        counts += np.bincount(feature, minlength=n)
        sums += np.bincount(feature, sizes, minlength=n)
        np.maximum.at(largest, feature, sizes)
        start, last = start + feature.size, (int(feature[-1]), int(document[-1]), int(position[-1]))
    keeps_all = info.get("events", "all") == "all"
    rows = info["n_events"] if keeps_all else info["n_kept_events"]
    if start != rows:
        return f"{start} rows, recorded are {rows}"
    recorded = {name: column.to_numpy() for name, column in _columns(build / "features.parquet").items()}
    mean = sums / np.maximum(counts, 1)
    expected = {
        "count": recorded["count"] == counts,
        "max_activation": recorded["max_activation"] == largest,
        "mean_activation": np.isclose(recorded["mean_activation"], mean, rtol=MEAN_TOLERANCE, atol=1e-7),
        "density": np.isclose(recorded["density"], counts / int(info["n_indexed_tokens"]), rtol=1e-9, atol=0),
        "is_dead": recorded["is_dead"] == (counts == 0),
        "first_event": recorded["first_event"] == np.cumsum(counts) - counts,
    }
    if info.get("imported"):
        del expected["density"]
    if not keeps_all:
        total = int(recorded["count"].sum())
        if total != info["n_events"]:
            return f"features.parquet counts {total} events, recorded are {info['n_events']}"
        kept = {name: expected[name] for name in ("max_activation", "first_event")}
        expected = kept | {
            "count": (recorded["count"] >= counts) & ((recorded["count"] == 0) == (counts == 0)),
            "is_dead": recorded["is_dead"] == (recorded["count"] == 0),
        }
    for name, holds in expected.items():
        if not holds.all():
            at = int(np.argmin(holds))
            return f"features.parquet row {at}: {name}={recorded[name][at]} is not what the events of the feature say"
    return ""


def _text_events(build: Path, n_features: int) -> str:
    """Goes through the events in the order of the text; each feature has as many as counted, and as strong ones."""
    counts, largest = np.zeros(n_features, dtype=np.int64), np.zeros(n_features, dtype=np.float32)
    first = 0
    for events in text_events.TextEvents(build / text_events.NAME).all():
        features, tokens = events.features, events.tokens
        wrong = (features < 0) | (features >= n_features)
        wrong[1:] |= (np.diff(features) <= 0) & (np.diff(tokens) == 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            return f"token {first + tokens[at]} has feature {features[at]} out of order"
        counts += np.bincount(features, minlength=n_features)
        np.maximum.at(largest, features, np.abs(events.activations))
        first += events.counts.size
    recorded = _columns(build / "features.parquet", ["count", "max_activation"])
    for name, seen in (("count", counts), ("max_activation", largest)):
        if (bad := recorded[name].to_numpy() != seen).any():
            at = int(np.argmax(bad))
            return f"feature {at} has {name} {seen[at]}, recorded is {recorded[name][at].as_py()}"
    return ""


def _tokens(build: Path, info: dict[str, Any]) -> str:
    """Goes through the text once; documents and the vocabulary's counts are compared with it."""
    vocabulary = _columns(build / "vocabulary.parquet", ["count"])["count"].to_numpy()
    documents = {name: column.to_numpy() for name, column in _columns(build / "documents.parquet").items()}
    counts = np.zeros(vocabulary.size, dtype=np.int64)
    firsts: list[np.ndarray] = []
    found: list[np.ndarray] = []
    start, last = 0, (-1, -1)
    for batch in pq.ParquetFile(build / "token_ids.parquet").iter_batches(1 << 18):
        document, position, token = (batch.column(i).to_numpy() for i in range(3))
        is_indexed = batch.column(4).to_numpy(zero_copy_only=False)
        d, p = (np.concatenate(([before], x)) for before, x in zip(last, (document, position), strict=True))
        begins = d[1:] > d[:-1]
        wrong = ~(begins | ((d[1:] == d[:-1]) & (p[1:] == p[:-1] + 1))) | (token < 0) | (token >= counts.size)
        if wrong.any():
            at = int(np.argmax(wrong))
            what = f"document={document[at]}, position={position[at]}, token_id={token[at]}"
            return f"row {start + at} ({what}) does not follow the row before it, or its token does not exist"
        counts += np.bincount(token[is_indexed], minlength=counts.size)
        firsts.append(start + np.flatnonzero(begins))
        found.append(document[begins])
        start, last = start + token.size, (int(document[-1]), int(position[-1]))
    if (start, int(counts.sum())) != (info["n_tokens"], info["n_indexed_tokens"]):
        recorded = f"{info['n_tokens']} and {info['n_indexed_tokens']}"
        return f"{start} rows and {int(counts.sum())} indexed ones, recorded are {recorded}"
    first = np.concatenate(firsts)
    lengths = np.diff(np.append(first, start))
    for name, seen in (("document", np.concatenate(found)), ("first_token", first), ("n_tokens", lengths)):
        if seen.size != documents[name].size:
            return f"documents.parquet has {documents[name].size} rows, the text has {seen.size} documents"
        if (bad := documents[name] != seen).any():
            at = int(np.argmax(bad))
            return f"documents.parquet row {at}: {name}={documents[name][at]} is not what the text says ({seen[at]})"
    if (bad := vocabulary != counts).any():
        at = int(np.argmax(bad))
        return f"vocabulary.parquet row {at}: count={vocabulary[at]} is not what the text says ({counts[at]})"
    return ""


def _labels(folder: Path, n_features: int) -> str:
    store = Store(folder)
    try:
        for name, table in store.read_labels().items():
            if "feature" not in table.column_names:
                continue
            features = table["feature"].to_numpy(zero_copy_only=False)
            known = np.isin(features, np.arange(n_features))
            if not known.all():
                at = int(np.argmin(known))
                return f"table {name} row {at} names feature {features[at]}, the dictionary has {n_features}"
    finally:
        store.close()
    return ""


def _columns(path: Path, names: list[str] | None = None) -> dict[str, pa.ChunkedArray]:
    table = pq.ParquetFile(path).read(names)
    return dict(zip(table.column_names, table.columns, strict=True))
