"""The methods that `analyze` knows: one entry each, in the order in which they run.

To add a method: write its module (a function from a model and a text to a frozen result with `.rows()` and
`.to_json()`), give it an entry in `METHODS` here, and a `Drawing` of the same name under `ui.render.analyses`.

Enters: a `Question`, what all methods are asked about. Leaves: a method's own result, or `ValueError` in one line where
it cannot answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from activations.analyses import (
    ablation,
    agreement,
    attention,
    attribution,
    attribution_patching,
    direct,
    flow,
    lens,
    neurons,
    norms,
    patching,
    roles,
    tracing,
    tuned_lens,
)
from activations.analyses.targets import Metric, Target

if TYPE_CHECKING:
    from activations.model import LanguageModel


@dataclass(frozen=True)
class Question:
    """What all methods are asked about."""

    lm: LanguageModel
    text: str
    compare: str | None
    """A second text; never None for methods that need one."""
    metric: Metric
    """The target, resolved on the text."""
    target: Target
    """The target to pass on, so that all methods explain the same token."""
    contrast: str | int | None
    position: int | None
    done: dict[str, Any]
    """Results of the methods that ran before, by name."""

    @property
    def about(self) -> dict[str, Any]:
        """The keywords of methods that explain a target."""
        return {"target": self.target, "contrast": self.contrast, "position": self.position}


@dataclass(frozen=True)
class Setting:
    """One thing that can be chosen about a method: its type is that of `default`."""

    default: str | int | float
    about: str
    """What it is, in a few words for people; with its unit."""
    choices: tuple[str, ...] = ()
    """Usual values of a text."""
    least: float | None = None
    most: float | None = None
    """Bounds of a number on the page; a method may take more from Python."""


@dataclass(frozen=True)
class Method:
    """How a method is run."""

    run: Callable[..., Any]
    """Takes a `Question`, and its settings by name."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    needs_compare: bool = False
    """It needs a second text, and runs by itself where there is one."""
    on_request: bool = False
    """It runs only where it is named or has settings: it says nothing of this text, or takes long."""


def _attribution(name: str) -> Method:
    return Method(
        lambda asked, **own: attribution.attribute(asked.lm, asked.text, method=name, **asked.about, **own),
        _ATTRIBUTION_SETTINGS.get(name, {}),
    )


def _agreement(asked: Question) -> Any:
    found = {name: result for name, result in asked.done.items() if isinstance(result, attribution.Attribution)}
    return agreement.compare_methods(found)


def _patterns(asked: Question) -> Any:
    return asked.done.get("attention") or attention.attention_patterns(asked.lm, asked.text)


def _routes(asked: Question) -> Any:
    return attention.attention_routes(_patterns(asked), asked.metric.position)


def _compared(asked: Question) -> Any:
    assert asked.compare is not None
    return attention.compare_attention(_patterns(asked), attention.attention_patterns(asked.lm, asked.compare))


def _tuned_lens(asked: Question, file: str = "", top: int = 5) -> Any:
    if not file:
        raise ValueError("tuned_lens was asked for without a file, expected one: train it with `glassbox tuned-lens`")
    return lens.logit_lens(asked.lm, asked.text, top=top, lens=tuned_lens.TunedLens.load(file))


def _direct(asked: Question) -> Any:
    if isinstance(asked.target, (str, int)) and not asked.metric.is_classifier:
        return direct.direct_logit_attribution(
            asked.lm, asked.text, target=asked.target, contrast=asked.contrast, position=asked.metric.position
        )
    raise ValueError(f"the target is the {asked.metric.name}, expected a token: direct effects are on single logits")


def _two_texts(asked: Question) -> dict[str, Any]:
    """The target as methods of two texts take it: where no contrast is named, what the model says on the other."""
    about = asked.about
    if asked.contrast is None and isinstance(asked.target, (str, int)):
        other = Metric(asked.lm, asked.compare or "", position=asked.position).token
        about |= {"contrast": other if other is not None and other != asked.metric.token else None}
    return about


def _patching(asked: Question, *, places: str = "usual", **own: Any) -> Any:
    assert asked.compare is not None
    if places not in ("usual", "all"):
        raise ValueError(f"patching.places is {places!r}, expected usual or all: choose one of these")
    every = [
        name
        for name in patching.SITES
        if name in ("query", "key", "value", "pattern", "embed", "head_positions") or asked.lm.has_site(f"{name}.0")
    ]
    sites = patching.DEFAULT_SITES if places == "usual" else every
    return patching.patch_activations(asked.lm, asked.text, asked.compare, sites=sites, **_two_texts(asked), **own)


def _attribution_patching(asked: Question, **own: Any) -> Any:
    assert asked.compare is not None
    return attribution_patching.attribute_patches(asked.lm, asked.text, asked.compare, **_two_texts(asked), **own)


def _strategies(asked: Question) -> Any:
    references = None if asked.compare is None else [asked.compare]
    return ablation.compare_ablations(asked.lm, asked.text, references=references, **asked.about)


def _tracing(asked: Question, *, subject: str = "", **own: Any) -> Any:
    if not subject:
        raise ValueError("tracing was given no subject, expected words of the text: set tracing.subject")
    if asked.contrast is not None or not isinstance(asked.target, (str, int)):
        raise ValueError("tracing follows the probability of one token, expected no contrast: name a token alone")
    window = own.pop("window", 0)
    return tracing.trace_fact(
        asked.lm, asked.text, subject, asked.target, position=asked.position, window=window or None, **own
    )


_DIRECTION = Setting("denoise", "Restore the corrupt run, or corrupt the clean one", ("denoise", "noise"))
_BASELINE = Setting("pad", "What stands in place of tokens: pad, mean, zero, a token", ("pad", "mean", "zero"))
_ATTRIBUTION_SETTINGS: dict[str, dict[str, Setting]] = {
    "integrated_gradients": {
        "baseline": _BASELINE,
        "steps": Setting(32, "Points between the baseline and the text", least=1, most=256),
    },
    "shapley": {
        "how": Setting("auto", "How orders are asked about", ("auto", "exact", "permutation", "owen")),
        "players": Setting("tokens", "What comes and goes", ("tokens", "words")),
        "baseline": _BASELINE,
        "samples": Setting(16, "Orders drawn, in pairs", least=2, most=512),
        "seed": Setting(0, "Which orders are drawn", least=0, most=1_000_000),
    },
    "substitution": {
        "samples": Setting(8, "Tokens put in place of each", least=1, most=64),
        "seed": Setting(0, "Which tokens are drawn", least=0, most=1_000_000),
    },
}

ATTRIBUTIONS = tuple(attribution.METHODS)
"""What `attributions` stands for."""
METHODS: dict[str, Method] = {
    **{name: _attribution(name) for name in ATTRIBUTIONS},
    "agreement": Method(_agreement),
    "lens": Method(
        lambda asked, **own: lens.logit_lens(asked.lm, asked.text, **own),
        {"top": Setting(5, "Choices kept for each place", least=1, most=20)},
    ),
    "tuned_lens": Method(
        _tuned_lens,
        {
            "file": Setting("", "File of a trained lens"),
            "top": Setting(5, "Choices kept for each place", least=1, most=20),
        },
        on_request=True,
    ),
    "flow": Method(lambda asked: flow.stream_flow(asked.lm, asked.text)),
    "direct": Method(_direct),
    "attention": Method(lambda asked: attention.attention_patterns(asked.lm, asked.text)),
    "routes": Method(_routes),
    "ablation": Method(
        lambda asked, **own: ablation.ablate_components(asked.lm, asked.text, **asked.about, **own),
        {"how": Setting("mean", "What stands in place of a component's output", ("mean", "zero"))},
    ),
    "ablation_strategies": Method(_strategies, on_request=True),
    "tracing": Method(
        _tracing,
        {
            "subject": Setting("", "Words of the text whose embeddings are disturbed"),
            "noise": Setting(3.0, "Noise, in standard deviations of the embeddings", least=0, most=20),
            "samples": Setting(10, "Draws of noise", least=1, most=50),
            "window": Setting(0, "Layers restored together (0: 10, or half of them)", least=0, most=40),
        },
        on_request=True,
    ),
    "norms": Method(lambda asked: norms.activation_norms(asked.lm, asked.text)),
    "neurons": Method(
        lambda asked, **own: neurons.neuron_attribution(asked.lm, asked.text, **asked.about, **own),
        {
            "method": Setting(neurons.METHODS[0], "Scale a layer's neurons from 0, or one gradient", neurons.METHODS),
            "steps": Setting(neurons.STEPS, "Points between 0 and the activations", least=1, most=128),
        },
        on_request=True,
    ),
    "roles": Method(lambda asked: roles.head_roles(asked.lm), on_request=True),
    "patching": Method(
        _patching,
        {
            "direction": _DIRECTION,
            "places": Setting("usual", "Usual places, or also what lies inside of attention", ("usual", "all")),
            "neurons": Setting(0, "Single neurons, those that gradients rank first", least=0, most=200),
        },
        needs_compare=True,
    ),
    "attribution_patching": Method(
        _attribution_patching,
        {
            "direction": _DIRECTION,
            "steps": Setting(0, "Gradients along each site's way; 0: the tangent", least=0, most=64),
        },
        needs_compare=True,
        on_request=True,
    ),
    "compared_attention": Method(_compared, needs_compare=True),
}
"""In the order in which they run."""
