"""How results of `activations.behaviour` are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from ui.render import html
from ui.render.curves import Point, Scatter
from ui.render.figures import short
from ui.render.heatmap import Heatmap
from ui.render.html import escape, highlighted, visible
from ui.render.results import View, interval_text

if TYPE_CHECKING:
    from activations.behaviour import (
        Calibration,
        ConfidenceReport,
        Consistency,
        FailureReport,
        KnowledgeReport,
        ModelProfile,
        ModelsComparison,
        OutputComparison,
        PartImportance,
        ReasoningCheck,
        SelfCheck,
        SemanticEntropy,
    )

MEBIBYTE = 1 << 20


def _quote(title: str, text: str) -> str:
    shown = f'<div class="text">{visible(text)}</div>'
    return f'<div class="card stack"><p class="muted small">{escape(title)}</p>{shown}</div>'


def _pieces(found: PartImportance) -> tuple[list[str], list[float]]:
    """The text in pieces, parts and what lies between them, with a score each."""
    pieces, scores, at = [], [], 0
    for part in found.parts:
        pieces += [found.text[at : part.start], found.text[part.start : part.end]]
        scores += [0.0, part.effect if part.effect == part.effect else 0.0]
        at = part.end
    return [*pieces, found.text[at:]], [*scores, 0.0]


def _importance_extra(found: PartImportance) -> str:
    pieces, scores = _pieces(found)
    coloured = highlighted(pieces, scores, max(map(abs, scores), default=0.0), unit="effect")
    return f'<div class="card stack">{coloured}</div>{_quote("answer", found.answer)}'


def _importance_overlay(found: PartImportance) -> list[Text]:
    pieces, scores = _pieces(found)
    largest = max(map(abs, scores), default=0.0) or 1.0
    shown = Text()
    for piece, value in zip(pieces, scores, strict=True):
        label = piece.translate(html.UNSEEN)
        strong = abs(value) / largest
        shown.append(
            label, style=("bold " if strong > 0.5 else "") + ("red" if value > 0 else "blue") if strong > 0.1 else ""
        )
    return [shown]


def _template_rows(found: Consistency) -> list[dict[str, Any]]:
    return [
        {"subject": row["subject"], "agreement": row["agreement"], "correct": row["correct"], "main": row["main"]}
        | {"answers": " | ".join(row["answers"])}
        for row in found.rows()
    ]


def _consistency_facts(found: Consistency) -> Mapping[str, str]:
    said = {
        "subjects": f"{len(found.subjects):,}",
        "templates": f"{len(found.templates):,}",
        "agreement": interval_text(found.agreement, found.agreement_low, found.agreement_high),
    }
    return said if found.accuracy is None else said | {"accuracy": f"{found.accuracy:.3f}"}


def _knowledge_facts(found: KnowledgeReport) -> Mapping[str, str]:
    return {"facts": f"{len(found.facts):,}"} | {
        row["kind"]: f"{row['facts']:,} ({interval_text(row['share'], row['low'], row['high'])})"
        for row in found.summary()
    }


def _confidence_curves(found: ConfidenceReport) -> list[Scatter]:
    counts, edges = found.histogram()
    points = [
        Point(f"{edges[place]:.2f} to {edges[place + 1]:.2f}", float(edges[place] + edges[place + 1]) / 2, float(count))
        for place, count in enumerate(counts)
    ]
    title = "Texts by the probability of the first choice"
    return [Scatter(title=title, x_label="probability of the first choice", y_label="texts", series={"": points})]


def _output_facts(found: OutputComparison) -> Mapping[str, str]:
    said = {"pairs": f"{len(found.pairs):,}", "same answer": f"{found.share_same:.1%}"}
    if found.mean_jsd is None or found.jsd_low is None or found.jsd_high is None:
        return said
    return said | {"JSD (nats)": interval_text(found.mean_jsd, found.jsd_low, found.jsd_high)}


def _reliability(found: Calibration) -> list[Scatter]:
    points = [
        Point(f"{each.low:.2f} to {each.high:.2f}, {each.n:,} answers", each.confidence, each.accuracy,
              (each.accuracy_high - each.accuracy_low) / 2)
        for each in found.bins
    ]  # fmt: skip
    right = [Point("as true as stated", value, value) for value in (0.0, 1.0)]
    series = {"answers": points, "perfectly calibrated": right}
    return [Scatter(title="Reliability diagram", x_label="stated probability", y_label="share right", series=series)]


def _entropy_facts(found: SemanticEntropy) -> Mapping[str, str]:
    said = {
        "samples": f"{found.samples:,}",
        "meanings": f"{len(found.meanings):,}",
        "entropy (nats)": f"{found.entropy:.3f} of at most {found.largest:.3f}",
    }
    return said if found.weighted_entropy is None else said | {"weighted entropy": f"{found.weighted_entropy:.3f}"}


def _check_extra(found: SelfCheck) -> str:
    shares = [each.unsupported for each in found.sentences]
    coloured = highlighted([each.sentence for each in found.sentences], shares, 1.0, unit="unsupported")
    return f'{_quote("question", found.text)}<div class="card stack">{coloured}</div>'


def _reasoning_curves(found: ReasoningCheck) -> list[Scatter]:
    """ln p of the final answer (or whether it is kept) by sentences kept."""
    told = all(step.log_probability is not None for step in found.steps)
    series: dict[str, list[Point]] = {}
    for step in found.steps:
        if step.change != "filler":
            value = step.log_probability if told and step.log_probability is not None else float(step.keeps_answer)
            series.setdefault(step.change, []).append(Point(step.answer, float(step.sentences), value))
    label = "ln p of the final answer" if told else "same answer (1) or not (0)"
    title = "The final answer behind changed reasoning"
    return [Scatter(title=title, x_label="sentences of the reasoning left whole", y_label=label, series=series)]


def _reasoning_extra(found: ReasoningCheck) -> str:
    return "".join(
        _quote(name, text)
        for name, text in (("question", found.question), ("reasoning", found.reasoning), ("answer", found.answer))
    )


def _failure_extra(found: FailureReport) -> str:
    rows = [
        {"slice": escape(each.slice), "n": f"{each.n:,}", "failures": f"{each.failures:,}", "rate": f"{each.rate:.1%}"}
        | {"elsewhere": f"{each.rate_elsewhere:.1%}", "p": escape(short(each.p))}
        for each in found.slices[:20]
    ]
    columns = {"slice": "texts", "n": "n", "failures": "failures", "rate": "rate", "elsewhere": "elsewhere"}
    listed = html.table(columns | {"p": "p (Holm)"}, rows, "tight", ("n", "failures", "rate", "elsewhere", "p"))
    return f'<div class="card scrolls"><p class="muted small">Kinds of text</p>{listed}</div>' if rows else ""


def _failure_overlay(found: FailureReport) -> list[Text]:
    said = [
        f"{each.slice}: {each.rate:.0%} of {each.n:,} fail, elsewhere {each.rate_elsewhere:.0%} (p {each.p:.2g})"
        for each in found.slices[:5]
    ]
    return [Text("\n".join(said))] if said else []


def _models_facts(found: ModelsComparison) -> Mapping[str, str]:
    said = {"models": ", ".join(found.models), "texts": f"{found.n_texts:,}"}
    for pair in found.pairs:
        both = f"{pair.first} and {pair.second}"
        said[f"same first choice, {both}"] = f"{pair.agreement:.1%}"
        if pair.jsd is not None:
            said[f"JSD (nats), {both}"] = f"{pair.jsd:.3f}"
        if pair.bits_difference is not None and pair.bits_low is not None and pair.bits_high is not None:
            said[f"bits per character, {pair.first} less {pair.second}"] = interval_text(
                pair.bits_difference, pair.bits_low, pair.bits_high
            )
    return said


def _cka_maps(found: ModelsComparison) -> list[Heatmap]:
    return [
        Heatmap(
            title=f"CKA by layer, over {pair.n_rows:,} {pair.by}",
            x_label=f"layers of {pair.second}",
            y_label=f"layers of {pair.first}",
            unit="CKA",
            columns=["embeddings", *(f"layer {layer}" for layer in range(pair.cka.shape[1] - 1))],
            rows=["embeddings", *(f"layer {layer}" for layer in range(pair.cka.shape[0] - 1))],
            values=[[float(value) if value == value else None for value in row] for row in pair.cka],
            is_token_axis=False,
        )
        for pair in found.pairs
    ]


def _profile_facts(found: ModelProfile) -> Mapping[str, str]:
    said = {
        "model": found.model,
        "on": f"{found.device}, {found.dtype}",
        "tokens in a pass": f"{found.batch} × {found.seq}",
        "time (ms)": f"{found.time_ms:.2f}",
        "tokens per second": f"{found.tokens_per_s:,.0f}",
        "parameters": f"{found.parameters:,}",
        "weights (MiB)": f"{found.weight_bytes / MEBIBYTE:.1f}",
        "added by clocks": f"{found.overhead:.1%}",
    }
    return said if found.peak_bytes is None else said | {"peak (MiB)": f"{found.peak_bytes / MEBIBYTE:.1f}"}


def _profile_rows(found: ModelProfile) -> list[dict[str, Any]]:
    return [
        {"module": each.module, "kind": each.kind, "layer": each.layer, "time_ms": each.time_ms, "share": each.share}
        | {"parameters": each.parameters, "weights_mib": each.weight_bytes / MEBIBYTE}
        | {"output_mib": each.output_bytes / MEBIBYTE}
        for each in found.modules
    ]


def _profile_curves(found: ModelProfile) -> list[Scatter]:
    """Time by layer, of whole layers and of their parts."""
    series: dict[str, list[Point]] = {}
    for each in found.modules:
        if each.layer is not None:
            name = each.module.rpartition(".")[2]
            series.setdefault("layer" if name.isdigit() else name, []).append(
                Point(each.module, float(each.layer), each.time_ms)
            )
    strongest = sorted(series, key=lambda name: -sum(point.y for point in series[name]))[:5]
    if not strongest:
        return []
    chosen = {name: series[name] for name in strongest}
    return [Scatter(title="Time by layer", x_label="layer", y_label="milliseconds", series=chosen)]


IMPORTANCE = View(
    heading="What an answer hangs on",
    what=(
        "Each part of the text is taken out, or replaced, and the model asked again. Orange parts are those that the "
        "answer needs. Parts that stand for each other each look unimportant; a text with a hole may be stranger than "
        "what the hole took."
    ),
    facts=lambda found: {"score": f"{short(found.score)}, {found.measure}", "by": found.how},
    columns=("part", "effect", "changes_answer", "answer"),
    rows=lambda found: sorted(found.rows(), key=lambda row: -abs(row["effect"])),
    extra=_importance_extra,
    overlay=_importance_overlay,
)
CONSISTENCY = View(
    heading="The same question in other words",
    what=(
        "Each subject is asked about with every template. Agreement is the share of pairs of templates with the same "
        "answer; a model can agree with itself and be wrong."
    ),
    facts=_consistency_facts,
    rows=_template_rows,
)
KNOWLEDGE = View(
    heading="What the model knows",
    what=(
        "Known: the greedy answer is right with every template; maybe known: with some; weakly known: only sampled "
        "answers are. What is unknown with these templates may be said with others."
    ),
    facts=_knowledge_facts,
    columns=("subject", "expected", "kind", "greedy_correct", "sampled_correct", "answer"),
)
CONFIDENCE = View(
    heading="How sure the model is",
    what=(
        "The distribution of what comes next, text by text: its first choice, the margin over the second, its entropy. "
        "Sure is not right: see the calibration."
    ),
    facts=lambda found: (
        {"texts": f"{len(found.texts):,}"}
        | {name.replace("_", " "): f"{value:.3f}" for name, value in found.summary().items()}
    ),
    curves=_confidence_curves,
    tokens=("first",),
)
OUTPUTS = View(
    heading="Two outputs, pair by pair",
    what="What the model makes of two texts: its answers, and how far the distributions of the next token are apart.",
    facts=_output_facts,
)
CALIBRATION = View(
    heading="Are stated probabilities true",
    what=(
        "Answers by the probability that the model gave them, and the share that was right. Points below the diagonal "
        "were too sure. Compare the ECE with what a perfectly calibrated model would show on as many answers."
    ),
    facts=lambda found: {
        "of": found.name,
        "answers": f"{found.n:,}",
        "accuracy": f"{found.accuracy:.3f}",
        "ECE": interval_text(found.ece, found.ece_low, found.ece_high),
        "ECE if calibrated": f"{found.ece_expected:.3f}",
        "Brier score": f"{found.brier:.3f}",
        "AUROC": f"{found.auroc:.3f}",
    },
    curves=_reliability,
)
ENTROPY = View(
    heading="How many things the model would say",
    what=(
        "Sampled answers, those that mean the same together. High entropy says that the model would say something else "
        "next time; low entropy does not make an answer right."
    ),
    facts=_entropy_facts,
    columns=("answer", "n", "share", "weight"),
    extra=lambda found: _quote("question", found.text),
)
SELFCHECK = View(
    heading="What other samples do not support",
    what=(
        "The answer, sentence by sentence, held against other samples of the same model. Unsupported is the share of "
        "n-grams that stand in no sample. What a model is wrong about with certainty is not seen."
    ),
    facts=lambda found: {"samples": f"{len(found.samples):,}", "unsupported": f"{found.unsupported:.1%}"},
    columns=("sentence", "unsupported", "mean_surprise", "max_surprise", "words"),
    extra=_check_extra,
)
REASONING = View(
    heading="Does the answer follow from the reasoning",
    what=(
        "The reasoning is cut short and spoiled, sentence by sentence, and the model answers again. An answer that "
        "never changes does not hang on the stated reasoning."
    ),
    facts=lambda found: {
        "sentences": f"{found.sentences:,}",
        "same answer from cut reasoning": f"{found.early_share:.1%}",
        "AOC": f"{found.aoc:.3f}",
        "mistakes that change it": f"{found.mistake_change:.1%}",
        "dots give the same": "yes" if found.filler_keeps else "no",
    },
    columns=("change", "sentences", "keeps_answer", "log_probability", "answer"),
    curves=_reasoning_curves,
    extra=_reasoning_extra,
)
FAILURES = View(
    heading="Where the model fails",
    what=(
        "Texts that were answered wrongly, those it was surest of first, and kinds of text on which it fails more "
        "often. "
        "Kinds are found on the texts they are told of: try them on new ones."
    ),
    facts=lambda found: {
        "texts": f"{found.n:,}",
        "failures": f"{len(found.failures):,}",
        "rate": interval_text(found.rate, found.low, found.high),
    },
    extra=_failure_extra,
    overlay=_failure_overlay,
)
MODELS = View(
    heading="Models on the same texts",
    what=(
        "What each expects behind each text and how well it predicts it (bits per character), and how alike their "
        "layers are (debiased CKA). Alike means that the same texts are close to each other in both, not that both "
        "compute the same."
    ),
    facts=_models_facts,
    columns=("text", "model", "first", "probability", "bits_per_character"),
    maps=_cka_maps,
    tokens=("first",),
)
PROFILE = View(
    heading="What a pass costs",
    what=(
        "Time of each module, its children included, as a median over passes on this machine, and what it holds. "
        "Compare within this page: other work on the machine shows."
    ),
    facts=_profile_facts,
    rows=_profile_rows,
    curves=_profile_curves,
)
