"""Whatever fails, and wherever: no analysis leaves a hook, a patch or a setting behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import build, tokenizer

from activations import LanguageModel
from activations.analyses import analyze
from activations.analyses.methods import METHODS

TEXT, OTHER = "def f(x):", "def g(y):"


class OnPurpose(Exception):
    """Raised in the middle of a pass."""


def state(lm: LanguageModel) -> dict[str, Any]:
    """All that an analysis could leave behind."""
    configs = {id(module.config): module.config for module in lm.model.modules() if hasattr(module, "config")}
    return {
        "hooks": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for name, module in lm.model.named_modules()
        },
        "methods": {
            name: sorted(key for key, value in vars(module).items() if isinstance(value, Callable) and key[0] != "_")
            for name, module in lm.model.named_modules()
        },
        "attention": [getattr(config, "_attn_implementation_internal", None) for config in configs.values()],
        "taps": len(lm.taps),
        "grad": torch.is_grad_enabled(),
        "gradients": [parameter.grad is None for parameter in lm.model.parameters()],
        "required": [parameter.requires_grad for parameter in lm.model.parameters()],
        "training": lm.model.training,
    }


def failing(real: Callable[..., Any], allowed: int) -> Callable[..., Any]:
    """A layer's forward that works `allowed` times."""
    passes = 0

    def fails(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes > allowed:
            raise OnPurpose
        return real(*args, **kwargs)

    return fails


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "bert"])
def test_nothing_survives_an_exception_in_any_method(family: str) -> None:
    """Each method is run on a model whose last layer fails at its third pass, and at its first."""
    lm = LanguageModel(build(family), tokenizer())
    own = lm.logits(lm.tokenize(TEXT).tokens)
    before = state(lm)
    layer = lm.site_map.stacks[-1].layers[-1]
    real = layer.forward
    for name, method in METHODS.items():
        for allowed in (0, 2):
            layer.forward = failing(real, allowed)
            try:
                analyze(lm, TEXT, [name], compare=OTHER if method.needs_compare else None, target="z")
            except (OnPurpose, ValueError):
                pass
            finally:
                del layer.forward
            assert state(lm) == before, f"{name} left something behind"
    assert torch.equal(lm.logits(lm.tokenize(TEXT).tokens), own)
