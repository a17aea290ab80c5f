"""The dictionaries that are open, and how a feature is found in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from activations import LanguageModel
    from features import Dictionary


@dataclass(frozen=True)
class ModelAlone:
    """A language model without a dictionary: what the pages that need none are shown over."""

    name: str
    lm: LanguageModel


class Shelf:
    """The opened dictionaries by the name under which the browser shows them; or models alone."""

    def __init__(self, dictionaries: Sequence[Dictionary | ModelAlone]) -> None:
        if not dictionaries:
            raise ValueError("no dictionary was given, expected at least one folder: name one")
        self.has_features = not isinstance(dictionaries[0], ModelAlone)
        """Whether there are features to show; else only what a model alone can be asked."""
        self.by_name: dict[str, Dictionary] = {}
        for dictionary in cast("Sequence[Dictionary]", dictionaries):
            name, number = str(dictionary.name), 2
            while name in self.by_name:
                name, number = f"{dictionary.name} ({number})", number + 1
            self.by_name[name] = dictionary

    @property
    def names(self) -> list[str]:
        """Names in the order in which the dictionaries were given."""
        return list(self.by_name)

    def get(self, name: str | None) -> Dictionary:
        """Returns the dictionary of that name, or the first where the name is unknown."""
        return self.by_name.get(name or "") or self.by_name[self.names[0]]


def find(dictionary: Dictionary, query: str, limit: int) -> list[dict[str, Any]]:
    """Returns the rows of the features that a search finds; a number finds the feature of that number first."""
    reasons = {hit.feature: (hit.reason, hit.explanation) for hit in dictionary.search(query, limit=limit)}
    if query.isascii() and query.isdigit() and int(query) < dictionary.n_features:
        number = int(query)
        says = reasons.pop(number, ("", dictionary.explanations_of([number]).get(number, "")))[1]
        reasons = {number: (f"feature {number}", says)} | reasons
    numbers = list(reasons)[:limit]
    if not numbers:
        return []
    wanted = ", ".join(map(str, numbers))
    rows = dictionary.sql(f"select feature, density, max_activation, is_dead from features where feature in ({wanted})")
    facts = {row["feature"]: row for row in rows.to_pylist()}
    return [facts[number] | {"why": reasons[number][0], "explanation": reasons[number][1]} for number in numbers]
