"""Texts and explanations beside the relations of a comparison.

Enters: relations between features of two dictionaries. Leaves: the same with what people call the features, and, for
the first of each kind, pieces of the shared text with the activations of all features concerned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from features.compared import Compared
from features.comparison_records import Absorption, Match, PairedExample, Side, Split, Unique
from features.divided_features import Absorbed, Divided
from features.shared_text import SharedText

BEFORE, AFTER = 20, 10
UNIQUE_EXAMPLES = 2

Named = tuple[Side, int]


class Told:
    """Adds explanations and examples to relations."""

    def __init__(self, left: Compared, right: Compared, text: SharedText, examples: int) -> None:
        self._sides: dict[Side, Compared] = {"a": left, "b": right}
        self._text = text
        self._limit = examples

    def matches(self, found: Sequence[Match]) -> list[Match]:
        named: list[Named] = [("a", match.a) for match in found]
        named.extend(("b", match.b) for match in found)
        texts = self._explanations(named)
        told = []
        for number, match in enumerate(found):
            concerned: list[Named] = [("a", match.a), ("b", match.b)]
            # the side that is more often active shows what changed
            first = concerned if match.density_a >= match.density_b else concerned[::-1]
            shown = self._strongest(first[0], concerned, 1) if number < self._limit else []
            told.append(
                replace(
                    match,
                    explanation_a=texts.get(concerned[0], ""),
                    explanation_b=texts.get(concerned[1], ""),
                    examples=shown,
                )
            )
        return told

    def unique(self, found: Sequence[Unique]) -> list[Unique]:
        texts = self._explanations((entry.side, entry.feature) for entry in found)
        shown: dict[Side, int] = {"a": 0, "b": 0}
        told = []
        for entry in found:
            own: Named = (entry.side, entry.feature)
            concerned: list[Named] = [own]
            other = _other(entry.side)
            for partner in dict.fromkeys((entry.companion, entry.nearest)):
                if partner is not None:
                    concerned.append((other, partner))
            shown[entry.side] += 1
            examples = self._strongest(own, concerned, UNIQUE_EXAMPLES) if shown[entry.side] <= self._limit else []
            told.append(replace(entry, explanation=texts.get(own, ""), examples=examples))
        return told

    def splits(self, found: Sequence[Divided]) -> list[Split]:
        named: list[Named] = []
        for divided in found:
            other = _other(divided.split.side)
            named.append((divided.split.side, divided.split.feature))
            named.extend((other, part.feature) for part in divided.split.parts)
        texts = self._explanations(named)
        told = []
        for number, divided in enumerate(found):
            split = divided.split
            other = _other(split.side)
            parts = [replace(part, explanation=texts.get((other, part.feature), "")) for part in split.parts]
            concerned: list[Named] = [(split.side, split.feature)]
            concerned.extend((other, part.feature) for part in parts)
            examples = [self._at(token, concerned) for token in divided.tokens] if number < self._limit else []
            told.append(
                replace(split, parts=parts, explanation=texts.get((split.side, split.feature), ""), examples=examples)
            )
        return told

    def absorptions(self, found: Sequence[Absorbed]) -> list[Absorption]:
        def named(entry: Absorption) -> list[Named]:
            other = _other(entry.side)
            return [(entry.side, entry.feature), (other, entry.counterpart), (other, entry.absorber)]

        texts = self._explanations(name for entry in found for name in named(entry.found))
        told = []
        for number, entry in enumerate(found):
            concerned = named(entry.found)
            tokens = (entry.absorbed, entry.elsewhere) if number < self._limit else ()
            told.append(
                replace(
                    entry.found,
                    explanation=texts.get(concerned[0], ""),
                    counterpart_explanation=texts.get(concerned[1], ""),
                    absorber_explanation=texts.get(concerned[2], ""),
                    examples=[self._at(token, concerned) for token in tokens],
                )
            )
        return told

    def _explanations(self, named: Iterable[Named]) -> dict[Named, str]:
        wanted = set(named)
        found: dict[Named, str] = {}
        for side, each in self._sides.items():
            features = sorted(feature for of, feature in wanted if of == side)
            texts = each.dictionary.explanations_of(features) if features else {}
            found |= {(side, feature): text for feature, text in texts.items()}
        return found

    def _strongest(self, shown: Named, concerned: Sequence[Named], limit: int) -> list[PairedExample]:
        """Where a feature is most active in the shared text, in different documents; else where its dictionary says."""
        side, feature = shown
        each = self._sides[side]
        if each.events is None or each.events.of(feature)[0].size == 0:
            return self._own(shown, limit)
        tokens, values = each.events.of(feature)
        order = np.argsort(-np.abs(values), kind="stable")
        _, firsts = np.unique(self._text.documents[tokens[order]], return_index=True)
        return [self._at(int(tokens[order[place]]), concerned) for place in np.sort(firsts)[:limit].tolist()]

    def _own(self, shown: Named, limit: int) -> list[PairedExample]:
        side, feature = shown
        each = self._sides[side]
        maximum = max(float(each.maximum[feature]), 1e-30)
        return [
            PairedExample(
                example.document_name,
                example.tokens,
                example.center,
                {f"{side}:{feature}": [value / maximum for value in example.activations]},
            )
            for example in each.dictionary.examples(feature, BEFORE, AFTER)[:limit]
        ]

    def _at(self, token: int, concerned: Sequence[Named]) -> PairedExample:
        """The text around a shared token, with the activations of the features concerned."""
        documents = self._text.documents
        first = max(token - BEFORE, int(np.searchsorted(documents, documents[token])))
        last = min(token + AFTER + 1, int(np.searchsorted(documents, documents[token], side="right")))
        text = self._sides["a"].dictionary.text
        ordinals = self._text.first[first:last]
        ids = text.column("token_id", int(ordinals[0]), int(ordinals[-1]) + 1)[ordinals - ordinals[0]]
        row = int(np.searchsorted(text.documents.first_token, ordinals[0], side="right")) - 1
        return PairedExample(
            text.documents.names[row],
            [text.vocabulary[token_id] for token_id in ids.tolist()],
            token - first,
            {f"{side}:{feature}": self._activations(side, feature, first, last) for side, feature in concerned},
        )

    def _activations(self, side: Side, feature: int, first: int, last: int) -> list[float]:
        each = self._sides[side]
        found = np.zeros(last - first)
        if each.events is not None:
            tokens, values = each.events.of(feature)
            inside = slice(*np.searchsorted(tokens, [first, last]))
            found[tokens[inside] - first] = values[inside] / max(float(each.maximum[feature]), 1e-30)
        return found.tolist()


def _other(side: Side) -> Side:
    return "b" if side == "a" else "a"
