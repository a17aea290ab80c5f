"""What the pages do, as functions for a notebook: `gradio_client.Client(address).predict(..., api_name="/search")`.

Every function is the library's own, named as there, with plain values in and out; `dictionary` is a name that
`/dictionaries` gives, the first one where it is left out. The limits of the pages hold here too (`ui.browser.limits`),
and what the library refuses arrives as the error's text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.browser.workspace import MODEL_QUEUE, Workspace

if TYPE_CHECKING:
    from features import Dictionary

MOST_ROWS = 10_000


class Api:
    """The functions, over the dictionaries of a workspace."""

    def __init__(self, work: Workspace) -> None:
        self.work = work

    def _of(self, name: str) -> Dictionary:
        if name and name not in self.work.shelf.by_name:
            known = ", ".join(self.work.shelf.names)
            raise ValueError(f"there is no dictionary {name!r}, expected one of {known}: choose one of these")
        return self.work.shelf.get(name)

    def dictionaries(self) -> list[dict[str, Any]]:
        """The open dictionaries: name, model, site, features, tokens, documents."""
        return [
            {
                "name": name,
                "model": opened.info["model"]["name"],
                "site": opened.info["site"],
                "n_features": opened.n_features,
                "n_live": opened.info["n_live"],
                "n_tokens": opened.info["n_tokens"],
                "n_documents": opened.info["n_documents"],
            }
            for name, opened in self.work.shelf.by_name.items()
        ]

    def search(self, query: str, dictionary: str = "", kind: str = "auto", limit: int = 20) -> list[dict[str, Any]]:
        """Features that match a query, best first: feature, reason, score, explanation.

        kind: auto, token, text, regex or explanation.
        """
        hits = self._of(dictionary).search(query, limit=_at_most(limit), kind=kind)
        return [asdict(hit) for hit in hits]

    def features(
        self, dictionary: str = "", order: str = "feature", live_only: bool = True, limit: int = 50, offset: int = 0
    ) -> dict[str, Any]:
        """A page of the listing: total, and features with density, maximum, explanation and score.

        order: density, rare, max_activation, mean_activation, feature, score or random.
        """
        listed = self._of(dictionary).features(
            order=order, live_only=live_only, limit=_at_most(limit), offset=int(offset)
        )
        return json.loads(listed.to_json())

    def feature(self, feature: int, dictionary: str = "") -> dict[str, Any]:
        """Everything about one feature: statistics, histogram, examples, logits, neighbours, explanations."""
        return json.loads(self._of(dictionary).feature(int(feature)).to_json())

    def active_on(
        self, text: str, dictionary: str = "", top: int = 10, by: str = "activation", target: str = ""
    ) -> dict[str, Any]:
        """The features of each token of a text, and the best over all of it.

        by: activation, surprise, effect or attribution; target: the token whose logit effects are on.
        """
        self.work.limits.check(text)
        return json.loads(self._of(dictionary).active_on(text, _at_most(top), by, target or None).to_json())

    def find(self, condition: str, dictionary: str = "", limit: int = 20) -> dict[str, Any]:
        """Places that meet a condition over events, such as `12 & 40>0.5 & !7 within 5`."""
        return json.loads(self._of(dictionary).find(condition, _at_most(limit)).to_json())

    def steer(
        self,
        prompt: str,
        features: dict[str, float],
        dictionary: str = "",
        mode: str = "add",
        max_new_tokens: int = 40,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Any]:
        """A steered continuation beside the unsteered one, with perplexities and the relative norm of what was written.

        features: strength of each feature's number, in units of its largest activation; mode: add, clamp, min_clamp,
        scale, ablate or erase.
        """
        from features import Steering

        self.work.limits.check(prompt)
        if not 0 < max_new_tokens <= self.work.limits.new_tokens:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}, expected 1 to {self.work.limits.new_tokens}: choose fewer"
            )
        if not all(number.isascii() and number.isdigit() for number in features):
            raise ValueError(f"features are {list(features)}, expected numbers: name them as in the dictionary")
        strengths = {int(number): float(strength) for number, strength in features.items()}
        steering = Steering(self._of(dictionary), strengths, mode=mode)  # pyright: ignore[reportArgumentType]
        how: dict[str, Any] = {"max_new_tokens": int(max_new_tokens), "seed": int(seed), "do_sample": temperature > 0}
        if temperature > 0:
            how["temperature"] = float(temperature)
        return json.loads(steering.compare(prompt, **how).to_json())

    def sql(self, query: str, dictionary: str = "") -> list[dict[str, Any]]:
        """Rows that one SELECT over the documented tables gives; at most 10,000."""
        found = self._of(dictionary).sql(query)
        if found.num_rows > MOST_ROWS:
            raise ValueError(f"the answer has {found.num_rows:,} rows, expected at most {MOST_ROWS:,}: add a limit")
        return json.loads(json.dumps(found.to_pylist(), default=str))

    def lists(self, dictionary: str = "") -> list[dict[str, Any]]:
        """People's lists: name, note, author, features with their notes."""
        return [asdict(named) for named in self._of(dictionary).lists.all()]

    def add_to_list(
        self, name: str, features: list[int], dictionary: str = "", note: str = "", author: str = ""
    ) -> list[int]:
        """Adds features to a list, which the first of them makes; returns those that were not on it."""
        return self._of(dictionary).add_to_list(name, map(int, features), author or None, note or None)

    def add_label(self, feature: int, text: str, dictionary: str = "", author: str = "") -> dict[str, Any]:
        """Writes a label for a feature, beside whatever others wrote."""
        return asdict(self._of(dictionary).add_label(int(feature), text, author or None))


MODEL_FUNCTIONS = frozenset({"active_on", "steer"})


def offer(work: Workspace) -> None:
    """Makes every public function of `Api` an endpoint of its own name."""
    api = Api(work)
    for name in (name for name in vars(Api) if not name.startswith("_")):
        queue = MODEL_QUEUE if name in MODEL_FUNCTIONS else {}
        gr.api(_answering(getattr(api, name)), api_name=name, **queue)


def _answering(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answer(*given: Any, **named: Any) -> Any:
        with _refusals():
            return function(*given, **named)

    return answer


@contextmanager
def _refusals() -> Iterator[None]:
    """A program reads what is refused, so it is text as it is."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def _at_most(limit: int) -> int:
    if not 0 <= limit <= MOST_ROWS:
        raise ValueError(f"limit is {limit}, expected 0 to {MOST_ROWS:,}: choose another")
    return int(limit)
