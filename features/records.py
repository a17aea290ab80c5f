"""The records that a dictionary answers with: plain dataclasses with `.rows()` and `.to_json()`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from features.labels import Explanation


class LogitToken(NamedTuple):
    """A token that a feature promotes or suppresses."""

    token: str
    token_id: int
    logit: float


class Neighbour(NamedTuple):
    """A feature whose direction is close."""

    feature: int
    cosine: float


class Coactivation(NamedTuple):
    """A feature that is active on the same tokens."""

    feature: int
    jaccard: float
    """Tokens on which both are active, as a share of those on which either is."""
    count: int
    """Tokens on which both are active, among those counted (`Dictionary.info["coactivation_tokens"]`)."""
    pmi: float
    """Pointwise mutual information in bits (`features.coactivation`)."""


class PositionBin(NamedTuple):
    """How active a feature is at positions `low` ≤ p < `high` of the model's context."""

    low: int
    high: int
    tokens: int
    """Indexed tokens that stand there."""
    count: int
    """Those of them on which the feature is active."""
    density: float
    mean_activation: float
    """Mean size over all of them, silent ones too."""


class Boundary(NamedTuple):
    """How often a feature is active at one end of documents, or of what the model reads at once."""

    place: str
    """document_first, document_last, context_first or context_last."""
    count: int
    share: float
    """Of the feature's events."""
    base_share: float
    """Of all indexed tokens: what a feature without a preference has."""


def _record(instance: Any) -> dict[str, Any]:
    """A dataclass's fields by name."""
    return {entry.name: getattr(instance, entry.name) for entry in fields(instance)}


@dataclass(frozen=True)
class Histogram:
    """Events per bin of activation; `edges` has one entry more than `counts`."""

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Example:
    """A piece of text around one activation of a feature."""

    feature: int
    document: int
    document_name: str
    position: int
    """Position in the document of the token that the example is about."""
    activation: float
    stratum: int
    """0: among the strongest; 1, 2, …: from a sample of weaker ones."""
    rank: int
    tokens: list[str]
    activations: list[float]
    """The feature's activation at each of the tokens, 0 where it is silent."""
    center: int
    """Index in `tokens` of the token that the example is about."""

    @property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True)
class Feature:
    """A latent of the SAE with everything the index knows about it."""

    id: int
    density: float
    mean_activation: float
    std_activation: float
    max_activation: float
    count: int
    documents: int
    is_dead: bool
    decoder_norm: float
    histogram: Histogram
    examples: list[Example]
    top_logits: list[LogitToken]
    bottom_logits: list[LogitToken]
    neighbours: list[Neighbour]
    explanations: list[Explanation]
    tokens: list[tuple[str, float, int]] = field(default_factory=list)
    """Tokens with most of the feature's activation: text, share of its summed activation, times active there."""
    top_normed_logits: list[LogitToken] = field(default_factory=list)
    """Tokens promoted most through the final norm (`features.logit_effects`)."""
    bottom_normed_logits: list[LogitToken] = field(default_factory=list)
    encoder_neighbours: list[Neighbour] = field(default_factory=list)
    coactivations: list[Coactivation] = field(default_factory=list)
    positions: list[PositionBin] = field(default_factory=list)
    boundaries: list[Boundary] = field(default_factory=list)

    @property
    def explanation(self) -> str:
        """The text to show: the newest label, else the best explanation, else the plain fact."""
        if self.explanations:
            return self.explanations[0].text
        return "dead: never active in the indexed text" if self.is_dead else ""

    def rows(self) -> list[dict[str, Any]]:
        """The examples as plain records."""
        return [asdict(example) for example in self.examples]

    def to_json(self) -> str:
        """Everything about the feature as JSON."""
        content = _record(self)
        for key, entries in content.items():
            if entries and isinstance(entries, list) and hasattr(entries[0], "_asdict"):
                content[key] = [entry._asdict() for entry in entries]
        # nothing is copied, as asdict would: an example has a hundred numbers
        return json.dumps(content | {"explanation": self.explanation}, ensure_ascii=False, default=_record)


@dataclass(frozen=True)
class FeatureList:
    """A page of the feature listing."""

    total: int
    """Features that meet the condition, on all pages."""
    features: list[dict[str, Any]]
    """feature, density, mean_activation, max_activation, count, is_dead, explanation, score."""

    def rows(self) -> list[dict[str, Any]]:
        return self.features

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


@dataclass(frozen=True)
class ActiveFeature:
    """A feature that is active on a text."""

    feature: int
    total: float
    """What it is ranked by (`features.active`); by activation: the sum of its shares of the feature's maximum."""
    max_activation: float
    """Largest activation on the text (by its size)."""
    token: int
    """Index of the token where what it is ranked by is largest."""
    explanation: str


class Cell(NamedTuple):
    """A token on which a feature is active."""

    token: int
    """Index among the tokens of the text."""
    activation: float
    measure: float


@dataclass(frozen=True)
class DocumentPart:
    """Where a piece of indexed text stands."""

    document: int
    name: str
    first_position: int
    """Position in the document of the piece's first token."""
    document_positions: tuple[int, int]
    """Position of the document's first token, and the one behind its last."""
    all_events: bool
    """Whether every event is kept; otherwise those around the examples of features alone."""


@dataclass(frozen=True)
class ActiveFeatures:
    """What is active on a text: per token and ranked over the whole."""

    text: str
    tokens: list[str]
    per_token: list[list[tuple[int, float]]]
    """For each token: (feature, activation), strongest (or most surprising, or most effective) first."""
    ranked: list[ActiveFeature]
    by: str = "activation"
    """The measure: activation, surprise, effect or attribution."""
    target: str | None = None
    """The token whose logit effects are on."""
    measures: list[list[float]] = field(default_factory=list)
    """The measure of each entry of `per_token`."""
    special: list[int] = field(default_factory=list)
    """Indexes of tokens that mark something instead of saying it, such as a beginning; of an indexed document those
    that its statistics leave out."""
    part: DocumentPart | None = None
    """Where the text stands, if it is a piece of an indexed document."""

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self.ranked]

    def cell_rows(self) -> list[dict[str, Any]]:
        """A record for each feature at each token on which it is active."""
        return [
            {"token": index, "text": token, "feature": feature, "activation": value, self.by: measure}
            if self.by != "activation"
            else {"token": index, "text": token, "feature": feature, "activation": value, "share_of_maximum": measure}
            for index, (token, entries, sizes) in enumerate(
                zip(self.tokens, self.per_token, self.measures, strict=True)
            )
            for (feature, value), measure in zip(entries, sizes, strict=True)
        ]

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    def activations(self, feature: int) -> list[float]:
        """One feature's activation at each token."""
        found = {cell.token: cell.activation for cell in self.cells(feature)}
        return [found.get(index, 0.0) for index in range(len(self.tokens))]

    def cells(self, feature: int) -> list[Cell]:
        """The tokens on which a feature is active, in their order."""
        features, tokens, places = self._entries
        first, last = np.searchsorted(features, [feature, feature + 1]).tolist()
        cells: list[Cell] = []
        for token, place in zip(tokens[first:last].tolist(), places[first:last].tolist(), strict=True):
            value = self.per_token[token][place][1]
            cells.append(Cell(token, value, self.measures[token][place] if self.measures else value))
        return cells

    @cached_property
    def features(self) -> list[int]:
        """The features that are active anywhere, in the order of their first tokens."""
        features, tokens, places = self._entries
        found, first = np.unique(features, return_index=True)
        return found[np.lexsort((places[first], tokens[first]))].tolist()

    @cached_property
    def _entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each entry of `per_token` feature, token and place there, ordered by feature, then by token."""
        lengths = np.array([len(entries) for entries in self.per_token], dtype=np.int64)
        owners = (feature for entries in self.per_token for feature, _ in entries)
        features = np.fromiter(owners, dtype=np.int64, count=int(lengths.sum()))
        tokens = np.repeat(np.arange(lengths.size), lengths)
        places = np.arange(features.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        order = np.argsort(features, kind="stable")
        return features[order], tokens[order], places[order]


def histogram_of(bins: list[dict[str, Any]]) -> Histogram:
    """Fills the gaps between non-empty bins, so that edges are consecutive."""
    from features.event_tables import histogram_bins, histogram_edge

    if not bins:
        return Histogram([], [])
    lows = np.array([row["low"] for row in bins], dtype=np.float32)
    indices = histogram_bins(lows)
    if not np.array_equal(histogram_edge(indices), lows):
        return _joined(bins)
    counts = np.zeros(int(indices[-1] - indices[0]) + 1, dtype=np.int64)
    counts[indices - indices[0]] = [row["count"] for row in bins]
    edges = histogram_edge(np.arange(indices[0], indices[-1] + 2))
    return Histogram(edges.astype(float).tolist(), counts.tolist())


def _joined(bins: list[dict[str, Any]]) -> Histogram:
    """Bins of other edges than the index makes: between two that do not touch stands an empty one."""
    edges, counts = [bins[0]["low"]], []
    for row in bins:
        if row["low"] - edges[-1] > 0.01 * (row["high"] - row["low"]):
            edges.append(row["low"])
            counts.append(0)
        edges.append(row["high"])
        counts.append(row["count"])
    return Histogram([float(edge) for edge in edges], [int(count) for count in counts])
