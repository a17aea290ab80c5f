"""The classic analyses of raw internals: one module per method, one call each, a frozen result with `.rows()` and
`.to_json()`.

Enters: a `LanguageModel` and a text (or its tokens, Int[1, seq]). Leaves: a result dataclass of numpy arrays. Names are
imported from their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activations.analyses.attention import AttentionComparison as AttentionComparison
    from activations.analyses.attention import AttentionPatterns as AttentionPatterns
    from activations.analyses.attention import attention_patterns as attention_patterns
    from activations.analyses.attention import compare_attention as compare_attention
    from activations.analyses.direct import DirectAttribution as DirectAttribution
    from activations.analyses.direct import direct_logit_attribution as direct_logit_attribution
    from activations.analyses.lens import LogitLens as LogitLens
    from activations.analyses.lens import logit_lens as logit_lens
    from activations.analyses.norms import ActivationNorms as ActivationNorms
    from activations.analyses.norms import NeuronActivations as NeuronActivations
    from activations.analyses.norms import activation_norms as activation_norms
    from activations.analyses.norms import neuron_activations as neuron_activations
    from activations.analyses.roles import HeadRoles as HeadRoles
    from activations.analyses.roles import head_roles as head_roles

_HOMES = {
    "ActivationNorms": "norms",
    "AttentionComparison": "attention",
    "AttentionPatterns": "attention",
    "DirectAttribution": "direct",
    "HeadRoles": "roles",
    "LogitLens": "lens",
    "NeuronActivations": "norms",
    "activation_norms": "norms",
    "attention_patterns": "attention",
    "compare_attention": "attention",
    "direct_logit_attribution": "direct",
    "head_roles": "roles",
    "logit_lens": "lens",
    "neuron_activations": "norms",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'activations.analyses' has no attribute {name!r}")
    return getattr(importlib.import_module(f"activations.analyses.{_HOMES[name]}"), name)
