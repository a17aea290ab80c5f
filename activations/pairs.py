"""Two language models over one text, as model-diffing crosscoders read them.

Enters: two models with one vocabulary. Leaves: a model that is the first one and also answers for sites written
`compare:SITE`, which it reads and rewrites in the second; both run on the same tokens, in the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from activations.capture import Edit, Intervention
from activations.model import LanguageModel

COMPARE = "compare:"


def is_compared(site: str) -> bool:
    """Says whether a site is read in the second model."""
    return site.startswith(COMPARE)


class ModelPair(LanguageModel):
    """The first model, with the second one's sites beside its own. Only the first one generates."""

    def __init__(self, first: LanguageModel, second: LanguageModel) -> None:
        """Joins two models; ValueError if their vocabularies differ, which the first token that does so tells."""
        _check_vocabularies(first, second)
        super().__init__(first.model, first.tokenizer, name=first.name, revision=first.revision)
        self.second = second

    def sites(self) -> list[str]:
        """Returns the names of both models' sites, the first one's first."""
        second: list[str] = [COMPARE + site for site in self.second.sites()] if hasattr(self, "second") else []
        return [*super().sites(), *second]

    def has_site(self, site: str) -> bool:
        if is_compared(site):
            return self.second.has_site(site.removeprefix(COMPARE))
        return super().has_site(site)

    def site_width(self, site: str) -> int:
        if is_compared(site):
            return self.second.site_width(site.removeprefix(COMPARE))
        return super().site_width(site)

    def check_length(self, length: int) -> None:
        super().check_length(length)
        if hasattr(self, "second"):
            self.second.check_length(length)

    def capture(
        self, tokens: Int[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None, sites: Sequence[str]
    ) -> dict[str, Tensor]:
        """Returns the activations at sites of either model; a model without a wanted site does not run."""
        own = [site for site in sites if not is_compared(site)]
        values = super().capture(tokens, mask, own) if own or not sites else {}
        if others := [site.removeprefix(COMPARE) for site in sites if is_compared(site)]:
            read = self.second.capture(tokens, mask, others)
            values |= {COMPARE + site: value.to(self.device) for site, value in read.items()}
        return {site: values[site] for site in sites}

    @contextmanager
    def intervene(self, edits: Mapping[str, Intervention | Edit]) -> Iterator[None]:
        own = {site: edit for site, edit in edits.items() if not is_compared(site)}
        others = {site.removeprefix(COMPARE): edit for site, edit in edits.items() if is_compared(site)}
        with ExitStack() as stack:
            stack.enter_context(super().intervene(own))
            if others:
                stack.enter_context(self.second.intervene(others))
            yield

    def edits_as_of_now(self) -> Callable[[], AbstractContextManager[None]]:
        blocks = (super().edits_as_of_now(), self.second.edits_as_of_now())

        @contextmanager
        def both() -> Iterator[None]:
            with blocks[0](), blocks[1]():
                yield

        return both


def _check_vocabularies(first: LanguageModel, second: LanguageModel) -> None:
    mine: dict[str, Any] = first.tokenizer.get_vocab()
    theirs: dict[str, Any] = second.tokenizer.get_vocab()
    for token in [*mine, *theirs]:
        if mine.get(token) != theirs.get(token):
            raise ValueError(
                f"token {token!r} has id {mine.get(token)} in {first.name} and {theirs.get(token)} in {second.name}, "
                "expected one vocabulary: compare models that share a tokenizer"
            )
