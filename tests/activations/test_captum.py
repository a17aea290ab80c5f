"""Gradients, their integral, Shapley values and substitution agree with captum's on the same model and baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import attribute
from activations.analyses.gradients import gradients
from activations.analyses.targets import Metric

attr: Any = pytest.importorskip("captum.attr", reason="captum is a development dependency")
FIVE = ["gpt2", "gpt_neox", "llama", "gemma2", "bert"]
TEXT, OTHER = "f(x):", "qqqqq"


@pytest.fixture(scope="module", params=FIVE)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel(build(request.param), tokenizer())


def numbers(lm: LanguageModel) -> tuple[Metric, torch.Tensor, torch.Tensor]:
    """The number explained, the text's embeddings and the baseline's."""
    metric = Metric(lm, TEXT, "z", contrast="y")
    own, other = (lm.capture(lm.tokenize(text).tokens, None, ["embed"])["embed"] for text in (TEXT, OTHER))
    return metric, own, other


def test_integrated_gradients_agree(lm: LanguageModel) -> None:
    metric, own, other = numbers(lm)
    theirs = attr.IntegratedGradients(lambda rows: metric(metric.tokens.expand(len(rows), -1), rows)).attribute(
        own, other, n_steps=16, method="gausslegendre"
    )
    ours = attribute(lm, TEXT, "z", contrast="y", method="integrated_gradients", baseline=OTHER, steps=16)
    np.testing.assert_allclose(ours.scores, theirs.sum(-1)[0].detach(), atol=2e-6)


def test_gradients_agree(lm: LanguageModel) -> None:
    metric, own, _ = numbers(lm)
    theirs = attr.InputXGradient(lambda rows: metric(metric.tokens, rows)).attribute(own.clone().requires_grad_())
    ours = attribute(lm, TEXT, "z", contrast="y", method="gradient_x_input")
    np.testing.assert_allclose(ours.scores, theirs.sum(-1)[0].detach(), atol=2e-6)
    saliency = attr.Saliency(lambda rows: metric(metric.tokens, rows)).attribute(own.clone().requires_grad_())
    _, gradient = gradients(metric, own)
    np.testing.assert_allclose(gradient.abs(), saliency, atol=2e-6)


def test_shapley_values_agree(lm: LanguageModel) -> None:
    metric, own, other = numbers(lm)

    def forward(present: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            mixed = torch.where(present[..., None] > 0, own, other)
            return metric(metric.tokens.expand(len(present), -1), mixed)

    ones = torch.ones(1, len(TEXT))
    theirs = attr.ShapleyValues(forward).attribute(ones, baselines=0, perturbations_per_eval=5)
    ours = attribute(lm, TEXT, "z", contrast="y", method="shapley", how="exact", baseline=OTHER)
    np.testing.assert_allclose(ours.scores, theirs[0], atol=2e-6)


def test_substitution_agrees_with_feature_ablation(lm: LanguageModel) -> None:
    metric = Metric(lm, TEXT, "z", contrast="y")

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return metric(tokens)

    theirs = attr.FeatureAblation(forward).attribute(metric.tokens, baselines=lm.tokenize("q").tokens.item())
    ours = attribute(lm, TEXT, "z", contrast="y", method="substitution", substitute="q")
    np.testing.assert_allclose(ours.scores, theirs[0], atol=2e-6)
