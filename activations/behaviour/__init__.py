"""Behaviour: what can be said of a model from its answers alone, and what several models do on the same texts.

Enters: a black box (any callable from text to text, or to an `Answer` that knows probabilities; `Answering(lm)` makes
one of a `LanguageModel`) and texts. Leaves: frozen results with `.rows()` and `.to_json()`. Names are imported from
their modules on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activations.behaviour.answers import Answer as Answer
    from activations.behaviour.answers import Answering as Answering
    from activations.behaviour.answers import same_answer as same_answer
    from activations.behaviour.calibration import Calibration as Calibration
    from activations.behaviour.calibration import calibrate as calibrate
    from activations.behaviour.calibration import next_token_calibration as next_token_calibration
    from activations.behaviour.consistency import Consistency as Consistency
    from activations.behaviour.consistency import KnowledgeReport as KnowledgeReport
    from activations.behaviour.consistency import check_consistency as check_consistency
    from activations.behaviour.consistency import knowledge_boundaries as knowledge_boundaries
    from activations.behaviour.distributions import ConfidenceReport as ConfidenceReport
    from activations.behaviour.distributions import OutputComparison as OutputComparison
    from activations.behaviour.distributions import compare_outputs as compare_outputs
    from activations.behaviour.distributions import measure_confidence as measure_confidence
    from activations.behaviour.failures import FailureReport as FailureReport
    from activations.behaviour.failures import failure_report as failure_report
    from activations.behaviour.importance import PartImportance as PartImportance
    from activations.behaviour.importance import part_importance as part_importance
    from activations.behaviour.models import ModelsComparison as ModelsComparison
    from activations.behaviour.models import cka as cka
    from activations.behaviour.models import compare_models as compare_models
    from activations.behaviour.profile import ModelProfile as ModelProfile
    from activations.behaviour.profile import profile_model as profile_model
    from activations.behaviour.reasoning import ReasoningCheck as ReasoningCheck
    from activations.behaviour.reasoning import reasoning_faithfulness as reasoning_faithfulness
    from activations.behaviour.uncertainty import SelfCheck as SelfCheck
    from activations.behaviour.uncertainty import SemanticEntropy as SemanticEntropy
    from activations.behaviour.uncertainty import selfcheck as selfcheck
    from activations.behaviour.uncertainty import semantic_entropy as semantic_entropy

_HOMES = {
    "Answer": "answers",
    "Answering": "answers",
    "Calibration": "calibration",
    "ConfidenceReport": "distributions",
    "Consistency": "consistency",
    "FailureReport": "failures",
    "KnowledgeReport": "consistency",
    "ModelProfile": "profile",
    "ModelsComparison": "models",
    "OutputComparison": "distributions",
    "PartImportance": "importance",
    "ReasoningCheck": "reasoning",
    "SelfCheck": "uncertainty",
    "SemanticEntropy": "uncertainty",
    "calibrate": "calibration",
    "check_consistency": "consistency",
    "cka": "models",
    "compare_models": "models",
    "compare_outputs": "distributions",
    "failure_report": "failures",
    "knowledge_boundaries": "consistency",
    "measure_confidence": "distributions",
    "next_token_calibration": "calibration",
    "part_importance": "importance",
    "profile_model": "profile",
    "reasoning_faithfulness": "reasoning",
    "same_answer": "answers",
    "selfcheck": "uncertainty",
    "semantic_entropy": "uncertainty",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'activations.behaviour' has no attribute {name!r}")
    return getattr(importlib.import_module(f"activations.behaviour.{_HOMES[name]}"), name)
