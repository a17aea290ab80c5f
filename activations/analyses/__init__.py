"""The classic analyses of raw internals: one module per method, one call each, a frozen result with `.rows()` and
`.to_json()`.

Enters: a `LanguageModel` and a text (or its tokens, Int[1, seq]). Leaves: a result dataclass of numpy arrays. Names are
imported from their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activations.analyses.ablation import AblationComparison as AblationComparison
    from activations.analyses.ablation import ComponentAblation as ComponentAblation
    from activations.analyses.ablation import ablate_components as ablate_components
    from activations.analyses.ablation import compare_ablations as compare_ablations
    from activations.analyses.agreement import Agreement as Agreement
    from activations.analyses.agreement import DeletionCurve as DeletionCurve
    from activations.analyses.agreement import compare_methods as compare_methods
    from activations.analyses.agreement import deletion_curve as deletion_curve
    from activations.analyses.attention import AttentionComparison as AttentionComparison
    from activations.analyses.attention import AttentionPatterns as AttentionPatterns
    from activations.analyses.attention import AttentionRoutes as AttentionRoutes
    from activations.analyses.attention import attention_patterns as attention_patterns
    from activations.analyses.attention import attention_routes as attention_routes
    from activations.analyses.attention import compare_attention as compare_attention
    from activations.analyses.attribution import Attribution as Attribution
    from activations.analyses.attribution import attribute as attribute
    from activations.analyses.attribution_patching import AttributionPatching as AttributionPatching
    from activations.analyses.attribution_patching import PatchingAgreement as PatchingAgreement
    from activations.analyses.attribution_patching import attribute_patches as attribute_patches
    from activations.analyses.attribution_patching import patching_agreement as patching_agreement
    from activations.analyses.direct import DirectAttribution as DirectAttribution
    from activations.analyses.direct import direct_logit_attribution as direct_logit_attribution
    from activations.analyses.flow import StreamFlow as StreamFlow
    from activations.analyses.flow import stream_flow as stream_flow
    from activations.analyses.lens import LogitLens as LogitLens
    from activations.analyses.lens import logit_lens as logit_lens
    from activations.analyses.neurons import NeuronAttribution as NeuronAttribution
    from activations.analyses.neurons import NeuronLogits as NeuronLogits
    from activations.analyses.neurons import neuron_attribution as neuron_attribution
    from activations.analyses.neurons import neuron_logits as neuron_logits
    from activations.analyses.norms import ActivationNorms as ActivationNorms
    from activations.analyses.norms import NeuronActivations as NeuronActivations
    from activations.analyses.norms import activation_norms as activation_norms
    from activations.analyses.norms import neuron_activations as neuron_activations
    from activations.analyses.patching import ActivationPatching as ActivationPatching
    from activations.analyses.patching import NeuronEffect as NeuronEffect
    from activations.analyses.patching import patch_activations as patch_activations
    from activations.analyses.roles import HeadRoles as HeadRoles
    from activations.analyses.roles import head_roles as head_roles
    from activations.analyses.running import Analysis as Analysis
    from activations.analyses.running import analyze as analyze
    from activations.analyses.running import analyze_stepwise as analyze_stepwise
    from activations.analyses.targets import AtSite as AtSite
    from activations.analyses.targets import Continuation as Continuation
    from activations.analyses.tracing import CausalTrace as CausalTrace
    from activations.analyses.tracing import trace_fact as trace_fact
    from activations.analyses.tuned_lens import TunedLens as TunedLens
    from activations.analyses.tuned_lens import train_tuned_lens as train_tuned_lens

_HOMES = {
    "AblationComparison": "ablation",
    "ActivationNorms": "norms",
    "ActivationPatching": "patching",
    "Agreement": "agreement",
    "Analysis": "running",
    "AtSite": "targets",
    "AttentionComparison": "attention",
    "AttentionPatterns": "attention",
    "AttentionRoutes": "attention",
    "Attribution": "attribution",
    "AttributionPatching": "attribution_patching",
    "CausalTrace": "tracing",
    "ComponentAblation": "ablation",
    "Continuation": "targets",
    "DeletionCurve": "agreement",
    "DirectAttribution": "direct",
    "HeadRoles": "roles",
    "LogitLens": "lens",
    "NeuronActivations": "norms",
    "NeuronAttribution": "neurons",
    "NeuronLogits": "neurons",
    "NeuronEffect": "patching",
    "PatchingAgreement": "attribution_patching",
    "StreamFlow": "flow",
    "TunedLens": "tuned_lens",
    "ablate_components": "ablation",
    "activation_norms": "norms",
    "analyze": "running",
    "analyze_stepwise": "running",
    "attention_patterns": "attention",
    "attention_routes": "attention",
    "attribute": "attribution",
    "attribute_patches": "attribution_patching",
    "compare_ablations": "ablation",
    "compare_attention": "attention",
    "compare_methods": "agreement",
    "deletion_curve": "agreement",
    "direct_logit_attribution": "direct",
    "head_roles": "roles",
    "logit_lens": "lens",
    "neuron_activations": "norms",
    "neuron_attribution": "neurons",
    "neuron_logits": "neurons",
    "patch_activations": "patching",
    "patching_agreement": "attribution_patching",
    "stream_flow": "flow",
    "trace_fact": "tracing",
    "train_tuned_lens": "tuned_lens",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'activations.analyses' has no attribute {name!r}")
    return getattr(importlib.import_module(f"activations.analyses.{_HOMES[name]}"), name)
