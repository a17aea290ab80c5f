"""Dividing examples for probes: into what trains, what chooses settings, and what is only looked at in the end.

Enters: a label for each example, perhaps groups. Leaves: a `Split`. Each label is divided in the same shares, by seed.
Examples of one group never stand on two sides; equal texts are one group, so that no test text was seen in training.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

SHARES = (0.6, 0.2, 0.2)
MIN_EXAMPLES = 5
"""Examples of each label that there must be at least."""


@dataclass(frozen=True)
class Split:
    """Numbers of examples, each on one side, rising."""

    train: Int[Tensor, " n_train"]
    validation: Int[Tensor, " n_validation"]
    test: Int[Tensor, " n_test"]


def split_examples(
    labels: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    shares: tuple[float, float, float] = SHARES,
    seed: int = 0,
) -> Split:
    """Divides examples into training, validation and test by `shares`, label by label.

    A group counts for its most frequent label.

    Raises:
        ValueError: shares that are not positive, another number of groups than labels, a label that is too rare to
            stand on all three sides.
    """
    if min(shares) <= 0:
        raise ValueError(f"got shares {shares}, expected three above 0: training, validation and test need examples")
    owners = range(len(labels)) if groups is None else groups
    if len(owners) != len(labels):
        raise ValueError(f"got {len(owners)} groups for {len(labels)} examples, expected one each: pair them again")
    members: dict[Hashable, list[int]] = {}
    for number, owner in enumerate(owners):
        members.setdefault(owner, []).append(number)
    by_label: dict[str, list[list[int]]] = {}
    for numbers in members.values():
        main = Counter(labels[number] for number in numbers).most_common(1)[0][0]
        by_label.setdefault(main, []).append(numbers)
    for label in sorted(set(labels)):
        holding = sum(any(labels[number] == label for number in numbers) for numbers in members.values())
        if holding < MIN_EXAMPLES:
            raise ValueError(
                f"label {label!r} has {holding} separate examples, expected at least {MIN_EXAMPLES}: add some"
            )
    generator = random.Random(seed)
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in sorted(by_label):
        gathered = sorted(by_label[label])
        generator.shuffle(gathered)
        for side, numbers in zip(_sides(gathered, shares), sides, strict=True):
            numbers += [number for group in side for number in group]
    for numbers in sides:
        if lacking := set(labels) - {labels[number] for number in numbers}:
            raise ValueError(
                f"label {min(lacking)!r} stands in too few groups to be on all three sides, expected more of them: "
                "add examples, or divide by another seed"
            )
    return Split(*(torch.tensor(sorted(numbers), dtype=torch.long) for numbers in sides))


def _sides(groups: list[list[int]], shares: tuple[float, float, float]) -> tuple[list[list[int]], ...]:
    """Cuts a list of groups in three, by their examples, none of the parts empty."""
    total, whole = sum(map(len, groups)), sum(shares)
    cuts, upto, bounds = [], 0, (shares[0] / whole, (shares[0] + shares[1]) / whole)
    for bound in bounds:
        place, upto = 0, 0
        while place < len(groups) and upto < bound * total - 1e-9:
            upto += len(groups[place])
            place += 1
        cuts.append(place)
    if len(groups) < 3:
        return groups, [], []
    first = min(max(cuts[0], 1), len(groups) - 2)
    second = min(max(cuts[1], first + 1), len(groups) - 1)
    return groups[:first], groups[first:second], groups[second:]
