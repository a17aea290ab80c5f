"""The language model's side: models and their sites, tokens with provenance, harvesting, the activation store.

Names are imported from their modules on first use, so that `import activations` stays cheap.
"""

from __future__ import annotations

import importlib
import pathlib
import runpy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from activations.analyses.running import analyze as analyze
    from activations.capture import Intervention as Intervention
    from activations.corpus import DataConfig as DataConfig
    from activations.corpus import Document as Document
    from activations.corpus import documents as documents
    from activations.harvesting import HarvestConfig as HarvestConfig
    from activations.harvesting import harvest as harvest
    from activations.loading import ModelConfig as ModelConfig
    from activations.model import Activations as Activations
    from activations.model import LanguageModel as LanguageModel
    from activations.model import TokenBatch as TokenBatch
    from activations.outliers import WithoutOutliers as WithoutOutliers
    from activations.outliers import norm_limits as norm_limits
    from activations.outliers import within_limits as within_limits
    from activations.pairs import ModelPair as ModelPair
    from activations.sites import Site as Site
    from activations.sites import parse_site as parse_site
    from activations.store import ActivationStore as ActivationStore
    from activations.store import ResumableRows as ResumableRows
    from activations.streaming import stream as stream
    from activations.tokens import TokenRows as TokenRows
    from activations.tokens import pack_documents as pack_documents
    from activations.tokens import token_rows as token_rows

_HOMES = {
    "Activations": "model",
    "ActivationStore": "store",
    "DataConfig": "corpus",
    "Document": "corpus",
    "HarvestConfig": "harvesting",
    "Intervention": "capture",
    "LanguageModel": "model",
    "ModelConfig": "loading",
    "ModelPair": "pairs",
    "ResumableRows": "store",
    "Site": "sites",
    "TokenBatch": "model",
    "TokenRows": "tokens",
    "WithoutOutliers": "outliers",
    "analyze": "analyses.running",
    "documents": "corpus",
    "harvest": "harvesting",
    "iter_token_rows": "tokens",
    "norm_limits": "outliers",
    "pack_documents": "tokens",
    "parse_site": "sites",
    "stream": "streaming",
    "token_rows": "tokens",
    "within_limits": "outliers",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]

runpy.run_path(str(pathlib.Path(__file__).parents[1] / "configs" / "import_guard.py"))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'activations' has no attribute {name!r}")
    return getattr(importlib.import_module(f"activations.{_HOMES[name]}"), name)
