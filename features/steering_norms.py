"""How long an edit is beside what it is added to, told from strengths alone.

Enters: a `Steering`. Leaves: for each feature and for all together, the length of what is written as a share of the
activation's typical length: the median over rows of the indexed text, which are read once for a dictionary. Strengths
are comparable between features and between SAEs in this unit; beyond about 1 text usually falls apart.

What a mode writes depends on what is there already, so each is told where it writes most:

* add: everywhere the same, ‖strength · M · d‖
* clamp, min_clamp: where the feature is silent, ‖strength · M · d‖
* scale, ablate: where the feature is at its maximum M, ‖(strength − 1) · M · d‖ and ‖strength · M · d‖
* erase: the median over rows of the length of their part along the directions, times strength

Of several written sites the largest share counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from features import wiring
from features.steering import erased

if TYPE_CHECKING:
    from features.dictionary import Dictionary
    from features.steering import Steering

SAMPLED_DOCUMENTS = 8
SAMPLED_TOKENS = 64
"""Of each document."""


class TypicalRows(NamedTuple):
    """Rows of the indexed text, and the factor by which an SAE that rescales its rows writes."""

    rows: dict[str, Float[Tensor, "n d_out"]]
    """At each written site."""
    scale: float


class WrittenNorms(NamedTuple):
    """Lengths of what is written, as shares of the activation's typical length."""

    each: dict[int, float]
    together: float


@torch.no_grad()
def typical_rows(dictionary: Dictionary) -> TypicalRows:
    """Reads rows at the beginnings of documents from all over the indexed text; runs the model, briefly."""
    lm, sae = dictionary.lm, dictionary.sae
    documents = dictionary.text.documents
    chosen = np.unique(np.linspace(0, len(documents.ids) - 1, SAMPLED_DOCUMENTS).astype(np.int64)).tolist()
    sites = list(dict.fromkeys([dictionary.site, *wiring.written_sites(sae)]))
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    for row in chosen:
        first = int(documents.first_token[row])
        last = first + min(int(documents.n_tokens[row]), SAMPLED_TOKENS, lm.context_tokens)
        ids = torch.from_numpy(dictionary.text.column("token_id", first, last).astype(np.int64))[None]
        for site, x in lm.capture(ids, torch.ones_like(ids, dtype=torch.bool), sites).items():
            parts[site].append(x[0].flatten(1).float())
    rows = {site: torch.cat(part) for site, part in parts.items()}
    scale = 1.0
    if sae.config.normalize_activations in ("constant_norm_rescale", "layer_norm") and len(dictionary.sites) == 1:
        codes = sae.encode(rows[dictionary.site].to(sae.W_dec.device, sae.W_dec.dtype))
        scale = 1.0 if codes.scale is None else float(codes.scale.float().median())
    return TypicalRows({site: rows[site] for site in wiring.written_sites(sae)}, scale)


@torch.no_grad()
def written_norms(steering: Steering) -> WrittenNorms:
    """Returns how long the edits of a steering are at its strengths; cheap once the typical rows are known."""
    typical = steering.dictionary.typical_rows
    features = list(steering.strengths)
    strength = torch.tensor(list(steering.strengths.values()))
    maximum = torch.tensor([float(steering.dictionary.max_activations[feature]) for feature in features])
    amounts = (strength - 1 if steering.mode == "scale" else strength) * maximum * typical.scale
    each, together = torch.zeros(len(features)), 0.0
    for site, directions in wiring.write_directions(steering.dictionary.sae, features).items():
        rows = typical.rows[site]
        lengths = rows.norm(dim=1)
        usual = float(lengths.median().clamp(min=1e-12))
        d = directions.float().to(rows.device)
        if steering.mode == "erase":
            shares = torch.stack([_erased_length(rows, d[[place]]) for place in range(len(features))])
            each = torch.maximum(each, shares * strength.abs() / usual)
            together = max(together, float(_erased_length(rows, d) * strength[0].abs() / usual))
        else:
            each = torch.maximum(each, amounts.abs() * d.norm(dim=1).cpu() / usual)
            together = max(together, float((amounts.to(d.device) @ d).norm() / usual))
    return WrittenNorms(dict(zip(features, each.tolist(), strict=True)), together)


def _erased_length(rows: Float[Tensor, "n d"], directions: Float[Tensor, "f d"]) -> Tensor:
    """Returns the median length of the rows' part in the span of directions."""
    return erased(rows, directions, torch.ones(len(directions), device=rows.device)).norm(dim=1).median().cpu()
