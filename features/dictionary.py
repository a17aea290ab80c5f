"""The dictionary as people use it: features, their examples in context, search, and what is active on a text.

Enters: a dictionary folder (`features.store`), and the language model when a question needs it. Leaves: records.
Only `active_on` and steering load the model; everything else reads the folder.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from features import active, by_label, by_token_label, conditions, labels, search
from features.by_label import ByLabel
from features.conditions import Answer, Condition
from features.embedders import Embedder
from features.feature_map import FeatureMap, feature_map
from features.feature_rows import FeatureEvents, FeatureRows, records
from features.labelled_tokens import LabelledTokens
from features.labels import Explanation, Score
from features.listing import FeatureFilter, Listing
from features.lists import Lists
from features.logit_histogram import logit_histogram
from features.overview import Overview, overview
from features.questions import TIMEOUT_S
from features.records import (
    ActiveFeatures,
    Example,
    Feature,
    FeatureList,
    Histogram,
    histogram_of,
)
from features.relations import EXAMPLE, PAGE, relations_of
from features.search import SearchHit
from features.store import SHOWN_AFTER, SHOWN_BEFORE, Store
from features.text import Text

if TYPE_CHECKING:
    from activations import LanguageModel
    from features.steering_norms import TypicalRows
    from sae import SAE
    from sae.labelled_text import LabelledText

EVENT = ("document", "position", "activation")
CONTEXT_BEFORE = SHOWN_BEFORE
CONTEXT_AFTER = SHOWN_AFTER


class Dictionary:
    """All features of one SAE, indexed over one corpus. Open one with `Dictionary.open(folder)`."""

    def __init__(self, store: Store, model: str | Path | LanguageModel | None = None) -> None:
        self.store = store
        self.path = store.folder
        self.info: dict[str, Any] = store.info
        self.name = str(self.info["name"])
        self.n_features = int(self.info["n_features"])
        self.site = str(self.info["site"])
        self.sites = [str(site) for site in self.info.get("sites") or [self.site]]
        self.target_sites = [str(site) for site in self.info.get("target_sites") or self.sites]
        self._model = model
        self._lm: LanguageModel | None = None
        self._sae: SAE | None = None
        self._lock = threading.RLock()
        self.text = Text(store)
        self._rows = FeatureRows(store.build)
        self.listing = Listing(store, self.n_features)
        """Features by conditions (`features.listing`)."""
        self._sources = search.Sources(store, self.text, self.listing)

    @classmethod
    def open(cls, path: str | Path, model: str | Path | LanguageModel | None = None) -> Dictionary:
        """Opens a dictionary folder; `model` supplies the language model from elsewhere than recorded.

        Raises:
            FileNotFoundError: no complete dictionary in the folder, or a file of it is missing.
            ValueError: a file that was cut short, another format, or a model with other weights.
        """
        dictionary = cls(Store(Path(path)), model)
        if model is not None and not isinstance(model, str | Path):
            dictionary.lm  # noqa: B018  (a model that is at hand is checked at once)
        return dictionary

    def verify(self, deep: bool = True) -> None:
        """Checks the files against their recorded sizes and, when `deep`, their hashes."""
        self.store.verify(deep)

    def close(self) -> None:
        """Lets go of the files."""
        self.store.close()
        self._rows.close()

    @property
    def sae(self) -> SAE:
        """The SAE, loaded at first use."""
        self.check_built()
        with self._lock:
            if self._sae is None:
                from features.neurons import ARCHITECTURE, load_basis
                from sae import SAE

                folder = self.store.build / "sae"
                is_neurons = self.info["sae"]["architecture"] == ARCHITECTURE
                self._sae = load_basis(folder) if is_neurons else SAE.load(str(folder))
            return self._sae

    @property
    def lm(self) -> LanguageModel:
        """The language model, loaded at first use.

        Raises:
            ValueError: its weights are not those that the dictionary was built with.
        """
        self.check_built()
        with self._lock:
            lm = self._lm
            if lm is None:
                from activations import LanguageModel
                from features.origin import with_second_model

                recorded = self.info["model"]
                model = self._model if self._model is not None else recorded["name"]
                if isinstance(model, str | Path):
                    lm = LanguageModel.load(str(model), revision=recorded["revision"] if self._model is None else None)
                else:
                    lm = model
                if lm.weight_hash() != recorded["weight_hash"]:
                    raise ValueError(
                        f"model {lm.name} has weight hash {lm.weight_hash()[:12]}, dictionary {self.name} was built "
                        f"with {recorded['weight_hash'][:12]} ({recorded['name']}): open it with that model"
                    )
                lm = with_second_model(self.sae, self.store.build / "sae", lm)
                self.sae.to(lm.device)
                self._lm = lm
            return lm

    @cached_property
    def max_activations(self) -> np.ndarray:
        """float32 [n_features]: each feature's largest activation, 0 for dead ones."""
        return self.store.query("select max_activation from features order by feature")[0].to_numpy()

    @cached_property
    def overview(self) -> Overview:
        """What the dictionary is: origin, quality, densities, a feature to begin with (`features.overview`)."""
        return overview(self)

    @cached_property
    def typical_rows(self) -> TypicalRows:
        """Rows of the indexed text at the sites that are written, read by the model at first use."""
        from features.steering_norms import typical_rows

        return typical_rows(self)

    def read_ahead(self) -> None:
        """Reads now what searches and lists keep in memory, instead of at the first question: some 200 bytes a feature
        and 12 a row of feature_tokens."""
        self._sources.read()
        self.listing.facts  # noqa: B018  (kept once read)
        self.listing.texts([0])

    def check_built(self) -> None:
        """ValueError where the dictionary was made of another project's files, without SAE, model and whole text."""
        if found := self.info.get("imported"):
            raise ValueError(
                f"dictionary {self.name} was imported from {found['from']} files and holds neither SAE nor model nor "
                "the whole text, expected them for this: build a dictionary with `glassbox index`"
            )

    def check_feature(self, feature: int) -> int:
        """Returns the id as an int; refuses ids that the dictionary does not have."""
        if isinstance(feature, bool) or int(feature) != feature or not 0 <= feature < self.n_features:
            raise ValueError(
                f"feature {feature} does not exist, expected 0 to {self.n_features - 1} in dictionary {self.name}: "
                "choose one of these"
            )
        return int(feature)

    def feature(self, feature: int, before: int = CONTEXT_BEFORE, after: int = CONTEXT_AFTER) -> Feature:
        """Everything about one feature; examples show `before` and `after` tokens around their strongest one."""
        feature = self.check_feature(feature)
        vocabulary = self.text.vocabulary
        has_tokens = self._rows.has("page_tokens")  # not before that file was written
        found = self._rows.rows(feature, PAGE if has_tokens else {k: v for k, v in PAGE.items() if k != "page_tokens"})
        facts: dict[str, Any] = {name: column.tolist()[0] for name, column in found["features"].items()}
        bins = records(found["histograms"])
        if has_tokens:
            tokens = [(vocabulary[token], mass, count) for token, mass, count in records(found["page_tokens"])]
        else:
            tokens = self._tokens_of(feature)
        return Feature(
            id=feature,
            **facts,
            histogram=histogram_of([{"low": low, "high": high, "count": n} for low, high, n in bins]),
            examples=self.examples(feature, before, after),
            **relations_of(self._rows, vocabulary, feature),
            explanations=labels.explanations_of(self.store, feature),
            tokens=tokens,
        )

    def examples(
        self, feature: int, before: int = CONTEXT_BEFORE, after: int = CONTEXT_AFTER, stratum: int | None = None
    ) -> list[Example]:
        """A feature's examples with text of any width around them, strongest stratum first.

        Where only the events around examples are kept, no more text is shown than they cover.
        """
        feature = self.check_feature(feature)
        read = self._rows.rows(feature, {"examples": EXAMPLE, "events": EVENT})
        found = read["examples"]
        rows: list[dict[str, Any]] = [dict(zip(EXAMPLE, row, strict=True)) for row in records(found)]
        rows = [row for row in rows if stratum is None or row["stratum"] == stratum]
        return self.examples_at(feature, FeatureEvents.of(read["events"]), before, after, rows)

    def context(self, example: Example, before: int, after: int) -> Example:
        """The same example with another width of text around it."""
        row = {name: getattr(example, name) for name in EXAMPLE}
        return self.examples_at(example.feature, self._events(example.feature), before, after, [row])[0]

    def features(
        self,
        order: str = "density",
        where: str | None = None,
        limit: int = 50,
        offset: int = 0,
        live_only: bool = False,
    ) -> FeatureList:
        """A page of features with their explanations. `where` filters by words in the explanation or label.

        `order` is one of density, rare, max_activation, mean_activation, feature, score, random.
        """
        only = FeatureFilter(show="live" if live_only else "all", words=where or "")
        return self.listing.page(order, only, limit, offset)

    def search(
        self, query: str, limit: int = 20, kind: str = "auto", embedder: Embedder | None = None
    ) -> list[SearchHit]:
        """Features that match `query`, best first, each with the reason; the kinds are those of `features.search`.

        Raises:
            ValueError: an unknown kind, a pattern that is broken or slow, or `semantic` without an `embedder`.
        """
        return search.search(self._sources, query, limit, kind, embedder)

    def active_on(
        self, text: str, top: int = 10, by: str = "activation", target: str | int | None = None
    ) -> ActiveFeatures:
        """Each token's features, and the features ranked over a text by a measure of `features.active`: activation,
        surprise, or effect and attribution on the logit of `target`. Loads the model.
        """
        return active.active_on(self, text, top, by, target)

    def by_label(
        self,
        labelled: LabelledText | LabelledTokens,
        limit: int = 10,
        pooling: Literal["max", "mean"] = "max",
        seed: int = 0,
    ) -> ByLabel:
        """The features that best tell each label from the rest, with held-out scores (`features.by_label`).

        `labelled` comes from `sae.labelled_text`, or from `features.labelled_tokens`: then `pooling`, over a text's
        tokens, has no part in it. Loads the model.
        """
        if isinstance(labelled, LabelledTokens):
            return by_token_label.by_token_label(self, labelled, limit, seed)
        return by_label.by_label(self, labelled, limit, pooling, seed=seed)

    def find(self, condition: str | Condition, limit: int = 20) -> Answer:
        """Places that meet a condition over events, such as `12 & 40>0.5 & !7 within 5` (`features.conditions`)."""
        return conditions.find(self, condition, limit)

    def events_of(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """A feature's events in the order of the text: int64 keys, document << 32 | position, and activations."""
        events = self._events(self.check_feature(feature))
        return events.keys, events.activations

    def explanations_of(self, features: Iterable[int]) -> dict[int, str]:
        """The text to show for each of several features (label, else best explanation), where there is one."""
        return self.listing.texts(self.check_feature(feature) for feature in features)

    def map(self, seed: int = 0, again: bool = False) -> FeatureMap:
        """The map of the live features, with clusters; made at first use, which needs the extra `map`, and kept.

        Raises:
            ImportError: a map is to be made, and umap-learn is not installed.
            ValueError: too few live features.
        """
        return feature_map(self, seed, again)

    def sql(self, query: str, timeout_s: float | None = TIMEOUT_S) -> pa.Table:
        """Answers one question over the tables of `features.schema`, stopped after `timeout_s`.

        Raises:
            ValueError: writes, other files, settings, several statements, or an answer that takes too long.
        """
        return self.store.sql(query, timeout_s)

    def scores_of(self, feature: int) -> list[Score]:
        """How well each explanation of a feature predicts, by every scorer that was run."""
        return labels.scores_of(self.store, self.check_feature(feature))

    def logit_histogram(self, feature: int) -> Histogram:
        """What one unit of a feature adds to the logits, counted over the vocabulary. Loads the model."""
        return logit_histogram(self, self.check_feature(feature))

    def add_label(self, feature: int, text: str, author: str | None = None) -> Explanation:
        """Writes a label for a feature; the newest one is shown."""
        return labels.add_label(self.store, self.check_feature(feature), text, author)

    def remove_labels(self, feature: int, author: str | None = None) -> list[Explanation]:
        """Removes an author's labels of a feature and returns them; the others stay."""
        return labels.remove_labels(self.store, self.check_feature(feature), author)

    def add_to_list(
        self, name: str, features: Iterable[int], author: str | None = None, note: str | None = None
    ) -> list[int]:
        """Adds features to a named list, which the first of them creates; returns those that were not on it."""
        return self.lists.add(name, [self.check_feature(feature) for feature in features], note, author)

    @property
    def lists(self) -> Lists:
        """People's named lists of features: `create`, `add`, `get`, `all`, `remove`, `rename`, `delete`."""
        return Lists(self.store)

    def _events(self, feature: int) -> FeatureEvents:
        return FeatureEvents.of(self._rows.rows(feature, {"events": EVENT})["events"])

    def _tokens_of(self, feature: int) -> list[tuple[str, float, int]]:
        """The tokens with most of a feature's activation: text, share, times active there."""
        rows = self.store.query(
            """select token, mass, feature_tokens.count from feature_tokens join vocabulary using (token_id)
            where feature = ? order by mass desc limit 20""",
            [feature],
        )
        return [(row["token"], row["mass"], row["count"]) for row in rows.to_pylist()]

    def examples_at(
        self, feature: int, events: FeatureEvents, before: int, after: int, rows: Sequence[Mapping[str, Any]]
    ) -> list[Example]:
        """Examples with their text, given the events of their feature; rows have the columns `EXAMPLE`."""
        if not rows:
            return []
        if not self.store.keeps_all_events:
            before, after = min(before, SHOWN_BEFORE), min(after, SHOWN_AFTER)
        documents, positions = (np.array([row[name] for row in rows], dtype=np.int64) for name in EXAMPLE[2:4])
        windows = self.text.windows(documents, positions, before, after)
        ends = np.cumsum([len(window.tokens) for window in windows]).tolist()
        shown = events.at(
            np.repeat(documents, np.diff(ends, prepend=0)), np.concatenate([window.positions for window in windows])
        )
        return [
            Example(
                feature=feature,
                document_name=self.text.name(row["document"]),
                tokens=window.tokens,
                activations=shown[end - len(window.tokens) : end],
                center=window.center,
                **{name: row[name] for name in EXAMPLE},
            )
            for row, window, end in zip(rows, windows, ends, strict=True)
        ]
