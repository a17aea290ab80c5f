"""The same question in other words: does the answer stay, and what does the model know?

    check_consistency(model, templates, subjects, expected=None) -> Consistency
    knowledge_boundaries(model, templates, facts) -> KnowledgeReport

Enters: a black box, templates with one `{}` each ("The capital of {} is"), subjects, perhaps the right answers. Leaves,
for each subject: the answers by template, the share of pairs of templates that agree, and the most frequent answer.

Knowledge is sorted as Gekhman et al. 2024 (arXiv 2405.05904) do, by greedy answers over templates and sampled ones:

    known            the greedy answer is right with every template
    maybe known      with some of them
    weakly known     with none, but a sampled answer is right
    unknown          never

It says what a model says, not what it could say with other templates; agreement on a wrong answer is agreement.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from activations.analyses.plain import to_json
from activations.behaviour.answers import BlackBox, Equivalence, ask, draw, normalised, same_answer
from activations.intervals import mean_interval, share_interval
from activations.progress import progress

KINDS = ("known", "maybe known", "weakly known", "unknown")


def starts_right(answer: str, expected: str) -> bool:
    """Says whether an answer begins with the expected words: what follows them is not asked about."""
    said, wanted = normalised(answer).split(), normalised(expected).split()
    return bool(wanted) and said[: len(wanted)] == wanted


@dataclass(frozen=True, kw_only=True)
class SubjectAnswers:
    """What a model says about one subject, asked in several ways."""

    subject: str
    answers: tuple[str, ...]
    """By template."""
    agreement: float
    """Share of pairs of templates whose answers are the same; 1 for one template."""
    main: str
    """The most frequent answer."""
    main_share: float
    correct: float | None
    """Share of templates with the right answer; None where none is known."""


@dataclass(frozen=True)
class Consistency:
    """Answers to the same questions in other words."""

    templates: tuple[str, ...]
    subjects: tuple[SubjectAnswers, ...]
    agreement: float
    agreement_low: float
    agreement_high: float
    """95 % over subjects."""
    accuracy: float | None
    by_template: tuple[float, ...] | None
    """Accuracy of each template, where right answers are known."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each subject, the least consistent first."""
        return sorted((asdict(each) for each in self.subjects), key=lambda row: row["agreement"])

    def to_json(self) -> str:
        return to_json(self)


def check_consistency(
    model: BlackBox,
    templates: Sequence[str],
    subjects: Sequence[str],
    *,
    expected: Sequence[str] | None = None,
    same: Equivalence = same_answer,
) -> Consistency:
    """Asks about every subject with every template.

    `same` says whether two answers mean the same; right answers are those that begin with the expected words.

    Raises:
        ValueError: no templates or subjects, a template without exactly one `{}`, another number of expected answers.
    """
    _check(templates, subjects)
    if expected is not None and len(expected) != len(subjects):
        raise ValueError(
            f"got {len(expected)} answers for {len(subjects)} subjects, expected one each: pair them again"
        )
    found = []
    right: list[list[bool]] = []
    with progress("Consistency", len(subjects), "subjects") as advance:
        for number, subject in enumerate(subjects):
            answers = [ask(model, filled(template, subject)).text for template in templates]
            pairs = list(itertools.combinations(answers, 2))
            agree = sum(same(a, b) for a, b in pairs) / len(pairs) if pairs else 1.0
            groups = grouped(answers, same)
            main = max(groups, key=len)
            if expected is not None:
                right.append([starts_right(answer, expected[number]) for answer in answers])
            found.append(
                SubjectAnswers(
                    subject=subject,
                    answers=tuple(answers),
                    agreement=agree,
                    main=answers[main[0]],
                    main_share=len(main) / len(answers),
                    correct=sum(right[-1]) / len(answers) if expected is not None else None,
                )
            )
            advance(1)
    around = mean_interval([each.agreement for each in found])
    by_template = [sum(row[place] for row in right) / len(right) for place in range(len(templates))] if right else None
    return Consistency(
        templates=tuple(templates),
        subjects=tuple(found),
        agreement=around.value,
        agreement_low=around.low,
        agreement_high=around.high,
        accuracy=None if by_template is None else sum(by_template) / len(by_template),
        by_template=None if by_template is None else tuple(by_template),
    )


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What a model knows of one fact."""

    subject: str
    expected: str
    kind: str
    greedy_correct: float
    """Share of templates whose greedy answer is right."""
    sampled_correct: float
    """Share of sampled answers that are right."""
    answer: str
    """The greedy answer to the first template."""


@dataclass(frozen=True)
class KnowledgeReport:
    """Facts by how well a model knows them."""

    facts: tuple[Fact, ...]
    counts: Mapping[str, int]

    def summary(self) -> list[dict[str, Any]]:
        """Returns the share of each kind, with Wilson's interval."""
        shares = {kind: share_interval(self.counts[kind], len(self.facts)) for kind in KINDS}
        return [
            {"kind": kind, "facts": self.counts[kind], "share": share.value, "low": share.low, "high": share.high}
            for kind, share in shares.items()
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Returns a record for each fact, the best known first."""
        order = {kind: place for place, kind in enumerate(KINDS)}
        return sorted((asdict(each) for each in self.facts), key=lambda row: order[row["kind"]])

    def to_json(self) -> str:
        return to_json({"summary": self.summary(), "facts": self.facts})


def knowledge_boundaries(
    model: BlackBox,
    templates: Sequence[str],
    facts: Mapping[str, str],
    *,
    samples: int = 4,
    temperature: float = 0.5,
    seed: int = 0,
) -> KnowledgeReport:
    """Sorts facts (subject → answer) by how reliably the model gives the answer.

    `samples` answers are drawn with each template.

    Raises:
        ValueError: no templates or facts, a template without exactly one `{}`.
    """
    _check(templates, list(facts))
    found = []
    with progress("Knowledge", len(facts), "facts") as advance:
        for subject, wanted in facts.items():
            prompts = [filled(template, subject) for template in templates]
            answers = [ask(model, prompt).text for prompt in prompts]
            greedy = [starts_right(answer, wanted) for answer in answers]
            drawn = [
                starts_right(each.text, wanted)
                for place, prompt in enumerate(prompts)
                for each in draw(model, prompt, samples, temperature=temperature, seed=seed + 1000 * place)
            ]
            kind = KINDS[0 if all(greedy) else 1 if any(greedy) else 2 if any(drawn) else 3]
            found.append(
                Fact(
                    subject=subject,
                    expected=wanted,
                    kind=kind,
                    greedy_correct=sum(greedy) / len(greedy),
                    sampled_correct=sum(drawn) / len(drawn),
                    answer=answers[0],
                )
            )
            advance(1)
    counted = Counter(each.kind for each in found)
    return KnowledgeReport(tuple(found), {kind: counted[kind] for kind in KINDS})


def filled(template: str, subject: str) -> str:
    """Returns a template with the subject in its place; other braces stay as they are."""
    return template.replace("{}", subject, 1)


def grouped(answers: Sequence[str], same: Equivalence) -> list[list[int]]:
    """Returns answers that mean the same together, by number: each joins the first group whose first one it equals."""
    groups: list[list[int]] = []
    for number, answer in enumerate(answers):
        home = next((group for group in groups if same(answers[group[0]], answer)), None)
        if home is None:
            groups.append([number])
        else:
            home.append(number)
    return groups


def _check(templates: Sequence[str], subjects: Sequence[str]) -> None:
    if not templates or not subjects:
        raise ValueError(
            f"got {len(templates)} templates and {len(subjects)} subjects, expected at least one of each: give some"
        )
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r} has {template.count('{}')} places, expected one {{}}: mend it")
