"""Explanations without a language model: which simple rule about tokens predicts where a feature is active.

Enters: an opened dictionary. Leaves: for every live feature a short text, the rule behind it and the rule's score,
written to the labels database.

1. Documents are divided three ways: fit, choose, test (very few documents: blocks of text instead).
2. For each kind of attribute (`features.attributes`: the token, the one before, the line, the region, …) the activation
   mass of each category (here the sum of squared activations, so that strong ones count, as they do for who reads the
   examples) is held against how often the category occurs. Categories ordered by expected mass give nested rules
   "active where the attribute is one of S"; S maximises the harmonic mean of
       recall    = share of the activation mass that S covers
       precision = mass in S / (occurrences of S · the feature's mean mass of an event), at most 1
   on the fit part: precision asks that the feature be active at S as strongly as it usually is.
3. The attribute is the one whose rule does best on the choose part, with a slight preference for plain and small rules.
4. The score is measured on the test part: AUC of the expected mass of each token's category as a predictor of
   whether the feature is active, and balanced accuracy of S itself.

All of it is counting over sorted keys, for all features of a range at once.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from activations.progress import progress
from features import labels, schema
from features.attributes import Attribute, Tokens, attributes_of
from features.dictionary import Dictionary
from features.events import StoredEvents, read_events, split_features
from features.examples import order_by_activation
from features.phrases import LISTED, Member, quoted, rule_text
from features.rules import CHOOSE, FIT, SPLITS, TEST, WHOLE_DOCUMENTS_FROM, Rule, divide_documents

METHOD = "token-statistics"
RULE_MEMBERS = 256
BLOCKS, BLOCK_TOKENS = 48, 1024
"""What is divided where documents are too few: at least that many blocks of at most that length."""

PREFERENCE = {
    "token": 1.0,
    "class": 0.97,
    "region": 0.97,
    "place": 0.97,
    "line": 0.97,
    "previous": 0.97,
    "word": 0.96,
    "pair": 0.95,
    "previous two": 0.95,
    "line and token": 0.93,
    "region and token": 0.93,
    "line and class": 0.92,
    "region and class": 0.92,
    "next": 0.9,
}
COST_PER_MEMBER = 0.008
UNTOLD = 0.6
"""What a rule is worth, as a share, whose members a text cannot list."""


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """How explanations are made."""

    __pydantic_config__ = {"extra": "forbid"}

    sample_tokens: int = 400_000
    """Tokens of the indexed text that rules are fitted and tested on, whole documents drawn by seed."""
    min_events: int = 4
    """Activations in the fitted part below which no rule is sought and the feature counts as rare."""
    seed: int = 0
    """Seed of the documents drawn and of their division."""

    def __post_init__(self) -> None:
        if self.sample_tokens < 1 or self.min_events < 1:
            raise ValueError(
                f"explain.sample_tokens={self.sample_tokens} and explain.min_events={self.min_events}, expected at "
                "least 1 each: raise them"
            )


@dataclass(frozen=True)
class ExplainReport:
    """What an explanation run wrote."""

    explained: int
    rare: int
    dead: int
    median_auc: float | None
    median_balanced_accuracy: float | None
    attributes: dict[str, int]
    """Features by the attribute of their rule."""
    seconds: float

    def rows(self) -> list[dict[str, Any]]:
        return [{"rule about": name, "features": n} for name, n in self.attributes.items()]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def explain(dictionary: Dictionary, config: ExplainConfig | None = None) -> ExplainReport:
    """Explains every live feature of the dictionary and writes texts and scores into its labels database."""
    dictionary.check_built()
    config = config or ExplainConfig()
    started = time.perf_counter()
    store = dictionary.store
    store.require_all_events("fitting rules")
    sample = _Sample(dictionary, config)
    facts = store.query("select feature, count, is_dead, first_event from features order by feature")
    counts, first_event = facts["count"].to_numpy(), facts["first_event"].to_numpy()
    created = labels.now()
    explanations: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    with progress("explain", counts.size, "features") as advance:
        for first, last in split_features(counts, 4_000_000, 512):
            start, stop = int(first_event[first]), int(first_event[last - 1] + counts[last - 1])
            events = sample.events(first, last, read_events(store.build / "events.parquet", start, stop))
            fitted = [_Fit(attribute, events, sample) for attribute in sample.attributes]
            promoted = _promoted(dictionary, first, last)
            for local in np.flatnonzero(counts[first:last] > 0).tolist():
                feature = first + local
                written = _explain_one(
                    local, fitted, sample, config, int(counts[feature]), promoted.get(feature, []), events
                )
                base = {"feature": feature, "method": METHOD, "created": created}
                explanations.append(
                    base
                    | {"text": written.text, "rule": written.rule, "score": written.auc, "author": "glassbox"}
                    | {"attribute": written.attribute}
                )
                for scorer, score in (("auc", written.auc), ("balanced_accuracy", written.balanced_accuracy)):
                    if score is not None:
                        scores.append(base | {"scorer": scorer, "score": score})
            advance(last - first)
    labels.write_explanations(
        store, pa.Table.from_pylist(explanations, schema=schema.TABLES["explanations"].arrow_schema()), METHOD
    )
    labels.write_scores(
        store,
        pa.Table.from_pylist(scores, schema=schema.TABLES["scores"].arrow_schema()),
        METHOD,
        ("auc", "balanced_accuracy"),
    )
    kinds = Counter(row["attribute"] for row in explanations)
    rare = kinds.pop("rare", 0)

    def median(scorer: str) -> float | None:
        found = [row["score"] for row in scores if row["scorer"] == scorer]
        return float(np.median(found)) if found else None

    return ExplainReport(
        explained=len(explanations),
        rare=rare,
        dead=int((counts == 0).sum()),
        median_auc=median("auc"),
        median_balanced_accuracy=median("balanced_accuracy"),
        attributes=dict(kinds.most_common()),
        seconds=round(time.perf_counter() - started, 2),
    )


@dataclass(frozen=True)
class _Events:
    """A range's events inside the sample."""

    n: int
    features: np.ndarray
    places: np.ndarray
    """Index of the token in the sample."""
    mass: np.ndarray
    """Squared activations."""
    splits: np.ndarray

    def totals(self, weights: np.ndarray | None) -> np.ndarray:
        """float64 [n, splits]: sum of weights (or number) of each feature's events per split."""
        keys = self.features * SPLITS + self.splits
        return np.bincount(keys, weights, minlength=self.n * SPLITS).reshape(self.n, SPLITS).astype(float)


class _Sample:
    """The tokens that rules are fitted and tested on, with their attributes."""

    def __init__(self, dictionary: Dictionary, config: ExplainConfig) -> None:
        text = dictionary.text
        documents = text.documents
        division = divide_documents(documents.ids.size, config.seed)
        is_divided = documents.ids.size >= WHOLE_DOCUMENTS_FROM
        # no document gives so much that too few of them are left to divide
        longest = -(-config.sample_tokens // WHOLE_DOCUMENTS_FROM) if is_divided else config.sample_tokens
        lengths = np.minimum(documents.n_tokens, longest)
        before = np.cumsum(lengths[division.order]) - lengths[division.order]
        lengths[division.order] = np.clip(config.sample_tokens - before, 0, lengths[division.order])
        rows = np.flatnonzero(lengths)
        pieces = [int(documents.first_token[row]) + np.arange(lengths[row]) for row in rows.tolist()]
        ordinals = np.concatenate(pieces)
        self.ordinals = ordinals
        self.index_of = np.full(text.n_tokens, -1, dtype=np.int64)
        self.index_of[ordinals] = np.arange(ordinals.size)
        self.text = text
        row_of = np.repeat(rows, lengths[rows])
        self.vocabulary = text.vocabulary
        self.tokens = Tokens(
            text.column("token_id")[ordinals],
            row_of,
            text.column("context_position")[ordinals],
            [documents.names[row] for row in rows.tolist()],
        )
        if is_divided:
            self.splits = division.parts[row_of]
        else:
            blocks = np.arange(ordinals.size) // int(np.clip(ordinals.size // BLOCKS, 1, BLOCK_TOKENS))
            self.splits = divide_documents(int(blocks[-1]) + 1, config.seed).parts[blocks]
        self.is_indexed = text.column("is_indexed")[ordinals]
        self.attributes = attributes_of(self.tokens, self.vocabulary)
        counted = self.splits[self.is_indexed]
        self.split_tokens = np.bincount(counted, minlength=SPLITS).astype(float)
        self.background = {
            attribute.name: np.bincount(
                attribute.categories[self.is_indexed] * SPLITS + counted, minlength=attribute.size * SPLITS
            )
            .reshape(attribute.size, SPLITS)
            .astype(float)
            for attribute in self.attributes
        }

    def events(self, first: int, last: int, read: StoredEvents) -> _Events:
        """The events of a range of features that lie in the sample."""
        places = self.index_of[self.text.ordinals(read.documents, read.positions)]
        kept = places >= 0
        places = places[kept]
        return _Events(
            last - first,
            (read.features[kept] - first).astype(np.int64),
            places,
            np.square(read.activations[kept].astype(np.float64)),
            self.splits[places],
        )


class _Fit:
    """The best rule of each feature of a range about one attribute."""

    def __init__(self, attribute: Attribute, events: _Events, sample: _Sample) -> None:
        self.attribute = attribute
        n, size = events.n, attribute.size
        keys = (events.features * size + attribute.categories[events.places]) * SPLITS + events.splits
        keys, counts, mass = _group_events(keys, events.mass, n * size * SPLITS)
        entries, inverse = np.unique(keys // SPLITS, return_inverse=True)
        slot = inverse * SPLITS + keys % SPLITS
        counts = np.bincount(slot, counts, minlength=entries.size * SPLITS).reshape(-1, SPLITS)
        mass = np.bincount(slot, mass, minlength=entries.size * SPLITS).reshape(-1, SPLITS)
        feature, category = entries // size, entries % size
        background = sample.background[attribute.name][category]
        # one imagined silent occurrence keeps categories that were seen once from looking certain
        expected = mass[:, FIT] / (background[:, FIT] + 1)
        order = order_by_activation(feature, expected.astype(np.float32))
        self.feature, self.category = feature[order], category[order]
        self.mass, self.expected = mass[order], expected[order]
        counts, background = counts[order], background[order]
        starts = np.searchsorted(self.feature, np.arange(n + 1))
        self.starts = starts

        total_mass, total_count = events.totals(events.mass), events.totals(None)
        level = total_mass[:, FIT] / np.maximum(total_count[:, FIT], 1)
        fit_mass = _running(self.mass[:, FIT], self.feature, starts)
        fit_background = _running(background[:, FIT], self.feature, starts)
        score, _, _ = _harmonic(fit_mass, fit_background, total_mass[self.feature, FIT], level[self.feature])
        score = np.where(self.mass[:, FIT] > 0, score, -1.0)
        self.best = _first_largest(score, self.feature, starts)
        """Index of the last entry of each feature's rule, −1 without events."""
        found = self.best >= 0
        last = np.maximum(self.best, 0)
        self.members = np.where(found, last - starts[:-1] + 1, 0)

        def at_rule(values: np.ndarray) -> np.ndarray:
            running = _running(values, self.feature, starts)
            return np.where(found, running[last] if running.size else 0.0, 0.0)

        fit = _harmonic(at_rule(self.mass[:, FIT]), at_rule(background[:, FIT]), total_mass[:, FIT], level)
        chosen = _harmonic(at_rule(self.mass[:, CHOOSE]), at_rule(background[:, CHOOSE]), total_mass[:, CHOOSE], level)
        self.value = np.where(total_mass[:, CHOOSE] > 0, chosen[0], 0.7 * fit[0])
        pooled = _harmonic(
            at_rule(self.mass[:, FIT] + self.mass[:, CHOOSE]),
            at_rule(background[:, FIT] + background[:, CHOOSE]),
            total_mass[:, FIT] + total_mass[:, CHOOSE],
            level,
        )
        self.precision, self.recall = pooled[1], pooled[2]
        self.auc = self._auc(counts[:, TEST], background[:, TEST], total_count[:, TEST], sample.split_tokens[TEST], n)
        hits, covered = at_rule(counts[:, TEST]), at_rule(background[:, TEST])
        positives = total_count[:, TEST]
        negatives = sample.split_tokens[TEST] - positives
        with np.errstate(divide="ignore", invalid="ignore"):
            self.balanced = (hits / positives + 1 - (covered - hits) / negatives) / 2
        self.balanced[(positives == 0) | (negatives == 0)] = np.nan

    def _auc(
        self, hits: np.ndarray, background: np.ndarray, positives: np.ndarray, tokens: float, n: int
    ) -> np.ndarray:
        """Area under the curve of the expected activation as a predictor of events in the test part."""
        ranked = self.expected > 0
        hits, silent = np.where(ranked, hits, 0), np.where(ranked, background - hits, 0)
        negatives = tokens - positives
        above = _running(silent, self.feature, self.starts)
        won = np.bincount(self.feature, hits * (negatives[self.feature] - above + silent / 2), minlength=n)
        rest_hits = positives - np.bincount(self.feature, hits, minlength=n)
        rest_silent = negatives - np.bincount(self.feature, silent, minlength=n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(
                (positives > 0) & (negatives > 0),
                (won + rest_hits * rest_silent / 2) / (positives * negatives),
                np.nan,
            )

    def readable(self, local: int) -> float:
        """How much of a feature's rule a short text can tell: rules with many small members count for less."""
        mass = self.mass[self.starts[local] : self.best[local] + 1, FIT]
        if mass.size <= LISTED:
            return 1.0 - COST_PER_MEMBER * (mass.size - 1)
        listed = np.partition(mass, mass.size - LISTED)[-LISTED:].sum() / mass.sum()
        return (1.0 - COST_PER_MEMBER * LISTED) * (UNTOLD + (1 - UNTOLD) * float(listed))

    def members_of(self, local: int) -> list[Member]:
        """One feature's rule as members with their shares of the activation that it covers."""
        part = slice(self.starts[local], self.best[local] + 1)
        mass = self.mass[part, FIT]
        keys = [self.attribute.keys[c] for c in self.category[part].tolist()]
        return [Member(key, share) for key, share in zip(keys, (mass / mass.sum()).tolist(), strict=True)]

    def rule(self, local: int, events: _Events, sample: _Sample, promotes: list[str], seed: int) -> Rule:
        """One feature's rule as data; its activations are means over all that is not held for the test."""
        categories = self.category[self.starts[local] : self.best[local] + 1][:RULE_MEMBERS]
        part = slice(*np.searchsorted(events.features, [local, local + 1]))
        places = events.places[part][events.splits[part] != TEST]
        sizes = np.sqrt(events.mass[part][events.splits[part] != TEST])
        present, inverse = np.unique(self.attribute.categories[places], return_inverse=True)
        where = np.searchsorted(present, categories)
        background = sample.background[self.attribute.name][categories]
        means = np.bincount(inverse, sizes)[where] / (background[:, FIT] + background[:, CHOOSE])
        return Rule(
            self.attribute.name,
            [self.attribute.keys[c] for c in categories.tolist()],
            [round(float(value), 5) for value in means],
            round(float(self.precision[local]), 4),
            round(float(self.recall[local]), 4),
            promotes,
            seed,
        )


def _running(values: np.ndarray, feature: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Cumulative sums that begin anew with each feature."""
    if values.size == 0:
        return values.astype(float)
    total = np.cumsum(values, dtype=float)
    before = np.concatenate(([0.0], total))[starts[:-1]]
    return total - before[feature]


def _harmonic(
    mass: np.ndarray, background: np.ndarray, total: np.ndarray, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(harmonic mean, precision, recall) of rules that cover `mass` at `background` tokens."""
    recall = mass / np.maximum(total, 1e-30)
    precision = np.minimum(mass / np.maximum(background * level, 1e-30), 1.0)
    return 2 * precision * recall / np.maximum(precision + recall, 1e-30), precision, recall


def _first_largest(values: np.ndarray, feature: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Index of the first largest value of each feature; −1 where it has none above zero."""
    best = np.full(starts.size - 1, -1, dtype=np.int64)
    if values.size == 0:
        return best
    present = np.flatnonzero(starts[1:] > starts[:-1])
    largest = np.maximum.reduceat(values, starts[present])
    at = np.flatnonzero(values == np.repeat(largest, (starts[1:] - starts[:-1])[present]))
    owner = feature[at]
    first = np.concatenate(([True], owner[1:] != owner[:-1]))
    best[owner[first]] = np.where(values[at[first]] > 0, at[first], -1)
    return best


@dataclass(frozen=True)
class _Written:
    text: str
    attribute: str
    rule: str | None
    auc: float | None
    balanced_accuracy: float | None


def _explain_one(
    local: int,
    fitted: list[_Fit],
    sample: _Sample,
    config: ExplainConfig,
    count: int,
    promoted: list[tuple[str, float]],
    events: _Events,
) -> _Written:
    candidates = [
        (fit.value[local] * PREFERENCE[fit.attribute.name] * fit.readable(local), -place, fit)
        for place, fit in enumerate(fitted)
        if fit.best[local] >= 0
    ]
    promotes = _promotes_text(promoted)
    seen = int(np.searchsorted(events.features, local + 1) - np.searchsorted(events.features, local))
    if not candidates or seen < config.min_events:
        where = _places_seen(local, events, sample)
        text = f"rare ({count} activation{'s' if count > 1 else ''} in the indexed text)"
        return _Written(text + (f": {where}" if where else "") + promotes, "rare", None, None, None)
    _, _, best = max(candidates, key=lambda candidate: candidate[:2])
    rule = best.rule(local, events, sample, [token for token, logit in promoted if logit > 0], config.seed)
    words = rule_text(best.attribute.name, best.members_of(local), sample.vocabulary)
    if (rule.recall < 0.2 and rule.precision < 0.2) or best.value[local] < 0.12:
        text = f"no simple rule; most active at {_places_seen(local, events, sample)}{promotes}"
    else:
        text = words
        if rule.precision < 0.35:
            text = f"at times {text}"
        if rule.recall < 0.5:
            text += ", among other things"
        if best.value[local] < 0.5 or (promoted and promoted[0][1] > 1.6 * promoted[-1][1]):
            text += promotes
    auc, balanced = float(best.auc[local]), float(best.balanced[local])
    return _Written(
        text,
        best.attribute.name,
        rule.to_json(),
        None if np.isnan(auc) else round(auc, 4),
        None if np.isnan(balanced) else round(balanced, 4),
    )


def _places_seen(local: int, events: _Events, sample: _Sample) -> str:
    """The tokens that hold most of a feature's activation."""
    part = slice(np.searchsorted(events.features, local), np.searchsorted(events.features, local + 1))
    ids = sample.tokens.ids[events.places[part]]
    if ids.size == 0:
        return ""
    mass = np.bincount(ids, events.mass[part])
    top = np.argsort(-mass, kind="stable")[:5]
    return ", ".join(dict.fromkeys(quoted(sample.vocabulary[i]) for i in top.tolist() if mass[i] > 0))


def _promotes_text(promoted: list[tuple[str, float]]) -> str:
    words = list(dict.fromkeys(quoted(token) for token, logit in promoted if logit > 0))[:3]
    return f"; promotes {', '.join(words)}" if words else ""


def _promoted(dictionary: Dictionary, first: int, last: int) -> dict[int, list[tuple[str, float]]]:
    rows = dictionary.store.query(
        "select feature, token, logit from logits where side = 'top' and feature >= ? and feature < ? "
        "order by feature, rank",
        [first, last],
    )
    found: dict[int, list[tuple[str, float]]] = {}
    for feature, token, logit in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        found.setdefault(feature, []).append((token, logit))
    return found


def _group_events(keys: np.ndarray, weights: np.ndarray, n_keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct keys in rising order, how often each occurs, and the sum of its weights."""
    if n_keys <= max(4 * keys.size, 1 << 20):
        counts = np.bincount(keys, minlength=1)
        present = np.flatnonzero(counts)
        return present, counts[present], np.bincount(keys, weights)[present]
    if keys.size == 0:
        return keys, keys, weights.astype(np.float64)
    if n_keys < 1 << 31 and keys.size < 1 << 32:
        packed = (keys.astype(np.int64) << 32) | np.arange(keys.size, dtype=np.int64)
        packed.sort()
        order, ordered = packed & 0xFFFFFFFF, packed >> 32
    else:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[starts], np.diff(np.append(starts, keys.size)), np.add.reduceat(weights[order].astype(float), starts)
