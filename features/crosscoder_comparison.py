"""What a crosscoder says about two models: which features one has alone, which both share, which changed direction.

Enters: the opened dictionary of a crosscoder that reads one site of a base and of another model (`compare:SITE`).
Leaves: `ModelComparison`, a record a live feature and the counts of each kind.

Every latent has a decoder block in each model. With norms n₁ and n₂ the relative norm is n₂ / (n₁ + n₂): near 0 the
feature *vanished* from the second model, near 1 it *appeared* there; where both write it, the cosine of the blocks
tells *shared* from *turned*. An L1 penalty shrinks small blocks to zero and so calls features exclusive that are not:
for each feature of one model alone the table holds how much of its block the other model's blocks could write
(`nearest`): a high one is suspicious.

Sources: Lindsey et al. 2024, "Sparse crosscoders", section "Model diffing"; Minder et al. 2025, arXiv 2504.02922.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from features.dictionary import Dictionary
from features.records import Example
from sae.architectures.crosscoder import EXCLUSIVE_BELOW, SHARED_BELOW, decoder_blocks, norm_shares
from sae.geometry import nearest_rows

KINDS = ("vanished", "appeared", "turned", "between", "shared")
TURNED_BELOW = 0.5
"""Cosine between the two blocks of a shared feature below which its direction has changed."""


@dataclass(frozen=True)
class ModelFeature:
    """One live feature of the crosscoder."""

    feature: int
    kind: str
    """One of `KINDS`."""
    relative_norm: float
    """n₂ / (n₁ + n₂)."""
    cosine: float
    """Of the two decoder blocks."""
    nearest: float
    """Largest cosine of its longer block with any feature's block in the other model."""
    density: float
    max_activation: float
    share: float
    """Share of the dictionary's summed activation × decoder norm."""
    explanation: str
    examples: list[Example]


@dataclass(frozen=True)
class ModelComparison:
    """Two models as one crosscoder sees them."""

    name: str
    first: str
    second: str
    features: list[ModelFeature]
    """By kind in the order of `KINDS`, in each the features with most activation first."""

    def summary(self) -> list[dict[str, Any]]:
        """One record a kind: how many features, and their share of activation."""
        counts = Counter(entry.kind for entry in self.features)
        shares = {kind: sum(entry.share for entry in self.features if entry.kind == kind) for kind in KINDS}
        return [{"kind": kind, "features": counts[kind], "share": round(shares[kind], 4)} for kind in KINDS]

    def rows(self) -> list[dict[str, Any]]:
        """One record a feature, without examples."""
        return [{key: value for key, value in asdict(entry).items() if key != "examples"} for entry in self.features]

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"summary": self.summary()}, ensure_ascii=False)


@torch.no_grad()
def compare_models(dictionary: Dictionary, examples: int = 25) -> ModelComparison:
    """Compares the two models of a crosscoder's dictionary; `examples` features of each kind come with texts.

    Raises:
        ValueError: an SAE that is no crosscoder over two models.
    """
    sae = dictionary.sae
    second_sites = [site for site in sae.sites if site.startswith("compare:")]
    if sae.config.architecture != "crosscoder" or sae.config.n_sites != 2 or len(second_sites) != 1:
        raise ValueError(
            f"{dictionary.path} is of {sae.config.architecture} at {', '.join(sae.sites)}, expected a crosscoder over "
            "one site of two models (SITE and compare:SITE): give a second dictionary to compare with"
        )
    # the base model's block first, whatever the order of the sites
    order = [sae.sites.index(site) for site in sae.sites if site not in second_sites]
    order.append(sae.sites.index(second_sites[0]))
    blocks = decoder_blocks(sae).float().cpu()[:, order]
    relative = norm_shares(sae).float().cpu()[:, order][:, 1]
    first, second = blocks.unbind(1)
    cosine = torch.cosine_similarity(first, second, dim=1)
    is_second = relative > 0.5
    nearest = torch.where(is_second, nearest_rows(second, first)[0], nearest_rows(first, second)[0])
    facts = dictionary.store.query(
        "select feature, density, mean_activation * count * decoder_norm as weight, max_activation from features "
        "where count > 0 order by weight desc, feature"
    ).to_pylist()
    texts = dictionary.explanations_of([fact["feature"] for fact in facts]) if facts else {}
    total = sum(fact["weight"] for fact in facts) or 1.0
    shown = Counter[str]()
    found = []
    for fact in facts:
        feature = fact["feature"]
        kind = _kind(float(relative[feature]), float(cosine[feature]))
        shown[kind] += 1
        found.append(
            ModelFeature(
                feature=feature,
                kind=kind,
                relative_norm=float(relative[feature]),
                cosine=float(cosine[feature]),
                nearest=float(nearest[feature]),
                density=float(fact["density"]),
                max_activation=float(fact["max_activation"]),
                share=float(fact["weight"] / total),
                explanation=texts.get(feature, ""),
                examples=dictionary.examples(feature)[:2] if shown[kind] <= examples else [],
            )
        )
    found.sort(key=lambda entry: KINDS.index(entry.kind))
    second_model = str(sae.metadata.get("compare_model_name") or second_sites[0])
    return ModelComparison(dictionary.name, str(dictionary.info["model"]["name"]), second_model, found)


def _kind(relative: float, cosine: float) -> str:
    if relative < EXCLUSIVE_BELOW:
        return "vanished"
    if relative > 1 - EXCLUSIVE_BELOW:
        return "appeared"
    if abs(relative - 0.5) >= 0.5 - SHARED_BELOW:
        return "between"
    return "turned" if cosine < TURNED_BELOW else "shared"
