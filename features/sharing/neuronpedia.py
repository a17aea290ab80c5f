"""Neuronpedia's upload layout: the folder that its import reads, table by table, one JSON object a line.

Enters: an opened dictionary. Leaves

    OUT/<model>/<source>/   release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl: one line each
        features/batch-0.jsonl.gz      rows of its table Neuron
        activations/batch-0.jsonl.gz   rows of Activation: tokens and values of a piece of text
        explanations/batch-0.jsonl.gz  rows of Explanation

A source is `<layer>-<source set>`. What Neuronpedia keeps and this dictionary does not know (correlated neurons, the
histogram over all logits) is an empty list, as its own exports have it. Numbers are those of SAEDashboard
(`features.sharing.figures`); strongest examples have −1 for their interval's lower end and share.

Source: hijohnnylin/neuronpedia, `apps/webapp/lib/db/import.ts`, `app/api/admin/import/route.ts`, `prisma/schema.prisma`
(2026-08).
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from activations.progress import progress
from features.dictionary import Dictionary
from features.records import Example, Feature
from features.sharing.documents import partial_folder, people_rows, short
from features.sharing.figures import Sizes, alignment, figures, interval_of, intervals, sizes_of
from features.sharing.reading import partial_events, read_features

BATCH_FEATURES = 1024
CONTEXT = (64, 32)
_IMPORTED = re.compile(r"(\d+)-(.+)")
"""Layer and source set, as the site of an imported dictionary joins them."""
_SHORT = {"resid": "res", "mlp_out": "mlp", "mlp_in": "mlp", "mlp_act": "mlp", "attn_out": "att", "head_out": "att"}


@dataclass(frozen=True, kw_only=True)
class Upload:
    """How an upload names itself; what is None follows from the dictionary."""

    model: str | None = None
    """Neuronpedia's id of the model, such as `gpt2-small`."""
    source_set: str | None = None
    """Such as `res-matryoshka`; the layer comes before it."""
    release: str | None = None
    creator: str = "glassbox"
    """The name that is shown."""
    creator_id: str = "clkht01d40000jv08hvalcvly"
    """A user of the Neuronpedia that imports; the default is the one that its own tools fall back to."""
    url: str | None = None


def write_upload(dictionary: Dictionary, features: Sequence[int], out: Path, upload: Upload | None = None) -> Path:
    """Writes the folder and returns the path of the source inside it.

    Raises:
        ValueError: a name that Neuronpedia does not take.
        FileExistsError: `out` exists already.
    """
    upload = named(dictionary, upload or Upload())
    created = _time(dictionary.info["created"])
    source = f"{layer_of(dictionary)}-{upload.source_set}"
    with partial_folder(out) as folder:
        inside = folder / str(upload.model) / source
        for name in ("features", "activations", "explanations"):
            (inside / name).mkdir(parents=True)
        for name, line in _heads(dictionary, upload, source, created).items():
            (inside / f"{name}.jsonl").write_text(_line(line), encoding="utf-8", newline="\n")
        common = {"modelId": upload.model, "layer": source}
        aligned = alignment(dictionary, features)
        event_bounds = dictionary.store.event_bounds()
        with progress("export", len(features), "features") as advance:
            for number in range(0, len(features), BATCH_FEATURES):
                batch = features[number : number + BATCH_FEATURES]
                lines: dict[str, list[str]] = {"features": [], "activations": []}
                for feature in read_features(dictionary, batch, *CONTEXT):
                    sizes = sizes_of(dictionary, feature, event_bounds)
                    head = common | {"index": str(feature.id), "creatorId": upload.creator_id, "createdAt": created}
                    lines["features"].append(
                        _line(
                            head
                            | _neuron(feature, sizes, aligned.get(feature.id))
                            | {"sourceSetName": upload.source_set}
                        )
                    )
                    bounds = intervals(feature.examples)
                    for example in feature.examples:
                        key = f"{dictionary.info['fingerprint']} {feature.id} {example.stratum} {example.rank}"
                        row = _activation(example, sizes, bounds[example.stratum])
                        lines["activations"].append(_line({"id": _id(key)} | head | row))
                    advance(1)
                for name, written in lines.items():
                    _write_gz(inside / name / f"batch-{number // BATCH_FEATURES}.jsonl.gz", written)
        explained = [_line(common | row) for row in _explanations(dictionary, features, upload.creator_id)]
        for number in range(0, len(explained), BATCH_FEATURES):
            path = inside / "explanations" / f"batch-{number // BATCH_FEATURES}.jsonl.gz"
            _write_gz(path, explained[number : number + BATCH_FEATURES])
    return out / str(upload.model) / source


def named(dictionary: Dictionary, upload: Upload) -> Upload:
    """The upload with every name filled in.

    Raises:
        ValueError: a name that Neuronpedia does not take.
    """
    model = upload.model or Path(str(dictionary.info["model"]["name"])).name.lower()
    kind = dictionary.site.partition(".")[0]
    short_kind = next((value for key, value in _SHORT.items() if kind.startswith(key)), kind or "sae")
    slug = re.sub(r"[^a-z0-9]+", "-", dictionary.name.lower()).strip("-") or "features"
    imported = _IMPORTED.fullmatch(dictionary.site) if dictionary.info.get("imported") else None
    found = dataclasses.replace(
        upload,
        model=model,
        source_set=upload.source_set or (imported[2] if imported else f"{short_kind}-{slug}"),
        release=upload.release or f"glassbox-{slug}",
    )
    for what, value in (("model", found.model), ("source set", found.source_set), ("release", found.release)):
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,127}", value or ""):
            option = "model-id" if what == "model" else what.replace(" ", "-")
            raise ValueError(
                f"the {what} {value!r} is no name for Neuronpedia, expected small letters, digits and dashes: "
                f"give --{option}"
            )
    return found


def layer_of(dictionary: Dictionary) -> int:
    """The layer's number; 0 where the site has none."""
    from sae.formats import hooks

    if dictionary.info.get("imported") and (found := _IMPORTED.fullmatch(dictionary.site)):
        return int(found[1])
    return hooks.layer_of(dictionary.site) or 0


def _heads(dictionary: Dictionary, upload: Upload, source: str, created: str) -> dict[str, dict[str, Any]]:
    info = dictionary.info
    who = {"creatorId": upload.creator_id, "createdAt": created}
    shown = {"visibility": "PUBLIC"}
    name = f"{dictionary.name}: {info['n_features']} features of {dictionary.site}"
    return {
        "release": {
            "name": upload.release,
            "description": name,
            "descriptionShort": name,
            "creatorName": upload.creator,
        }
        | {"creatorNameShort": upload.creator, "urls": [upload.url] if upload.url else []}
        | {"defaultUmapSourceIds": [], **who, **shown},
        "model": {"id": upload.model, "displayName": upload.model, "displayNameShort": upload.model, "owner": ""}
        | {"instruct": False, "layers": 0, "neuronsPerLayer": 0, "inferenceEnabled": False, "updatedAt": created}
        | {**who, **shown},
        "sourceset": {"modelId": upload.model, "name": upload.source_set, "description": name, "type": ""}
        | {"creatorName": upload.creator, "releaseName": upload.release, "hasDashboards": True, "defaultRange": 1}
        | {"defaultShowBreaks": True, "urls": [], **who, **shown},
        "source": {"id": source, "modelId": upload.model, "setName": upload.source_set, "hasDashboards": True}
        | {"inferenceEnabled": False, "num_tokens_in_prompt": info["context_tokens"]}
        | {"num_prompts": -(-int(info["n_tokens"]) // max(int(info["context_tokens"]), 1))}
        | {"dataset": str(info["data"].get("source") or ""), "notes": _notes(info)}
        | {**who, **shown},
    }


def _notes(info: dict[str, Any]) -> str:
    partial = partial_events(info)
    return f"glassbox {info['fingerprint'][:12]}" + (
        f"; {partial}, shares of intervals are estimated" if partial else ""
    )


def _neuron(feature: Feature, sizes: Sizes, aligned: dict[str, list[Any]] | None) -> dict[str, Any]:
    return {
        "maxActApprox": short(feature.max_activation),
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "hookName": None,
        "topkCosSimIndices": [other for other, _ in feature.neighbours],
        "topkCosSimValues": [short(cosine) for _, cosine in feature.neighbours],
        **figures(feature, sizes, aligned),
    }


def _activation(example: Example, sizes: Sizes, bounds: tuple[float, float]) -> dict[str, Any]:
    values = [short(value) for value in example.activations]
    largest = max(values)
    low, high, share = interval_of(example, sizes, bounds)
    return {
        "tokens": example.tokens,
        "values": values,
        "maxValue": largest,
        "maxValueTokenIndex": values.index(largest),
        "minValue": min(values),
        "binMin": low,
        "binMax": high,
        "binContains": share,
        "qualifyingTokenIndex": example.center,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "lossValues": [],
        "logitContributions": None,
        "dataSource": example.document_name,
        "dataIndex": str(example.position),
    }


def _explanations(dictionary: Dictionary, features: Sequence[int], creator_id: str) -> Iterable[dict[str, Any]]:
    people = people_rows(dictionary, features, None)
    labelled = [row | {"method": "label"} for row in people["labels"]]
    for row in sorted([*labelled, *people["explanations"]], key=lambda row: row["feature"]):
        words = "\0".join(str(row[key]) for key in ("feature", "method", "text", "author", "created"))
        score = "" if row.get("score") is None else f", score {row['score']:.3f}"
        yield {
            "id": _id(f"{dictionary.info['fingerprint']} {words}"),
            "index": str(row["feature"]),
            "authorId": creator_id,
            "description": row["text"],
            "typeName": None,  # Neuronpedia takes only types that it knows
            "explanationModelName": None,
            "notes": f"{row['method']} by {row['author']}{score}",
            "createdAt": _time(row["created"]),
        }


def _time(created: str) -> str:
    moment = datetime.fromisoformat(created)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _id(key: str) -> str:
    """25 characters as Neuronpedia's ids have; the same export gives the same ones, so that nothing doubles there."""
    return "c" + hashlib.sha256(key.encode()).hexdigest()[:24]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _write_gz(path: Path, lines: Sequence[str]) -> None:
    with gzip.GzipFile(path, "wb", compresslevel=5, mtime=0) as file:
        file.write("".join(lines).encode("utf-8"))
