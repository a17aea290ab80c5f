"""The windows of text that explanations are scored on.

Enters: an opened dictionary and the division of its documents. Leaves: for each feature, windows in which it is active
and windows in which it is silent, from documents that no rule was fitted on.

1. The indexed tokens of each document are cut into windows of equal length; what is left over at its end is unused.
   Documents of the test part give test windows, all others train windows; no document gives both.
2. Every event is looked up in both parts, so that "silent" is a fact about the whole window, not an assumption about
   windows drawn at random.
3. Active windows are drawn evenly from equal parts of their order of strength. Silent ones are drawn evenly from all
   silent windows, and hard ones from silent windows in which a feature like this one is active: one with a close
   decoder direction, or one that is often active in the same windows.

Draws of a feature depend on the seed and on nothing but the feature's own facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.attributes import Tokens, attributes_of
from features.dictionary import Dictionary
from features.events import read_events, split_features
from features.rules import TEST, WHOLE_DOCUMENTS_FROM, Division, Predictor, divide_documents

ACTIVE, SILENT, HARD = 0, 1, 2
LEVELS = 10
"""The largest displayed activation."""
MARKED = 0.3
"""Share of a window's strongest activation from which a token is marked as active."""
LIKE = 10
"""Features with close directions, and as many that are active together, whose windows are hard."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What is scored, and how its windows are drawn."""

    __pydantic_config__ = {"extra": "forbid"}

    features: int | None = None
    """Features to score, drawn by seed; null scores every explained one."""
    window_tokens: int = 32
    """Length of a window."""
    sample_tokens: int = 400_000
    """Tokens of text at most on either side, whole documents drawn by seed; longer ones are cut."""
    actives: int = 50
    """Active windows for each feature."""
    silent: int = 50
    """Silent windows for each feature, and as many hard ones."""
    simulated: int = 10
    """A feature's strongest windows whose activations are simulated, and as many drawn at random."""
    quantiles: int = 10
    """Equal parts of the order of strength that active windows are drawn from."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        for name in ("window_tokens", "sample_tokens", "actives", "silent", "simulated", "quantiles", "features"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"score.{name}={getattr(self, name)}, expected at least 1: raise it")


def displayed(activations: np.ndarray, maximum: float) -> np.ndarray:
    """int64: activations as people and models see them, ⌈10 · a / max⌉ from 0 to 10."""
    return np.clip(np.ceil(LEVELS * activations / maximum), 0, LEVELS).astype(np.int64)


@dataclass(frozen=True)
class FeatureWindows:
    """Windows drawn for one feature."""

    feature: int
    windows: np.ndarray
    """int64 [n]: numbers of the windows in their part."""
    kinds: np.ndarray
    """int64 [n]: `ACTIVE`, `SILENT` or `HARD`."""
    quantiles: np.ndarray
    """int64 [n]: part of the order of strength, 0 the strongest; −1 for silent windows."""
    activations: np.ndarray
    """float64 [n, window_tokens]: sizes of the feature's activations."""
    documents: np.ndarray
    """int64 [n]: the part's own number of each window's document."""

    def select(self, kept: np.ndarray) -> FeatureWindows:
        """The windows that a boolean or index array picks."""
        return FeatureWindows(
            self.feature,
            self.windows[kept],
            self.kinds[kept],
            self.quantiles[kept],
            self.activations[kept],
            self.documents[kept],
        )


class WindowedPart:
    """The windows of some documents, and every event of every feature inside them."""

    def __init__(self, dictionary: Dictionary, rows: np.ndarray, config: ScoreConfig) -> None:
        text = dictionary.text
        documents = text.documents
        length = config.window_tokens
        budget = config.sample_tokens
        longest = -(-budget // WHOLE_DOCUMENTS_FROM)
        pieces: list[np.ndarray] = []
        windows: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        self.rows: list[int] = []
        is_indexed = text.column("is_indexed")
        before = 0
        for row in rows.tolist():
            size = min(int(documents.n_tokens[row]), longest, budget - before)
            ordinals = int(documents.first_token[row]) + np.arange(size)
            places = before + np.flatnonzero(is_indexed[ordinals])
            if places.size < length:
                continue
            pieces.append(ordinals)
            windows.append(places[: places.size // length * length].reshape(-1, length))
            owners.append(np.full(windows[-1].shape[0], len(self.rows)))
            self.rows.append(row)
            before += size
            if before >= budget:
                break
        if not windows:
            raise ValueError(
                f"no document of dictionary {dictionary.name} has {length} indexed tokens on one side of its division, "
                "expected at least one window there: index more text, or lower score.window_tokens"
            )
        self.ordinals = np.concatenate(pieces)
        """int64 [tokens]: numbers in the text of all tokens of these documents."""
        self.windows = np.concatenate(windows)
        """int64 [n, window_tokens]: index in `ordinals` of each window's tokens."""
        self.documents = np.concatenate(owners)
        """int64 [n]: the document of each window, numbered in `rows`."""
        self.vocabulary = text.vocabulary
        self.token_ids = text.column("token_id")[self.ordinals]
        sizes = [piece.size for piece in pieces]
        self._tokens = Tokens(
            self.token_ids,
            np.repeat(np.arange(len(sizes)), sizes),
            text.column("context_position")[self.ordinals],
            [documents.names[row] for row in self.rows],
        )
        self._flat_of = np.full(text.n_tokens, -1, dtype=np.int32)
        self._flat_of[self.ordinals[self.windows.reshape(-1)]] = np.arange(self.windows.size)
        self._collected: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    @property
    def n_windows(self) -> int:
        return self.windows.shape[0]

    @cached_property
    def predictor(self) -> Predictor:
        """Predicts by rules at tokens of `ordinals`, which the rows of `windows` hold."""
        return Predictor(attributes_of(self._tokens, self.vocabulary))

    def texts(self, windows: np.ndarray) -> list[list[str]]:
        """The tokens of windows."""
        ids = self.token_ids[self.windows[windows]]
        return [[self.vocabulary[token] for token in row] for row in ids.tolist()]

    def take(self, features: np.ndarray, ordinals: np.ndarray, activations: np.ndarray) -> None:
        """Takes up those events, of features beyond all before, that lie in a window."""
        flat = self._flat_of[ordinals]
        kept = flat >= 0
        self._collected.append((features[kept], flat[kept], np.abs(activations[kept])))

    def seal(self, n_features: int) -> None:
        """Sums events up by feature and window once all are taken."""
        features, self._flat, self._sizes = (np.concatenate(parts) for parts in zip(*self._collected, strict=True))
        self._collected = []
        self._first = np.searchsorted(features, np.arange(n_features + 1))
        window = self._flat // self.windows.shape[1]
        starts = np.ones(window.size, dtype=bool)
        starts[1:] = (window[1:] != window[:-1]) | (features[1:] != features[:-1])
        starts = np.flatnonzero(starts)
        self._active = window[starts]
        self._strongest = np.maximum.reduceat(self._sizes, starts) if starts.size else self._sizes
        active_features = features[starts]
        self._first_active = np.searchsorted(active_features, np.arange(n_features + 1))
        self.active_counts = np.diff(self._first_active)
        """int64 [n_features]: windows in which each feature is active."""
        order = np.argsort(self._active, kind="stable")
        self._features_in = active_features[order]
        self._first_in = np.searchsorted(self._active[order], np.arange(self.n_windows + 1))

    def active(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows in which a feature is active, in the order of the text, and its largest activation in each."""
        part = slice(self._first_active[feature], self._first_active[feature + 1])
        return self._active[part], self._strongest[part]

    def activations(self, feature: int, windows: np.ndarray) -> np.ndarray:
        """float64 [n, window_tokens]: a feature's activations in windows, 0 where it is silent."""
        part = slice(self._first[feature], self._first[feature + 1])
        length = self.windows.shape[1]
        found = np.zeros((windows.size, length))
        number = np.full(self.n_windows, -1)
        number[windows] = np.arange(windows.size)
        at = number[self._flat[part] // length]
        kept = at >= 0
        found[at[kept], self._flat[part][kept] % length] = self._sizes[part][kept]
        return found

    def frequent_token(self, feature: int) -> tuple[int, float] | None:
        """The token at which a feature is active most often, and its mean activation over all occurrences of it."""
        part = slice(self._first[feature], self._first[feature + 1])
        ids = self.token_ids[self.windows.reshape(-1)[self._flat[part]]]
        if ids.size == 0:
            return None
        token = int(np.bincount(ids).argmax())
        return token, float(self._sizes[part][ids == token].sum() / self._occurrences[token])

    @cached_property
    def _occurrences(self) -> np.ndarray:
        return np.bincount(self.token_ids[self.windows.reshape(-1)], minlength=len(self.vocabulary))

    def together(self, feature: int, windows: np.ndarray) -> np.ndarray:
        """The features that are most often active in the same windows, by the cosine of their incidence there."""
        found = np.concatenate([self._features_in[self._first_in[w] : self._first_in[w + 1]] for w in windows.tolist()])
        counts = np.bincount(found, minlength=self.active_counts.size)
        counts[feature] = 0
        cosine = counts / np.sqrt(np.maximum(self.active_counts, 1))
        best = np.argsort(-cosine, kind="stable")[:LIKE]
        return best[counts[best] > 0]


def rng_of(seed: int, feature: int, use: int = 0) -> np.random.Generator:
    """The random numbers of one feature; `use` keeps those of one purpose apart from those of another."""
    return np.random.Generator(np.random.Philox(key=[seed, feature << 8 | use]))


class ScoringText:
    """Both parts of a dictionary's text with their events: made once, then drawn from for each feature."""

    def __init__(self, dictionary: Dictionary, config: ScoreConfig, division_seed: int) -> None:
        dictionary.store.require_all_events("drawing windows to score")
        documents = dictionary.text.documents
        if documents.ids.size < WHOLE_DOCUMENTS_FROM:
            raise ValueError(
                f"dictionary {dictionary.name} has {documents.ids.size} documents, expected at least "
                f"{WHOLE_DOCUMENTS_FROM} to keep those of the test apart: index more text"
            )
        self.config = config
        self.division: Division = divide_documents(documents.ids.size, division_seed)
        order, parts = self.division.order, self.division.parts
        self.test = WindowedPart(dictionary, order[parts[order] == TEST], config)
        self.train = WindowedPart(dictionary, order[parts[order] != TEST], config)
        facts = dictionary.store.query("select count, first_event from features order by feature")
        counts, first_event = (column.to_numpy() for column in facts.columns)
        for first, last in split_features(counts, 4_000_000, 4096):
            start, stop = int(first_event[first]), int(first_event[last - 1] + counts[last - 1])
            events = read_events(dictionary.store.build / "events.parquet", start, stop)
            ordinals = dictionary.text.ordinals(events.documents, events.positions)
            # the order of the index is that of documents; that of a part is its own draw
            for part in (self.train, self.test):
                part.take(events.features, ordinals, events.activations)
        for part in (self.train, self.test):
            part.seal(counts.size)
        close = dictionary.store.query("select feature, neighbour from neighbours order by feature, rank")
        feature, neighbour = (column.to_numpy() for column in close.columns)
        self._neighbours = neighbour
        self._first_neighbour = np.searchsorted(feature, np.arange(counts.size + 1))

    def draw(self, feature: int, part: WindowedPart | None = None) -> FeatureWindows:
        """Draws a feature's windows (from the test part): active ones, silent ones, hard silent ones."""
        part = part or self.test
        config = self.config
        rng = rng_of(config.seed, feature)
        windows, strongest = part.active(feature)
        ranked = windows[np.argsort(-strongest, kind="stable")]
        chosen, quantiles = stratified(ranked, config.actives, config.quantiles, rng)
        is_silent = np.ones(part.n_windows, dtype=bool)
        is_silent[windows] = False
        silent = _some(np.flatnonzero(is_silent), config.silent, rng)
        like = self._neighbours[self._first_neighbour[feature] : self._first_neighbour[feature + 1]][:LIKE]
        if chosen.size:
            like = np.union1d(like, part.together(feature, chosen))
        near = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(part.active(int(f))[0] for f in like)]))
        hard = _some(near[is_silent[near]], config.silent, rng)
        drawn = np.concatenate([chosen, silent, hard])
        kinds = np.repeat([ACTIVE, SILENT, HARD], [chosen.size, silent.size, hard.size])
        activations = np.zeros((drawn.size, config.window_tokens))
        activations[: chosen.size] = part.activations(feature, chosen)
        strata = np.concatenate([quantiles, np.full(drawn.size - chosen.size, -1)])
        return FeatureWindows(feature, drawn, kinds, strata, activations, part.documents[drawn])

    def simulated(self, feature: int) -> FeatureWindows:
        """A feature's strongest test windows, and as many drawn from all others, whatever they hold."""
        rng = rng_of(self.config.seed, feature, 1)
        windows, strongest = self.test.active(feature)
        top = windows[np.argsort(-strongest, kind="stable")][: self.config.simulated]
        others = _some(np.setdiff1d(np.arange(self.test.n_windows), top), top.size, rng)
        drawn = np.concatenate([top, others])
        activations = self.test.activations(feature, drawn)
        kinds = np.where(activations.any(1), ACTIVE, SILENT)
        return FeatureWindows(feature, drawn, kinds, np.full(drawn.size, -1), activations, self.test.documents[drawn])


def fuzz_marks(drawn: FeatureWindows, rng: np.random.Generator) -> tuple[FeatureWindows, np.ndarray, np.ndarray]:
    """Marks tokens of windows: (windows, marks [n, window_tokens], kind of each).

    Kind 0: active windows with the tokens marked that reach `MARKED` of the window's strongest. Kind 1: silent windows
    with as many tokens marked as those have on average, rounded up, anywhere. Kind 2: the active windows again, with
    as many of their silent tokens marked; windows without silent tokens are left out.
    """
    is_active, is_silent = np.flatnonzero(drawn.kinds == ACTIVE), np.flatnonzero(drawn.kinds == SILENT)
    sizes = drawn.activations[is_active]
    right = sizes >= np.maximum(MARKED * sizes.max(1, keepdims=True), 1e-30)
    number = int(np.ceil(right.sum(1).mean())) if right.size else 1
    wrong = _mark(np.ones(drawn.activations[is_silent].shape, dtype=bool), number, rng)
    has_silent = (sizes == 0).any(1)
    beside = _mark(sizes[has_silent] == 0, number, rng)
    return (
        drawn.select(np.concatenate([is_active, is_silent, is_active[has_silent]])),
        np.concatenate([right, wrong, beside]),
        np.repeat([0, 1, 2], [right.shape[0], wrong.shape[0], beside.shape[0]]),
    )


def _mark(allowed: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Marks `number` allowed entries of each row (all, where a row has fewer), each with the same chance."""
    draws = np.where(allowed, rng.random(allowed.shape), 2.0)
    rank = np.argsort(np.argsort(draws, axis=1), axis=1)
    return allowed & (rank < number)


def stratified(ranked: np.ndarray, n: int, quantiles: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws `n` of the ranked windows (all, where there are no more) evenly from equal parts of their order.

    Returns the windows and the part of each.
    """
    parts = np.array_split(np.arange(ranked.size), quantiles)
    number = np.repeat(np.arange(quantiles), [part.size for part in parts])
    if ranked.size <= n:
        return ranked, number
    shares = [n // quantiles + (part < n % quantiles) for part in range(quantiles)]
    kept = np.concatenate([_some(part, share, rng) for part, share in zip(parts, shares, strict=True)])
    return ranked[kept], number[kept]


def _some(values: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` of the values without repetition, in their order; all, where there are no more."""
    return values if values.size <= n else np.sort(rng.choice(values, n, replace=False))
