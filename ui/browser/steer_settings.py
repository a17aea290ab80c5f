"""How a steering is set on the Steer page: its components, the address's words for them, and the spec they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ui.browser.workspace import Words, choice, whole

if TYPE_CHECKING:
    from features import Dictionary, SteeringSpec
    from ui.browser.limits import Limits

SLOTS = 8
STRENGTH = 1.0  # of a feature just added, in maxima
WIDEST_STRENGTH = 10
WHEN_SHARE = 0.1  # of a condition that names no share
MOST_SAMPLES = 4
MODES = [
    ("Add", "add"),
    ("Hold at", "clamp"),
    ("Raise to at least", "min_clamp"),
    ("Scale", "scale"),
    ("Ablate", "ablate"),
    ("Erase direction", "erase"),
]
PHASES = [("Everything", "all"), ("The prompt", "prompt"), ("What is written", "generated")]
KEYS = ("mode", "phase", "positions", "when", "norm", "tokens", "temperature", "top_p", "seed", "samples")
"""The words of an address for the settings, in their order; the features stand before them, as `features`."""


@dataclass(frozen=True)
class Settings:
    """The components that say how to steer; the features and their strengths are one text, such as `3=1,12=-2`."""

    features: gr.Textbox
    mode: gr.Radio
    phase: gr.Radio
    positions: gr.Textbox
    when: gr.Textbox
    keeps_norm: gr.Checkbox
    tokens: gr.Slider
    temperature: gr.Slider
    top_p: gr.Slider
    seed: gr.Number
    samples: gr.Slider

    @property
    def all(self) -> list[Any]:
        return [self.features, *self.chosen.values()]

    @property
    def chosen(self) -> dict[str, Any]:
        """All but the features by their words in the address."""
        given = (self.mode, self.phase, self.positions, self.when, self.keeps_norm)
        return dict(
            zip(KEYS, (*given, self.tokens, self.temperature, self.top_p, self.seed, self.samples), strict=True)
        )


def where_settings() -> tuple[Any, ...]:
    """Builds what says where a steering acts."""
    with gr.Accordion("Where it acts", open=False):
        phase = gr.Radio(PHASES, value="all", label="Part of the text", elem_id="steer-phase")
        with gr.Row():
            positions = gr.Textbox(
                label="Only at these positions",
                placeholder="all; or 0,3,-1; or 2:10",
                info="Among the text's tokens from 0; negative ones count from the prompt's end.",
                elem_id="steer-positions",
                min_width=220,
            )
            when = gr.Textbox(
                label="Only where these features are active",
                placeholder="always; or 12=0.1, 40=0.5",
                info="Feature = share of its maximum that it must have there.",
                elem_id="steer-when",
                min_width=220,
            )
        keeps_norm = gr.Checkbox(
            False, label="Give changed activations the length that they had", elem_id="steer-keeps-norm"
        )
    return phase, positions, when, keeps_norm


def writing_settings(most_tokens: int) -> tuple[Any, ...]:
    """Builds what says how the text is written."""
    with gr.Accordion("How the text is written", open=False), gr.Row():
        tokens = gr.Slider(1, most_tokens, value=60, step=1, label="Tokens", elem_id="steer-tokens", min_width=180)
        temperature = gr.Slider(
            0,
            2,
            value=0,
            step=0.05,
            label="Temperature",
            info="0 writes the likeliest token.",
            elem_id="steer-temperature",
            min_width=180,
        )
        top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top p", elem_id="steer-top-p", min_width=180)
        seed = gr.Number(0, precision=0, label="Seed", elem_id="steer-seed", min_width=120)
        samples = gr.Slider(
            1,
            MOST_SAMPLES,
            value=1,
            step=1,
            label="Samples",
            info="More than one needs a temperature.",
            elem_id="steer-samples",
            min_width=180,
        )
    return tokens, temperature, top_p, seed, samples


def spec_of(dictionary: Dictionary, limits: Limits, prompt: str, settings: Sequence[Any]) -> SteeringSpec:
    """Returns what the components say, checked.

    Raises:
        ValueError: a setting that does not fit, or more than this page does in one go.
    """
    from features import SteeringSpec
    from features.steering_spec import read_strengths

    features, mode, phase, positions, when, keeps_norm, tokens, temperature, top_p, seed, samples = settings
    strengths = read_strengths(features or "")
    if not strengths:
        raise ValueError("Add a feature first: search for one above, by its number or by words.")
    for name, got, most in (
        ("features", len(strengths), SLOTS),
        ("tokens to write", tokens or 0, limits.new_tokens),
        ("samples", samples or 0, MOST_SAMPLES),
    ):
        if got > most:
            raise ValueError(f"got {got:,} {name}, expected at most {most:,} on this page: use fewer")
    limits.check(prompt)
    try:
        conditions = read_strengths(when or "", WHEN_SHARE)
    except ValueError as error:
        raise ValueError(f"“Only where these features are active” {error}") from None
    return SteeringSpec(
        features=strengths,
        mode=mode,
        phase=phase,
        positions=positions or "",
        when=conditions,
        keeps_norm=bool(keeps_norm),
        prompt=prompt,
        max_new_tokens=int(tokens),
        temperature=float(temperature),
        top_p=float(top_p),
        seed=int(seed or 0),
        samples=int(samples),
        dictionary=dictionary.name,
        fingerprint=str(dictionary.info.get("fingerprint", "")),
    )


def values_of(spec: SteeringSpec) -> list[Any]:
    """Returns the values of `Settings.chosen` that say a spec."""
    from features.steering_spec import written_strengths

    where = [spec.mode, spec.phase, spec.positions, written_strengths(spec.when), spec.keeps_norm]
    return [*where, spec.max_new_tokens, spec.temperature, spec.top_p, spec.seed, spec.samples]


def values_in(words: Words, most_tokens: int) -> list[Any]:
    """Returns the values of `Settings.chosen` that an address names; what does not fit is left at its default."""
    return [
        choice(words, "mode", [value for _, value in MODES], "add"),
        choice(words, "phase", [value for _, value in PHASES], "all"),
        words.get("positions", "")[:200],
        words.get("when", "")[:200],
        words.get("norm") == "true",
        min(max(whole(words, "tokens") or 60, 1), most_tokens),
        _number(words, "temperature", 0.0, 0.0, 2.0),
        _number(words, "top_p", 1.0, 0.05, 1.0),
        whole(words, "seed") or 0,
        min(max(whole(words, "samples") or 1, 1), MOST_SAMPLES),
    ]


def strengths_in(dictionary: Dictionary, text: str) -> tuple[dict[int, float], list[str]]:
    """Returns the features that an address names, and why others of them are left out."""
    from features.steering_spec import read_strength

    kept: dict[int, float] = {}
    reasons: list[str] = []
    for part in text.split(",")[: 4 * SLOTS]:
        if not part.strip():
            continue
        try:
            feature, strength = read_strength(part.strip(), STRENGTH)
            if len(kept) == SLOTS:
                raise ValueError(f"feature {feature} is one too many, expected at most {SLOTS}: remove another first")
            check_feature(dictionary, feature, strength)
            kept[feature] = strength
        except ValueError as error:
            reasons.append(str(error))
    return kept, reasons


def check_feature(dictionary: Dictionary, feature: int, strength: float = STRENGTH) -> None:
    """ValueError where a feature cannot be steered: it does not exist, it is dead, its strength is no number."""
    from features import Steering

    Steering(dictionary, {feature: strength or STRENGTH}, "add")


def slider_reach(strength: float) -> int:
    """Returns how far a slider must go for a strength."""
    return max(WIDEST_STRENGTH, math.ceil(abs(strength)))


def _number(words: Words, key: str, default: float, low: float, high: float) -> float:
    try:
        given = float(words.get(key, default))
    except ValueError:
        return default
    return min(max(given, low), high) if math.isfinite(given) else default
