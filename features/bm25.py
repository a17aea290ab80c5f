"""Words of labels and explanations, ranked with BM25.

Enters: words. Leaves: the texts that hold some of them, best first.

1. A text's words are its runs of letters and digits in lower case; a name with underscores is several words.
2. A word that n of the N texts hold weighs idf = ln(1 + (N − n + ½) / (n + ½)), never below 0.
3. A text of w words that holds it t times scores idf · t·(k1 + 1) / (t + k1·(1 − b + b·w / w̄)), summed over the words
   of the query; w̄ is the mean length of all texts.

Each label of a feature, earlier ones too, and each of its explanations is a text. Which text holds which word is kept
in memory: of the explanations until others are written, of the labels, which are few, until one is.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; the idf is Lucene's.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import as_array
from features.store import Store

K1 = 1.2
"""How much a word that stands more than once counts: 0 not at all, large in proportion."""
B = 0.75
"""How much long texts are held back: 0 not at all, 1 in full proportion."""
BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}]+"


class WordHit(NamedTuple):
    """A text that holds words of a query."""

    feature: int
    text: str
    is_label: bool
    is_newest: bool
    """It is the label that is shown; earlier ones are found too."""
    method_score: float | None
    """The explanation's own score."""
    words: list[str]
    """The words of the query that it holds, rarest first."""
    has_all: bool
    """It holds every word of the query."""
    score: float
    """BM25."""


class _Held(NamedTuple):
    """Which of some texts hold which word."""

    lengths: np.ndarray
    """int64 [texts]: words of each."""
    numbers: dict[str, int]
    """The number of each word."""
    starts: np.ndarray
    """int64 [words + 1]: where a word's texts begin in what follows."""
    texts: np.ndarray
    """int64: the texts that hold it, rising."""
    times: np.ndarray
    """int64: how often they do."""

    def of(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """The texts that hold a word, and how often."""
        number = self.numbers.get(word)
        held = slice(0, 0) if number is None else slice(self.starts[number], self.starts[number + 1])
        return self.texts[held], self.times[held]


class _Index(NamedTuple):
    """The words of all texts at one state of the labels database: labels first, explanations behind them."""

    stamp: tuple[int, ...]
    labels: pa.Table
    is_newest: np.ndarray
    """bool [labels]."""
    explanations: pa.Table
    features: np.ndarray
    """int64 [texts]."""
    parts: tuple[_Held, _Held]

    def told(self, texts: np.ndarray) -> tuple[list[str], list[float | None]]:
        """What the texts say, and their methods' own scores."""
        is_label = texts < self.labels.num_rows
        labels = self.labels.take(texts[is_label])
        others = self.explanations.take(texts[~is_label] - self.labels.num_rows)
        order = np.argsort(np.argsort(~is_label, kind="stable"), kind="stable").tolist()
        said = labels["text"].to_pylist() + others["text"].to_pylist()
        scores = [None] * labels.num_rows + others["score"].to_pylist()
        return [said[place] for place in order], [scores[place] for place in order]


class WordIndex:
    """Finds texts by their words; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._kept: _Index | None = None

    def ranked(self, query: str, limit: int) -> list[WordHit]:
        """Texts that hold words of the query, best first; none where the query has no word."""
        index = self.read()
        terms = sorted(set(words_of(pa.array([query]))[0].as_py()) - {""})
        lengths = np.concatenate([part.lengths for part in index.parts])
        n_labels, n_texts = index.labels.num_rows, lengths.size
        if not terms or not lengths.any():
            return []
        behind = (1 - B + B * lengths / lengths.mean()) * K1
        scores, weighed = np.zeros(n_texts), list[tuple[float, str, np.ndarray]]()
        for term in terms:
            (labels, of_labels), (others, of_others) = (part.of(term) for part in index.parts)
            held, times = np.concatenate([labels, others + n_labels]), np.concatenate([of_labels, of_others])
            idf = float(np.log(1 + (n_texts - held.size + 0.5) / (held.size + 0.5)))
            scores[held] += idf * times * (K1 + 1) / (times + behind[held])
            weighed.append((-idf, term, held))
        weighed.sort(key=lambda entry: entry[:2])
        best = _best(scores, index.features, n_labels, limit)
        is_label = best < n_labels
        texts, method_scores = index.told(best)
        held = np.stack([_are_in(best, texts_of) for _, _, texts_of in weighed], axis=1)
        return [
            WordHit(
                feature=int(index.features[text]),
                text=told,
                is_label=labelled,
                is_newest=labelled and bool(index.is_newest[text]),
                method_score=method_score,
                words=[term for (_, term, _), is_in in zip(weighed, holds, strict=True) if is_in],
                has_all=all(holds),
                score=float(scores[text]),
            )
            for text, told, labelled, method_score, holds in zip(
                best.tolist(), texts, is_label.tolist(), method_scores, held.tolist(), strict=True
            )
        ]

    def read(self) -> _Index:
        """Takes up what was written since it was last asked."""
        with self._lock:
            stamp = self._store.labels_stamp()
            if self._kept is None or self._kept.stamp != stamp:
                self._kept = _index(stamp, self._store.people_at(stamp), self._kept)
            return self._kept


def words_of(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The words of each text, and maybe empty ones at its ends."""
    return pc.split_pattern_regex(pc.utf8_lower(texts), BETWEEN_WORDS)  # pyright: ignore[reportAttributeAccessIssue]


def _index(stamp: tuple[int, ...], people: dict[str, pa.Table], before: _Index | None) -> _Index:
    labels, explanations = people["labels"], people["explanations"]
    is_known = before is not None and before.explanations.equals(explanations)
    told = before.parts[1] if before is not None and is_known else _held(explanations["text"])
    named = as_array(labels["feature"]).astype(np.int64)
    newest_last = np.argsort(np.array(labels["created"].to_pylist(), dtype=str), kind="stable")
    shown = dict(zip(named[newest_last].tolist(), newest_last.tolist(), strict=True))
    is_newest = np.zeros(named.size, dtype=bool)
    is_newest[list(shown.values())] = True
    features = np.concatenate([named, as_array(explanations["feature"]).astype(np.int64)])
    return _Index(stamp, labels, is_newest, explanations, features, (_held(labels["text"]), told))


def _held(texts: pa.ChunkedArray) -> _Held:
    n = len(texts)
    split = words_of(texts.combine_chunks() if n else pa.array([], pa.string()))
    split = split.combine_chunks() if isinstance(split, pa.ChunkedArray) else split
    words, owner = split.flatten(), np.repeat(np.arange(n), np.diff(split.offsets.to_numpy()))
    is_word = pc.not_equal(words, "")  # pyright: ignore[reportAttributeAccessIssue]
    words, owner = words.filter(is_word), owner[is_word.to_numpy(zero_copy_only=False)]
    encoded = words.dictionary_encode()
    numbers = {word: number for number, word in enumerate(encoded.dictionary.to_pylist())}
    keys, times = np.unique(encoded.indices.to_numpy().astype(np.int64) * max(n, 1) + owner, return_counts=True)
    number, text = np.divmod(keys, max(n, 1))
    starts = np.searchsorted(number, np.arange(len(numbers) + 1))
    return _Held(np.bincount(owner, minlength=n), numbers, starts, text, times)


def _best(scores: np.ndarray, features: np.ndarray, n_labels: int, limit: int) -> np.ndarray:
    """The texts with the highest scores above 0; of equals labels first, then by feature."""
    found = np.flatnonzero(scores > 0)
    if found.size > limit > 0:
        least = np.partition(scores[found], found.size - limit)[found.size - limit]
        found = found[scores[found] >= least]
    order = np.lexsort((features[found], found >= n_labels, -scores[found]))
    return found[order][: max(limit, 0)]


def _are_in(texts: np.ndarray, held: np.ndarray) -> np.ndarray:
    """bool: which of the texts are among those held, which rise."""
    place = np.minimum(np.searchsorted(held, texts), max(held.size - 1, 0))
    return held[place] == texts if held.size else np.zeros(texts.size, dtype=bool)
