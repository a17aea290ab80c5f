"""A task as pairs of texts: one on which the model should do something, one like it on which it should not.

Enters: `Pair`s (built-in ones of `activations.circuits.tasks`, or a JSONL file of your own), a model. Leaves: a
`PairSet`: tokens of equal length by pair, the tokens that are asked about, and how many pairs were left out and why.

A line of a file: {"clean": "…", "corrupt": "…", "target": " Mary", "contrast": " John"}; target and contrast may be
lists, the contrast may be left out. What is measured at the end of the text, on either of its two versions:

    logit_difference        mean logit of the targets − mean logit of the contrasts
    probability_difference  Σ p(targets) − Σ p(contrasts)

A word of several tokens is asked about by its first; where target and contrast begin alike the pair is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from activations.model import LanguageModel

MEASURES = ("logit_difference", "probability_difference")
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Pair:
    """Two texts and what follows them."""

    clean: str
    corrupt: str
    target: tuple[str, ...]
    """What follows the clean text; any of these."""
    contrast: tuple[str, ...] = ()
    """What follows the corrupt text, or is wrong."""


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one length."""

    clean: Int[Tensor, "batch seq"]
    corrupt: Int[Tensor, "batch seq"]
    targets: tuple[tuple[int, ...], ...]
    contrasts: tuple[tuple[int, ...], ...]
    measure: str

    def value(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """Returns the number of each pair, in float32 at least."""
        rows = logits if logits.dtype == torch.float64 else logits.float()
        if self.measure == "probability_difference":
            rows = rows.softmax(-1)

        def of(row: Tensor, ids: tuple[int, ...]) -> Tensor:
            if not ids:
                return row.new_zeros(())
            found = row[list(ids)]
            return found.sum() if self.measure == "probability_difference" else found.mean()

        return torch.stack([of(row, self.targets[i]) - of(row, self.contrasts[i]) for i, row in enumerate(rows)])


@dataclass(frozen=True)
class PairSet:
    """A task's pairs as one model reads them."""

    name: str
    measure: str
    batches: tuple[PairBatch, ...] = field(repr=False)
    kept: tuple[Pair, ...]
    """In the order of the batches."""
    dropped: dict[str, int]
    """How many pairs were left out, by reason."""

    def __len__(self) -> int:
        return len(self.kept)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each pair."""
        return [
            {
                "clean": pair.clean,
                "corrupt": pair.corrupt,
                "target": ", ".join(pair.target),
                "contrast": ", ".join(pair.contrast),
            }
            for pair in self.kept
        ]


def prepare_pairs(
    lm: LanguageModel,
    pairs: Sequence[Pair] | Iterator[Pair],
    *,
    name: str = "pairs",
    measure: str = "logit_difference",
    count: int = 32,
) -> PairSet:
    """Tokenises pairs until `count` fit; those of unequal length, or without a token to ask about, are counted.

    Raises:
        ValueError: an unknown measure, a count below 1, or no pair that fits (which says why).
    """
    if measure not in MEASURES or count < 1:
        raise ValueError(
            f"got measure={measure!r} and count={count}, expected {' or '.join(MEASURES)} and at least one pair: "
            "choose others"
        )
    dropped: dict[str, int] = {}
    by_length: dict[int, list[tuple[Pair, list[int], list[int], tuple[int, ...], tuple[int, ...]]]] = {}
    found = 0
    for pair in pairs:
        if found == count:
            break
        made = _tokens(lm, pair)
        if isinstance(made, str):
            dropped[made] = dropped.get(made, 0) + 1
            continue
        by_length.setdefault(len(made[0]), []).append((pair, *made))
        found += 1
    if not found:
        why = ", ".join(f"{number} where {reason}" for reason, number in dropped.items()) or "there were none"
        raise ValueError(
            f"no pair of {name} fits the tokens of {lm.name} ({why}), expected pairs of equally many tokens: write "
            "some for this tokenizer"
        )
    batches, kept = [], []
    for length, entries in sorted(by_length.items()):
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, len(entries), size):
            some = entries[start : start + size]
            kept += [entry[0] for entry in some]
            batches.append(
                PairBatch(
                    clean=torch.tensor([entry[1] for entry in some], device=lm.device),
                    corrupt=torch.tensor([entry[2] for entry in some], device=lm.device),
                    targets=tuple(entry[3] for entry in some),
                    contrasts=tuple(entry[4] for entry in some),
                    measure=measure,
                )
            )
    return PairSet(name=name, measure=measure, batches=tuple(batches), kept=tuple(kept), dropped=dropped)


def read_pairs(path: Path) -> list[Pair]:
    """Reads pairs of a JSONL file.

    Raises:
        ValueError: a line that is no pair (it names the line).
        OSError: no such file.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: {error.msg}, expected a JSON object a line: mend it") from error
        known = {"clean", "corrupt", "target", "contrast"}
        if not isinstance(entry, dict) or not {"clean", "corrupt", "target"} <= set(entry) <= known:
            keys = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(
                f"{path}, line {number}: got {keys}, expected clean, corrupt, target and perhaps contrast: mend it"
            )
        texts = [entry["clean"], entry["corrupt"]]
        words = [_words(entry["target"]), _words(entry.get("contrast", []))]
        if not all(isinstance(text, str) and text.strip() for text in texts) or None in words or not words[0]:
            raise ValueError(
                f"{path}, line {number}: clean and corrupt must be texts, target and contrast a text or a list of "
                "texts: mend it"
            )
        found.append(Pair(texts[0], texts[1], words[0] or (), words[1] or ()))
    if not found:
        raise ValueError(f"{path} holds no pairs, expected a JSON object a line: write some")
    return found


def _words(given: Any) -> tuple[str, ...] | None:
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        return None
    return tuple(words)


def _tokens(lm: LanguageModel, pair: Pair) -> tuple[list[int], list[int], tuple[int, ...], tuple[int, ...]] | str:
    """Tokens of both texts and of what is asked about, or why the pair does not fit."""
    try:
        for text in (pair.clean, pair.corrupt, *pair.target, *pair.contrast):
            text.encode()
    except UnicodeEncodeError:
        return "a text holds half of a surrogate pair"
    clean, corrupt = lm.encode([pair.clean, pair.corrupt])
    if len(clean) != len(corrupt):
        return "the texts have different numbers of tokens"
    if not clean or len(clean) > lm.context_tokens:
        return "the text does not fit the model's context"
    if clean == corrupt:
        return "both texts have the same tokens"
    end = lm.special_ids
    # an end token that the tokenizer appends stands behind what is asked about
    while clean and clean[-1] in end and corrupt[-1] in end and len(clean) > 1:
        clean, corrupt = clean[:-1], corrupt[:-1]
    targets, contrasts = (
        {first for word in words if (first := _first(lm, pair.clean, clean, word)) is not None}
        for words in (pair.target, pair.contrast)
    )
    both = targets & contrasts
    targets, contrasts = targets - both, contrasts - both
    if not targets or (pair.contrast and not contrasts):
        return "target and contrast begin with the same token"
    return clean, corrupt, tuple(sorted(targets)), tuple(sorted(contrasts))


def _first(lm: LanguageModel, text: str, ids: list[int], word: str) -> int | None:
    """The token that follows `ids` when `word` follows the text."""
    both = lm.encode([text + word])[0]
    if both[: len(ids)] == ids and len(both) > len(ids):
        return both[len(ids)]
    alone = [each for each in lm.encode([word])[0] if each not in lm.special_ids]
    return alone[0] if alone else None
