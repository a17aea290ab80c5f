"""What a comparison of dictionaries answers with: plain dataclasses with `.rows()` and `.to_json()`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Side = Literal["a", "b"]


@dataclass(frozen=True)
class PairedExample:
    """A piece of the shared text with the activations of features of both dictionaries."""

    document_name: str
    tokens: list[str]
    center: int
    """Index of the token that the example is about."""
    activations: dict[str, list[float]]
    """By feature, written `a:7` or `b:12`: its activation at each token as a share of its maximum."""


@dataclass(frozen=True)
class Shift:
    """How a feature changed from the first model to the second, on the text that both have read."""

    density: float
    """Change of density, second minus first."""
    density_low: float
    """Lower end of its 95 % interval, documents as units."""
    density_high: float
    mean: float
    """Change of the mean activation over all tokens."""
    mean_low: float
    mean_high: float
    is_change: bool
    """Larger than chance in density or mean, with 5 % false discoveries among those called so."""


@dataclass(frozen=True)
class Match:
    """A feature of the first dictionary and the same one of the second."""

    a: int
    b: int
    cosine: float | None
    """Of the two decoder directions; None where they cannot be compared."""
    jaccard: float | None
    """Shared events by all events of either; None without shared text."""
    correlation: float | None
    """Of the activations over all shared tokens."""
    density_a: float
    density_b: float
    share_a: float
    """Share of its dictionary's summed activation × decoder norm."""
    share_b: float
    explanation_a: str = ""
    explanation_b: str = ""
    shift: Shift | None = None
    """Between two models only."""
    examples: list[PairedExample] = field(default_factory=list)


@dataclass(frozen=True)
class Unique:
    """A feature without a partner: no direction and no events like its own in the other dictionary."""

    side: Side
    feature: int
    density: float
    share: float
    """Share of its dictionary's summed activation × decoder norm: whether it matters."""
    nearest: int | None
    """The other dictionary's feature with the closest direction."""
    cosine: float | None
    companion: int | None
    """The one whose activations correlate most with its own."""
    correlation: float | None
    covered: float | None
    """Share of its activation that falls on tokens where one of up to eight partners is active that are mostly active
    there: high where the other dictionary has it in pieces."""
    explanation: str = ""
    examples: list[PairedExample] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One piece of a split feature."""

    feature: int
    precision: float
    """Share of its events that lie among the whole one's."""
    recall: float
    """Share of the whole one's events at which it is active."""
    cosine: float | None
    """Of its decoder direction with the whole one's."""
    explanation: str = ""


@dataclass(frozen=True)
class Split:
    """A feature whose events several features of the other dictionary divide among themselves."""

    side: Side
    """Dictionary of the whole feature."""
    feature: int
    parts: list[Part]
    coverage: float
    """Share of its events at which at least one part is active."""
    in_span: float | None
    """Share of its decoder direction's square that lies in the span of the parts' directions."""
    density: float
    share: float
    explanation: str = ""
    examples: list[PairedExample] = field(default_factory=list)


@dataclass(frozen=True)
class Absorption:
    """A general feature whose counterpart is silent exactly where a specific one of its own dictionary is active."""

    side: Side
    """Dictionary of the general feature that is not absorbed."""
    feature: int
    counterpart: int
    """The general feature of the other dictionary."""
    absorber: int
    """The specific feature of the other dictionary."""
    events: int
    """Events of the general feature at which the absorber is active."""
    silent: float
    """Share of these at which the counterpart is silent."""
    active_elsewhere: float
    """Share of the general feature's other events at which the counterpart is active."""
    recall: float
    """Share of the general feature's events that are absorbed."""
    counterpart_cosine: float | None
    absorber_cosine: float | None
    """Of the absorber's direction with the general one: what it carries in the counterpart's stead."""
    explanation: str = ""
    counterpart_explanation: str = ""
    absorber_explanation: str = ""
    examples: list[PairedExample] = field(default_factory=list)


@dataclass(frozen=True)
class DictionaryFacts:
    """One of the two dictionaries."""

    name: str
    path: str
    model: str
    site: str
    architecture: str
    n_features: int
    live: int
    matched_share: float
    """Share of its summed activation × decoder norm that lies in matched features."""
    unique: int
    unique_share: float


@dataclass(frozen=True)
class Comparison:
    """Two dictionaries beside each other."""

    a: DictionaryFacts
    b: DictionaryFacts
    by: str
    """What features are matched by: "directions and events", "directions", "events" or "index"."""
    notes: list[str]
    """What a reader must know before comparing: other sites, other contexts, no shared text."""
    shared_tokens: int
    shared_documents: int
    cosine_min: float
    correlation_min: float
    stability: dict[str, Any] | None
    """One-to-one assignment over all live latents (`sae.stability`); None where directions cannot be compared."""
    matched: list[Match]
    unique: list[Unique]
    splits: list[Split]
    absorptions: list[Absorption]
    seconds: float

    def summary(self) -> list[dict[str, Any]]:
        """One record a figure: `figure`, `a`, `b`."""
        mcc = None if self.stability is None else round(self.stability["mcc"], 4)

        def both(name: str, a: Any, b: Any) -> dict[str, Any]:
            return {"figure": name, "a": a, "b": b}

        def of(found: list[Any], side: Side) -> int:
            return sum(entry.side == side for entry in found)

        rows = [
            both("live features", self.a.live, self.b.live),
            both("matched", len(self.matched), len(self.matched)),
            both("share of activation in matched", round(self.a.matched_share, 4), round(self.b.matched_share, 4)),
            both("unique", self.a.unique, self.b.unique),
            both("share of activation in unique", round(self.a.unique_share, 4), round(self.b.unique_share, 4)),
            both("split by the other", of(self.splits, "a"), of(self.splits, "b")),
            both("absorbed in the other", of(self.absorptions, "a"), of(self.absorptions, "b")),
            both("MCC (one to one)", mcc, mcc),
        ]
        shifts = [match.shift for match in self.matched if match.shift is not None]
        if shifts:
            changed = sum(shift.is_change for shift in shifts)
            rows.append(both("changed between the models", changed, changed))
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """One record a relation: `kind` and its figures, without examples."""
        kinds = (
            ("match", self.matched),
            ("unique", self.unique),
            ("split", self.splits),
            ("absorption", self.absorptions),
        )
        found = []
        for kind, entries in kinds:
            for entry in entries:
                record = {key: value for key, value in asdict(entry).items() if key != "examples"}
                shift = record.pop("shift", None)
                if shift is not None:
                    record |= {f"shift_{key}": value for key, value in shift.items()}
                if "parts" in record:
                    record["parts"] = json.dumps(record["parts"], ensure_ascii=False)
                found.append({"kind": kind} | record)
        return found

    def to_json(self) -> str:
        """Everything, examples included."""
        return json.dumps(asdict(self) | {"summary": self.summary()}, ensure_ascii=False)
