"""Features as SAEDashboard and Neuronpedia write them down.

Enters: files or folders

* SAEDashboard's `batch-*.json`: `{"model_id", "layer", "sae_set", "features": [{"feature_index", "activations", …}]}`
* Neuronpedia's upload body: `{"modelId", "source", "features": [{"index", "topLogits", "explanations", …}]}`
* one feature of Neuronpedia's API (`/api/feature/<model>/<source>/<index>`), or a list of them
* Neuronpedia's exports: `features|activations|explanations/*.jsonl(.gz)`, single files or the folder that holds them

Leaves: a `Dump`, checked: indices are whole numbers, tokens and values equally many, numbers finite. Everything is read
before anything is used, and a file that is cut short, or of another kind, is refused in one line that names it.

Source: jbloomAus/SAEDashboard 0.8, `sae_dashboard/neuronpedia/neuronpedia_dashboard.py`; hijohnnylin/neuronpedia
(2026-08), `apps/webapp/prisma/schema.prisma`, `app/api/feature/upload-batch/route.tsx`.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features.labels import storable

LARGEST_INDEX = 10_000_000


@dataclass(frozen=True)
class Excerpt:
    """A piece of text and a feature's activation at each of its tokens."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    low: float | None
    """Lower bound of the interval of activation that it was drawn from; None: among the strongest."""
    high: float | None
    center: int | None = None
    """The token that it was chosen for; None: the one with the largest value."""


@dataclass(frozen=True)
class Said:
    """An explanation, and whose it is."""

    feature: int
    text: str
    method: str | None
    reader: str | None
    """The language model that wrote it."""
    author: str | None
    created: str | None
    score: float | None


@dataclass
class DumpedFeature:
    """One feature; what a file does not tell is empty."""

    density: float | None = None
    heights: list[float] = field(default_factory=list)
    middles: list[float] = field(default_factory=list)
    promoted: list[tuple[str, float]] = field(default_factory=list)
    suppressed: list[tuple[str, float]] = field(default_factory=list)
    neighbours: list[tuple[int, float]] = field(default_factory=list)
    excerpts: list[Excerpt] = field(default_factory=list)


@dataclass
class Dump:
    """What several files tell of the features of one SAE."""

    kind: str = ""
    """Which project wrote them."""
    model: str | None = None
    source: str | None = None
    dataset: str | None = None
    tokens: int | None = None
    """Tokens of text that the statistics are over."""
    features: dict[int, DumpedFeature] = field(default_factory=dict)
    said: list[Said] = field(default_factory=list)


class Foreign(ValueError):
    """A file that is none of these."""


def read_dump(paths: Sequence[Path]) -> Dump:
    """Reads files and folders into one dump.

    Raises:
        Foreign: a file of another kind.
        ValueError: a file cut short, with impossible values, or of another model or source than those before.
    """
    dump = Dump()
    for path in _files(paths):
        try:
            _read_file(path, dump)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise _wrong(path, f"{type(error).__name__} {error}") from None
    return dump


def read_content(path: Path) -> Any:
    """A JSON file, or the lines of a JSONL file, gzipped or not.

    Raises:
        ValueError: it is cut short or no JSON.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        text = data.decode("utf-8")
        if path.name.removesuffix(".gz").endswith(".jsonl"):
            return _lines(text)
        return json.loads(text)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} is cut short or no JSON ({reason}), expected a whole file: get it again") from None


def _lines(text: str) -> list[Any]:
    if text and not text.endswith("\n"):
        raise json.JSONDecodeError("the last line does not end", text[-20:], 0)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*.json*")) if p.is_file() and p.stem != "skipped_indexes"]
            found += [p for p in inside if not p.name.endswith(".partial")]
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist, expected a file or folder to import: check the path")
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))} holds no .json or .jsonl file, expected some: check the path")
    return found


def _read_file(path: Path, dump: Dump) -> None:
    content = read_content(path)
    if isinstance(content, dict) and isinstance(content.get("features"), list):
        if "model_id" in content:
            _own(dump, path, "SAEDashboard", content["model_id"], _source(content))
            for row in content["features"]:
                _dashboard_feature(dump, path, row)
            return
        if "modelId" in content:
            _own(dump, path, "Neuronpedia", content["modelId"], content.get("source"))
            for row in content["features"]:
                _uploaded_feature(dump, path, row)
            return
    rows = content if isinstance(content, list) else [content]
    if not rows:
        return
    for row in rows:
        if not isinstance(row, dict):
            raise _foreign(path)
        if path.name.startswith(("release.", "model.", "sourceset.", "source.", "inference_hosts", "explanation_")):
            _head(dump, path.name, row)
        elif "modelId" in row and "index" in row:
            _own(dump, path, "Neuronpedia", row["modelId"], row.get("layer"))
            _neuronpedia_row(dump, path, row)
        elif not (dump.kind and path.name == "skipped_indexes.json"):
            raise _foreign(path)


def _neuronpedia_row(dump: Dump, path: Path, row: dict[str, Any]) -> None:
    index = _index(path, row["index"])
    if "description" in row:
        dump.said.append(_said(path, index, row))
        return
    if "tokens" in row and "values" in row:
        _feature(dump, index).excerpts.append(_excerpt(path, index, row, "binMin", "binMax"))
        return
    found = _feature(dump, index)
    if row.get("frac_nonzero") is not None and float(row["frac_nonzero"]) >= 0:
        found.density = _number(path, index, row["frac_nonzero"])
    _tables(path, index, found, row)
    others, cosines = row.get("topkCosSimIndices") or [], row.get("topkCosSimValues") or []
    found.neighbours = [(_index(path, a), _number(path, index, b)) for a, b in _pairs(path, index, others, cosines)]
    found.excerpts += [_excerpt(path, index, a, "binMin", "binMax") for a in row.get("activations") or []]
    dump.said += [_said(path, index, said) for said in row.get("explanations") or []]


def _dashboard_feature(dump: Dump, path: Path, row: dict[str, Any]) -> None:
    index = _index(path, row["feature_index"])
    found = _feature(dump, index)
    found.density = _number(path, index, row["frac_nonzero"])
    _tables(path, index, found, row)
    dump.dataset = dump.dataset or row.get("dataset") or None
    tokens = int(row.get("n_prompts_total") or 0) * int(row.get("n_tokens_in_prompt") or 0)
    dump.tokens = dump.tokens or tokens or None
    found.excerpts += [_excerpt(path, index, a, "bin_min", "bin_max") for a in row["activations"]]


def _uploaded_feature(dump: Dump, path: Path, row: dict[str, Any]) -> None:
    index = _index(path, row["index"])
    found = _feature(dump, index)
    found.density = None if row.get("density") is None else _number(path, index, row["density"])
    for side, key in ((found.promoted, "topLogits"), (found.suppressed, "bottomLogits")):
        side += [(_text(entry["token"]), _number(path, index, entry["value"])) for entry in row.get(key) or []]
    found.excerpts += [_excerpt(path, index, a, "quantileMin", "quantileMax") for a in row.get("activations") or []]
    for said in row.get("explanations") or []:
        renamed = {"description": said["text"], "typeName": said.get("methodName")}
        dump.said.append(_said(path, index, renamed | {"explanationModelName": said.get("modelName")}))


def _tables(path: Path, index: int, found: DumpedFeature, row: dict[str, Any]) -> None:
    def numbers(key: str) -> list[float]:
        return [_number(path, index, value) for value in row.get(key) or []]

    found.heights, found.middles = numbers("freq_hist_data_bar_heights"), numbers("freq_hist_data_bar_values")
    if len(found.heights) != len(found.middles):
        raise _wrong(path, f"feature {index} has {len(found.heights)} bars and {len(found.middles)} values")
    for side, texts, values in ((found.promoted, "pos_str", "pos_values"), (found.suppressed, "neg_str", "neg_values")):
        side += [(_text(token), value) for token, value in _pairs(path, index, row.get(texts) or [], numbers(values))]


def _excerpt(path: Path, index: int, row: dict[str, Any], low: str, high: str) -> Excerpt:
    values = tuple(_number(path, index, value) for value in row["values"])
    if len(row["tokens"]) != len(values):
        raise _wrong(path, f"feature {index} has {len(row['tokens'])} tokens with {len(values)} values")
    least, most = row.get(low), row.get(high)
    tokens = tuple(_text(token) for token in row["tokens"])
    chosen = row.get("qualifying_token_index", row.get("qualifyingTokenIndex"))
    center = chosen if isinstance(chosen, int) and 0 <= chosen < len(values) and values[chosen] else None
    if least is None or most is None or float(least) < 0:
        return Excerpt(tokens, values, None, None, center)
    return Excerpt(tokens, values, float(least), float(most), center)


def _said(path: Path, index: int, row: dict[str, Any]) -> Said:
    author = row.get("author")
    name = author.get("name") if isinstance(author, dict) else row.get("authorId")
    if not isinstance(row["description"], str) or not row["description"].strip():
        raise _wrong(path, f"feature {index} has an explanation without a text")
    scores = [s.get("value") for s in row.get("scores") or [] if isinstance(s, dict)]
    score = next((_number(path, index, value) for value in scores if value is not None), None)
    texts = (row.get("typeName"), row.get("explanationModelName"), name, row.get("createdAt"))
    kind, reader, writer, created = (None if value is None else _text(value) for value in texts)
    return Said(index, _text(row["description"]), kind, reader, writer, created, score)


def _head(dump: Dump, name: str, row: dict[str, Any]) -> None:
    if name.startswith("source."):
        dump.dataset = dump.dataset or row.get("dataset") or None
        tokens = int(row.get("num_prompts") or 0) * int(row.get("num_tokens_in_prompt") or 0)
        dump.tokens = dump.tokens or tokens or None


def _source(content: dict[str, Any]) -> str:
    parts = [str(content[key]) for key in ("layer", "sae_set") if content.get(key) not in (None, "")]
    suffix = content.get("sae_id_suffix")
    return "-".join(parts) + (f"__{suffix}" if suffix else "")


def _own(dump: Dump, path: Path, kind: str, model: Any, source: Any) -> None:
    """One dump is of one SAE: another model or source is refused."""
    model, source = _text(model), None if source is None else _text(source)
    if (dump.model, dump.source) == (None, None):
        dump.kind, dump.model, dump.source = kind, model, source
    elif (dump.model, dump.source) != (model, source):
        raise ValueError(
            f"{path} is about {model} {source}, the files before it about {dump.model} {dump.source}, "
            "expected one SAE: import them apart"
        )


def _feature(dump: Dump, index: int) -> DumpedFeature:
    return dump.features.setdefault(index, DumpedFeature())


def _index(path: Path, value: Any) -> int:
    try:
        index = int(value)
    except (TypeError, ValueError):
        raise _wrong(path, f"a feature has the index {value!r}") from None
    if isinstance(value, bool) or str(index) != str(value).strip() or not 0 <= index <= LARGEST_INDEX:
        raise _wrong(path, f"a feature has the index {value!r}")
    return index


def _number(path: Path, index: int, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(path, f"feature {index} has {value!r} for a number")
    return float(value)


def _pairs(path: Path, index: int, first: Sequence[Any], second: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(first) != len(second):
        raise _wrong(path, f"feature {index} has {len(first)} names for {len(second)} numbers")
    return list(zip(first, second, strict=True))


def _text(value: Any) -> str:
    if not isinstance(value, str | int):
        raise TypeError(f"got {type(value).__name__} for a text")
    return storable(str(value))


def _wrong(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged ({what[:160]}), expected features as SAEDashboard or Neuronpedia write them")


def _foreign(path: Path) -> Foreign:
    return Foreign(
        f"{path} is of no known kind, expected an export of Glassbox (JSON, CSV, Parquet), SAEDashboard's "
        "batch-*.json, or Neuronpedia's JSON or JSONL: choose one of these"
    )
